# SPDX-License-Identifier: Apache-2.0
"""What can be set about an answer, what may be asked, and the sizes that all is padded to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from thinkgen_jax.data import images
from thinkgen_jax.data.text import check_words
from thinkgen_jax.models.presets import System
from thinkgen_jax.sampling.reuse import Reuse, TaylorSeer, TeaCache
from thinkgen_jax.structs import Request

TASKS = ("draw", "reflect", "understand")
SOLVERS = ("euler", "dpm")
REUSES = ("none", "teacache", "taylorseer")
LEAST = 64  # shortest padded length in tokens; longer ones are this times a power of two
SEEDS = 2**32
STEPS = 1000  # no picture gains from more, and all times of a path are held at once
MOST = 1000.0  # no guidance scale or temperature beyond means anything


@dataclass(frozen=True)
class Settings:
    """How answers are made; `default` fills in what a system prefers.

    Attributes:
      steps: denoising steps, from 1 to `STEPS`.
      text_guidance, image_guidance: scales, 1 for none; the second acts with references only.
      start, end: share of the steps inside which guidance acts.
      solver: "euler", or "dpm" for DPM-Solver++ of order 2.
      reuse: "none"; "teacache" or "taylorseer" let steps do without the joint layers.
      threshold: of TeaCache, at least 0; larger skips more.
      negative: what guidance points away from; "" points away from the bare template.
      temperature, top_p, top_k: how thoughts and answers are drawn; temperature 0 is greedy.
      rounds: most repairs of a reflection.
      batch: most rows of one program.
    """

    steps: int
    text_guidance: float
    image_guidance: float
    negative: str
    start: float = 0.0
    end: float = 1.0
    solver: str = "euler"
    reuse: str = "none"
    threshold: float = 0.05
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    rounds: int = 1
    batch: int = 16


def default(system: System, **changes: object) -> Settings:
    """A system's own settings with changes; a change of None keeps the system's.

    Raises:
      ValueError: for an unknown name or a value out of its range.
    """
    own = Settings(
        system.steps, system.text_guidance, system.image_guidance, system.negative_prompt
    )
    given = {name: value for name, value in changes.items() if value is not None}
    unknown = sorted(set(given) - set(vars(own)))
    if unknown:
        raise ValueError(f"unknown settings {unknown}; known are {sorted(vars(own))}")
    made = replace(own, **given)
    for name in ("steps", "rounds", "batch"):
        if getattr(made, name) < 1:
            raise ValueError(f"--{name}={getattr(made, name)}, must be at least 1")
    if made.steps > STEPS:
        raise ValueError(f"--steps={made.steps}, must be at most {STEPS}")
    for name in ("text_guidance", "image_guidance", "temperature", "threshold"):
        if not 0 <= getattr(made, name) <= MOST:
            raise ValueError(f"--{name}={getattr(made, name)}, must lie in [0, {MOST:g}]")
    for name, known in (("solver", SOLVERS), ("reuse", REUSES)):
        if getattr(made, name) not in known:
            raise ValueError(f"--{name}={getattr(made, name)} is not one of {', '.join(known)}")
    if not 0 <= made.start <= made.end <= 1:
        raise ValueError(f"guidance from {made.start} to {made.end}: must rise inside [0, 1]")
    check_words(made.negative, "--negative", marker=system.marker)
    return made


def reuse_of(settings: Settings) -> Reuse | None:
    """How steps do without the joint layers, as the sampler takes it."""
    if settings.reuse == "teacache":
        return TeaCache(settings.threshold)
    return TaylorSeer() if settings.reuse == "taylorseer" else None


def check(request: Request, system: System) -> None:
    """Refuses a request that cannot be answered.

    Raises:
      ValueError: naming the value and its bound.
    """
    if not request.prompt.strip():
        raise ValueError("--prompt is empty: say what to draw")
    check_words(request.prompt, "--prompt", marker=system.marker)
    if request.task not in TASKS:
        raise ValueError(f"--task={request.task} is not one of {', '.join(TASKS)}")
    most = system.dit.max_references
    if len(request.images) > most:
        raise ValueError(f"{len(request.images)} pictures given (--image), at most {most}")
    for image in request.images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
            kind = f"{image.dtype} {image.shape}"
            raise ValueError(f"a picture is {kind}, want uint8 [height, width, 3], not empty")
    looks = request.task != "draw" or (request.think and request.images)
    if looks and system.mllm.vision is None:
        raise ValueError(f"--task={request.task}: this model has no eyes (model.mllm.vision)")
    if not 0 <= request.seed < SEEDS:
        raise ValueError(f"--seed={request.seed} must lie in [0, {SEEDS})")
    if request.size is not None:
        height, width = request.size
        if min(height, width) < 1 or height * width > images.MAX_PIXELS:
            raise ValueError(
                f"--size={height}x{width}: want sides of at least 1 and at most "
                f"{images.MAX_PIXELS} pixels in all"
            )


def condition_room(system: System) -> int:
    """Most condition tokens that leave rotary positions for prepadding and five references."""
    cfg = system.dit
    pictures = cfg.max_references * (max(system.image_size) // system.multiple)
    room = min(cfg.axes_lens) - cfg.num_prepad - pictures - 1
    return max(room, system.instruction_tokens)


def bucket(count: int, least: int = LEAST) -> int:
    """The smallest `least` times a power of two that holds `count`."""
    size = least
    while size < count:
        size *= 2
    return size


def filled(rows: Sequence) -> list:
    """Repeats the last row until the number of rows is a power of two."""
    return [*rows, *[rows[-1]] * (bucket(len(rows), 1) - len(rows))]


def chunks(rows: Sequence, size: int) -> list[Sequence]:
    """Cuts a sequence into parts of at most `size`."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]
