# SPDX-License-Identifier: Apache-2.0
"""What a run tells while it works: lines, a progress bar, `metrics.jsonl`, event files, pictures.

- Numbers are read one step late, when the device has long finished them: logging never waits.
- Everything is cut back to the commit a run goes on from, so that a run that was killed leaves the
  same record as one that was not.
- Files below the working directory: `log.txt`, `metrics.jsonl` (one row a step), `events/`
  (TensorBoard), `pictures/<name>/<step>.png`, with `--profile` `profile/` (TensorBoard, Perfetto).
- Numbers and pictures go to Weights & Biases as well where a project is named; its key and its
  address are its own business (`wandb login`), nothing of them is read or written here.
"""

import json
import logging
import math
import secrets
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tensorboardX import SummaryWriter
from tqdm import tqdm

from thinkgen_jax.structs import Tree

METRICS = "metrics.jsonl"
EVENTS = "events"
PICTURES = "pictures"
PROFILE, PROFILED = "profile", 3  # folder of a trace, and its steps
WANDB = "wandb.json"  # which run of Weights & Biases this one is
EXTRA = "launch/requirements-wandb.txt"
CELL = 160  # smaller pictures are enlarged to at least this side in a grid
WIDEST = 320  # larger ones are shrunk to this side
LINES = 10  # longest caption in lines
MARGIN = 8
FONT = 12  # pixels


def setup(workdir: str | Path | None = None, *, level: int = logging.INFO) -> logging.Logger:
    """Sends the package's log lines to the screen and, with `workdir`, to `<workdir>/log.txt`.

    Lines are printed above the progress bar instead of through it. A second call replaces what the
    first one set.

    Args:
      workdir: Folder of the run; it must exist.
      level: Least level that is shown.

    Returns:
      The logger of the package.
    """
    logger = logging.getLogger("thinkgen_jax")
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    logger.setLevel(level)
    logger.propagate = False
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every request
    stream = SimpleNamespace(write=lambda text: tqdm.write(text, sys.stderr, end=""))
    handlers: list[logging.Handler] = [logging.StreamHandler(stream)]
    if workdir is not None:
        handlers.append(logging.FileHandler(Path(workdir) / "log.txt", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    return logger


def note(line: str) -> None:
    """Tells the user one line, on the screen and in `log.txt`."""
    logging.getLogger("thinkgen_jax").info("%s", line)


class Writer:
    """Open log files of one run. Use as a context manager; leaving it writes what is pending."""

    def __init__(
        self,
        workdir: str | Path,
        *,
        start: int = 0,
        total: int | None = None,
        shown: Sequence[str] = (),
        active: bool = True,
        project: str | None = None,
        config: Mapping | None = None,
    ):
        """Opens the logs below `workdir` and cuts them back to step `start`.

        Args:
          workdir: Folder of the run.
          start: Finished steps the run goes on from; rows and pictures of later steps are removed.
          total: Steps the run will have, for the progress bar; None shows no bar.
          shown: Last parts of the names of the numbers that stand beside the bar.
          active: False makes every call a no-op: all processes but the first of a larger run.
          project: Project of Weights & Biases to log to as well; None logs nowhere else.
          config: What is shown there beside the curves.

        Raises:
          ValueError: a project is named, and Weights & Biases is not installed or refuses.
        """
        self.folder = Path(workdir)
        self._active = active
        self._pending: dict[int, dict[str, Tree]] = {}
        self._shown = tuple(shown)
        self._last: dict[str, float] = {}
        self._bar = self._wandb = None
        if not active:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if project is not None:
            self._wandb = Elsewhere(self.folder, project, dict(config or {}))
        truncate(self.folder, start)
        rows = read_metrics(self.folder)
        self._began = time.monotonic() - (rows[-1]["seconds"] if rows else 0.0)
        self._file = (self.folder / METRICS).open("a", encoding="utf-8")
        purge = start + 1 if start else None  # hides, in TensorBoard, the steps that come again
        self._events = SummaryWriter(str(self.folder / EVENTS), purge_step=purge)
        if total is not None:
            interval = 0.1 if sys.stderr.isatty() else 30.0  # a log file needs no animation
            self._bar = tqdm(total=total, initial=start, mininterval=interval, dynamic_ncols=True)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, step: int, values: Tree, prefix: str = "") -> None:
        """Takes the numbers of a step and writes those of earlier steps.

        Args:
          step: Number of finished steps, counted from 1; several calls for one step share its row.
          values: Nested dicts of numbers or 0-d arrays; arrays are read at a later step's call.
          prefix: Put before every name, with a slash.
        """
        if not self._active:
            return
        self._write_before(step)
        row = self._pending.setdefault(step, {"seconds": time.monotonic() - self._began})
        row.update(_named(values, prefix))

    def images(
        self, step: int, name: str, images: Sequence[np.ndarray], captions: Sequence[str]
    ) -> None:
        """Writes a captioned grid of pictures to `pictures/<name>/<step>.png` and the event file.

        Args:
          step: Number of finished steps.
          name: Name of the grid, e.g. "held_out".
          images: uint8 HWC, of any sizes.
          captions: One text for each picture, see `caption`.
        """
        if not self._active:
            return
        picture = grid(images, captions)
        save_png(self.folder / PICTURES / name / f"{step:07d}.png", picture)
        self._events.add_image(name, picture, step, dataformats="HWC")
        if self._wandb is not None:
            self._wandb.image(step, name, picture)

    def describe(self, text: str) -> None:
        """Puts a word before the progress bar, e.g. the phase."""
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)

    def flush(self) -> None:
        """Writes everything that is pending; call it before a commit."""
        if self._active:
            self._write_before(math.inf)
            self._events.flush()

    def close(self) -> None:
        """Writes everything that is pending and closes the files."""
        if not self._active:
            return
        self.flush()
        self._active = False
        self._file.close()
        self._events.close()
        if self._wandb is not None:
            self._wandb.close()
        if self._bar is not None:
            self._bar.close()

    def _write_before(self, step: int | float) -> None:
        for done in sorted(s for s in self._pending if s < step):
            row = {name: _number(value) for name, value in self._pending.pop(done).items()}
            # A row has no NaN: JSON does not know it.
            finite = {name: x if math.isfinite(x) else None for name, x in row.items()}
            self._file.write(json.dumps({"step": done, **finite}) + "\n")
            self._file.flush()
            told = {name: x for name, x in row.items() if math.isfinite(x)}
            for name, value in told.items():
                self._events.add_scalar(name, value, done)
            if self._wandb is not None:
                self._wandb.scalars(done, told)
            self._show(done, row)

    def _show(self, step: int, row: Mapping[str, float]) -> None:
        if self._bar is None:
            return
        last = {name.rsplit("/", 1)[-1]: x for name, x in row.items()}
        self._last.update({name: last[name] for name in self._shown if name in last})
        shown = {name: f"{x:.4g}" for name, x in self._last.items()}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)


def elsewhere(project: str):
    """The package of Weights & Biases.

    Raises:
      ValueError: when it is not installed.
    """
    try:
        import wandb
    except ImportError as err:
        line = f"config.log.wandb = {project!r} needs Weights & Biases: pip install -r {EXTRA}"
        raise ValueError(line) from err
    return wandb


class Elsewhere:
    """An open run of Weights & Biases; steps are a number of its own, for they come unordered.

    Rows that a killed run had written past its last commit stay there, beside their repetition.
    """

    def __init__(self, folder: Path, project: str, config: dict):
        """Opens a run called like the folder, or goes on with the one that the folder names.

        Raises:
          ValueError: when the package is missing or does not let us in.
        """
        wandb, path = elsewhere(project), folder / WANDB
        known = json.loads(path.read_text())["id"] if path.exists() else secrets.token_hex(8)
        # Neither the screen nor the working tree is any of its business.
        quiet = wandb.Settings(console="off", disable_git=True, save_code=False)
        where = dict(project=project, name=folder.name, id=known, resume="allow", dir=str(folder))
        try:
            self._run = wandb.init(**where, config=config, settings=quiet)
        except Exception as err:  # whatever it says of keys and networks
            said = (str(err).strip().splitlines() or [type(err).__name__])[0]
            raise ValueError(f"config.log.wandb = {project!r}: {said}") from err
        self._picture = wandb.Image
        self._run.define_metric("*", step_metric="step")
        write_text(path, json.dumps({"id": known}))

    def scalars(self, step: int, row: Mapping[str, float]) -> None:
        """Sends the numbers of a step."""
        self._run.log({**row, "step": step})

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Sends a picture, uint8 HWC."""
        self._run.log({f"pictures/{name}": self._picture(picture), "step": step})

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()


class Trace:
    """Traces `PROFILED` steps into `<workdir>/profile/`. Use as a context manager."""

    def __init__(self, workdir: str | Path, first: int | None):
        """Takes the first step to trace, counted from 0; None traces nothing."""
        self.folder, self.first, self._on = Path(workdir) / PROFILE, first, False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Begins with the first of the steps."""
        if step == self.first:
            jax.profiler.start_trace(str(self.folder))
            self._on = True

    def after(self, step: int, states: Tree) -> None:
        """Ends behind the last of the steps, once the device has done it."""
        if self._on and step + 1 == self.first + PROFILED:
            jax.block_until_ready(states)
            self._stop()

    def _stop(self) -> None:
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
            note(f"profile: {self.folder}; for TensorBoard or ui.perfetto.dev")


def truncate(workdir: str | Path, step: int) -> None:
    """Removes rows and pictures of later steps, and a last row that was cut off.

    Args:
      workdir: Folder of the run.
      step: Last step that stays.
    """
    path = Path(workdir) / METRICS
    if path.exists():
        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    for picture in (Path(workdir) / PICTURES).glob("*/*.png"):
        if picture.stem.isdecimal() and int(picture.stem) > step:
            picture.unlink()
    if step == 0:  # nothing of an earlier try is to be seen
        shutil.rmtree(Path(workdir) / EVENTS, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a file that appears at once: a process killed meanwhile leaves the one before."""
    temporary = Path(path).with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_metrics(workdir: str | Path) -> list[dict]:
    """Rows of `metrics.jsonl` in order; a last line that was cut off is left out."""
    path = Path(workdir) / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def caption(prompt: str, instruction: str = "", reward: float | int | None = None) -> str:
    """The text under a picture: what was asked, what was drawn, what it earned."""
    lines = [prompt]
    if instruction and instruction != prompt:
        lines.append(f"> {instruction}")
    if reward is not None:
        lines.append(f"reward {reward:.2f}")
    return "\n".join(lines)


def grid(
    images: Sequence[np.ndarray], captions: Sequence[str], *, columns: int | None = None
) -> np.ndarray:
    """Lays pictures out in rows on white, each with its text below.

    Small pictures are enlarged by a whole factor, so that every pixel stays a square.

    Args:
      images: uint8 [height, width, 3] each, at least one.
      captions: As many texts; wrapped to the picture's width and cut after `LINES` lines.
      columns: Pictures in a row; None makes the grid about square, at most 8 wide.

    Returns:
      One uint8 picture.

    Raises:
      ValueError: no picture, or not one text for each.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"{len(images)} pictures with {len(captions)} captions: want equal, >= 1")
    columns = columns or min(8, math.ceil(math.sqrt(len(images))))
    columns = min(columns, len(images))
    pictures = [_fit(Image.fromarray(image)) for image in images]
    width = max(max(picture.width for picture in pictures), CELL)
    font = ImageFont.load_default(FONT)
    texts = [_wrap(text, font, width) for text in captions]
    height = FONT + 3
    rows = range(0, len(images), columns)
    tops, y = [], MARGIN
    for row in rows:
        tops.append(y)
        tallest = max(picture.height for picture in pictures[row : row + columns])
        lines = max(len(text) for text in texts[row : row + columns])
        y += tallest + 4 + lines * height + 2 * MARGIN
    sheet = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, y), "white")
    draw = ImageDraw.Draw(sheet)
    for row, top in zip(rows, tops, strict=True):
        tallest = max(picture.height for picture in pictures[row : row + columns])
        for i in range(row, min(row + columns, len(images))):
            x = MARGIN + (i - row) * (width + MARGIN)
            sheet.paste(pictures[i], (x, top))
            for line, text in enumerate(texts[i]):
                draw.text((x, top + tallest + 4 + line * height), text, fill="black", font=font)
    return np.asarray(sheet)


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Writes a uint8 HWC picture, complete or not at all; folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    Image.fromarray(image).save(temporary, format="PNG")
    temporary.replace(path)


def _fit(picture: Image.Image) -> Image.Image:
    side = max(picture.size)
    if side > WIDEST:
        size = tuple(max(1, round(x * WIDEST / side)) for x in picture.size)
        return picture.resize(size, Image.Resampling.LANCZOS)
    factor = math.ceil(CELL / side)
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            line = word
            while font.getlength(line) > width:  # one word wider than the picture
                cut = next(n for n in range(len(line), 0, -1) if font.getlength(line[:n]) <= width)
                lines.append(line[:cut])
                line = line[cut:]
        lines.append(line)
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], "..."]


def _named(values: Tree, prefix: str) -> dict[str, Tree]:
    leaves = jax.tree_util.tree_leaves_with_path(values)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    start = f"{prefix}/" if prefix else ""
    return {start + name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}


def _number(value: Tree) -> float:
    return float(np.asarray(value))
