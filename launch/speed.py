# SPDX-License-Identifier: Apache-2.0
"""Ours beside PyTorch: `python -m launch.speed [--sizes=nano,mid] [--rows=...] [--json=PATH]`.

Same weights, inputs, threads and process tree, float32, on CPU. Every row first checks that both
sides agree, with the tolerance it states, then times them in turn and prints PyTorch time / our
time: the median over pairs, its range, and the ratio of the best runs. Both sides are warm; our
compilation is no part of a time, nor is `torch.compile`'s.

PyTorch is a dependency of these scripts alone: torch, transformers and diffusers come from
.ci/requirements.txt, the package needs none of them. What runs on their side is in launch/peers/.
"""

import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app, flags

from launch import measure
from thinkgen_jax import cache, sharding

NEEDED = ("torch", "transformers", "diffusers")
SIZES = flags.DEFINE_list("sizes", "nano,mid", "nano (shipped weights), mid (random weights).")
ROWS_FLAG = flags.DEFINE_list("rows", None, "Rows to run; default all.")
PAIRS = flags.DEFINE_integer("pairs", None, "Pairs of a row; default is each row's own.")
THREADS = flags.DEFINE_integer("threads", None, "Cores of both sides; default all.")
JSON = flags.DEFINE_string("json", None, "File for all numbers.")
CHANGE = flags.DEFINE_multi_string("set", [], "Changes a setting of all chosen rows: steps=10.")


class Row(NamedTuple):
    """One line of the table.

    Attributes:
      title: what is timed.
      function: "module:function" of (size, settings, pairs) -> Outcome.
      sizes: size to (settings, pairs, floor); the floor is the ratio that is expected, or None.
    """

    title: str
    function: str
    sizes: Mapping[str, tuple[dict[str, Any], int, float | None]]


# At mid size one guided forward of 32 pictures of 256 pixels takes half a minute on two cores, so
# iterations there draw smaller pictures in fewer steps; --set=steps=10 and so on undoes it.
NANO_PATHS = dict(prompts=4, group=8, steps=8, pixels=64, parts=1, warm=1)
MID_PATHS = dict(prompts=4, group=8, steps=2, pixels=128, parts=4, warm=0)
# Two stochastic steps somewhere in the first half, what is before them shared by the group; no
# guidance, no reference, log-probabilities of the rollout.
FAST = dict(window=(0, 5), width=2, shared=True, keep_old=True, scale=1.0, kl=0.0)
COUNTED = {"PyTorch's default": dict(steps=10), "our recipe": dict(steps=10, **FAST)}
ROWS = {
    "dit": Row(
        "DiT forward, PyTorch eager",
        "launch.contests:forward",
        {"mid": (dict(batch=4, words=40, compiled=False), 5, 1.0)},
    ),
    "dit_compiled": Row(
        "DiT forward, torch.compile",
        "launch.contests:forward",
        {"mid": (dict(batch=4, words=40, compiled=True), 5, None)},
    ),
    "sampling": Row(
        "guided sampling, one picture",
        "launch.contests:sampling",
        {"nano": (dict(batch=1, steps=20, repeat=3), 5, 3.0)},
    ),
    "sampling_batch": Row(
        "guided sampling, a batch",
        "launch.contests:sampling",
        {
            "nano": (dict(batch=16, steps=20), 5, 1.3),
            "mid": (dict(batch=2, steps=20), 3, 1.1),
        },
    ),
    "decode": Row(
        "greedy decoding of a group",
        "launch.contests:writing",
        {
            "nano": (dict(group=8, tokens=128), 5, 5.0),
            "mid": (dict(group=8, tokens=128), 3, 1.0),
        },
    ),
    "vae": Row(
        "autoencoder's decoder",
        "launch.contests:painting",
        {"nano": (dict(batch=16), 5, None), "mid": (dict(batch=2), 3, None)},
    ),
    "flow_grpo": Row(
        "Flow-GRPO iteration, equal settings",
        "launch.iterations:paths",
        {"nano": (NANO_PATHS, 3, 2.0), "mid": (MID_PATHS, 1, 1.1)},
    ),
    "flow_grpo_fast": Row(
        "Flow-GRPO iteration, our recipe against PyTorch's default",
        "launch.iterations:paths",
        {
            "nano": (NANO_PATHS | dict(steps=10, recipe=FAST), 3, 6.0),
            "mid": (MID_PATHS | dict(prompts=1, steps=10, recipe=FAST, parts=1), 1, 4.0),
        },
    ),
    "mllm_grpo": Row(
        "MLLM-GRPO iteration",
        "launch.iterations:thoughts",
        {"nano": (NANO_PATHS | dict(steps=20), 3, 2.0), "mid": (MID_PATHS, 1, 1.1)},
    ),
    "forward_equivalents": Row(
        "DiT forwards per training picture",
        "launch.costs:forward_equivalents",
        {"nano": (dict(prompts=2, group=24, pixels=64, parts=1, recipes=COUNTED), 1, None)},
    ),
    "logprob_memory": Row(
        "temporary memory of log-probabilities, MiB by vocabulary",
        "launch.costs:logprob_memory",
        {"nano": (dict(batch=4, length=256, vocabularies=(32768, 131072, 524288)), 1, None)},
    ),
    "first_step": Row(
        "main job's first step, programs compiled anew and kept",
        "launch.costs:first_step",
        {"nano": (dict(evaluate=2), 1, None)},
    ),
}


def chosen(sizes: Sequence[str], names: Sequence[str] | None) -> list[tuple[str, str]]:
    """(row, size) of everything to run, in the order of the table.

    Raises:
      ValueError: for an unknown row or size, or when nothing is left.
    """
    known = list(dict.fromkeys(size for row in ROWS.values() for size in row.sizes))
    for flag, given, allowed in (("sizes", sizes, known), ("rows", names or (), list(ROWS))):
        unknown = [name for name in given if name not in allowed]
        if unknown:
            raise ValueError(f"--{flag}: {unknown} is not in {allowed}")
    found = [
        (name, size)
        for name, row in ROWS.items()
        for size in row.sizes
        if size in sizes and (not names or name in names)
    ]
    if not found:
        raise ValueError(f"--rows={names} has no row at --sizes={list(sizes)}")
    return found


def changed(settings: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Settings with `name=value` changes of those that a row has.

    Raises:
      ValueError: for a change that is no `name=number`.
    """
    out = dict(settings)
    for change in changes:
        name, _, value = change.partition("=")
        if not value.isdecimal():
            raise ValueError(f"--set={change}: want name=number")
        if name in out:
            out[name] = int(value)
    return out


def run_row(name: str, size: str, pairs: int | None, changes: Sequence[str]) -> dict[str, Any]:
    """Checks and times one row; everything about it as one flat record."""
    row = ROWS[name]
    settings, count, floor = row.sizes[size]
    settings = changed(settings, changes)
    module, _, function = row.function.partition(":")
    begun, load = time.monotonic(), measure.load()
    found = getattr(importlib.import_module(module), function)(size, settings, pairs or count)
    record = {"row": name, "size": size, "title": row.title, "settings": settings, "floor": floor}
    record |= {"agreed": found.agreed, "load": load, "more": found.more}
    record |= measure.summary(found.pairs) if found.pairs else {}
    record["each"] = [list(pair) for pair in found.pairs]
    record["took_s"] = round(time.monotonic() - begun, 1)
    return record


def line(record: Mapping[str, Any]) -> str:
    """One row of the table."""
    if "ratio" in record:
        floor = "" if record["floor"] is None else f"{record['floor']:g}"
        ratio = f"**{record['ratio']:.2f}** [{record['ratio_min']:.2f}, {record['ratio_max']:.2f}]"
        times = f"{_time(record['ours_s'])} / {_time(record['theirs_s'])}"
        others = [f"{record['ratio_best']:.2f}", f"{record['ratio_cpu']:.2f}"]
        cells = [ratio, *others, floor, times, str(record["pairs"])]
    else:
        cells = [""] * 6
    details = record["settings"] | record["more"]
    how = ", ".join(f"{name} {_short(value)}" for name, value in details.items())
    agreed = "; ".join(record["agreed"])
    head = [record["title"], record["size"], *cells, how, agreed, str(record["load"][0])]
    return "| " + " | ".join(head) + " |"


HEAD = (
    *("row", "size", "PyTorch / ours [range]", "best", "CPU", "floor", "ours / PyTorch", "pairs"),
    *("settings", "agreement", "load"),
)


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """All rows as Markdown."""
    head = "| " + " | ".join(HEAD) + " |\n|" + " --- |" * len(HEAD)
    return "\n".join([head, *map(line, records)])


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: list[str]) -> None:
    """Command line.

    Raises:
      SystemExit: for unknown rows or sizes, where PyTorch is missing, and where sides disagree.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"error: {', '.join(missing)} not installed; this compares with PyTorch: "
            "pip install -r .ci/requirements.txt"
        )
    try:
        jobs = chosen(SIZES.value, ROWS_FLAG.value)
        if len(argv) > 1 or (PAIRS.value or 1) < 1:
            raise ValueError(f"arguments {argv[1:]}, --pairs={PAIRS.value}: want none, and >= 1")
        changed({}, CHANGE.value)
        if not 1 <= (THREADS.value or 1) <= (os.cpu_count() or 1):
            raise ValueError(f"--threads={THREADS.value}: must lie in [1, {os.cpu_count()}]")
    except ValueError as err:
        raise SystemExit(f"error: {err}") from None
    threads = _prepare(THREADS.value or os.cpu_count() or 1)
    about = measure.machine(threads)
    warning = measure.others(about["load_before"])
    print(json.dumps(about), warning, sep="\n" if warning else "", flush=True)
    records, failed = [], []
    with jax.set_mesh(sharding.make_mesh()):
        for number, (name, size) in enumerate(jobs, start=1):
            print(f"[{number}/{len(jobs)}] {name} {size} ...", file=sys.stderr, flush=True)
            try:
                records.append(run_row(name, size, PAIRS.value, CHANGE.value))
                print(line(records[-1]), flush=True)
            except ValueError as err:
                failed.append(f"{name} {size}: {err}")
                print(f"error: {failed[-1]}", file=sys.stderr, flush=True)
            _write(JSON.value, about, records, failed)
    print(f"\n{table(records)}")
    if failed:
        raise SystemExit("error: " + "; ".join(failed))


def _write(path: str | None, about: Mapping, records: Sequence, failed: Sequence[str]) -> None:
    """All numbers so far: a table that is interrupted keeps its rows."""
    if path:
        found = {"machine": {**about, "load_after": measure.load()}, "rows": records}
        text = json.dumps({**found, "failed": failed}, indent=2)
        Path(path).write_text(text + "\n", encoding="utf-8")


def _prepare(threads: int) -> int:
    """CPU and as many cores on both sides; returns the number of PyTorch's threads.

    XLA takes the cores that the process may use, so this comes before its first program.
    """
    if threads < (os.cpu_count() or 1):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    import torch
    import transformers

    jax.config.update("jax_platforms", "cpu")
    cache.enable()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    return torch.get_num_threads()


if __name__ == "__main__":
    app.run(main)
