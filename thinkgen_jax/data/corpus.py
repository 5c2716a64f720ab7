# SPDX-License-Identifier: Apache-2.0
"""Real pictures as streams of batches: sources measured, grouped by shape, mixed, shuffled.

A corpus is opened once: every record is measured by its headers (the result is kept in the user's
cache folder), and records of the same shapes form a group (`buckets.py`). Each group is a stream of
batches of one shape; the streams are mixed as those of the miniature world are.

* Batch n is a pure function of corpus, seed and n, whoever asks for it: the position is one number,
  hosts take their slices of the same global batch, workers change nothing.
* A source's weight is the share of records that come from it. Each of its groups is shuffled as a
  whole and anew every epoch.
* A record that cannot be used is skipped: its place is taken by the next one of its group. It is
  counted and listed; more than `broken` of all records stop the run.

Source: OmniGen2 training code (caption clean-up, dropping, budgets).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np

from thinkgen_jax.data import batches, buckets, records
from thinkgen_jax.data.batches import Shape
from thinkgen_jax.data.buckets import Group
from thinkgen_jax.data.files import JsonLines, Pictures, Where, cached
from thinkgen_jax.data.images import Pixels, fill, open_picture
from thinkgen_jax.data.prompts import assemble
from thinkgen_jax.data.records import Record, Size
from thinkgen_jax.data.shards import ArrayRecords, Tables, Tars, Tfds
from thinkgen_jax.data.sources import generator
from thinkgen_jax.data.text import TAKEN, Text
from thinkgen_jax.structs import FlowBatch, References

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
# Source: OmniGen2 omnigen2_train_dataset.py (clean_data_item).
PREFACES = (
    *(f"The image {verb} " for verb in ("portrays", "depicts", "captures", "highlights", "shows")),
    "这张图片展示了",
)
MULTIPLE = 16  # sides of shapes, whatever less a system asks for; source: OmniGen2
TRIES = 64  # records one behind the other that may be broken
SHOWN = 10  # broken records that an error lists
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
      columns: names that a table has for fields (parquet), e.g. {"instruction": "caption"}.
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
    """

    sources: tuple[Source, ...]
    pixels: int
    references: tuple[int, ...] = buckets.REFERENCES
    scales: tuple[float, ...] = buckets.SCALES
    length: int = 888
    clean: float = 0.5
    broken: float = 0.01

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty: at least one is needed")
        if not self.references or min(self.references) < 1 or self.length < 1:
            raise ValueError(
                f"references = {self.references}, length = {self.length}: must be above 0"
            )
        for name in ("clean", "broken"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must lie in [0, 1]")


class Opened(NamedTuple):
    """A corpus after it was measured."""

    sources: tuple
    firsts: tuple[int, ...]  # number of the first record of every source, and of all of them
    groups: list[Group]
    shares: np.ndarray  # of every group and source in the records that are drawn, sum 1
    broken: dict[str, str]  # id -> reason


class Pick(NamedTuple):
    """One record's place: in a group, among those of its source."""

    source: int
    place: int


class Example(NamedTuple):
    """One record brought to its group's shapes, and what was skipped to find it."""

    prompt: str
    image: Pixels
    references: tuple[Pixels, ...]
    skipped: tuple[tuple[str, str], ...]


# --- opening ---


def parse_sources(words: str) -> list[Source]:
    """Sources of a line: paths between commas, each with `@weight` or without, kinds guessed.

    Raises:
      ValueError: when a path is missing, or its kind cannot be told.
    """
    found = []
    for word in words.split(","):
        path, at, weight = word.strip().rpartition("@")
        try:
            found.append(Source(_guess(path), path, float(weight)) if at else None)
        except ValueError:
            found.append(None)  # the @ belongs to the path
        if found[-1] is None:
            found[-1] = Source(_guess(word.strip()), word.strip())
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
        raise ValueError(f"source {source.path} ({source.kind}): {err}") from err
    if not len(found):
        raise ValueError(f"source {source.path} ({source.kind}) is empty")
    return found


def open_corpus(corpus: Corpus, *, multiple: int, batch: int) -> Opened:
    """Opens and measures all sources.

    Args:
      multiple: sides of drawn pictures are multiples of this many pixels.
      batch: rows of a global batch.

    Raises:
      ValueError: when a source cannot be opened, or too many records are broken.
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
    for row in good[small]:
        source, index = _locate(firsts, int(row))
        broken[found[source].name(index)] = "a picture is smaller than the smallest shape"
    check_broken(broken, firsts[-1], corpus.broken)
    groups = [Group(g.target, g.reference, g.pictures, good[g.rows]) for g in groups]
    return Opened(found, firsts, groups, _shares(corpus, firsts, groups), broken)


def measured(source, broken: dict[str, str]) -> np.ndarray:
    """Sizes of all pictures of a source, int64 [N, 1 + references, 2]; 0 where there is none.

    A record that is broken has only zeros, and stands in `broken` with its reason.
    """
    table = np.array(cached(source.key, "sizes", partial(_measure_all, source)), np.int64)
    for index in np.flatnonzero(table[:, 0] == 0).tolist():
        # Once more: what failed may have been the disk, and its reason is not kept.
        record = None
        try:
            record = source[index]
            table[index] = _measure(record)
        except ValueError as err:
            broken[_label(source, index, record)] = str(err)
    return table.reshape(len(table), -1, 2)


def _measure_all(source) -> np.ndarray:
    table = np.zeros((len(source), SIDES), np.int32)
    for index in range(len(source)):
        try:
            table[index] = _measure(source[index])
        except ValueError:
            pass  # stays 0; `measured` tells why
        except PermissionError as err:
            raise PermissionError(f"{source.name(index)}: {err}") from err
    return table


def _measure(record: Record) -> list[int]:
    found = records.sizes(record)
    flat = [side for size in found for side in size]
    if min(flat) < 1:
        raise ValueError(f"sizes {found} are not all above 0")
    return flat + [0] * (SIDES - len(flat))


def _shares(corpus: Corpus, firsts: Sequence[int], groups: Sequence[Group]) -> np.ndarray:
    """Share of every group and source: of a source all records come equally often."""
    shares = np.zeros((len(groups), len(corpus.sources)))
    for number, group in enumerate(groups):
        shares[number] = [len(rows) for rows in _parts(firsts, group)]
    total = shares.sum(axis=0)
    for source, count in zip(corpus.sources, total, strict=True):
        if not count:
            raise ValueError(f"source {source.path} ({source.kind}) has no record that can be used")
    weights = np.asarray([source.weight for source in corpus.sources])
    return shares * (weights / weights.sum() / total)


def _parts(firsts: Sequence[int], group: Group) -> list[np.ndarray]:
    """A group's records by source, numbered inside it."""
    cuts = np.searchsorted(group.rows, firsts)
    return [
        group.rows[a:b] - first
        for a, b, first in zip(cuts[:-1], cuts[1:], firsts[:-1], strict=True)
    ]


def _locate(firsts: Sequence[int], row: int) -> tuple[int, int]:
    """Source and number inside it of a record."""
    source = int(np.searchsorted(firsts, row, side="right")) - 1
    return source, row - firsts[source]


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


def mean_tokens(opened: Opened, *, side: int) -> float:
    """DiT tokens of `side` pixels a side of a picture to draw, in the mean over the mixture."""
    areas = [g.target[0] * g.target[1] for g in opened.groups]
    return float(np.dot(areas, opened.shares.sum(axis=1))) / side**2


# --- streams ---


def streams(
    opened: Opened,
    corpus: Corpus,
    shape: Shape,
    *,
    size: int,
    drop: float,
    plain: bool = False,
    host: tuple[int, int] = (0, 1),
) -> list[grain.MapDataset]:
    """One stream of (FlowBatch, skipped) for every group.

    Args:
      size: rows of a global batch.
      drop: share of instructions dropped for guidance, every second time with the references.
      plain: bare words instead of the pseudo-CoT form.
      host: which of how many hosts takes its slice of every batch.

    Raises:
      ValueError: when hosts do not divide the batch.
    """
    number, hosts = host
    if size % hosts:
        raise ValueError(f"batch = {size} is not divisible by {hosts} hosts")
    found = []
    for place, group in enumerate(opened.groups):
        parts = _parts(opened.firsts, group)
        example = partial(
            make_example,
            sources=opened.sources,
            parts=parts,
            group=group,
            seed=shape.seed,
            stream=place,
            drop=drop,
            clean=corpus.clean,
            taken=(*TAKEN, shape.text.marker),
        )
        rows = _picks(parts, opened.shares[place], seed=shape.seed + place).map_with_index(example)
        collate = partial(
            flow_batch, group=group, text=shape.text, length=corpus.length, plain=plain
        )
        batch = rows.batch(size // hosts, drop_remainder=True, batch_fn=collate)
        found.append(batch[number::hosts])
    return found


def _picks(parts: Sequence[np.ndarray], shares: np.ndarray, *, seed: int) -> grain.MapDataset:
    """An endless shuffled stream of a group's picks, its sources mixed by their shares."""
    found, weights = [], []
    for number, (rows, share) in enumerate(zip(parts, shares.tolist(), strict=True)):
        if len(rows):
            order = grain.MapDataset.range(len(rows)).shuffle(seed=(seed + number) % 2**32)
            found.append(order.repeat().map(partial(Pick, number)))
            weights.append(share)
    return found[0] if len(found) == 1 else grain.MapDataset.mix(found, weights=weights)


def make_example(
    index: int,
    pick: Pick,
    *,
    sources: Sequence,
    parts: Sequence[np.ndarray],
    group: Group,
    seed: int,
    stream: int,
    drop: float,
    clean: float,
    taken: Sequence[str],
) -> Example:
    """Reads one record and brings it to its group's shapes.

    Args:
      index: of the example in its stream; its random choices hang on it.
      taken: tokens that no instruction may contain.

    Raises:
      ValueError: when `TRIES` records one behind the other are broken.
    """
    rng = generator(seed, f"corpus {stream}", index)
    source, rows, skipped = sources[pick.source], parts[pick.source], []
    for attempt in range(min(TRIES, len(rows))):
        row = int(rows[(pick.place + attempt) % len(rows)])
        record = None
        try:
            record = source[row]
            _refuse(record, taken)
            image = _fitted(record.target, group.target)
            shown = tuple(_fitted(blob, group.reference) for blob in record.references)
        except ValueError as err:
            skipped.append((_label(source, row, record), str(err)))
            continue
        words = cleaned(record, rng, clean)
        if rng.random() < drop:
            words = ""
            if rng.random() < 0.5:
                shown = ()
        return Example(words, image, shown, tuple(skipped))
    listed = "".join(f"\n  {name}: {why}" for name, why in skipped[:SHOWN])
    raise ValueError(f"{len(skipped)} records one behind the other cannot be used:{listed}")


def _label(source, index: int, record: Record | None) -> str:
    """What a record is called in lists: its place and, where it has one, its own id."""
    name = source.name(index)
    return name if record is None or record.id == name else f"{name} ({record.id})"


def _refuse(record: Record, taken: Sequence[str]) -> None:
    found = [token for token in taken if token in record.instruction]
    if found:
        raise ValueError(f"instruction contains {found[0]}, which means something else")


def _fitted(blob: records.Blob, size: Size) -> Pixels:
    return fill(open_picture(records.load(blob), near=size).image, size)


def cleaned(record: Record, rng: np.random.Generator, share: float) -> str:
    """A record's words; a share of captions loses its preface."""
    words = record.instruction
    if ("t2i" in record.task or "text_to_image" in record.task) and rng.random() < share:
        for preface in PREFACES:
            if words.startswith(preface) and len(words) > len(preface):
                return words[len(preface) :]
    return words


def flow_batch(
    examples: Sequence[Example], *, group: Group, text: Text, length: int, plain: bool
) -> tuple[FlowBatch, tuple[tuple[str, str], ...]]:
    """Collates examples of one group; behind the batch stands what was skipped to fill it."""
    rows = [token_row(text, e.prompt, group.pictures, length, plain=plain) for e in examples]
    prompt = assemble(rows, length=length)
    shown = None
    if group.pictures:
        count = group.pictures
        pixels = np.zeros((len(examples), count, *group.reference, 3), np.uint8)
        present = np.zeros((len(examples), count), np.int32)
        for row, example in enumerate(examples):
            for place, image in enumerate(example.references):
                pixels[row, place], present[row, place] = image, 1
        shown = References(pixels, present)
    batch = FlowBatch(prompt, np.stack([e.image for e in examples]), shown)
    return batch, tuple(one for e in examples for one in e.skipped)


def token_row(text: Text, words: str, pictures: int, length: int, *, plain: bool) -> list[int]:
    """Token ids of a picture's words; too long an instruction is cut at its end.

    The pseudo-CoT form says it twice, so it is the instruction that is cut and not the row.

    Raises:
      ValueError: when not even its first token fits.
    """
    if plain:
        return text.encode(words or " ")[:length]
    row = text.pseudo(words, images=pictures)
    if len(row) <= length:
        return row
    tokens = text.encode(words)
    kept = min(len(tokens), len(tokens) - -(-(len(row) - length) // 2))
    while kept > 0:
        row = text.pseudo(text.decode(tokens[:kept]), images=pictures)
        if len(row) <= length:
            return row
        kept -= 1
    raise ValueError(f"corpus.length = {length}: a row without words has {len(row)} tokens")


class Feed:
    """An open stream of batches that counts the records it had to skip.

    Its position is grain's, with the broken records that were found on the way.
    """

    def __init__(self, iterator: grain.DatasetIterator, opened: Opened, limit: float):
        """Wraps an iterator of (batch, skipped)."""
        self.iterator = iterator
        self.total, self.limit = opened.firsts[-1], limit
        self.known = dict(opened.broken)  # found at opening: not part of the position
        self.found: dict[str, str] = {}
        self.content = _content(opened)
        self._news = list(opened.broken.items())

    def __next__(self):
        batch, skipped = next(self.iterator)
        for name, why in skipped:
            if name not in self.known and name not in self.found:
                self.found[name] = why
                self._news.append((name, why))
        check_broken(self.broken, self.total, self.limit)
        return batch

    @property
    def broken(self) -> dict[str, str]:
        """Reasons of all records that are known not to be usable."""
        return {**self.known, **self.found}

    def news(self) -> list[tuple[str, str]]:
        """Broken records that nobody was told of yet."""
        told, self._news = self._news, []
        return told

    def get_state(self) -> dict:
        """JSON-able position."""
        position = batches.position(self.iterator)
        return {"position": position, "broken": self.found, "content": self.content}

    def set_state(self, state: dict) -> None:
        """Goes to a position.

        Raises:
          ValueError: when the data is not what it was.
        """
        if state["content"] != self.content:
            raise ValueError(
                "corpus.sources: files changed since the last commit, so its place in them means "
                "nothing; put them back, or start over with --fresh"
            )
        self.iterator.set_state(state["position"])
        self.found = dict(state["broken"])


def _content(opened: Opened) -> str:
    """Short name of what a corpus holds and how it is cut into groups."""
    digest = hashlib.sha256(" ".join(source.key for source in opened.sources).encode())
    for group in opened.groups:
        digest.update(repr((group.target, group.reference, group.pictures)).encode())
        digest.update(np.ascontiguousarray(group.rows, np.int64).tobytes())
    return digest.hexdigest()[:24]


def feed(
    corpus: Corpus,
    shape: Shape,
    *,
    multiple: int,
    tokens: int,
    size: int,
    drop: float,
    plain: bool = False,
    workers: int = 0,
    host: tuple[int, int] = (0, 1),
) -> tuple[Feed, float]:
    """Opens a corpus as one stream of batches; see `streams`.

    Args:
      multiple: sides of drawn pictures are multiples of this many pixels.
      tokens: side of a DiT token in pixels.

    Returns:
      The stream, and the DiT tokens of a picture in the mean over it.
    """
    opened = open_corpus(corpus, multiple=multiple, batch=size)
    data = streams(opened, corpus, shape, size=size, drop=drop, plain=plain, host=host)
    iterator = batches.mixed(data, opened.shares.sum(axis=1).tolist(), workers=workers)
    return Feed(iterator, opened, corpus.broken), mean_tokens(opened, side=tokens)
