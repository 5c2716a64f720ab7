# SPDX-License-Identifier: Apache-2.0
"""Tensors and configs on disk: safetensors files, their shards and indices, `config.json`.

Reading is lazy, one tensor at a time, so a table that renames and transposes never holds a model
twice; writing goes to a temporary name first, so an interrupted save leaves the old files readable.

* Pickles are refused, by suffix: reading one runs whatever code it holds.
* bfloat16 arrives as numpy's ml_dtypes type.
* Every error names the file, and the tensor where there is one.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

SUFFIX, INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Other libraries refuse a file whose metadata does not say how its tensors are laid out.
METADATA = {"format": "pt"}


class Tensors(Mapping):
    """Name to array over one or several files; an array is read when it is asked for."""

    def __init__(self, places: Mapping[str, Path]):
        """Opens nothing yet; `places` is the file of every tensor."""
        self._places = dict(places)
        self._handles: dict[Path, object] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads one tensor.

        Raises:
          KeyError: no file holds it.
          ValueError: its file is damaged, or lacks what the index promises.
        """
        file = self._places[name]
        if file not in self._handles:
            self._handles[file] = _open(file)
        try:
            return self._handles[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: tensor {name!r} cannot be read: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def open_tensors(path: str | os.PathLike) -> Tensors:
    """Opens a safetensors file, an index, or a folder with one of either.

    Args:
      path: in a folder, an index is preferred to a single file.

    Raises:
      ValueError: nothing there; only pickles there; several files and no index; a damaged file; an
        index that names a missing file or one outside its folder.
    """
    path = Path(path)
    file = chosen(path) if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file}: no such file or folder")
    if file.suffix in PICKLES:
        raise ValueError(f"{file}: pickles are not read; {_advice()}")
    if file.name.endswith(".index.json"):
        places = _read_index(file)
    elif file.suffix == SUFFIX:
        places = dict.fromkeys(_open(file).keys(), file)
    else:
        raise ValueError(f"{file}: not a {SUFFIX} file")
    return Tensors(places)


def save_tensors(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    *,
    max_shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes a safetensors file, or shards with an index where it would grow too large.

    All files are complete before the first takes its place. Then shards, index or single file that
    an earlier save under the same name left behind are removed.

    Args:
      path: ends in `.safetensors`; shard i of n is called `<stem>-<i>-of-<n>.safetensors`.
      max_shard_bytes: most bytes of tensors in one file; a larger tensor has a file of its own.
      metadata: strings kept in the header, added to `METADATA`.

    Returns:
      The files written, the index last.

    Raises:
      ValueError: a name without the suffix, no tensors, or a bound below 1.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"{path}: the name must end in {SUFFIX}")
    if not tensors:
        raise ValueError(f"{path}: no tensors to write")
    if max_shard_bytes is not None and max_shard_bytes < 1:
        raise ValueError(f"{path}: max_shard_bytes={max_shard_bytes}, must be at least 1")
    path.parent.mkdir(parents=True, exist_ok=True)
    shards = _cut({name: np.asarray(tensors[name]) for name in sorted(tensors)}, max_shard_bytes)
    names = [path]
    if len(shards) > 1:
        names = [
            path.with_name(f"{path.stem}-{i:05}-of-{len(shards):05}{SUFFIX}")
            for i in range(1, len(shards) + 1)
        ]
    jobs = {
        name: _tensor_writer(shard, {**METADATA, **(metadata or {})})
        for name, shard in zip(names, shards, strict=True)
    }
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(x.nbytes for shard in shards for x in shard.values())},
            "weight_map": {
                key: name.name for name, shard in zip(names, shards, strict=True) for key in shard
            },
        }
        jobs[path.with_name(path.stem + INDEX_SUFFIX)] = json_writer(index)
    write_all(jobs)
    for old in earlier(path):
        if old not in jobs:
            old.unlink()
    return list(jobs)


def read_config(path: str | os.PathLike) -> dict:
    """Reads `config.json` of a folder, or the JSON file itself.

    Raises:
      ValueError: not there, no JSON, or no object.
    """
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    return _read_json(file)


def write_config(path: str | os.PathLike, config: Mapping) -> Path:
    """Writes `config.json` into a folder, or the JSON file itself, in one move."""
    file = Path(path)
    file = file if file.suffix == ".json" else file / "config.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_all({file: json_writer(config)})
    return file


# --- one file -------------------------------------------------------------------------------------


def _open(file: Path):
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: damaged or no safetensors file: {error}") from error


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no such file") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds a {type(content).__name__}, not an object")
    return content


def _advice() -> str:
    return (
        f"convert to {SUFFIX} first, e.g. by loading it where you trust it and calling "
        "save_pretrained(..., safe_serialization=True)"
    )


# --- which files ----------------------------------------------------------------------------------


def chosen(folder: Path) -> Path:
    """The index, or the only safetensors file, of a folder."""
    found = sorted(folder.glob(f"*{INDEX_SUFFIX}")) or sorted(folder.glob(f"*{SUFFIX}"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{folder}: which one? Name one of {names}")
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise ValueError(f"{folder}: only pickles ({', '.join(pickles)}); {_advice()}")
    raise ValueError(f"{folder}: no {SUFFIX} file")


def _read_index(file: Path) -> dict[str, Path]:
    names = _read_json(file).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{file}: no weight_map from tensor to file name")
    for name in sorted(set(names.values())):
        if Path(name).name != name or Path(name).suffix != SUFFIX:
            raise ValueError(f"{file}: {name!r} is no {SUFFIX} file of this folder")
        if not (file.parent / name).is_file():
            raise ValueError(f"{file}: names {name}, which is not there")
    return {tensor: file.parent / name for tensor, name in names.items()}


def earlier(path: Path) -> list[Path]:
    """All files that a save under this name may have written."""
    shard = re.compile(re.escape(path.stem) + r"-\d{5}-of-\d{5}" + re.escape(SUFFIX))
    shards = [file for file in path.parent.iterdir() if shard.fullmatch(file.name)]
    others = [path, path.with_name(path.stem + INDEX_SUFFIX)]
    return shards + [file for file in others if file.exists()]


# --- writing --------------------------------------------------------------------------------------


def _cut(tensors: dict[str, np.ndarray], bound: int | None) -> list[dict[str, np.ndarray]]:
    """Fills files in the given order, each to at most `bound` bytes."""
    shards, room = [], 0
    for name, array in tensors.items():
        if not shards or (bound is not None and array.nbytes > room):
            shards.append({})
            room = bound or 0
        shards[-1][name] = array
        room -= array.nbytes
    return shards


def _tensor_writer(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]):
    # The library writes the buffer as it lies: order="C" also keeps scalars scalars.
    return lambda file: save_file(
        {name: np.asarray(array, order="C") for name, array in tensors.items()},
        file,
        metadata=dict(metadata),
    )


def json_writer(content: Mapping) -> Callable[[Path], object]:
    """Writes JSON the way all our files have it; for `write_all`."""
    return lambda file: file.write_text(
        json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def write_all(jobs: Mapping[Path, Callable[[Path], object]]) -> None:
    """Runs every writer on a temporary name, then moves all to their places, in order."""
    temporary = {file: file.with_name(f".{file.name}.{os.getpid()}.tmp") for file in jobs}
    try:
        for file, write in jobs.items():
            temporary[file].touch()
            mode = temporary[file].stat().st_mode  # the library's own is for the owner's eyes only
            write(temporary[file])
            temporary[file].chmod(mode)
        for file in jobs:
            os.replace(temporary[file], file)
    finally:
        for leftover in temporary.values():
            leftover.unlink(missing_ok=True)
