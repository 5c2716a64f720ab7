# SPDX-License-Identifier: Apache-2.0
"""Tensors on disk: lazy reading, shards, refusals, saves that cannot be half done."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from thinkgen_jax.hf import files

BF16 = ml_dtypes.bfloat16
TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4).astype(BF16),
    "c": np.array(7, np.int64),
    "d": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # not contiguous
}


def same(got, want):
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape, name
        np.testing.assert_array_equal(got[name], array)


def test_round_trip_of_one_file(tmp_path):
    path = tmp_path / "deep" / "model.safetensors"
    assert files.save_tensors(path, TENSORS, metadata={"who": "test"}) == [path]
    same(files.open_tensors(path), TENSORS)
    same(files.open_tensors(path.parent), TENSORS)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt", "who": "test"}


def test_everybody_may_read_what_was_saved(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    files.save_tensors(tmp_path / "model.safetensors", {"a": np.ones(3, np.float32)})
    assert (tmp_path / "model.safetensors").stat().st_mode == plain.stat().st_mode


def test_shards_are_bounded_indexed_and_read_back(tmp_path):
    path = tmp_path / "model.safetensors"
    # Sorted: a 24 bytes, b 8, c 8, d 48. At most 32 a file: a + b, then c, then d above the bound.
    written = files.save_tensors(path, TENSORS, max_shard_bytes=32)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [file.name for file in written] == [*names, "model.safetensors.index.json"]
    assert [set(load_file(tmp_path / name)) for name in names] == [{"a.weight", "b"}, {"c"}, {"d"}]
    index = json.loads(written[-1].read_text())
    assert index["metadata"]["total_size"] == 88
    same(files.open_tensors(tmp_path), TENSORS)
    same(files.open_tensors(written[-1]), TENSORS)


def test_a_later_save_leaves_nothing_of_the_earlier(tmp_path):
    path = tmp_path / "model.safetensors"
    other = tmp_path / "model_b.safetensors"
    save_file({"x": np.zeros(1)}, other)
    files.save_tensors(path, TENSORS, max_shard_bytes=32)
    files.save_tensors(path, TENSORS)
    assert sorted(tmp_path.iterdir()) == [path, other]
    files.save_tensors(path, TENSORS, max_shard_bytes=48)
    assert not path.exists() and len(list(tmp_path.iterdir())) == 4


def test_reading_is_lazy(tmp_path):
    files.save_tensors(tmp_path / "m.safetensors", TENSORS, max_shard_bytes=32)
    tensors = files.open_tensors(tmp_path)
    last = tmp_path / "m-00003-of-00003.safetensors"
    last.write_bytes(last.read_bytes()[:-8])
    assert tensors["c"] == 7
    with pytest.raises(ValueError, match="m-00003-of-00003.safetensors"):
        tensors["d"]
    with pytest.raises(KeyError):
        tensors["e"]


def test_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    files.save_tensors(path, TENSORS)

    def torn(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(files, "save_file", torn)
    with pytest.raises(OSError, match="disk full"):
        files.save_tensors(path, {"a": np.zeros(2)})
    same(files.open_tensors(path), TENSORS)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickles_are_refused_with_advice(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match="pickles.*safetensors") as error:
            files.open_tensors(path)
        assert name in str(error.value)


def test_a_pickle_under_a_false_name_is_not_read(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"\x80\x04]\x94." * 40)
    with pytest.raises(ValueError, match="m.safetensors: damaged"):
        files.open_tensors(tmp_path)


def test_truncated_file_is_named(tmp_path):
    path = tmp_path / "m.safetensors"
    files.save_tensors(path, TENSORS)
    for size in (4, 40, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match="m.safetensors: damaged"):
            files.open_tensors(path)
        files.save_tensors(path, TENSORS)


def test_missing_empty_and_doubtful_folders(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such file"):
        files.open_tensors(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no .safetensors file"):
        files.open_tensors(tmp_path)
    for name in ("dit", "vae"):
        files.save_tensors(tmp_path / f"{name}.safetensors", TENSORS)
    with pytest.raises(ValueError, match="dit.safetensors, vae.safetensors"):
        files.open_tensors(tmp_path)
    (tmp_path / "x.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="x.npz: not a .safetensors"):
        files.open_tensors(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "gone.safetensors"}}, "names gone.safetensors, which is not there"),
        ({"weight_map": {"a": "../m.safetensors"}}, "no .safetensors file of this folder"),
        ({"weight_map": {"a": "m.bin"}}, "no .safetensors file of this folder"),
        ({"weight_map": {"a": 3}}, "no weight_map"),
        ({}, "no weight_map"),
        ([], "holds a list"),
    ],
)
def test_bad_indices_are_refused(tmp_path, index, message):
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        files.open_tensors(tmp_path)


def test_index_that_promises_too_much(tmp_path):
    save_file({"a": np.zeros(1)}, tmp_path / "m.safetensors")
    index = {"weight_map": {"a": "m.safetensors", "b": "m.safetensors"}}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    tensors = files.open_tensors(tmp_path)
    assert tensors["a"].shape == (1,)
    with pytest.raises(ValueError, match="m.safetensors: tensor 'b'"):
        tensors["b"]


@pytest.mark.parametrize(
    ("name", "tensors", "bound", "message"),
    [
        ("m.bin", TENSORS, None, "must end in .safetensors"),
        ("m.safetensors", {}, None, "no tensors"),
        ("m.safetensors", TENSORS, 0, "max_shard_bytes=0"),
    ],
)
def test_bad_saves_are_refused(tmp_path, name, tensors, bound, message):
    with pytest.raises(ValueError, match=message):
        files.save_tensors(tmp_path / name, tensors, max_shard_bytes=bound)


def test_configs(tmp_path):
    assert files.write_config(tmp_path / "vae", {"b": [1], "a": 0.5}).name == "config.json"
    assert files.read_config(tmp_path / "vae") == {"a": 0.5, "b": [1]}
    named = files.write_config(tmp_path / "other.json", {"x": 1})
    assert named == tmp_path / "other.json" and files.read_config(named) == {"x": 1}
    for text, message in (("{", "no JSON"), ("[1]", "holds a list")):
        named.write_text(text)
        with pytest.raises(ValueError, match=f"other.json: {message}"):
            files.read_config(named)
    with pytest.raises(ValueError, match="config.json: no such file"):
        files.read_config(tmp_path)
