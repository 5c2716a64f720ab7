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
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thinkgen_jax.data import records
from thinkgen_jax.data.records import Record

PIECES, PIECE = 16, 4096  # of a file, evenly spaced, and their bytes: what its content is told by


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


def cached(key: str, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that is made once and then mapped from the user's cache folder.

    Where the folder cannot be written, it is made each time.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base) / "thinkgen_jax" / "sources" / key / f"{name}.npy"
    if not path.exists():
        array = make()
        part = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                np.save(file, array)
            part.replace(path)  # whole or not at all, whoever else writes it
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)  # of a disk that is full
            return array
    # An empty array cannot be mapped.
    return np.load(path, mmap_mode="r") if path.stat().st_size > 2**16 else np.load(path)


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
        self.key = key_of("jsonl", self.paths, *self.roots)
        self.content = content_of(self.key, "jsonl", by_name(self.paths))
        self._places = cached(self.key, "lines", self._find)

    def _find(self) -> np.ndarray:
        """(file, offset, length, line number) of every line that is not blank, int64 [N, 4]."""
        rows = []
        for number, path in enumerate(self.paths):
            offset = 0
            with path.open("rb") as file:
                for line_number, line in enumerate(file, start=1):
                    if line.strip():
                        rows.append((number, offset, len(line), line_number))
                    offset += len(line)
        return np.asarray(rows, np.int64).reshape(-1, 4)

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        """File and line of a record."""
        number, _, _, line = self._places[index]
        return f"{self.paths[number].name}:{line}"

    def __getitem__(self, index: int) -> Record:
        number, offset, length, _ = map(int, self._places[index])
        line = records.read(records.Span(self.paths[number], offset, length), length)
        return records.from_fields(parse(line), self.name(index), self.roots[number])

    def __reduce__(self):
        return JsonLines, (self.where,)


def parse(line: bytes) -> object:
    """What one line of JSON holds.

    Raises:
      ValueError: when it is none; RecursionError of hostile nesting is one too.
    """
    try:
        return json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ValueError(f"is no JSON: {err}") from err


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
        self.key = key_of("folder", found)
        inside = {str(path.relative_to(self.root)): path for path in found}
        self.content = content_of(self.key, "folder", inside)

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
