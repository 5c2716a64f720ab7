# SPDX-License-Identifier: Apache-2.0
"""What the official benchmarks share: draw into their folders, go on, ask judges, make one table.

A benchmark reads its prompt files from the user's copy, says where each picture goes, and scores
the folder; it never looks at the model. Below `--out`:
  <mode>/               "think" or "no-think"; what the benchmark's own scripts want lies in it
  <mode>/run.json       what the pictures were drawn with and from; another run, or another copy of
                        the prompts, is refused the folder
  <mode>/thoughts.jsonl what was thought and which words conditioned the DiT, a line a picture
  <mode>/answers.jsonl  what a judge or detector said, a line an answer, with model and date

* The same line again goes on: a picture that is there is not drawn, an answer not asked for again.
* Seeds are a function of (seed, prompt, copy): a picture does not depend on what else is drawn.
* A score stands for all pictures of the benchmark; of a part of it only parts are told.
"""

import datetime
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from thinkgen_jax import logs, pipeline, report
from thinkgen_jax.data import files, images
from thinkgen_jax.data.records import inside
from thinkgen_jax.pipeline import ThinkGen
from thinkgen_jax.pipeline.settings import Settings
from thinkgen_jax.rewards.remote import Client, Failed
from thinkgen_jax.structs import Params, Request

MODES = {True: "think", False: "no-think"}
RUN, THOUGHTS, ANSWERS = "run.json", "thoughts.jsonl", "answers.jsonl"
SHOWN = 16  # pictures of a run's sheet
PATIENCE = 16  # questions without an answer, one behind the other, after which nobody is asked


class Task(NamedTuple):
    """One prompt of a benchmark.

    Attributes:
      paths: where its pictures go, below the folder of a mode.
      sources: pictures to be edited.
      meta: the official record of the prompt.
    """

    key: str
    prompt: str
    paths: tuple[str, ...]
    meta: dict
    sources: tuple[Path, ...] = ()


class Tools(NamedTuple):
    """What scores: a judge's and a detector's connection, None where there is none."""

    judge: Client | None = None
    detector: Client | None = None


class Score(NamedTuple):
    """What came of one mode.

    Attributes:
      overall: the number of the published tables; None where pictures or parts are missing.
      parts: by column of the published tables.
      about: what must stand beside it: judge, reader, protocol, counts.
    """

    overall: float | None
    parts: dict[str, float]
    about: dict[str, object]


class Published(NamedTuple):
    """A number of others: with or without thinking, from where, and by which protocol."""

    name: str
    overall: float
    parts: dict[str, float]
    source: str
    note: str = ""
    think: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's rules.

    Attributes:
      read: (the user's copy) -> tasks.
      score: (folder of a mode, tasks, the user's copy, tools) -> score.
      needs: what scoring takes: "judge", "detector" or "reader".
      prepare: writes what lies beside the pictures, before they are drawn.
      finish: writes what is made of the pictures, when all are there.
      ready: refuses a copy, or a machine, that lacks what scoring these tasks reads.
      total: prompts of the whole benchmark.
      protocol: what must be known to compare numbers.
    """

    title: str
    read: Callable[[Path], list[Task]]
    score: Callable[[Path, Sequence[Task], Path, Tools], Score]
    needs: str
    total: int
    protocol: str
    published: tuple[Published, ...] = ()
    prepare: Callable[[Path, Sequence[Task]], None] | None = None
    finish: Callable[[Path, Sequence[Task]], None] | None = None
    ready: Callable[[Path, Sequence[Task]], object] | None = None


@dataclass(frozen=True)
class Outcome:
    """Scores of a benchmark by mode, beside the published ones."""

    benchmark: Benchmark
    scores: dict[str, Score | None]
    pictures: tuple[tuple[np.ndarray, str], ...] = ()
    notes: tuple[str, ...] = field(default=())

    def table(self) -> str:
        """Overall scores without and with thinking, ours above the published ones; then the parts.

        A second table has a line a part, for ours and for those others whose parts are known.
        """
        found = {mode: score for mode, score in self.scores.items() if score is not None}
        modes = [MODES[False], MODES[True]]
        ours = (_cell(found[m].overall) if m in found else "" for m in modes)
        rows: dict[tuple, list[str]] = {("ours", "", ""): list(ours)}
        for one in self.benchmark.published:
            row = rows.setdefault((one.name, one.source, one.note), ["", ""])
            row[one.think] = _cell(one.overall)
        head = (self.benchmark.title, *modes, "source", "note")
        whole = [(name, *row, source, note) for (name, source, note), row in rows.items()]
        lines = [report.table(head, whole), *self._parts(found)]
        return "\n\n".join([*lines, self.benchmark.protocol, *self.notes])

    def _parts(self, found: Mapping[str, Score]) -> list[str]:
        """The table of parts; nothing where there is none."""
        names = list(dict.fromkeys(name for score in found.values() for name in score.parts))
        columns = {f"ours, {m}": found[m].parts for m in reversed(MODES.values()) if m in found}
        for one in self.benchmark.published:
            if any(name in one.parts for name in names):
                columns[f"{one.name}, {MODES[True]}" if one.think else one.name] = one.parts
        rows = [(name, *(_cell(parts.get(name)) for parts in columns.values())) for name in names]
        return [report.table(("part", *columns), rows)] if rows else []

    def summary(self) -> list[dict]:
        """One JSON-able row a mode."""
        return [
            {"mode": mode, "scored": score is not None, **(score._asdict() if score else {})}
            for mode, score in self.scores.items()
        ]


def run(
    benchmark: Benchmark,
    model: ThinkGen,
    *,
    prompts: Path,
    out: Path,
    think: Sequence[bool],
    seed: int,
    settings: Settings,
    tools: Tools,
    limit: int = 0,
    about: Mapping[str, object] | None = None,
) -> Outcome:
    """Draws what is missing and scores what can be scored.

    Args:
      prompts: the user's copy of the benchmark, a folder or file.
      limit: first prompts only; 0 for all.
      about: what else the pictures depend on, e.g. the checkpoint; kept in run.json.

    Raises:
      ValueError: for a copy that cannot be read, a folder of another run, or answers that could
        not be had; what was drawn and said stays.
    """
    tasks = benchmark.read(prompts)
    check(tasks, out)
    asked = {"benchmark": benchmark.title, "prompts": digest(tasks)}
    asked["weights"] = weights_of(model.params)  # a run's folder holds others after some steps
    tasks = tasks[:limit] if limit else tasks
    is_scored = can_score(benchmark, prompts, tasks, **tools._asdict())
    scores, notes, shown = {}, [], []
    for thinks in think:
        folder = out / MODES[thinks]
        how = {name: x for name, x in vars(settings).items() if name != "batch"}  # changes nothing
        made = {**asked, "seed": seed, "settings": how, **(about or {})}
        claim(folder, json.loads(json.dumps(made)))
        if benchmark.prepare is not None:
            benchmark.prepare(folder, tasks)
        shown += draw(model, folder, tasks, think=thinks, seed=seed, settings=settings)
        if benchmark.finish is not None:
            benchmark.finish(folder, tasks)
        scores[MODES[thinks]] = None
        if not is_scored:
            notes.append(f"{folder} holds the pictures; scoring them needs --{benchmark.needs}=URL")
            continue
        scores[MODES[thinks]] = benchmark.score(folder, tasks, prompts, tools)
    if len(tasks) < benchmark.total:
        notes.append(f"{len(tasks)} of {benchmark.total} prompts: not comparable with others")
    return Outcome(benchmark, scores, tuple(shown[:SHOWN]), tuple(notes))


def check(tasks: Sequence[Task], out: Path) -> None:
    """Refuses tasks whose pictures would lie outside the folder, or one on another.

    Raises:
      ValueError: naming the prompt.
    """
    seen: dict[str, str] = {}
    for task in tasks:
        for path in task.paths:
            try:
                inside(out, path)
            except (ValueError, PermissionError) as err:
                raise ValueError(f"--prompts: the picture of {task.key!r}: {err}") from None
            if path in seen:
                raise ValueError(f"--prompts: {task.key!r} is there twice")
            seen[path] = task.key


def digest(tasks: Sequence[Task]) -> str:
    """What tells one copy of the prompts from another: their words, order and sources."""
    said = [(t.key, t.prompt, t.paths, [path.name for path in t.sources]) for t in tasks]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def weights_of(params: Params) -> str:
    """What tells one set of weights from another: some numbers of every array."""
    told = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        row = leaf[(0,) * (leaf.ndim - 1)][:64] if leaf.ndim else leaf
        told.update(np.asarray(row).tobytes())
    return told.hexdigest()[:16]


def claim(folder: Path, made: dict) -> None:
    """Takes a folder for pictures drawn with these settings.

    Raises:
      ValueError: when it holds those of others, naming what differs.
    """
    path = folder / RUN
    if path.exists():
        before, now = (report.flatten(x) for x in (json.loads(path.read_text()), made))
        changed = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
        if changed:
            told = ", ".join(f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in changed[:5])
            raise ValueError(f"--out={folder.parent} holds pictures of another run ({told})")
    folder.mkdir(parents=True, exist_ok=True)
    logs.write_text(path, json.dumps(made, indent=1) + "\n")


def draw(
    model: ThinkGen,
    folder: Path,
    tasks: Sequence[Task],
    *,
    think: bool,
    seed: int,
    settings: Settings,
) -> list[tuple[np.ndarray, str]]:
    """Draws the pictures that are not there yet; returns some of them with captions."""
    missing = [(i, n) for i, t in enumerate(tasks) for n, p in enumerate(t.paths)]
    missing = [(i, n) for i, n in missing if not (folder / tasks[i].paths[n]).exists()]
    shown = []
    for start in range(0, len(missing), settings.batch):
        part = missing[start : start + settings.batch]
        asked = [request(tasks[i], i, n, think=think, seed=seed) for i, n in part]
        results = pipeline.generate(model.parts, model.params, asked, settings)
        lines = []
        for (i, n), result in zip(part, results, strict=True):
            logs.save_png(folder / tasks[i].paths[n], result.image)
            told = {"path": tasks[i].paths[n], "thought": result.thought}
            told |= {"instruction": result.instruction, "warning": result.warning}
            lines.append(json.dumps(told, ensure_ascii=False))
            if len(shown) < SHOWN:  # a whole benchmark of them does not fit into memory
                shown.append((result.image, logs.caption(tasks[i].prompt, result.instruction)))
        append(folder / THOUGHTS, lines)
    return shown


def request(task: Task, index: int, copy: int, *, think: bool, seed: int) -> Request:
    """A task as a user would ask it."""
    pictures = tuple(images.open_picture(path).image for path in task.sources)
    number = (seed * 1_000_003 + index * 17 + copy) % 2**32
    return Request(task.prompt, pictures, think=think, seed=number)


def append(path: Path, lines: Sequence[str]) -> None:
    """Puts whole lines behind a file's end; a line cut off by a crash is closed first."""
    cut = path.exists() and path.stat().st_size and path.read_bytes()[-1:] != b"\n"
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * bool(cut) + "".join(line + "\n" for line in lines))


def can_score(
    benchmark: Benchmark, prompts: Path, tasks: Sequence[Task], *, judge: object, detector: object
) -> bool:
    """Whether scoring has what it asks: a judge, a detector, or the reader that is always there.

    Raises:
      ValueError: when it has, but the copy or the machine lacks what scoring these tasks reads.
    """
    is_there = {"judge": judge, "detector": detector, "reader": True}[benchmark.needs]
    if is_there and benchmark.ready is not None:
        benchmark.ready(prompts, tasks)
    return bool(is_there)


def records(path: Path) -> Iterator[dict]:
    """Whole lines of a JSON lines file; none where there is no file."""
    if path.exists():
        for line in files.split(path.read_text(encoding="utf-8")):
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue  # cut off by a crash: it is asked for again


def objects(path: Path) -> Iterator[dict]:
    """The lines of a JSON lines file of the user's copy.

    Raises:
      ValueError: when the file cannot be read or a line is no JSON object.
    """
    return (found for _, found in files.objects(text(path), f"--prompts: {path}"))


def collect(
    folder: Path, client: Client, asks: Mapping[str, Callable[[], Any]]
) -> tuple[dict[str, Any], dict[str, object]]:
    """Answers by key: those that are there, and those of the questions that were open.

    Where `PATIENCE` questions one behind the other have no answer, nothing more is asked. Answers
    belong to who gave them, a judge's model or what a detector's server says of itself, wherever it
    lives.

    Args:
      asks: by key, what asks for one answer; JSON-able, `Failed` where it could not be had.

    Returns:
      (answers, who gave them and when).

    Raises:
      ValueError: when the folder holds answers of another judge, a server does not say what it is,
        or some answers could not be had; all others are kept.
    """
    path, who = folder / ANSWERS, client.service.model or _name_of(client)
    kept = {line["key"]: line for line in records(path)}
    others = {line["by"] for line in kept.values()} - {who}
    if others:
        raise ValueError(f"{path} holds answers of {sorted(others)}, not of {who}: move it aside")
    open_ = [key for key in asks if key not in kept]
    pending: dict[Future, str] = {client.submit(asks[key]): key for key in open_}
    faults, row = {}, 0
    for future in as_completed(pending):
        if future.cancelled():
            continue
        key, today = pending[future], datetime.date.today().isoformat()
        try:
            kept[key] = {"key": key, "answer": future.result(), "by": who, "date": today}
        except Failed as err:
            faults[key], row = str(err), row + 1
            if row == PATIENCE:
                for other in pending:  # those under way still come
                    other.cancel()
            continue
        row = 0
        append(path, [json.dumps(kept[key], ensure_ascii=False)])
    if faults:
        key, cause = next(iter(faults.items()))
        left = sum(asked not in kept for asked in asks)
        raise ValueError(
            f"{left} of {len(asks)} answers could not be had, e.g. of {key}: {cause}; the "
            f"others are kept, the same command asks for the rest"
        )
    dates = sorted({kept[key]["date"] for key in asks})
    about = {"by": who, "dates": dates if len(dates) < 3 else [dates[0], dates[-1]]}
    return {key: kept[key]["answer"] for key in asks}, about


def _name_of(client: Client) -> str:
    """Name and version of a reward server, as it states them."""
    urls = ", ".join(client.service.urls)
    try:
        about = client.health()[0]
    except Failed as err:
        raise ValueError(f"{urls} cannot be asked what it is: {err}") from err
    said = [about.get(name) for name in ("reward", "version")]
    if not all(isinstance(one, str) and one for one in said):
        raise ValueError(f"{urls} states reward and version {said} at /health: want two names")
    return " ".join(said)


def load(path: Path, kind: type) -> Any:
    """A JSON file of the user's copy.

    Raises:
      ValueError: when it is missing, no JSON or of another kind.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ValueError(f"--prompts: {path} cannot be read: {err}") from err
    if not isinstance(found, kind):
        raise ValueError(f"--prompts: {path} holds a {type(found).__name__}, no {kind.__name__}")
    return found


def text(path: Path) -> str:
    """A text file of the user's copy; refused as `load`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as err:
        raise ValueError(f"--prompts: {path} cannot be read: {err}") from err


def field_of(item: Mapping, name: str, where: object) -> Any:
    """A field of a record of the user's copy.

    Raises:
      ValueError: when the record has none.
    """
    if not isinstance(item, Mapping) or name not in item:
        raise ValueError(f"--prompts: {where} has no {name!r}")
    return item[name]


def source(root: Path, name: object, where: object) -> Path:
    """A picture of the user's copy that a record names.

    Raises:
      ValueError: when it is missing or lies outside the copy.
    """
    try:
        path = inside(root, str(name))
    except (ValueError, PermissionError) as err:
        raise ValueError(f"--prompts: {where}: {err}") from None
    if not path.is_file():
        raise ValueError(f"--prompts: the picture {path} of {where} is missing")
    return path


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
