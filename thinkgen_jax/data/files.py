# SPDX-License-Identifier: Apache-2.0
"""Sources that are files of their own: JSONL beside pictures, and a folder of one's own pictures.

A source is random access: `len(source)`, `source[i]` a record, `source.key` where it lies and since
when, `source.content` what it holds, the same wherever it lies. It travels to other processes as
the call that opened it.

* A JSONL file is read once for where its lines begin; the lines themselves stay on disk.
* In a folder `cat.png` is described by `cat.txt`, or by its own name: "cat".
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thinkgen_jax.data import records
from thinkgen_jax.data.records import Record

PIECES, PIECE = 16, 4096  # of a file, evenly spaced, and their bytes: what its content is told by
MANY_BYTES = 2**30  # of files that one process looks through for records
# Where one line lies; four bytes suffice to count files and the lines of one.
LINE = np.dtype([("file", "u4"), ("line", "u4"), ("offset", "i8"), ("length", "i8")])


@dataclass(frozen=True)
class Where:
    """What a source is opened with.

    Attributes:
      path: file, folder, or pattern with `*` of files.
      root: folder that paths in records are below; None takes the folder of the file.
      split: of a TFDS data set.
      columns: their own names for `instruction`, `output_image`, ... of a table.
    """

    path: str
    root: str | None = None
    split: str = "train"
    columns: tuple[tuple[str, str], ...] = ()


def listed(where: Where, suffixes: tuple[str, ...]) -> list[Path]:
    """Files that a source's path names, sorted: itself, those of a folder, or those of a pattern.

    Raises:
      ValueError: when there is none.
    """
    path = Path(where.path)
    if path.is_file():
        return [path]
    if "*" in path.name:
        found = sorted(p for p in path.parent.glob(path.name) if p.is_file())
    else:
        if not path.exists():
            raise ValueError(f"{where.path} does not exist")
        found = sorted(p for p in path.iterdir() if p.suffix in suffixes and p.is_file())
    if not found:
        raise ValueError(f"{where.path} holds no file {' or '.join(suffixes)}")
    return found


def by_name(paths: Iterable[Path]) -> dict[str, Path]:
    """Files of one folder by their names."""
    return {path.name: path for path in paths}


def key_of(kind: str, paths: Iterable[Path], *more: object) -> str:
    """Name of files on this disk, under which what was made of them is kept: of place and time."""
    facts = [kind, *map(str, more)]
    for path in paths:
        facts.append(f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]


def content_of(key: str, kind: str, paths: Mapping[str, Path], *more: object) -> str:
    """Short name of a content wherever it lies: of names, lengths and pieces of its files.

    It is made once for a `key`, see `cached`.

    Args:
      paths: files by the names that they have inside the source.
      more: what else the records hang on.
    """

    def made() -> np.ndarray:
        digest = hashlib.sha256("\n".join([kind, *map(str, more)]).encode())
        for name, path in paths.items():
            size = path.stat().st_size
            digest.update(f"\n{name} {size}\n".encode())
            last = max(size - PIECE, 0)
            with path.open("rb") as file:
                for place in sorted({last * n // (PIECES - 1) for n in range(PIECES)}):
                    file.seek(place)
                    digest.update(file.read(PIECE))
        return np.frombuffer(digest.digest()[:12], np.uint8)

    return cached(key, "content", made).tobytes().hex()


def names_of(
    kind: str, held: Mapping[str, Path], *more: object, beside: Iterable[object] = ()
) -> tuple[str, str]:
    """The key of files on this disk and the short name of what they hold.

    Args:
      held: files by the names that they have inside the source.
      more: what else the records hang on.
      beside: what the key alone hangs on.
    """
    key = key_of(kind, held.values(), *more, *beside)
    return key, content_of(key, kind, held, *more)


def cached(
    key: str, name: str, make: Callable[[], np.ndarray], dtype: np.dtype | None = None
) -> np.ndarray:
    """An array that is made once and then mapped from the user's cache folder.

    Where the folder cannot be written, it is made each time.

    Args:
      dtype: of its elements; an array of others, as an older version wrote it, is made anew.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base) / "thinkgen_jax" / "sources" / key / f"{name}.npy"
    found = _mapped(path, dtype)
    if found is not None:
        return found
    made = make()
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.save(file, made)
        part.replace(path)  # whole or not at all, whoever else writes it
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)  # of a disk that is full
        return made
    found = _mapped(path, dtype)  # what was made need not stay in memory
    return made if found is None else found


def _mapped(path: Path, dtype: np.dtype | None) -> np.ndarray | None:
    """An array of the cache; None where there is none, a damaged one or one of other elements."""
    try:
        # An empty array cannot be mapped.
        found = np.load(path, mmap_mode="r") if path.stat().st_size > 2**16 else np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return found if dtype is None or found.dtype == dtype else None


def spread(work: Callable, parts: Sequence, *, alone: bool) -> list:
    """Results of `work` on every part, in order; by processes, one a core, unless `alone`."""
    cores = min(os.cpu_count() or 1, len(parts))
    if alone or cores < 2:
        return list(map(work, parts))
    # Spawned: a fork of a process with threads, as one with a device has, may hang.
    how = dict(mp_context=multiprocessing.get_context("spawn"))
    with ProcessPoolExecutor(cores, **how) as pool:
        return list(pool.map(work, parts))


def index_files(find: Callable[[Path], np.ndarray], paths: Sequence[Path]) -> np.ndarray:
    """What `find` tells of every file, one behind the other, with the file's number as "file".

    Many bytes are looked through by processes, a file each at a time.

    Args:
      find: of the top level of a module; its arrays have named fields, "file" among them.
    """
    few = sum(path.stat().st_size for path in paths) <= MANY_BYTES
    found = spread(find, paths, alone=few)
    for number, rows in enumerate(found):
        rows["file"] = number
    return np.concatenate(found)


def of_columns(dtype: np.dtype, **values: array) -> np.ndarray:
    """An array with named fields of its columns; those that are not given stay 0."""
    out = np.zeros(len(next(iter(values.values()))), dtype)
    for name, column in values.items():
        out[name] = column
    return out


def lines(path: Path) -> np.ndarray:
    """Lines of a file that are not blank, `LINE` [N] without the file's number.

    They are gathered as numbers and not as tuples, which take ten times the memory.
    """
    numbers, offsets, lengths, offset = array("I"), array("q"), array("q"), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                numbers.append(number)
                offsets.append(offset)
                lengths.append(len(line))
            offset += len(line)
    return of_columns(LINE, line=numbers, offset=offsets, length=lengths)


class JsonLines:
    """Records of JSONL files, one a line; their pictures are files below the root."""

    def __init__(self, where: Where):
        """Finds where the lines begin.

        Raises:
          ValueError: when there is no such file, or none has a line.
        """
        self.where = where
        self.paths = listed(where, (".jsonl",))
        roots = [where.root or path.parent for path in self.paths]
        self.roots = [Path(root) for root in roots]
        self.key, self.content = names_of("jsonl", by_name(self.paths), beside=self.roots)
        self._places = cached(self.key, "lines", self._find, LINE)

    def _find(self) -> np.ndarray:
        return index_files(lines, self.paths)

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        """File and line of a record."""
        number, line, *_ = self._places[index].item()
        return f"{self.paths[number].name}:{line}"

    def __getitem__(self, index: int) -> Record:
        number, _, offset, length = self._places[index].item()
        line = records.read(records.Span(self.paths[number], offset, length), length)
        return records.from_fields(parse(line), self.name(index), self.roots[number])

    def __reduce__(self):
        return JsonLines, (self.where,)


def split(text: str) -> list[str]:
    """Lines of a JSON lines file; JSON may hold U+2028 and its like, which `splitlines` cuts at."""
    return text.removesuffix("\n").split("\n")


def parse(line: bytes) -> object:
    """What one line of JSON holds.

    Raises:
      ValueError: when it is none; RecursionError of hostile nesting is one too.
    """
    try:
        return json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ValueError(f"is no JSON: {err}") from err


def objects(text: str, name: str) -> Iterator[tuple[int, dict]]:
    """The objects of a JSON lines file with the number of each one's line; empty lines are none.

    Args:
      name: of the file, for errors.

    Raises:
      ValueError: when a line holds anything else.
    """
    for number, line in enumerate(split(text), start=1):
        if not line.strip():
            continue
        try:
            found = parse(line.encode())
        except ValueError as err:
            raise ValueError(f"{name}, line {number} {err}") from err
        if not isinstance(found, dict):
            raise ValueError(f"{name}, line {number} is no object")
        yield number, found


class Pictures:
    """One's own pictures in a folder: each with its caption in a text file, or in its name."""

    def __init__(self, where: Where):
        """Lists the pictures.

        Raises:
          ValueError: when there is no such folder, or it has no picture.
        """
        self.where = where
        self.root = Path(where.path)
        if not self.root.is_dir():
            raise ValueError(f"{where.path} is no folder")
        found = (p for p in self.root.rglob("*") if p.suffix.lower() in records.PICTURES)
        self.paths = sorted(found)
        if not self.paths:
            raise ValueError(f"{where.path} holds no picture {', '.join(records.PICTURES)}")
        texts = [p.with_suffix(".txt") for p in self.paths]
        found = [*self.paths, *(t for t in texts if t.exists())]
        inside = {str(path.relative_to(self.root)): path for path in found}
        self.key, self.content = names_of("folder", inside)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The picture's path below the folder."""
        return str(self.paths[index].relative_to(self.root))

    def __getitem__(self, index: int) -> Record:
        path, name = self.paths[index], self.name(index)
        words = records.inside(self.root, str(Path(name).with_suffix(".txt")))
        caption = path.stem.replace("_", " ").replace("-", " ")
        if words.exists():
            try:
                caption = words.read_text(encoding="utf-8").strip()
            except UnicodeDecodeError as err:
                raise ValueError(f"{words.name} is not UTF-8") from err
        fields = {"instruction": caption, "output_image": name}
        return records.from_fields(fields, name, self.root)

    def __reduce__(self):
        return Pictures, (self.where,)
