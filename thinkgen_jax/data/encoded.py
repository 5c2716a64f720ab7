# SPDX-License-Identifier: Apache-2.0
"""A folder of encodings: what the frozen networks made of a corpus, written once and read often.

`meta.json` says what was encoded and by what; `<group>-<part>.array_record` holds elements of one
group and source, with a `.json` of what was skipped beside it; `index.npy`, written last, says
where the elements of each are. An element has latents, references and the states of its words as
arrays; words are padded again when they are read, to the length they would have had.

* A shard is written whole or not at all: the door goes on with the first that is missing.
* What an instruction dropped for guidance reads is encoded once, for every number of references.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Float, UInt16

from thinkgen_jax.data import packed
from thinkgen_jax.data.shards import element_at, opened
from thinkgen_jax.data.sources import generator
from thinkgen_jax.structs import Condition, EncodedBatch, Packed

META, INDEX, NULL = "meta.json", "index.npy", "null.array_record"
DTYPES = ("float32", "bfloat16")


class Element(NamedTuple):
    """One encoded record, without its batch axis; `states` are those of its words alone."""

    target: Packed
    references: Packed | None
    states: Float[np.ndarray, "_ E"]


# --- elements ---


def to_bfloat16(values: Float[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """The upper halves of float32, rounded to nearest, halves to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(values: UInt16[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Inverse of `to_bfloat16`, exact."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def pack(element: Element, *, name: str, dtype: str) -> bytes:
    """An element as bytes; latents and states in `dtype`."""
    parts, about = [], {}
    for kind in ("target", "references"):
        group = getattr(element, kind)
        if group is not None:
            arrays = [np.asarray(a) for a in group]
            parts += [_bytes(arrays[0], dtype), *(a.astype("<i4").tobytes() for a in arrays[1:])]
            about[kind] = list(arrays[0].shape)
    parts.append(_bytes(np.asarray(element.states), dtype))
    about["states"] = list(element.states.shape)
    return packed.join({"id": name, "dtype": dtype, "shapes": about}, parts)


def _bytes(values: np.ndarray, dtype: str) -> bytes:
    values = np.asarray(values, np.float32)
    return (to_bfloat16(values) if dtype == "bfloat16" else values.astype("<f4")).tobytes()


def unpack(data: bytes) -> Element:
    """Inverse of `pack`, in float32.

    Raises:
      ValueError: when the bytes are no element.
    """
    head, parts = packed.cut(data)
    try:
        shapes, dtype = head["shapes"], head["dtype"]
        values, found = iter(parts), {}
        for kind in ("target", "references"):
            if kind in shapes:
                count, width = shapes[kind]
                arrays = [_floats(next(values), (count, width), dtype)]
                arrays.append(np.frombuffer(next(values), "<i4").reshape(count, 2))
                arrays.append(np.frombuffer(next(values), "<i4").reshape(count))
                found[kind] = Packed(*arrays)
        states = _floats(next(values), tuple(shapes["states"]), dtype)
        return Element(found["target"], found.get("references"), states)
    except (KeyError, TypeError, StopIteration) as err:
        raise ValueError("an encoded element lacks a part") from err


def _floats(data: bytes, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return from_bfloat16(np.frombuffer(data, "<u2")).reshape(shape)
    return np.frombuffer(data, "<f4").reshape(shape)


# --- folders ---


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file, whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def read_json(path: Path) -> dict | list:
    """Reads a JSON file of the folder.

    Raises:
      ValueError: when it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ValueError(f"{path} cannot be read: {err}") from err


def begin(folder: Path, meta: Mapping) -> None:
    """Makes the folder, or finds it begun with the same meta.

    Raises:
      ValueError: when it holds encodings of something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / META
    if not path.exists():
        write_json(path, meta)
        return
    there, here = read_json(path), json.loads(json.dumps(meta))
    changed = [k for k in sorted(there.keys() | here.keys()) if there.get(k) != here.get(k)]
    if changed:
        rows = "".join(f"\n  {k}: {there.get(k)!r:.200} -> {here.get(k)!r:.200}" for k in changed)
        raise ValueError(f"--out={folder} holds encodings of something else:{rows}")


def finish(folder: Path, names: Sequence[str], groups: Sequence[int]) -> int:
    """Writes the index, rows (shard, place, group); returns the number of elements."""
    counts = [read_json(folder / f"{name}.json")["count"] for name in names]
    shard = np.repeat(np.arange(len(names)), counts)
    places = np.concatenate([np.arange(0), *map(np.arange, counts)])
    rows = np.stack([shard, places, np.repeat(groups, counts)], axis=1).astype(np.int64)
    write_json(folder / "shards.json", list(names))
    part = folder / f"{INDEX}.part"
    with part.open("wb") as file:
        np.save(file, rows)
    part.replace(folder / INDEX)
    return len(rows)


def meta_of(folder: Path) -> dict:
    """What a finished folder says of itself.

    Raises:
      ValueError: when it is missing or not finished.
    """
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"corpus.encoded = {folder} is no finished folder of encodings; make it with "
            "python -m thinkgen_jax.precompute"
        )
    return read_json(folder / META)


def check_made(folder: Path, wanted: Mapping[str, str]) -> None:
    """Refuses encodings that other networks made.

    Args:
      wanted: by tree, the short name of its parameters.

    Raises:
      ValueError: naming the first tree that differs.
    """
    made = meta_of(folder).get("made", {})
    for tree, own in wanted.items():
        if made.get(tree) != own:
            raise ValueError(
                f"corpus.encoded = {folder} was made by another {tree} ({made.get(tree)}) than "
                f"config.start.{tree} names ({own}); name the same one, or encode anew"
            )


class Encodings:
    """An open folder of encodings; travels to other processes as its path."""

    def __init__(self, folder: str):
        """Opens it.

        Raises:
          ValueError: when it is missing, not finished or empty.
        """
        self.folder = Path(folder)
        self.meta = meta_of(self.folder)
        self.index = np.load(self.folder / INDEX)
        if not len(self.index):
            raise ValueError(f"corpus.encoded = {folder} is empty")
        self._names = read_json(self.folder / "shards.json")
        self._shards = [opened([self.folder / f"{name}.array_record"]) for name in self._names]
        null = opened([self.folder / NULL])
        self.null = [unpack(null[i]).states for i in range(len(null))]

    def __getitem__(self, row: int) -> Element:
        """One element.

        Raises:
          ValueError: when it is damaged, naming its file.
        """
        shard, place, _ = self.index[row].tolist()
        try:
            return unpack(element_at(self._shards[shard], place))
        except ValueError as err:
            name = f"{self._names[shard]}.array_record"
            raise ValueError(f"corpus.encoded: {self.folder / name}, {place}: {err}") from err

    @property
    def content(self) -> str:
        """Short name of what is in it, wherever it lies."""
        told = json.dumps([self.meta, self._names], sort_keys=True).encode()
        return hashlib.sha256(told + self.index.tobytes()).hexdigest()[:24]

    def __reduce__(self):
        return Encodings, (str(self.folder),)


def check(found: Encodings, *, width: int, plain: bool) -> None:
    """Refuses encodings that the DiT cannot read.

    Raises:
      ValueError: when their states have another width than `width`, or the run conditions on a
        learned text embedding, whose words are not there.
    """
    own = found.null[0].shape[1]
    if plain or own != width:
        raise ValueError(
            f"corpus.encoded = {found.folder} has states of width {own}, the DiT reads "
            f"{'words (plain)' if plain else width}"
        )


# --- batches ---


def streams(
    found: Encodings, *, size: int, drop: float, seed: int, host: tuple[int, int] = (0, 1)
) -> tuple[list[grain.MapDataset], list[float]]:
    """One stream of `EncodedBatch` for every group, and its weight; see `feeding.streams`.

    Raises:
      ValueError: when hosts do not divide the batch.
    """
    number, hosts = host
    if size % hosts:
        raise ValueError(f"batch = {size} is not divisible by {hosts} hosts")
    data, weights = [], []
    for group in np.unique(found.index[:, 2]).tolist():
        rows = np.flatnonzero(found.index[:, 2] == group)
        order = grain.MapDataset.source(rows).shuffle(seed=(seed + group) % 2**32).repeat()
        example = partial(_example, found=found, seed=seed, group=group, drop=drop)
        collate = partial(_batch, length=found.meta["states"])
        made = order.map_with_index(example)
        batch = made.batch(size // hosts, drop_remainder=True, batch_fn=collate)
        data.append(batch[number::hosts])
        weights.append(found.meta["weights"][group])
    return data, weights


def _example(index: int, row: np.integer, *, found: Encodings, seed: int, group: int, drop: float):
    rng, element = generator(seed, f"encoded {group}", index), found[int(row)]
    shown = element.references
    if rng.random() < drop:
        pictures = 0 if shown is None else int(shown.segments.max())
        if shown is not None and rng.random() < 0.5:
            shown, pictures = shown._replace(segments=np.zeros_like(shown.segments)), 0
        element = element._replace(references=shown, states=found.null[pictures])
    return element


def _batch(elements: Sequence[Element], *, length: int) -> EncodedBatch:
    states = np.zeros((len(elements), length, elements[0].states.shape[1]), np.float32)
    segments = np.zeros((len(elements), length), np.int32)
    for row, element in enumerate(elements):
        count = len(element.states)
        states[row, :count], segments[row, :count] = element.states, 1
    shown = None
    if elements[0].references is not None:
        shown = Packed(*map(np.stack, zip(*(e.references for e in elements), strict=True)))
    target = Packed(*map(np.stack, zip(*(e.target for e in elements), strict=True)))
    return EncodedBatch(target, Condition(states, segments), shown)


def mean_tokens(found: Encodings) -> float:
    """DiT tokens of a picture to draw, in the mean over the mixture."""
    return float(np.dot(found.meta["tokens"], found.meta["weights"]))
