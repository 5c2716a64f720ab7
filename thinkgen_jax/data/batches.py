# SPDX-License-Identifier: Apache-2.0
"""The grain graph: examples mapped, batched, mixed and resumable, all of static shape.

Batches of different make-up (with and without references) are streams of their own, mixed by
weight a batch at a time: each has one shape, so each compiles once. Batch n is the same whoever
asks for it; the position of a mixed stream is one number, with workers one of each.
"""

import json
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import grain
import numpy as np

from thinkgen_jax.data import sources
from thinkgen_jax.data.images import VisionSpec, merged_tokens
from thinkgen_jax.data.prompts import assemble
from thinkgen_jax.data.sources import Drawing, Writing
from thinkgen_jax.data.text import Text
from thinkgen_jax.structs import FlowBatch, References, Request, TextBatch
from thinkgen_jax.world import tasks

ENDLESS = 2**31 - 1  # examples of a stream; no run reaches it
ROOM = 16  # rows of a sorted batch are padded to a multiple of this many tokens


@dataclass(frozen=True)
class Stream:
    """One kind of batch.

    Attributes:
      weight: share of the batches that are of this kind.
      scenarios: weights of what it draws from, scenarios or "scenario/tag".
      pictures: most references of a row; 0 for none.
      length: tokens of a row; longer rows are an error.
      tidy: new pictures are drawn without jitter (flow_stream).
      thinking: the words stand behind a thought, as thinking inference puts them; without pictures
        only (flow_stream).
    """

    weight: float
    scenarios: Mapping[str, float]
    pictures: int = 0
    length: int = 64
    tidy: bool = False
    thinking: bool = False

    def __post_init__(self) -> None:
        for name, least in (("length", 1), ("pictures", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {least}")
        shares = {"weight": self.weight}
        shares |= {f"scenarios.{name}": share for name, share in self.scenarios.items()}
        for name, share in shares.items():
            if not 0 <= share < math.inf:
                raise ValueError(f"{name} = {share}: must be at least 0 and finite")
        if self.thinking and self.pictures:
            raise ValueError("thinking = True or pictures > 0, not both")


@dataclass(frozen=True)
class Shape:
    """What all streams of a run share: words, eyes and place in the world."""

    text: Text
    vision: VisionSpec | None
    seed: int
    split: str = "train"


def mixed(
    streams: Sequence[grain.MapDataset], weights: Sequence[float], *, workers: int = 0
) -> grain.DatasetIterator:
    """Mixes streams of batches by weight and opens the iterator.

    Args:
      workers: processes that make the batches, the same ones in the same order; 0 makes them in a
        thread of this one.
    """
    total = sum(weights)
    data = streams[0]
    if len(streams) > 1:
        data = grain.MapDataset.mix(list(streams), weights=[w / total for w in weights])
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    dataset = data.to_iter_dataset(options)
    if workers:
        several = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(several, _ignore_interrupts)
    return iter(dataset)


def _ignore_interrupts(worker: int, workers: int) -> None:
    """Ctrl-C is for the process that trains: it still needs batches until it has committed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def batched(example: Callable[[int], object], size: int, collate: Callable) -> grain.MapDataset:
    """Examples 0, 1, 2, ... in batches of `size`."""
    data = grain.MapDataset.range(ENDLESS).map(example)
    return data.batch(size, drop_remainder=True, batch_fn=collate)


def alike(
    example: Callable[[int], object], size: int, collate: Callable, *, pool: int, key: Callable
) -> grain.MapDataset:
    """Examples 0, 1, 2, ... in batches of `size`, `pool` batches at a time sorted by `key`."""

    @lru_cache(maxsize=2)
    def pooled(number: int) -> list:
        first = number * pool * size
        return sorted(map(example, range(first, first + pool * size)), key=key)

    def batch(index: int):
        number, place = divmod(index, pool)
        return collate(pooled(number)[place * size : (place + 1) * size])

    return grain.MapDataset.range(ENDLESS // size).map(batch)


def flow_stream(
    stream: Stream, shape: Shape, *, size: int, pool: int = 1, drop: float, plain: bool
):
    """Batches of `FlowBatch`; `plain` gives bare words instead of the pseudo-CoT form.

    With a pool above 1 rows of like length come together and are padded to no more than they need.
    """
    example = partial(
        sources.drawing,
        seed=shape.seed,
        split=shape.split,
        weights=stream.scenarios,
        drop=drop,
        tidy=stream.tidy,
        thinking=stream.thinking,
    )
    collate = partial(flow_batch, stream=stream, shape=shape, plain=plain)
    if pool == 1:
        return batched(example, size, collate)

    def length(drawing: Drawing) -> int:
        return len(_words(drawing, shape, plain))

    return alike(example, size, partial(collate, fit=True), pool=pool, key=length)


def text_stream(stream: Stream, shape: Shape, *, size: int, wrong: Mapping, silent: float):
    """Batches of `TextBatch`."""
    example = partial(
        sources.writing,
        seed=shape.seed,
        split=shape.split,
        weights=stream.scenarios,
        wrong=dict(wrong),
        silent=silent,
    )
    return batched(example, size, partial(text_batch, stream=stream, shape=shape))


def picture_stream(stream: Stream, shape: Shape, *, size: int, crop: int):
    """Batches of uint8 pictures, or of cut-outs of `crop` pixels a side."""
    example = partial(
        sources.picture, seed=shape.seed, split=shape.split, weights=stream.scenarios, crop=crop
    )
    return batched(example, size, np.stack)


def request_stream(stream: Stream, shape: Shape, *, size: int):
    """Lists of `size` requests."""
    example = partial(sources.request, seed=shape.seed, split=shape.split, weights=stream.scenarios)
    return batched(example, size, list)


def takes(stream: Stream, items: Sequence) -> bool:
    """Whether all items, each with a scenario and a tag, are of a stream's scenarios."""
    return all({i.scenario, f"{i.scenario}/{i.tag}"} & set(stream.scenarios) for i in items)


def examples(streams: Sequence[Stream], shape: Shape) -> list[Request]:
    """A request of every scenario of `request_stream`s, without pictures."""
    names = dict.fromkeys(name for stream in streams for name in stream.scenarios)
    items = [tasks.mixed({name: 1.0}, 0, shape.split) for name in names]
    return [Request(item.prompt, meta={"item": item}) for item in items]


def flow_batch(
    drawings: Sequence[Drawing], *, stream: Stream, shape: Shape, plain: bool, fit: bool = False
) -> FlowBatch:
    """Collates supervised pictures, padded to the stream's length or, to fit, to their own."""
    rows = [_words(d, shape, plain) for d in drawings]
    length = stream.length
    if fit:
        length = min(-(-max(map(len, rows)) // ROOM) * ROOM, length)
    prompt = assemble(rows, length=length)
    pixels = np.stack([d.image for d in drawings])
    return FlowBatch(prompt, pixels, reference_batch([d.references for d in drawings], stream))


def _words(d: Drawing, shape: Shape, plain: bool) -> list[int]:
    """Token ids of a picture's words; references are placeholders in them, as in the release."""
    if plain:
        return shape.text.encode(d.prompt or " ")
    if d.thought:
        # Generated text ends before its end token has a state; this row has none either.
        return shape.text.think(d.asked) + shape.text.response(d.thought, d.prompt)[:-1]
    return shape.text.pseudo(d.prompt, images=len(d.references))


def reference_batch(rows: Sequence[Sequence[np.ndarray]], stream: Stream) -> References | None:
    """Stacks references of one size; rows with fewer than `stream.pictures` are marked."""
    if not stream.pictures:
        return None
    size = next((r.shape for row in rows for r in row), (64, 64, 3))
    pixels = np.zeros((len(rows), stream.pictures, *size), np.uint8)
    present = np.zeros((len(rows), stream.pictures), np.int32)
    for b, row in enumerate(rows):
        for r, image in enumerate(row):
            pixels[b, r] = image
            present[b, r] = 1
    return References(pixels, present)


def text_batch(writings: Sequence[Writing], *, stream: Stream, shape: Shape) -> TextBatch:
    """Collates supervised responses; only what the MLLM writes has weight."""
    rows, starts = [], []
    for w in writings:
        head, tail = written(w, shape)
        rows.append(head + tail)
        starts.append(len(head))
    seen = [w.images if w.form != "pseudo" else () for w in writings]
    prompt = assemble(
        rows,
        length=stream.length,
        image_id=shape.text.image_id,
        pictures=seen if stream.pictures else None,
        vision=shape.vision,
        patches=_patches(stream, shape),
    )
    places = np.arange(stream.length)[None]
    after = places >= np.asarray(starts)[:, None]
    weights = (after & (np.asarray(prompt.segments) > 0)).astype(np.float32)
    return TextBatch(prompt, weights)


def written(w: Writing, shape: Shape) -> tuple[list[int], list[int]]:
    """Token ids of what is given and of what is to be written."""
    text = shape.text
    tokens = [merged_tokens(image, shape.vision) for image in w.images]
    if w.form == "question":
        return text.question(w.prompt, pictures=tokens), text.answer(w.answer)
    if w.form == "pseudo":
        whole = text.pseudo(w.prompt, images=len(w.images))
        cut = whole.index(text.close_id) + 1
        return whole[:cut], whole[cut:]
    return text.think(w.prompt, pictures=tokens), text.response(w.thought, w.answer)


def _patches(stream: Stream, shape: Shape) -> int | None:
    """Patches of a row that has all its pictures, at the vision tower's least size."""
    if not stream.pictures:
        return None
    return stream.pictures * shape.vision.max_pixels // shape.vision.patch**2


def position(iterator: grain.DatasetIterator) -> dict:
    """JSON-able position of a stream."""
    return json.loads(json.dumps(iterator.get_state()))
