# SPDX-License-Identifier: Apache-2.0
"""Measures a system: `python -m thinkgen_jax.evaluate --benchmark=miniature --count=64`.

One table on the screen, one JSON file with every sample's scores. Official benchmarks
(`--benchmark=geneval --prompts=PATH --out=FOLDER`) draw into a folder of their own form, go on when
started again, and are scored by `--judge` or `--detector` where they need one.
"""

import contextlib
import json
import time
from pathlib import Path

import jax
from absl import flags

from thinkgen_jax import __version__, bench, cache, cli, logs
from thinkgen_jax.bench import official
from thinkgen_jax.pipeline import ThinkGen, default
from thinkgen_jax.pipeline.settings import Settings
from thinkgen_jax.rewards.remote import Client, Service

THINK = {"both": (False, True), "yes": (True,), "no": (False,)}

FLAGS = cli.values()
BENCHMARK = flags.DEFINE_enum(
    "benchmark",
    "miniature",
    sorted({**bench.BENCHMARKS, **bench.OFFICIAL}),
    "What to run.",
    flag_values=FLAGS,
)
PROMPTS = flags.DEFINE_string(
    "prompts", None, "Your copy of an official benchmark's files.", flag_values=FLAGS
)
LIMIT = flags.DEFINE_integer(
    "limit", 0, "First prompts of an official benchmark only; 0 for all.", flag_values=FLAGS
)
JUDGE = flags.DEFINE_list(
    "judge", [], "Addresses of an OpenAI-compatible judge, with /v1.", flag_values=FLAGS
)
JUDGE_MODEL = flags.DEFINE_string("judge_model", None, "Its model.", flag_values=FLAGS)
JUDGE_KEY = flags.DEFINE_string(
    "judge_key", "OPENAI_API_KEY", "Environment variable with its key.", flag_values=FLAGS
)
DETECTOR = flags.DEFINE_list(
    "detector", [], "Addresses of a detector's reward server.", flag_values=FLAGS
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
OUT = flags.DEFINE_string(
    "out", "evaluation.json", "The JSON file; an official benchmark's folder.", flag_values=FLAGS
)
PICTURES = flags.DEFINE_string(
    "pictures", None, "A PNG sheet of some pictures; default none.", flag_values=FLAGS
)


def run() -> dict:
    """Measures, prints and writes; returns what was written.

    Raises:
      ValueError: for anything a user can put right, before anything is drawn where possible.
    """
    is_official = BENCHMARK.value in bench.OFFICIAL
    out = Path(WORKDIR.value) / OUT.value
    _check(out) if is_official else _writable(out, "--out")
    if PICTURES.value is not None:
        _writable(Path(WORKDIR.value) / PICTURES.value, "--pictures")
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
    start = time.monotonic()
    outcome = (_official if is_official else _own)(model, settings, out)
    about = bench.ABOUT.get(BENCHMARK.value, {})
    found = {
        "benchmark": BENCHMARK.value,
        **about,
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
    out = out / "result.json" if is_official else out
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if PICTURES.value is not None and outcome.pictures:
        sheet = logs.grid(*zip(*outcome.pictures, strict=True))
        logs.save_png(Path(WORKDIR.value) / PICTURES.value, sheet)
    print(outcome.table())
    print(f"\n{out}")
    return found


def _own(model: ThinkGen, settings: Settings, out: Path):
    """One of our benchmarks."""
    chosen = {} if SCENARIOS.value is None else {"scenarios": tuple(SCENARIOS.value)}
    return bench.BENCHMARKS[BENCHMARK.value](
        model,
        count=COUNT.value,
        think=THINK[THINKS.value],
        seed=SEED.value,
        settings=settings,
        **chosen,
    )


def _official(model: ThinkGen, settings: Settings, out: Path) -> official.Outcome:
    """An official benchmark, with what scores it."""
    with contextlib.ExitStack() as stack:
        tools = official.Tools()
        if JUDGE.value:
            judge = Service(tuple(JUDGE.value), model=JUDGE_MODEL.value, key=JUDGE_KEY.value)
            tools = tools._replace(judge=stack.enter_context(Client("judge", judge)))
        if DETECTOR.value:
            service = Service(tuple(DETECTOR.value))
            tools = tools._replace(detector=stack.enter_context(Client("detector", service)))
        return official.run(
            bench.OFFICIAL[BENCHMARK.value],
            model,
            prompts=Path(PROMPTS.value),
            out=out,
            think=THINK[THINKS.value],
            seed=SEED.value,
            settings=settings,
            tools=tools,
            limit=LIMIT.value,
            about={"checkpoint": CHECKPOINT.value or "shipped", "start": START.value},
        )


def _check(out: Path) -> None:
    """Refuses an official benchmark that could not be run, before anything is loaded."""
    if PROMPTS.value is None:
        raise ValueError(f"--benchmark={BENCHMARK.value} needs --prompts, your copy of its files")
    if not FLAGS["out"].present or out.is_file():
        raise ValueError(f"--out={out}: --benchmark={BENCHMARK.value} needs a folder")
    if JUDGE.value and not JUDGE_MODEL.value:
        raise ValueError("--judge needs --judge_model: numbers depend on who judged")
    if LIMIT.value < 0:
        raise ValueError(f"--limit={LIMIT.value}: must be at least 0")
    benchmark, prompts = bench.OFFICIAL[BENCHMARK.value], Path(PROMPTS.value)
    tasks = benchmark.read(prompts)
    official.check(tasks, out)
    some, tools = tasks[: LIMIT.value or None], dict(judge=JUDGE.value, detector=DETECTOR.value)
    official.can_score(benchmark, prompts, some, **tools)
    out.mkdir(parents=True, exist_ok=True)
    _writable(out / "result.json", "--out")


def _writable(path: Path, flag: str) -> None:
    """Refuses a file that cannot be written, before an hour is spent on what goes into it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open("a"):
            pass
        if is_new:  # it may stay unwritten
            path.unlink()
    except OSError as err:
        raise ValueError(f"{flag}={path} cannot be written: {err.strerror}") from err


if __name__ == "__main__":
    cli.start(
        FLAGS, run, interrupted="interrupted; an official benchmark goes on when started again"
    )
