# SPDX-License-Identifier: Apache-2.0
"""Batches of real pictures: each group of a corpus a stream, mixed, shuffled and resumable.

* Batch n is a pure function of corpus, seed and n, whoever asks for it: the position is one number,
  hosts take their slices of the same global batch, workers change nothing.
* Each source of each group is shuffled as a whole, and anew every epoch.
* The place of a record that cannot be used is taken by the next one of its group.

Source: OmniGen2 training code (caption clean-up, dropping).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import grain
import numpy as np

from thinkgen_jax.data import batches, corpus, records
from thinkgen_jax.data.batches import Shape
from thinkgen_jax.data.buckets import Group
from thinkgen_jax.data.corpus import Corpus, Opened
from thinkgen_jax.data.images import Pixels, fill, open_picture
from thinkgen_jax.data.prompts import assemble
from thinkgen_jax.data.records import Record, Size
from thinkgen_jax.data.sources import generator
from thinkgen_jax.data.text import TAKEN, Text
from thinkgen_jax.structs import FlowBatch, References

# Source: OmniGen2 omnigen2_train_dataset.py (clean_data_item).
PREFACES = (
    *(f"The image {verb} " for verb in ("portrays", "depicts", "captures", "highlights", "shows")),
    "这张图片展示了",
)
TRIES = 64  # records one behind the other that may be broken


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


def streams(
    opened: Opened,
    made: Corpus,
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
        parts = corpus.parts(opened.firsts, group)
        bare = replace(group, rows=group.rows[:0])  # workers get copies, and `parts` is enough
        example = partial(
            make_example,
            sources=opened.sources,
            parts=parts,
            group=bare,
            seed=shape.seed,
            stream=place,
            drop=drop,
            clean=made.clean,
            taken=(*TAKEN, shape.text.marker),
        )
        rows = _picks(parts, opened.shares[place], seed=shape.seed + place).map_with_index(example)
        collate = partial(flow_batch, group=bare, text=shape.text, length=made.length, plain=plain)
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
            image, shown = fitted(record, group, taken)
        except ValueError as err:
            skipped.append((corpus.label(source, row, record), str(err)))
            continue
        words = cleaned(record, rng, clean)
        if rng.random() < drop:
            words = ""
            if rng.random() < 0.5:
                shown = ()
        return Example(words, image, shown, tuple(skipped))
    listed = "".join(f"\n  {name}: {why}" for name, why in skipped[: corpus.SHOWN])
    raise ValueError(f"{len(skipped)} records one behind the other cannot be used:{listed}")


def fitted(record: Record, group: Group, taken: Sequence[str]) -> tuple[Pixels, tuple[Pixels, ...]]:
    """A record's picture and references in its group's shapes.

    Raises:
      ValueError: when one cannot be read, or does not fill its shape, or the instruction contains
        one of the tokens `taken`.
    """
    found = [token for token in taken if token in record.instruction]
    if found:
        raise ValueError(f"instruction contains {found[0]}, which means something else")
    image = _filled(record.target, group.target)
    return image, tuple(_filled(blob, group.reference) for blob in record.references)


def _filled(blob: records.Blob, size: Size) -> Pixels:
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
    rows = [token_row(text, e.prompt, len(e.references), length, plain=plain) for e in examples]
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
        # A cut inside a character leaves the sign for one that cannot be read.
        row = text.pseudo(text.decode(tokens[:kept]).rstrip("\ufffd"), images=pictures)
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
        self.content = content(opened)
        self.about = [corpus.describe(opened), *corpus.left_out(opened)]  # lines for the log
        self._news = list(opened.broken.items())

    def __next__(self):
        batch, skipped = next(self.iterator)
        new = {n: why for n, why in skipped if n not in self.known and n not in self.found}
        if new:
            self.found.update(new)
            self._news.extend(new.items())
            corpus.check_broken(self.broken, self.total, self.limit)
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


def content(opened: Opened) -> str:
    """Short name of what a corpus holds and how it is cut into groups, wherever it lies."""
    digest = hashlib.sha256(" ".join(source.content for source in opened.sources).encode())
    for group in opened.groups:
        digest.update(repr((group.target, group.reference, group.pictures)).encode())
        digest.update(np.ascontiguousarray(group.rows, np.int64).tobytes())
    return digest.hexdigest()[:24]


def feed(
    made: Corpus,
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
    opened = corpus.open_corpus(made, multiple=multiple, batch=size)
    data = streams(opened, made, shape, size=size, drop=drop, plain=plain, host=host)
    iterator = batches.mixed(data, opened.shares.sum(axis=1).tolist(), workers=workers)
    return Feed(iterator, opened, made.broken), corpus.mean_tokens(opened, side=tokens)
