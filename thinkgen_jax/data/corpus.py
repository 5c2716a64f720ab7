# SPDX-License-Identifier: Apache-2.0
"""Real pictures: their sources by kind, opened, measured and grouped by shape.

A corpus is opened once: every record is measured by its headers (the result is kept in the user's
cache folder), and records of the same shapes form a group (`buckets.py`). Batches are made of them
in `feeding.py`.

* A source's weight is the share of records that come from it.
* A record that cannot be used is skipped, counted and listed; more than the share `broken` of all
  records stop the run.
* A record whose pictures are smaller than every shape is a good one that is left out, for none is
  enlarged; it counts towards the share `small` alone.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thinkgen_jax.data import buckets, images, packed, records
from thinkgen_jax.data.buckets import Group
from thinkgen_jax.data.files import JsonLines, Pictures, Where, cached, spread
from thinkgen_jax.data.records import Record
from thinkgen_jax.data.shards import ArrayRecords, Tables, Tars, Tfds

SOURCES = {
    "jsonl": JsonLines,
    "folder": Pictures,
    "webdataset": Tars,
    "parquet": Tables,
    "array_record": ArrayRecords,
    "tfds": Tfds,
}
KINDS = {  # what files of these suffixes are
    ".jsonl": "jsonl",
    ".tar": "webdataset",
    ".parquet": "parquet",
    ".array_record": "array_record",
}
NAMED = ("parquet", "tfds")  # kinds whose fields have names of their own
MULTIPLE = 16  # sides of shapes, whatever less a system asks for; source: OmniGen2
MANY = 20_000  # records that one process measures at a time
SHOWN = 10  # broken or small records that an error or a line of the log lists
SIDES = 2 * (1 + records.MAX_REFERENCES)  # of all pictures of a record


@dataclass(frozen=True)
class Source:
    """One source of a corpus.

    Attributes:
      kind: a key of `SOURCES`.
      path: file, folder, or pattern with `*`.
      weight: share of records that come from it, relative to the others.
      root: folder that paths in records are below; None takes that of the file (jsonl).
      split: of a data set (tfds).
      columns: the source's own names of fields (parquet, tfds), e.g. {"instruction": "caption"}.
    """

    kind: str
    path: str | None
    weight: float = 1.0
    root: str | None = None
    split: str = "train"
    columns: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in SOURCES:
            raise ValueError(f"kind = {self.kind!r} is not one of {sorted(SOURCES)}")
        if not self.path:
            raise ValueError("path is not set: name a file or folder")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight = {self.weight}: must be above 0")
        if self.columns and self.kind not in NAMED:
            raise ValueError(f"columns: only {NAMED} have names to map, {self.kind} has none")
        unknown = sorted({field for field, _ in self.columns} - set(packed.FIELDS))
        if unknown:
            raise ValueError(f"columns: {unknown} are not among the fields {packed.FIELDS}")


@dataclass(frozen=True)
class Corpus:
    """Real pictures and how they are brought into batches.

    Attributes:
      sources: where they lie.
      pixels: area budget of a picture to draw.
      references: area budgets of each of 1, 2, 3, 4 or more references; never above `pixels`.
      scales: sides of the shapes relative to the budget's; small pictures take the smaller.
      length: tokens of a row; longer instructions are cut.
      clean: share of captions that lose a leading "The image shows " and its like.
      broken: share of records that may be unusable before the run stops.
      small: share of records that may be left out because a picture is smaller than every shape.
      encoded: folder of what `precompute.py` made of such a corpus; it is read instead of sources.
    """

    sources: tuple[Source, ...]
    pixels: int
    references: tuple[int, ...] = buckets.REFERENCES
    scales: tuple[float, ...] = buckets.SCALES
    length: int = 888
    clean: float = 0.5
    broken: float = 0.01
    small: float = 0.5
    encoded: str | None = None

    def __post_init__(self) -> None:
        if bool(self.sources) == bool(self.encoded):
            raise ValueError(
                "either sources or encoded must be given, sources is empty or both are"
            )
        if not self.references or min(self.references) < 1 or self.length < 1:
            raise ValueError(
                f"references = {self.references}, length = {self.length}: must be above 0"
            )
        for name in ("clean", "broken", "small"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must lie in [0, 1]")


class Opened(NamedTuple):
    """A corpus after it was measured."""

    sources: tuple
    firsts: tuple[int, ...]  # number of the first record of every source, and of all of them
    groups: list[Group]
    shares: np.ndarray  # of every group and source in the records that are drawn, sum 1
    broken: dict[str, str]  # id -> reason
    small: np.ndarray  # numbers of the records that are left out, int64, sorted


# --- opening ---


def parse_sources(words: str) -> list[Source]:
    """Sources of a line: paths between commas, each with `@weight` or without, kinds guessed.

    Raises:
      ValueError: when a path is missing, its kind cannot be told, or a weight is not above 0.
    """
    found = []
    for word in words.split(","):
        path, weight = word.strip(), 1.0
        before, at, number = path.rpartition("@")
        if at and not Path(path).exists():  # else the @ belongs to the path
            with contextlib.suppress(ValueError):
                path, weight = before, float(number)
        found.append(Source(_guess(path), path, weight))
    return found


def _guess(path: str) -> str:
    """The kind of a source by its name, or by what a folder holds.

    Raises:
      ValueError: when there is nothing, or nothing that is known.
    """
    suffix = Path(path).suffix.lower()
    if suffix in KINDS:
        return KINDS[suffix]
    if not Path(path).is_dir():
        raise ValueError(f"{path} does not exist, or its kind is none of {sorted(SOURCES)}")
    if (Path(path) / "dataset_info.json").is_file():
        return "tfds"
    held = {child.suffix.lower() for child in Path(path).iterdir()}
    return next((kind for suffix, kind in KINDS.items() if suffix in held), "folder")


def open_source(source: Source):
    """Opens one source.

    Raises:
      ValueError: when it is missing, empty or of another kind, naming it.
    """
    where = Where(source.path, source.root, source.split, source.columns)
    try:
        found = SOURCES[source.kind](where)
    except ValueError as err:
        raise ValueError(f"corpus.sources: {source.path} ({source.kind}): {err}") from err
    if not len(found):
        raise ValueError(f"corpus.sources: {source.path} ({source.kind}) is empty")
    return found


def open_corpus(corpus: Corpus, *, multiple: int, batch: int) -> Opened:
    """Opens and measures all sources.

    Args:
      multiple: sides of drawn pictures are multiples of this many pixels.
      batch: rows of a global batch.

    Raises:
      ValueError: when a source cannot be opened, nothing of it is left, or too many records are
        broken or too small.
      PermissionError: when a record names a file outside its root.
    """
    found = tuple(map(open_source, corpus.sources))
    broken: dict[str, str] = {}
    tables = [measured(source, broken) for source in found]
    firsts = (0, *np.cumsum([len(table) for table in tables]).tolist())
    sizes = np.concatenate(tables)
    good = np.flatnonzero(sizes[:, 0, 0])
    groups, small = buckets.group(
        sizes[good],
        pixels=corpus.pixels,
        references=corpus.references,
        multiple=multiple,
        scales=corpus.scales,
        batch=batch,
    )
    check_broken(broken, firsts[-1], corpus.broken)
    small = good[small]
    _check_small(corpus, firsts, small)
    groups = [Group(g.target, g.reference, g.pictures, good[g.rows]) for g in groups]
    return Opened(found, firsts, groups, _shares(corpus, firsts, groups), broken, small)


def measured(source, broken: dict[str, str]) -> np.ndarray:
    """Sizes of all pictures of a source, int32 [N, 1 + references, 2]; 0 where there is none.

    A record that is broken has only zeros, and stands in `broken` with its reason.
    """
    table = np.array(cached(source.key, "sizes", partial(_measure_all, source)))
    for index in np.flatnonzero(table[:, 0] == 0).tolist():
        # Once more: what failed may have been the disk, and its reason is not kept.
        record = None
        try:
            record = source[index]
            table[index] = _measure(record)
        except ValueError as err:
            broken[label(source, index, record)] = str(err)
    return table.reshape(len(table), -1, 2)


def label(source, index: int, record: Record | None) -> str:
    """What a record is called in lists: its place and, where it has one, its own id."""
    name = source.name(index)
    return name if record is None or record.id == name else f"{name} ({record.id})"


def _measure_all(source, many: int = MANY) -> np.ndarray:
    """Sizes of all pictures; of more than `many` records by processes, one a core."""
    count = len(source)
    cuts = [range(first, min(first + many, count)) for first in range(0, count, many)]
    return np.concatenate(spread(partial(_measure_some, source), cuts, alone=len(cuts) == 1))


def _measure_some(source, rows: range) -> np.ndarray:
    table = np.zeros((len(rows), SIDES), np.int32)
    for place, index in enumerate(rows):
        try:
            table[place] = _measure(source[index])
        except ValueError:
            pass  # stays 0; `measured` tells why
        except PermissionError as err:
            raise PermissionError(f"{source.name(index)}: {err}") from err
    return table


def _measure(record: Record) -> list[int]:
    found = records.sizes(record)
    flat = [side for size in found for side in size]
    if not 0 < min(flat) <= max(flat) <= images.MAX_PIXELS:
        raise ValueError(f"sizes {found} are not those of pictures")
    return flat + [0] * (SIDES - len(flat))


def _shares(corpus: Corpus, firsts: Sequence[int], groups: Sequence[Group]) -> np.ndarray:
    """Share of every group and source: of a source all records come equally often."""
    shares = np.zeros((len(groups), len(corpus.sources)))
    for number, group in enumerate(groups):
        shares[number] = [len(rows) for rows in parts(firsts, group)]
    total = shares.sum(axis=0)
    for source, count in zip(corpus.sources, total, strict=True):
        if not count:
            raise ValueError(f"corpus.sources: no record of {source.path} can be used")
    weights = np.asarray([source.weight for source in corpus.sources])
    return shares * (weights / weights.sum() / total)


def parts(firsts: Sequence[int], group: Group) -> list[np.ndarray]:
    """A group's records by source, numbered inside it."""
    cuts = np.searchsorted(group.rows, firsts)
    return [
        group.rows[a:b] - first
        for a, b, first in zip(cuts[:-1], cuts[1:], firsts[:-1], strict=True)
    ]


def _check_small(corpus: Corpus, firsts: Sequence[int], small: np.ndarray) -> None:
    """Refuses a corpus of which too much, or all of a source, is smaller than every shape."""
    counts = np.histogram(small, firsts)[0]
    remedy = (
        "are smaller than the smallest shape; lower "
        f"corpus.pixels = {corpus.pixels} or the least of corpus.scales = {corpus.scales}"
    )
    for source, count, size in zip(corpus.sources, counts, np.diff(firsts), strict=True):
        if count == size:
            raise ValueError(f"corpus.sources: all {count} records of {source.path} {remedy}")
    if len(small) > corpus.small * firsts[-1]:
        raise ValueError(
            f"{len(small)} of {firsts[-1]} records {remedy}, or raise corpus.small = "
            f"{corpus.small}, the share that may be left out"
        )


def check_broken(broken: Mapping[str, str], total: int, limit: float) -> None:
    """Refuses a corpus of which too much is broken.

    Raises:
      ValueError: naming the first of them.
    """
    if len(broken) > limit * total:
        first = "".join(f"\n  {name}: {why}" for name, why in list(broken.items())[:SHOWN])
        raise ValueError(
            f"{len(broken)} of {total} records cannot be used, more than the share {limit} that "
            f"corpus.broken allows:{first}"
        )


def describe(opened: Opened) -> str:
    """One line for the log: records, and the shapes that each compile once."""
    ordered = sorted(opened.groups, key=lambda g: -len(g.rows))
    shapes = [
        f"{len(g.rows)} of {g.target[0]} x {g.target[1]}"
        + (f" with {g.pictures} of {g.reference[0]} x {g.reference[1]}" if g.pictures else "")
        for g in ordered
    ]
    rest = f" and {len(shapes) - SHOWN} more" if len(shapes) > SHOWN else ""
    listed = ", ".join(shapes[:SHOWN])
    return f"{opened.firsts[-1]} records in {len(shapes)} shapes: {listed}{rest}"


def left_out(opened: Opened) -> list[str]:
    """Lines for the log, one where records are too small for every shape and none otherwise."""
    if not len(opened.small):
        return []
    names = []
    for row in opened.small[:SHOWN].tolist():
        source = int(np.searchsorted(opened.firsts, row, side="right")) - 1
        names.append(opened.sources[source].name(row - opened.firsts[source]))
    more = len(opened.small) - len(names)
    rest = f" and {more} more" if more else ""
    return [
        f"left out {len(opened.small)} of {opened.firsts[-1]} records with a picture smaller than "
        f"the smallest shape: {', '.join(names)}{rest}"
    ]


def multiple_of(side: int) -> int:
    """What sides of shapes are multiples of, for DiT tokens of `side` pixels a side."""
    return math.lcm(side, MULTIPLE)


def mean_tokens(opened: Opened, *, side: int) -> float:
    """DiT tokens of `side` pixels a side of a picture to draw, in the mean over the mixture."""
    areas = [g.target[0] * g.target[1] for g in opened.groups]
    return float(np.dot(areas, opened.shares.sum(axis=1))) / side**2
