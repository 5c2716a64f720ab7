# SPDX-License-Identifier: Apache-2.0
"""Draws or answers: `python -m thinkgen_jax.generate --prompt="a picture of a red circle"`.

Writes a PNG and, beside it, a JSON with thought, instruction and settings. With `--requests` each
line of a file is a request of its own; `--out` is then a folder.

    {"prompt": "make it blue", "image": ["cat.png"], "think": false, "seed": 3, "size": "64x64"}
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from absl import flags

from thinkgen_jax import __version__, cache, cli
from thinkgen_jax.data import files, images
from thinkgen_jax.pipeline import Settings, ThinkGen, check, default
from thinkgen_jax.pipeline.loading import DTYPES
from thinkgen_jax.pipeline.settings import REUSES, SOLVERS
from thinkgen_jax.structs import Request, Result

TASKS = ("draw", "reflect", "understand")
PICTURE_FILE = "picture.png"  # where --out names none
KEYS = ("prompt", "image", "task", "think", "size", "seed")  # of one line of --requests

FLAGS = cli.values()
PROMPT = flags.DEFINE_string(
    "prompt", None, "What to draw, how to edit, or what to answer.", flag_values=FLAGS
)
IMAGE = flags.DEFINE_multi_string(
    "image", [], "A reference picture; may be repeated.", flag_values=FLAGS
)
REQUESTS = flags.DEFINE_string(
    "requests", None, f"JSONL file of requests; keys {KEYS}.", flag_values=FLAGS
)
SEVERAL = flags.DEFINE_integer(
    "images_per_prompt", 1, "Pictures of each request, with seeds one by one.", flag_values=FLAGS
)
THINK = flags.DEFINE_bool("think", True, "Reason before drawing.", flag_values=FLAGS)
TASK = flags.DEFINE_enum(
    "task", "draw", TASKS, "reflect: draw, look, repair; understand: answer.", flag_values=FLAGS
)
SIZE = flags.DEFINE_string(
    "size",
    None,
    "Height x width, e.g. 64x64; default the system's, or that of the first picture.",
    flag_values=FLAGS,
)
SEED = flags.DEFINE_integer("seed", 0, "Of noise and sampled thoughts.", flag_values=FLAGS)
STEPS = flags.DEFINE_integer(
    "steps", None, "Denoising steps; default the system's.", flag_values=FLAGS
)
TEXT = flags.DEFINE_float(
    "text_guidance", None, "Text guidance scale; default the system's.", flag_values=FLAGS
)
PICTURE = flags.DEFINE_float(
    "image_guidance", None, "Image guidance scale; default the system's.", flag_values=FLAGS
)
START = flags.DEFINE_float(
    "guidance_start", 0.0, "Share of the steps before which guidance rests.", flag_values=FLAGS
)
END = flags.DEFINE_float(
    "guidance_end", 1.0, "Share of the steps behind which guidance rests.", flag_values=FLAGS
)
SOLVER = flags.DEFINE_enum(
    "solver", "euler", SOLVERS, "dpm: DPM-Solver++ of order 2.", flag_values=FLAGS
)
REUSE = flags.DEFINE_enum(
    "reuse", "none", REUSES, "Steps that skip the DiT's joint layers.", flag_values=FLAGS
)
THRESHOLD = flags.DEFINE_float(
    "threshold", 0.05, "Of --reuse=teacache; larger skips more.", flag_values=FLAGS
)
NEGATIVE = flags.DEFINE_string(
    "negative", None, "Negative prompt; default the system's.", flag_values=FLAGS
)
TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.0, "Of thoughts and answers; 0 is greedy.", flag_values=FLAGS
)
ROUNDS = flags.DEFINE_integer("rounds", 1, "Most repairs of --task=reflect.", flag_values=FLAGS)
OUT = flags.DEFINE_string(
    "out",
    None,
    "PNG file, default picture.png, or a folder for it; always a folder with --requests.",
    flag_values=FLAGS,
)
WORKDIR = flags.DEFINE_string("workdir", ".", "Where --out is, if not absolute.", flag_values=FLAGS)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Run or folder; default the shipped weights.", flag_values=FLAGS
)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", DTYPES, "Of parameters and activations.", flag_values=FLAGS
)
MARKER = flags.DEFINE_string(
    "marker", None, "Token before the instruction; default the system's.", flag_values=FLAGS
)
PARITY = flags.DEFINE_bool(
    "parity",
    False,
    "Round, sample and resize as the release does; see presets.as_released.",
    flag_values=FLAGS,
)


@dataclass(frozen=True)
class Asked:
    """A request with where its answer goes and what was changed about its pictures."""

    request: Request
    path: Path  # of the PNG
    sources: tuple[str, ...]
    notes: tuple[str, ...]
    where: str = ""  # its line of --requests, for errors


def run() -> list[Result]:
    """Answers all requests; every line is checked before the first is drawn.

    Raises:
      ValueError: for anything a user can put right.
    """
    asked = _asked()
    cache.enable()
    model = ThinkGen.from_pretrained(
        CHECKPOINT.value, dtype=DTYPE.value, parity=PARITY.value, marker=MARKER.value
    )
    settings = default(
        model.parts.system,
        steps=STEPS.value,
        text_guidance=TEXT.value,
        image_guidance=PICTURE.value,
        start=START.value,
        end=END.value,
        solver=SOLVER.value,
        reuse=REUSE.value,
        threshold=THRESHOLD.value,
        negative=NEGATIVE.value,
        temperature=TEMPERATURE.value,
        rounds=ROUNDS.value,
    )
    for one in asked:
        with _told(one.where):
            check(one.request, model.parts.system)
    model = ThinkGen(model.parts, model.params, settings)
    results = []
    for start in range(0, len(asked), settings.batch):  # what is drawn is written at once
        results += _answer(model, asked[start : start + settings.batch], settings)
    return results


def _answer(model: ThinkGen, asked: Sequence[Asked], settings: Settings) -> list[Result]:
    begun = time.monotonic()
    results = model.generate([one.request for one in asked])
    seconds = (time.monotonic() - begun) / len(asked)
    for one, result in zip(asked, results, strict=True):
        _write(one, result, settings, seconds)
    return results


def _asked() -> list[Asked]:
    """The requests of the command line or of the file."""
    if (PROMPT.value is None) == (REQUESTS.value is None):
        raise ValueError("give either --prompt or --requests")
    flags_ = {
        "prompt": PROMPT.value,
        "image": IMAGE.value,
        "task": TASK.value,
        "think": THINK.value,
        "size": SIZE.value,
        "seed": SEED.value,
    }
    if REQUESTS.value is None:
        path = _picture()
        _folder(path.parent)
        return list(_copies(_make(flags_, path)))
    folder, name = Path(WORKDIR.value) / (OUT.value or "pictures"), f"--requests={REQUESTS.value}"
    _folder(folder)
    asked = []
    for count, (line, fields) in enumerate(files.objects(_text(), name), start=1):
        where = f"{name}, line {line}: "
        with _told(where):
            made = _make({**flags_, **_checked(fields)}, folder / f"{count:04}.png")
            asked += _copies(replace(made, where=where))
    if not asked:
        raise ValueError(f"{name} holds no request")
    return asked


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Puts where a request stands before what is wrong with it."""
    try:
        yield
    except ValueError as err:
        raise ValueError(f"{where}{err}") from err


def _picture() -> Path:
    """The file of `--out`; in a folder, the usual name."""
    out = OUT.value or PICTURE_FILE
    path = Path(WORKDIR.value) / out
    if out.endswith("/") or path.is_dir():
        return path / PICTURE_FILE
    path = path if path.suffix else path.with_suffix(".png")
    if path.suffix != ".png" or path.is_dir():
        raise ValueError(f"--out={path}: want the name of a .png file, or a folder")
    return path


def _copies(asked: Asked) -> Iterator[Asked]:
    """A request as often as each is drawn: `cat.png`, or `cat-1.png`, `cat-2.png`, ..."""
    count = SEVERAL.value
    if count < 1:
        raise ValueError(f"--images_per_prompt={count}, must be at least 1")
    if count == 1:
        yield asked
        return
    if asked.request.task == "understand":
        raise ValueError(f"--images_per_prompt={count}: --task=understand gives one answer")
    for n in range(count):
        request = replace(asked.request, seed=asked.request.seed + n)
        path = asked.path.with_stem(f"{asked.path.stem}-{n + 1}")
        yield replace(asked, request=request, path=path)


def _text() -> str:
    try:
        return Path(REQUESTS.value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ValueError(f"--requests={REQUESTS.value} cannot be read: {err}") from err


def _checked(fields: dict) -> dict:
    """The fields of one line of `--requests`, each of its kind."""
    unknown = sorted(set(fields) - set(KEYS))
    if unknown:
        raise ValueError(f"unknown keys {unknown}; known are {list(KEYS)}")
    kinds = {"prompt": str, "task": str, "think": bool, "seed": int}
    for name, kind in kinds.items():
        if name in fields and type(fields[name]) is not kind:
            raise ValueError(f"{name}={fields[name]!r} is no {kind.__name__}")
    if isinstance(fields.get("image"), str):
        fields["image"] = [fields["image"]]
    names = fields.get("image", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"image={names!r} is no path or list of paths")
    return fields


def _make(fields: dict, path: Path) -> Asked:
    """Opens a request's pictures and reads its size."""
    sources = tuple(map(str, fields["image"] or ()))
    prompt = fields["prompt"] or ""
    request, notes = ThinkGen.request(
        prompt,
        sources,
        task=fields["task"],
        think=fields["think"],
        size=_size(fields["size"]),
        seed=fields["seed"],
    )
    return Asked(request, path, sources, notes)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, cross, width = str(text).lower().partition("x")
    if not cross or not height.strip().isdecimal() or not width.strip().isdecimal():
        raise ValueError(f"--size={text}: want height x width in pixels, e.g. 64x64")
    return int(height), int(width)


def _folder(path: Path) -> None:
    """Makes the folder of the answers, and refuses one that cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ValueError(f"--out: folder {path} cannot be made: {err.strerror}") from err
    if not os.access(path, os.W_OK):
        raise ValueError(f"--out: folder {path} cannot be written")


def _write(one: Asked, result: Result, settings: Settings, seconds: float) -> None:
    """Writes PNG and JSON, and tells what matters on the screen."""
    warning = "; ".join(filter(None, (*one.notes, result.warning)))
    request = one.request
    about = {
        "prompt": request.prompt,
        "images": list(one.sources),
        "task": request.task,
        "think": request.think,
        "thought": result.thought,
        "instruction": result.instruction,
        "response": result.text,
        "warning": warning,
        "picture": None if result.image is None else one.path.name,
        "size": None if result.image is None else list(result.image.shape[:2]),
        "seed": request.seed,
        "settings": {**vars(settings), "dtype": DTYPE.value, "parity": PARITY.value},
        "marker": MARKER.value or "default",
        "checkpoint": CHECKPOINT.value or "shipped",
        "seconds": round(seconds, 2),
        "version": __version__,
    }
    try:
        if result.image is not None:
            images.save(one.path, result.image)
        said = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
        # A file's name may be no text: JSON spells its bytes.
        one.path.with_suffix(".json").write_text(said, "utf-8", "backslashreplace")
    except OSError as err:
        raise ValueError(f"--out={one.path} cannot be written: {err.strerror}") from err
    if result.thought:
        print(f"thought: {result.thought}")
    label = "answer" if request.task == "understand" else "instruction"
    print(f"{label}: {result.instruction}")
    if warning:
        print(f"note: {warning}", file=sys.stderr)
    print(one.path if result.image is not None else one.path.with_suffix(".json"))


if __name__ == "__main__":
    cli.start(FLAGS, run, interrupted="interrupted; what was drawn is written")
