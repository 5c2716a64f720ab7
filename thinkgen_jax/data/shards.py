# SPDX-License-Identifier: Apache-2.0
"""Sources that hold their pictures: tar shards, Parquet, ArrayRecord, TensorFlow Datasets.

Each is random access over files that were written one behind the other, see `files.py`. Nothing in
them is executed: no pickles, and of a TFDS folder only features of TFDS itself are built.

* A tar shard is WebDataset's: files of one sample share the name up to the first dot of its last
  part. `x.json` holds the fields, or `x.txt` the caption; `x.jpg`, `x.png`, `x.output.jpg`, ... is
  the picture to draw, `x.input0.jpg`, `x.input1.jpg`, ... are references.
* A Parquet table has a column for every field, named as it is or as `columns` says; a picture is
  bytes or, as Hugging Face writes it, a struct with `bytes`. For one row its whole row group is
  read, so tables of large groups are slow in shuffled order: `python -m launch.repack`.
* An ArrayRecord file has the elements of `packed.py`, a TFDS data set features named as our fields
  are (`builder.py`) or as `columns` says.
"""

import bisect
import json
import re
import tarfile
from array import array
from collections import OrderedDict
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_data_source

from thinkgen_jax.data import packed, records
from thinkgen_jax.data.files import (
    Where,
    by_name,
    cached,
    index_files,
    listed,
    names_of,
    of_columns,
    parse,
)
from thinkgen_jax.data.records import Record, Span

FIELDS, CAPTION, TARGET, REFERENCE = 0, 1, 2, 3  # what a member of a tar is; references count on
GROUP_BYTES = 2**30  # largest row group of a Parquet file, all of which is read for one row
NEEDED = ("instruction", "output_image")  # others may be missing, unless `columns` names them
GROUPS_HELD = 4  # row groups of a Parquet source that are kept decoded
# Where a member of a tar lies, and which sample of which file it is of, counted in the file.
MEMBER = np.dtype(
    [("file", "u4"), ("sample", "u4"), ("kind", "u2"), ("offset", "i8"), ("length", "i8")]
)


class Tars:
    """Samples of uncompressed tar files, read by their offsets."""

    def __init__(self, where: Where):
        """Finds where the members of every sample lie.

        Raises:
          ValueError: when there is no such file, it is no plain tar, or there is no sample.
        """
        self.where = where
        self.paths = listed(where, (".tar",))
        self.key, self.content = names_of("tar", by_name(self.paths))
        self._members = cached(self.key, "members", self._find, MEMBER)
        self._starts = cached(self.key, "starts", self._begin, np.dtype("i8"))

    def _find(self) -> np.ndarray:
        return index_files(members, self.paths)

    def _begin(self) -> np.ndarray:
        """Where the members of every sample begin, and where the last one's end, int64 [N + 1]."""
        new = np.ones(len(self._members), bool)
        new[1:] = False
        for part in ("file", "sample"):
            values = self._members[part]
            new[1:] |= values[1:] != values[:-1]
        return np.append(np.flatnonzero(new), len(new))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def name(self, index: int) -> str:
        """File and number of a sample."""
        number, sample, *_ = self._members[self._starts[index]].item()
        return f"{self.paths[number].name}:{sample}"

    def __getitem__(self, index: int) -> Record:
        rows = self._members[self._starts[index] : self._starts[index + 1]]
        found = {kind: Span(self.paths[n], o, c) for n, _, kind, o, c in rows.tolist()}
        fields = {}
        if FIELDS in found:
            fields = parse(records.read(found[FIELDS], found[FIELDS].length))
            if not isinstance(fields, dict):
                raise ValueError("its .json is no object")
        if CAPTION in found:
            caption = records.read(found[CAPTION], found[CAPTION].length)
            fields.setdefault("instruction", caption.strip())
        # Names of files elsewhere, which the fields may hold, mean nothing here.
        inputs = [found[kind] for kind in sorted(found) if kind >= REFERENCE]
        fields = {**fields, "input_images": inputs, "output_image": found.get(TARGET)}
        return records.from_fields(fields, self.name(index))

    def __reduce__(self):
        return Tars, (self.where,)


def members(path: Path) -> np.ndarray:
    """Members of a tar file that mean something, `MEMBER` [M] without the file's number.

    Raises:
      ValueError: when it is no plain tar.
    """
    samples, kinds, offsets, lengths = array("I"), array("H"), array("q"), array("q")
    try:
        with tarfile.open(path, "r:") as tar:
            for sample, (_, group) in enumerate(groupby(_files(tar), lambda m: m[0])):
                for _, kind, offset, length in group:
                    samples.append(sample)
                    kinds.append(kind)
                    offsets.append(offset)
                    lengths.append(length)
    except tarfile.TarError as err:
        raise ValueError(f"{path} is no plain tar file: {err}") from err
    return of_columns(MEMBER, sample=samples, kind=kinds, offset=offsets, length=lengths)


def _files(tar: tarfile.TarFile):
    """(sample, kind, offset, length) of the members that mean something.

    Raises:
      tarfile.TarError: when the file is damaged or cut short.
    """
    for member in tar:
        tar.members = []  # or tarfile would remember all of them
        if member.isreg():
            folder, _, last = member.name.rpartition("/")
            stem, _, rest = last.partition(".")
            kind = _kind(rest.lower())
            if kind is not None:
                yield f"{folder}/{stem}", kind, member.offset_data, member.size
    # At a damaged header tarfile stops as it does at the end, which is zeros or that of the file.
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"damaged header at byte {tar.offset}")


def _kind(rest: str) -> int | None:
    """What a member is by what follows the first dot of its name."""
    role, _, suffix = rest.rpartition(".")
    if rest in ("json", "txt"):
        return FIELDS if rest == "json" else CAPTION
    if f".{suffix}" not in records.PICTURES:
        return None
    if role in ("", "output"):
        return TARGET
    number = re.fullmatch(r"input_?(\d{1,3})", role)
    return REFERENCE + int(number[1]) if number else None


class Tables:
    """Rows of Parquet files."""

    def __init__(self, where: Where):
        """Reads the files' footers.

        Raises:
          ValueError: when there is no such file, it is no Parquet, or a column is missing.
        """
        self.where = where
        self.paths = listed(where, (".parquet",))
        self.key, self.content = names_of("parquet", by_name(self.paths), where.columns)
        self._names = dict(where.columns)
        self._ends, self._groups = [], []
        total = 0
        for path in self.paths:
            try:
                with pq.ParquetFile(path) as file:
                    self._check(path, file.schema_arrow.names)
                    about = file.metadata
                    found = [about.row_group(g) for g in range(about.num_row_groups)]
            except (pa.ArrowException, OSError) as err:
                raise ValueError(f"{path} is no Parquet file: {err}") from err
            for group, row_group in enumerate(found):
                if row_group.total_byte_size > GROUP_BYTES:
                    raise ValueError(
                        f"{path} has a row group of {row_group.total_byte_size} bytes, at most "
                        f"{GROUP_BYTES}: write smaller ones, or python -m launch.repack"
                    )
                total += row_group.num_rows
                self._ends.append(total)
                self._groups.append((path, group))
        self._held: OrderedDict[int, pa.Table] = OrderedDict()

    def _check(self, path: Path, names: list[str]) -> None:
        for field in dict.fromkeys((*NEEDED, *self._names)):
            column = self._names.get(field, field)
            if column not in names:
                raise ValueError(f"{path} has no column {column!r} for {field}, only {names}")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def name(self, index: int) -> str:
        """First file and row of a record."""
        return f"{self.paths[0].name}:{index}"

    def __getitem__(self, index: int) -> Record:
        group = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[group - 1] if group else 0)
        table = self._table(group)
        fields = {}
        for field in packed.FIELDS:
            column = self._names.get(field, field)
            if column in table.column_names:
                fields[field] = table.column(column)[row].as_py()
        fields["output_image"] = _bytes(fields["output_image"])
        if isinstance(fields.get("input_images"), list):
            fields["input_images"] = [_bytes(value) for value in fields["input_images"]]
        return records.from_fields(fields, self.name(index))

    def _table(self, group: int) -> pa.Table:
        """One row group; the last few stay, for neighbours are often asked for together."""
        if group not in self._held:
            path, number = self._groups[group]
            wanted = {self._names.get(field, field) for field in packed.FIELDS}
            try:
                with pq.ParquetFile(path) as file:
                    names = [name for name in file.schema_arrow.names if name in wanted]
                    self._held[group] = file.read_row_group(number, columns=names)
            except (pa.ArrowException, OSError) as err:
                raise ValueError(f"row group {number} of {path.name} is damaged: {err}") from err
        self._held.move_to_end(group)
        table = self._held[group]
        while len(self._held) > GROUPS_HELD:
            self._held.popitem(last=False)
        return table

    def __reduce__(self):
        return Tables, (self.where,)


def _bytes(value):
    """A picture's bytes; Hugging Face wraps them in {"bytes": ..., "path": ...}."""
    return value.get("bytes") if isinstance(value, dict) else value


class ArrayRecords:
    """Examples of ArrayRecord files, as `packed.pack` writes them."""

    def __init__(self, where: Where):
        """Opens the files.

        Raises:
          ValueError: when there is no such file, or it is no ArrayRecord.
        """
        self.where = where
        self.paths = listed(where, (".array_record",))
        self.key, self.content = names_of("array_record", by_name(self.paths))
        self._data = opened(self.paths)

    def __len__(self) -> int:
        return len(self._data)

    def name(self, index: int) -> str:
        """First file and number of a record."""
        return f"{self.paths[0].name}:{index}"

    def __getitem__(self, index: int) -> Record:
        return records.from_fields(packed.unpack(element_at(self._data, index)), self.name(index))

    def __reduce__(self):
        return ArrayRecords, (self.where,)


def opened(paths: list[Path]) -> array_record_data_source.ArrayRecordDataSource:
    """ArrayRecord files as one sequence of bytes.

    Raises:
      ValueError: when one of them is no ArrayRecord.
    """
    try:
        data = array_record_data_source.ArrayRecordDataSource([str(path) for path in paths])
        len(data)
    except (ValueError, RuntimeError) as err:
        raise ValueError(f"{paths[0]} is no ArrayRecord file: {err}") from err
    return data


def element_at(data, index: int):
    """One element of an open data source of ArrayRecord files.

    Raises:
      ValueError: when its part of the file is damaged.
    """
    try:
        return data[index]
    except (RuntimeError, OSError) as err:
        raise ValueError(f"cannot be read: {err}") from err


class Tfds:
    """Examples of a prepared TFDS data set, read without TensorFlow."""

    def __init__(self, where: Where):
        """Opens the folder of one version, the one with `dataset_info.json`.

        Raises:
          ValueError: when there is none, its features are foreign, or the split is missing.
        """
        import tensorflow_datasets as tfds  # seconds to import, and needed for this kind alone

        self.where = where
        folder = Path(where.path)
        about = [folder / "dataset_info.json", folder / "features.json"]
        for path in about:
            if not path.is_file():
                raise ValueError(f"{where.path} holds no {path.name}: want one version's folder")
        _refuse_foreign(about[1])
        built = tfds.builder_from_directory(folder)
        if where.split not in built.info.splits:
            raise ValueError(
                f"{where.path} has no split {where.split!r}, only {sorted(built.info.splits)}"
            )
        files = [Path(path) for path in built.info.splits[where.split].filepaths]
        held = by_name([*about, *files])
        self.key, self.content = names_of("tfds", held, where.split, where.columns)
        self._names = dict(where.columns)
        kinds = built.info.features
        for field in dict.fromkeys((*NEEDED, *self._names)):
            if self._names.get(field, field) not in kinds:
                raise ValueError(f"{where.path} has no feature for {field}, only {sorted(kinds)}")
        raw = {
            name: tfds.decode.SkipDecoding()
            for name, kind in kinds.items()
            if isinstance(kind, tfds.features.Image)
        }
        self._data = built.as_data_source(split=where.split, decoders=raw or None)

    def __len__(self) -> int:
        return len(self._data)

    def name(self, index: int) -> str:
        """Split and number of an example."""
        return f"{self.where.split}:{index}"

    def __getitem__(self, index: int) -> Record:
        example = element_at(self._data, index)
        names = {field: self._names.get(field, field) for field in packed.FIELDS}
        fields = {field: example[name] for field, name in names.items() if name in example}
        if isinstance(fields.get("input_images"), np.ndarray):
            fields["input_images"] = fields["input_images"].tolist()
        return records.from_fields(fields, self.name(index))

    def __reduce__(self):
        return Tfds, (self.where,)


def _refuse_foreign(path: Path) -> None:
    """Features are built by the class names in their file: only those of TFDS are.

    Raises:
      ValueError: naming the first that is not.
    """
    try:
        features = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as err:
        raise ValueError(f"{path} is no JSON") from err
    for name in _class_names(features):
        if not str(name).startswith("tensorflow_datasets.core.features."):
            raise ValueError(f"{path}: feature {name!r} is not one of TFDS itself")


def _class_names(node):
    """Every class that a features file names, in all spellings that are read."""
    if isinstance(node, list):
        for child in node:
            yield from _class_names(child)
    elif isinstance(node, dict):
        for key, child in node.items():
            # "type" is the older spelling; where it is no text, it is a feature called so.
            if key in ("pythonClassName", "python_class_name") or (
                key == "type" and isinstance(child, str)
            ):
                yield child
            else:
                yield from _class_names(child)
