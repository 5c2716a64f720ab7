# SPDX-License-Identifier: Apache-2.0
"""Measures a system: `python -m thinkgen_jax.evaluate --benchmark=miniature --count=64`.

One table on the screen, one JSON file with every sample's scores.
"""

import json
import time
from pathlib import Path

import jax
from absl import flags

from thinkgen_jax import __version__, bench, cache, cli, logs
from thinkgen_jax.pipeline import ThinkGen, default

THINK = {"both": (False, True), "yes": (True,), "no": (False,)}

FLAGS = cli.values()
BENCHMARK = flags.DEFINE_enum(
    "benchmark", "miniature", sorted(bench.BENCHMARKS), "What to run.", flag_values=FLAGS
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Run or folder; default the shipped weights.", flag_values=FLAGS
)
START = flags.DEFINE_list(
    "start", [], "Trees taken as they were at the start of the run.", flag_values=FLAGS
)
COUNT = flags.DEFINE_integer("count", 64, "Exercises per scenario.", flag_values=FLAGS)
THINKS = flags.DEFINE_enum(
    "think", "both", sorted(THINK), "With a thought, without, or both.", flag_values=FLAGS
)
SCENARIOS = flags.DEFINE_list(
    "scenarios", None, "Scenarios by name; default all.", flag_values=FLAGS
)
STEPS = flags.DEFINE_integer(
    "steps", None, "Denoising steps; default the system's.", flag_values=FLAGS
)
TEXT = flags.DEFINE_float(
    "text_guidance", None, "Text guidance scale; default the system's.", flag_values=FLAGS
)
IMAGE = flags.DEFINE_float(
    "image_guidance", None, "Image guidance scale; default the system's.", flag_values=FLAGS
)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Of thoughts; 0 is greedy.", flag_values=FLAGS)
BATCH = flags.DEFINE_integer("batch", 32, "Rows of one program.", flag_values=FLAGS)
SEED = flags.DEFINE_integer(
    "seed", 0, "Of the noise; the exercises are always the same.", flag_values=FLAGS
)
WORKDIR = flags.DEFINE_string(
    "workdir", ".", "Where --out and --pictures are, if not absolute.", flag_values=FLAGS
)
OUT = flags.DEFINE_string("out", "evaluation.json", "The JSON file.", flag_values=FLAGS)
PICTURES = flags.DEFINE_string(
    "pictures", None, "A PNG sheet of some pictures; default none.", flag_values=FLAGS
)


def run() -> dict:
    """Measures, prints and writes; returns what was written.

    Raises:
      ValueError: for anything a user can put right, before anything is drawn where possible.
    """
    out = Path(WORKDIR.value) / OUT.value
    _writable(out)
    cache.enable()
    model = ThinkGen.from_pretrained(CHECKPOINT.value, start=START.value)
    settings = default(
        model.parts.system,
        steps=STEPS.value,
        text_guidance=TEXT.value,
        image_guidance=IMAGE.value,
        temperature=TEMPERATURE.value,
        batch=BATCH.value,
    )
    chosen = {} if SCENARIOS.value is None else {"scenarios": tuple(SCENARIOS.value)}
    start = time.monotonic()
    outcome = bench.BENCHMARKS[BENCHMARK.value](
        model,
        count=COUNT.value,
        think=THINK[THINKS.value],
        seed=SEED.value,
        settings=settings,
        **chosen,
    )
    found = {
        "benchmark": BENCHMARK.value,
        **bench.ABOUT[BENCHMARK.value],
        "checkpoint": CHECKPOINT.value or "shipped",
        "start": START.value,
        "preset": model.parts.system.name,
        "seed": SEED.value,
        "settings": vars(settings),
        "seconds": round(time.monotonic() - start, 1),
        "device": jax.devices()[0].device_kind,
        "version": __version__,
        "rows": outcome.summary(),
    }
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if PICTURES.value is not None and outcome.pictures:
        sheet = logs.grid(*zip(*outcome.pictures, strict=True))
        logs.save_png(Path(WORKDIR.value) / PICTURES.value, sheet)
    print(outcome.table())
    print(f"\n{out}")
    return found


def _writable(path: Path) -> None:
    """Refuses a file that cannot be written, before an hour is spent on what goes into it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
    except OSError as err:
        raise ValueError(f"--out={path} cannot be written: {err.strerror}") from err


if __name__ == "__main__":
    cli.start(FLAGS, run)
