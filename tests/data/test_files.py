# SPDX-License-Identifier: Apache-2.0
"""The index of a source's records: the same by processes, compact, and never misread."""

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.data import real
from thinkgen_jax.data import files, shards
from thinkgen_jax.data.corpus import Source, open_source


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What other tests keep is not found here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def sources(folder):
    """A source of each kind that has an index, over two files."""
    tars = Source("webdataset", real.write_tar(folder / "tars", real.items()))
    path = Path(real.write_jsonl(folder / "lines", real.items()))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:9]))
    (path.parent / "second.jsonl").write_text(" \t\n" + "".join(lines[9:]).rstrip("\n"))
    return tars, Source("jsonl", str(path.parent))


def shown(source):
    """Names and contents of all records, in order."""
    found = open_source(source)
    return [(found.name(i), found[i]) for i in range(len(found))]


def kept(source):
    """The folder in which what was made of a source is kept."""
    return next(Path(os.environ["XDG_CACHE_HOME"]).rglob(open_source(source).key))


def test_names_are_of_file_and_place(tmp_path):
    tars, lines = sources(tmp_path)
    assert [name for name, _ in shown(tars)] == [
        *(f"s-0.tar:{n}" for n in range(7)),
        *(f"s-1.tar:{n}" for n in range(5)),
    ]
    assert [name for name, _ in shown(lines)] == [
        *(f"records.jsonl:{2 * n + 1}" for n in range(5)),
        *(f"second.jsonl:{2 * n + 3}" for n in range(7)),
    ]
    assert [r.instruction for _, r in shown(lines)] == [i["instruction"] for i in real.items()]


def test_files_are_indexed_by_processes_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for find, source in zip((shards.members, files.lines), sources(tmp_path), strict=True):
        paths = open_source(source).paths
        with monkeypatch.context() as patch:
            here = files.index_files(find, paths)
            patch.setattr(files, "MANY_BYTES", 0)
            np.testing.assert_array_equal(files.index_files(find, paths), here)
        assert sorted(set(here["file"].tolist())) == [0, 1]


@pytest.mark.parametrize("old", ["other elements", "damaged", "cut short"])
def test_an_index_that_means_something_else_is_made_anew(tmp_path, old):
    """Whole numbers without names are what an older version kept under the same name."""
    for source, name in zip(sources(tmp_path), ("members", "lines"), strict=True):
        expected = shown(source)
        path = kept(source) / f"{name}.npy"
        whole = path.read_bytes()
        if old == "other elements":
            np.save(path, np.zeros((12, 5), np.int64))
        else:
            path.write_bytes(whole[:-1] if old == "cut short" else b"no array")
        assert shown(source) == expected
        assert path.read_bytes() == whole  # and kept again


def test_an_index_takes_few_bytes_a_record(tmp_path):
    """While it is made as well: tuples would take three hundred and more."""
    count, path = 20_000, tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": n}) + "\n" for n in range(count)))
    tracemalloc.start()
    index = files.index_files(files.lines, [path])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(index) == count and index.itemsize == 24 and peak < 100 * count
