# SPDX-License-Identifier: Apache-2.0
"""Side by side: pairs of runs, what they say, and on which machine.

A shared machine's speed wanders by more than the difference that is asked for, so every figure is a
ratio of two runs that follow each other; which side goes first alternates. Processor time stands
beside wall time: on one thread (`--threads=1`), where nobody waits for anybody, its ratio hardly
depends on what else the machine does. On several threads waiting counts as work, for PyTorch most.
"""

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from thinkgen_jax.structs import Sample

VERSIONS = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "diffusers", "numpy")
BUSY = 0.5  # processes per core that others may keep busy before the load is pointed out


class Pair(NamedTuple):
    """Wall and processor seconds of two runs, one right after the other."""

    ours: float
    theirs: float
    ours_cpu: float
    theirs_cpu: float


def seconds(run: Callable[[], object], repeat: int = 1) -> tuple[float, float]:
    """Wall and processor time of one of `repeat` runs, which must wait for their own results."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeat):
        run()
    return (time.perf_counter() - wall) / repeat, (time.process_time() - cpu) / repeat


def pairs(
    ours: Callable[[], object], theirs: Callable[[], object], count: int, *, repeat: int = 1
) -> list[Pair]:
    """Times both sides `count` times, in turn; both must be warm.

    Args:
      repeat: runs that make one time, for what takes only milliseconds.
    """
    out = []
    for turn in range(count):
        sides = (theirs, ours) if turn % 2 else (ours, theirs)
        first, second = (seconds(side, repeat) for side in sides)
        mine, other = (second, first) if turn % 2 else (first, second)
        out.append(Pair(mine[0], other[0], mine[1], other[1]))
    return out


def summary(found: Sequence[Pair]) -> dict[str, float]:
    """PyTorch time / our time: median over pairs with the range, and of the best runs.

    The best runs are those that the machine disturbed least.
    """
    ratios = [pair.theirs / pair.ours for pair in found]
    best = min(p.ours for p in found), min(p.theirs for p in found)
    return {
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ratio_best": best[1] / best[0],
        "ratio_cpu": statistics.median(pair.theirs_cpu / pair.ours_cpu for pair in found),
        "ours_s": statistics.median(p.ours for p in found),
        "theirs_s": statistics.median(p.theirs for p in found),
        "ours_best_s": best[0],
        "theirs_best_s": best[1],
        "pairs": len(found),
    }


def machine(threads: int) -> dict[str, Any]:
    """What a figure depends on besides the code."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in VERSIONS},
        "cpus": os.cpu_count(),
        "torch_threads": threads,
        "load_before": load(),
        "platform": jax.default_backend(),
    }


def load() -> list[float]:
    """Load averages of 1, 5 and 15 minutes."""
    return [round(x, 2) for x in os.getloadavg()]


def others(before: Sequence[float]) -> str:
    """A warning where other work shares the cores; "" where the machine was idle."""
    per_core = before[0] / (os.cpu_count() or 1)
    if per_core <= BUSY:
        return ""
    return (
        f"load {before[0]} on {os.cpu_count()} cores before the first row: other work shares them. "
        "PyTorch's threads wait for each other in every operation and lose most, so ratios of wall "
        "time flatter us; take those of processor time with --threads=1"
    )


def gap(ours: object, theirs: object) -> float:
    """Largest absolute difference.

    Raises:
      ValueError: for different shapes.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {a.shape} and {b.shape}")
    return float(np.abs(a - b).max())


def agree(what: str, found: float, bound: float) -> str:
    """One line for the table; equality comes before speed.

    Raises:
      ValueError: when the sides differ by more than the bound, or by what is not a number.
    """
    if not found <= bound:
        raise ValueError(f"{what}: ours and PyTorch's differ by {found:.3g}, allowed is {bound:g}")
    return f"{what} {found:.1g} <= {bound:g}"


@contextmanager
def overheard(module: ModuleType, maker: str) -> Iterator[list]:
    """Keeps arguments and result of the first call of the step that `module.maker` makes.

    So a peer learns from exactly what ours learned from. The first argument is donated by such
    steps: a copy on the host is kept.
    """
    kept: list = []
    make = getattr(module, maker)

    def making(*settings):
        step = make(*settings)

        def heard(state, *rest):
            if kept:
                return step(state, *rest)
            before = jax.tree.map(np.array, state.params)
            out = step(state, *rest)
            kept.extend([before, rest, jax.tree.map(np.array, out[0].params), out[1]])
            return out

        return heard

    setattr(module, maker, making)
    try:
        yield kept
    finally:
        setattr(module, maker, make)


def redness(samples: Sequence[Sample]) -> np.ndarray:
    """A reward that costs nothing on either side: the mean of the red channel, in [0, 1]."""
    return red_of(np.stack([sample.image for sample in samples]))


def red_of(images: np.ndarray) -> np.ndarray:
    """Mean red of uint8 pictures [B, height, width, 3]."""
    return (images[..., 0].mean(axis=(1, 2)) / 255).astype(np.float32)
