# SPDX-License-Identifier: Apache-2.0
"""Tensors on their way between files and devices, one at a time.

A model larger than the host's memory must pass through it. So nothing here holds more than one
tensor beside the parameters themselves:

* Files are mapped, not read: an array of a file has no memory of its own.
* Shape and dtype are known before the array is, so what does not fit is refused before anything is
  placed.
* Layers that we stack go one by one into the stack where it lies, on the host or on devices. A
  device that holds a part gets that part; on a pod every process touches only what it needs.
* Writing streams as well, in the layout of the safetensors library.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial, reduce
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from thinkgen_jax.hf import files
from thinkgen_jax.hf import rules as tables
from thinkgen_jax.hf.rules import Rule
from thinkgen_jax.structs import Tree

CODES = {
    np.dtype(kind): code
    for kind, code in (
        (np.float64, "F64"),
        (np.float32, "F32"),
        (np.float16, "F16"),
        (jnp.bfloat16, "BF16"),
        (np.int64, "I64"),
        (np.int32, "I32"),
        (np.int16, "I16"),
        (np.int8, "I8"),
        (np.uint8, "U8"),
        (np.bool_, "BOOL"),
    )
}
KINDS = {code: kind for kind, code in CODES.items()}
ALIGNMENT = 64  # bytes
STRIP = 256 * 1024  # bytes of a transposed tensor copied at once: what a core's cache holds


class Entry(NamedTuple):
    """One tensor that is read when it is asked for.

    Attributes:
      shape: of the array.
      dtype: it is to be stored as; the array itself may still have another.
      read: gives the array, not to be written to.
      file: where it lies, None for one that is computed.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    file: Path | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in a file."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Lazy(Mapping):
    """Name to array, each read when asked for; `entries` tells shapes without reading."""

    def __init__(self, entries: Mapping[str, Entry]):
        """Reads nothing."""
        self.entries = dict(entries)

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads one tensor; one of a file is a view of the file."""
        entry = self.entries[name]
        return np.asarray(entry.read(), entry.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def entry_of(array: np.ndarray) -> Entry:
    """An array in memory as an entry."""
    return Entry(array.shape, array.dtype, lambda: array)


# --- from files -----------------------------------------------------------------------------------


def scan(path: Path) -> tuple[dict[str, Entry], list[str]]:
    """Finds every tensor of a file, or of the shards that an index names, and reads none.

    Returns:
      (entries by name, faults): a fault is a name that two shards hold, that the index does not
      list or puts into another shard, or that no shard holds.

    Raises:
      ValueError: as `files.open_tensors`, or for a tensor of a kind that is not read.
    """
    if not path.name.endswith(files.INDEX_SUFFIX):
        return _entries(path), []
    files.open_tensors(path)  # refuses an index that names no files of its folder
    index = files.read_config(path)["weight_map"]
    found: dict[str, Entry] = {}
    holders: dict[str, list[str]] = {}
    for shard in sorted(set(index.values())):
        for name, entry in _entries(path.with_name(shard)).items():
            holders.setdefault(name, []).append(shard)
            found.setdefault(name, entry)
    faults = [f"missing {name}" for name in index if name not in holders]
    for name, shards in holders.items():
        if len(shards) > 1:
            faults.append(f"doubled {name}: in {' and '.join(shards)}")
        elif index.get(name) != shards[0]:
            faults.append(f"misplaced {name}: in {shards[0]}, {index.get(name)} by the index")
    return found, faults


def metadata(file: Path) -> dict[str, str]:
    """The strings in a file's header."""
    return _header(file)[0].get("__metadata__", {})


def _entries(file: Path) -> dict[str, Entry]:
    files.open_tensors(file)  # checks the header against the file
    header, start = _header(file)
    content = np.memmap(file, np.uint8, mode="r")
    out = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        if about["dtype"] not in KINDS:
            raise ValueError(f"{file}: tensor {name!r} is {about['dtype']}, which is not read")
        shape, dtype = tuple(about["shape"]), KINDS[about["dtype"]]
        offset = start + about["data_offsets"][0]
        read = partial(np.ndarray, shape, dtype, buffer=content, offset=offset)
        out[name] = Entry(shape, dtype, read, file)
    return out


def _header(file: Path) -> tuple[dict, int]:
    """What a file says of its tensors, and where their bytes begin."""
    with file.open("rb") as source:
        size = int.from_bytes(source.read(8), "little")
        return json.loads(source.read(size)), 8 + size


# --- into parameters ------------------------------------------------------------------------------


def load(
    entries: Mapping[str, Entry],
    table: Sequence[Rule],
    shapes: Tree,
    *,
    dtype: str | None = None,
    place: object = None,
    faults: Iterable[str] = (),
) -> Tree:
    """Builds our tree, tensor by tensor, straight where it shall lie.

    Args:
      entries: released tensors by name.
      table: the model's rules.
      shapes: abstract tree of ours.
      dtype: of the parameters; None keeps the tensors', the widest of a stack.
      place: None for numpy arrays on the host; else a sharding for all, a tree of them as
        `sharding.infer` gives, or a function of a parameter's path.
      faults: found before, listed with those found here.

    Raises:
      ValueError: listing unmapped, missing and mis-shaped names, before any tensor is read.
    """
    tables.refuse(sorted({*faults, *misfits(entries, table, shapes)}))
    want, where = tables.flatten(shapes), placement(place)
    out = {}
    for rule in table:
        names = tables.names_of(rule, tuple(want[rule.ours].shape))
        kind = jnp.dtype(dtype) if dtype else _widest(entries[name].dtype for name in names)
        parts = [partial(_to_ours, rule, entries[name]) for name in names]
        shape, sharding = tuple(want[rule.ours].shape), where(rule.ours)
        if sharding is None:
            out[rule.ours] = _on_host(parts, shape, kind, stacked="{i}" in rule.theirs)
        elif "{i}" in rule.theirs:
            out[rule.ours] = _stacked(parts, shape, kind, sharding)
        else:
            out[rule.ours] = _placed(parts[0](), kind, sharding)
    return tables.unflatten(out)


def misfits(entries: Mapping[str, Entry], table: Sequence[Rule], shapes: Tree) -> list[str]:
    """Lists what keeps tensors from becoming this tree; reads none."""
    want = {path: tuple(leaf.shape) for path, leaf in tables.flatten(shapes).items()}
    used, found = set(), []
    for rule in table:
        used.update(tables.names_of(rule, want.get(rule.ours)))
        found += rule_misfits(rule, entries, want.get(rule.ours))
    found += [f"unmapped {name}" for name in entries if name not in used]
    ours = {rule.ours for rule in table}
    return found + [f"no rule fills {path}" for path in want if path not in ours]


def rule_misfits(
    rule: Rule, entries: Mapping[str, Entry], shape: tuple[int, ...] | None
) -> list[str]:
    """Lists what keeps one parameter of this shape from being filled."""
    if shape is None:
        return [f"no parameter {rule.ours}"]
    inner, found = shape[1:] if "{i}" in rule.theirs else shape, []
    for name in tables.names_of(rule, shape):
        entry = entries.get(name)
        if entry is None:
            found.append(f"missing {name}")
        elif not jnp.issubdtype(entry.dtype, jnp.floating):
            found.append(f"{name} is {entry.dtype}, not a floating-point tensor")
        elif _shape_after(rule.to_ours, entry.shape) != inner:
            found.append(f"{name} of shape {entry.shape} does not give {rule.ours} of {inner}")
    return found


def _shape_after(change: Callable, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape behind a layout change, found on an array without memory; None if impossible."""
    try:
        return change(np.broadcast_to(np.zeros((), np.int8), shape)).shape
    except (ValueError, IndexError):
        return None


def _to_ours(rule: Rule, entry: Entry) -> np.ndarray:
    return rule.to_ours(entry.read())


def _widest(kinds: Iterable[np.dtype]) -> np.dtype:
    return np.dtype(reduce(jnp.promote_types, kinds))


def placement(place: object) -> Callable[[str], Sharding | None]:
    if place is None or isinstance(place, Sharding):
        return lambda path: place
    return tables.flatten(place).__getitem__ if isinstance(place, Mapping) else place


def _on_host(parts, shape: tuple[int, ...], dtype: np.dtype, *, stacked: bool) -> np.ndarray:
    out = _aligned(shape, dtype)
    for i, part in enumerate(parts):
        _copy(out[i] if stacked else out, part())
    return out


def _placed(array: np.ndarray, dtype: np.dtype, sharding: Sharding) -> jax.Array:
    """Cuts, casts and sends: at most what this process's devices hold is copied on the host."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    pieces: dict[tuple, np.ndarray] = {}  # devices that hold the same piece share it

    def cut(index: tuple[slice, ...]) -> np.ndarray:
        key = tuple((s.start, s.stop) for s in index)
        if key not in pieces:
            pieces[key] = _aligned(array[index].shape, dtype)
            _copy(pieces[key], array[index])
        return pieces[key]

    out = jax.make_array_from_callback(array.shape, sharding, cut, dtype=dtype)
    return out.block_until_ready()  # else the next tensor is read while this one is still held


def _stacked(parts, shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding) -> jax.Array:
    """Writes layer after layer into a stack that already lies where it shall."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    inner = sharding
    if isinstance(sharding, NamedSharding):
        inner = NamedSharding(sharding.mesh, P(*sharding.spec[1:]))
    out = jnp.zeros(shape, dtype, device=sharding)
    for i, part in enumerate(parts):
        out = _setter(sharding)(out, _placed(part(), dtype, inner), i).block_until_ready()
    return out


@cache
def _setter(sharding: Sharding) -> Callable:
    write = partial(jax.lax.dynamic_update_index_in_dim, axis=0)
    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that a device whose memory is the host's takes as it is, without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    """Copies with a cast, in strips that fit the cache: three times faster where axes change."""
    axis = int(np.argmax(source.strides)) if source.ndim > 1 else 0
    if source.ndim < 2 or source.flags.c_contiguous:
        np.copyto(target, source, casting="unsafe")
        return
    step = max(1, STRIP // source.strides[axis])
    for start in range(0, source.shape[axis], step):
        strip = (slice(None),) * axis + (slice(start, start + step),)
        np.copyto(target[strip], source[strip], casting="unsafe")


# --- from parameters ------------------------------------------------------------------------------


def released(params: Tree, table: Sequence[Rule], *, dtype: str | None = None) -> dict[str, Entry]:
    """Our tree as released tensors, each made when it is asked for.

    Args:
      params: arrays that this process can read, or an abstract tree for names and shapes alone.
      dtype: floating-point tensors are stored as; None keeps theirs.

    Raises:
      ValueError: listing parameters without a rule and rules without a parameter.
    """
    leaves, ours = tables.flatten(params), {rule.ours for rule in table}
    found = [f"no parameter {rule.ours}" for rule in table if rule.ours not in leaves]
    tables.refuse(found + [f"no rule for {path}" for path in leaves if path not in ours])
    out = {}
    for rule in table:
        leaf, stacked = leaves[rule.ours], "{i}" in rule.theirs
        kind, inner = np.dtype(leaf.dtype), leaf.shape[1:] if stacked else leaf.shape
        if dtype is not None and jnp.issubdtype(kind, jnp.floating):
            kind = jnp.dtype(dtype)
        shape = _shape_after(rule.to_theirs, tuple(inner))
        for i, name in enumerate(tables.names_of(rule, tuple(leaf.shape))):
            read = partial(_to_theirs, rule, leaf, i if stacked else None)
            out[name] = Entry(shape, kind, read)
    return out


def _to_theirs(rule: Rule, leaf: object, layer: int | None) -> np.ndarray:
    if layer is not None:  # indexing a device array compiles anew for every layer
        dynamic = isinstance(leaf, jax.Array)
        leaf = jax.lax.dynamic_index_in_dim(leaf, layer, 0, False) if dynamic else leaf[layer]
    return rule.to_theirs(np.asarray(leaf))


# --- into files -----------------------------------------------------------------------------------


def shards(entries: Mapping[str, Entry], stem: str, max_bytes: int) -> dict[str, list[str]]:
    """Cuts tensors into files of at most `max_bytes`; a larger tensor has a file of its own.

    Returns:
      Names of tensors by name of file.
    """
    cut, room = [], 0
    for name in sorted(entries):
        if not cut or entries[name].nbytes > room:
            cut.append([])
            room = max_bytes
        cut[-1].append(name)
        room -= entries[name].nbytes
    if len(cut) == 1:
        return {stem + files.SUFFIX: cut[0]}
    return {
        f"{stem}-{i:05}-of-{len(cut):05}{files.SUFFIX}": names for i, names in enumerate(cut, 1)
    }


def writer(entries: Mapping[str, Entry], about: Mapping[str, str]) -> Callable[[Path], None]:
    """A function that writes one safetensors file, holding one tensor at a time.

    Args:
      about: strings for the header.
    """
    # The library's order: wide types first, so that all lie aligned.
    order = sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(about)}
    end = 0
    for name in order:
        entry = entries[name]
        span = [end, end + entry.nbytes]
        header[name] = {
            "dtype": CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": span,
        }
        end = span[1]
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)

    def write(file: Path) -> None:
        with file.open("wb") as out:
            out.write(len(head).to_bytes(8, "little") + head)
            for name in order:
                out.write(_bytes(entries[name]))

    return write


def _bytes(entry: Entry) -> memoryview:
    array = entry.read()
    if not array.flags.c_contiguous or array.dtype != entry.dtype:
        array, source = np.empty(entry.shape, entry.dtype), array
        _copy(array, source)
    return array.reshape(-1).view(np.uint8).data
