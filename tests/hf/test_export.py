# SPDX-License-Identifier: Apache-2.0
"""Released folders, written: bytes, names, shards and configs as they were, or complete."""

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.hf import released
from tests.hf.released import EMBED, HEAD
from tests.toy import SYSTEM as TINY
from thinkgen_jax import parts
from thinkgen_jax.hf import export, files, folders
from thinkgen_jax.hf.rules import flatten

NAMES = ("mllm", "dit", "vae")
SHAPES = {name: parts.shapes(TINY, name) for name in NAMES}


def read(folder, system=TINY, names=NAMES, **more):
    shapes = {
        name: parts.shapes(system, name) if system is not TINY else SHAPES[name] for name in names
    }
    return {
        name: folders.read_tree(folder, system, name, shapes=shapes[name], **more) for name in names
    }


def contents(folder):
    """Every file's bytes by its path."""
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


# --- with a source --------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
def test_a_pipeline_comes_back_byte_by_byte(tmp_path, shards):
    there, here = released.thinkgen(tmp_path / "there", shards=shards), tmp_path / "here"
    system = folders.read_system(there)
    written = export.write_folder(here, system, read(there, system), there)
    assert contents(here) == contents(there)
    assert sorted(written) == sorted(file for file in here.rglob("*") if file.is_file())
    released.assert_same_tensors(released.all_tensors(here), released.all_tensors(there))


@pytest.mark.parametrize("change", [{}, released.TIED])
def test_a_qwen_folder_comes_back_byte_by_byte(tmp_path, change):
    there, here = tmp_path / "there", tmp_path / "here"
    tensors = released.tied_weights() if change else None
    released.qwen(there, shards=2, tensors=tensors, changes=change)
    system = folders.read_system(there)
    trees = read(there, system, ["mllm"])
    export.write_folder(here, system, trees, there, plain=True)
    want = contents(there)
    del want["README.md"]  # about the folder, not of the model
    assert contents(here) == want


def test_a_repeated_head_is_written_again(tmp_path):
    tensors = released.weights("mllm")
    there, here = tmp_path / "there", tmp_path / "here"
    tensors[HEAD] = tensors[EMBED]
    released.qwen(there, shards=2, tensors=tensors, changes=released.TIED)
    system = folders.read_system(there)
    export.write_folder(here, system, read(there, system, ["mllm"]), there, plain=True)
    released.assert_same_tensors(released.all_tensors(here), released.all_tensors(there))


def test_a_folder_may_be_written_over_itself(tmp_path):
    released.thinkgen(tmp_path, shards=2)
    before = contents(tmp_path)
    export.write_folder(tmp_path, TINY, read(tmp_path), tmp_path)
    assert contents(tmp_path) == before


def test_mixed_kinds_of_numbers_come_back(tmp_path):
    tensors = released.weights("transformer")
    for name in list(tensors)[::3]:
        if tensors[name].dtype == np.float32:
            tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)
    there, here = released.thinkgen(tmp_path / "there"), tmp_path / "here"
    released.put_part(there / "transformer", "transformer", tensors=tensors)
    trees = read(there, names=["dit"])
    export.write_folder(here, TINY, trees, there, dtype="source")
    file = "transformer/diffusion_pytorch_model.safetensors"
    assert (here / file).read_bytes() == (there / file).read_bytes()


def test_learned_weights_keep_files_and_index(tmp_path):
    there, here = released.thinkgen(tmp_path / "there", shards=3), tmp_path / "here"
    trees = read(there, names=["dit"], dtype="bfloat16")
    trees["dit"]["prepad_embed"] = trees["dit"]["prepad_embed"] * 0
    export.write_folder(here, TINY, trees, there)
    name = "transformer/diffusion_pytorch_model.safetensors.index.json"
    old, new = (files.read_config(folder / name) for folder in (there, here))
    assert new["weight_map"] == old["weight_map"]
    assert new["metadata"]["total_parameters"] == 7
    # Two bytes a parameter, and the buffer's eight.
    assert new["metadata"]["total_size"] == (old["metadata"]["total_size"] - 40) // 2 + 40
    got = {k.split(":")[1]: x for k, x in released.all_tensors(here).items()}
    assert got["prepad_mask"].dtype == np.int64 and not got["prepad_embed"].any()
    assert got["x_embedder.bias"].dtype == ml_dtypes.bfloat16
    assert not (here / "mllm").exists() and not (here / "vae").exists()


def test_our_values_lie_over_the_sources(tmp_path):
    there, here = released.thinkgen(tmp_path / "there"), tmp_path / "here"
    system = replace(
        TINY,
        mllm=replace(TINY.mllm, rope_theta=1e4, max_position_embeddings=99),
        dit=replace(TINY.dit, norm_eps=0.5),
        vae=replace(TINY.vae, shift_factor=0.25),
    )
    export.write_folder(here, system, read(there, system), there)
    for part, change in (
        ("transformer", {"norm_eps": 0.5}),
        ("vae", {"shift_factor": 0.25}),
        ("mllm", {}),
    ):
        want = released.config(part) | change
        if part == "mllm":
            want["text_config"] |= {"rope_theta": 1e4, "max_position_embeddings": 99}
        assert files.read_config(here / part) == want
    assert folders.read_system(here).mllm == system.mllm


def test_the_newer_spelling_gives_way_to_ours(tmp_path):
    text = dict(released.config("mllm")["text_config"])
    ropes = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}
    there, here = tmp_path / "there", tmp_path / "here"
    released.qwen(there, changes={"text_config": {**text, "rope_parameters": ropes}})
    trees = read(there, names=["mllm"])
    export.write_folder(here, TINY, trees, there, plain=True)
    assert files.read_config(here) == files.read_config(there)
    system = replace(TINY, mllm=replace(TINY.mllm, rope_theta=1e4))
    export.write_folder(here, system, trees, there, plain=True)
    text = files.read_config(here)["text_config"]
    assert text["rope_theta"] == 1e4 and "rope_parameters" not in text
    assert folders.read_system(here).mllm == system.mllm


def test_a_start_becomes_a_pipeline(tmp_path):
    omni, qwen = released.omnigen2(tmp_path / "omni"), released.qwen(tmp_path / "qwen", shards=2)
    system = folders.read_system(omni, base=folders.read_system(qwen))
    system = replace(system, dit=replace(system.dit, num_prepad=5))
    flat = flatten(SHAPES["dit"])
    dit, _ = folders.read_start(
        omni,
        system,
        shapes=SHAPES["dit"],
        fresh=lambda paths: {path: np.ones(flat[path].shape, np.float32) for path in paths},
    )
    trees = {"dit": dit, **read(qwen, names=["mllm"]), **read(omni, names=["vae"])}
    here = tmp_path / "here"
    export.write_folder(here, system, trees, [omni, qwen])
    assert folders.kind(here) == "thinkgen"
    assert folders.read_system(here) == system
    back = read(here)
    np.testing.assert_array_equal(back["dit"]["prepad_embed"], np.ones((5, 128)))
    assert (here / "processor" / "tokenizer.json").stat().st_size > 10  # not OmniGen2's
    assert not (here / "processor" / "README.md").exists()
    assert (here / "mllm" / "generation_config.json").is_file()
    assert len(list((here / "mllm").glob("*.safetensors"))) == 2
    assert files.read_config(here / "model_index.json")["_class_name"] == "ThinkGenCoTPipeline"
    assert files.read_config(here / "scheduler" / "scheduler_config.json") == {
        "num_train_timesteps": 1000
    }
    mask = load_file(here / "transformer" / "diffusion_pytorch_model.safetensors")["prepad_mask"]
    assert mask.dtype == np.int64 and mask.shape == (1, 5)


def test_the_mllm_of_a_pipeline_may_stand_alone(tmp_path):
    there, here = released.thinkgen(tmp_path / "there", shards=2), tmp_path / "here"
    export.write_folder(here, TINY, read(there, names=["mllm"]), there, plain=True)
    assert folders.kind(here) == "qwen3vl" and folders.read_system(here).mllm == TINY.mllm
    assert (here / "tokenizer.json").is_file() and (here / "generation_config.json").is_file()
    assert not (here / "scheduler").exists()


# --- without one ----------------------------------------------------------------------------------


def test_a_folder_without_source_is_complete(tmp_path):
    there, here = released.thinkgen(tmp_path / "there"), tmp_path / "here"
    trees = read(there)
    export.write_folder(here, TINY, trees, dtype="bfloat16")
    system = folders.read_system(here)
    assert (system.mllm, system.dit, system.vae) == (TINY.mllm, TINY.dit, TINY.vae)
    for name, tree in read(here).items():
        for path, leaf in flatten(tree).items():
            want = flatten(trees[name])[path].astype(ml_dtypes.bfloat16)
            np.testing.assert_array_equal(leaf, want, err_msg=path)
    mllm = files.read_config(here / "mllm")
    assert mllm["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert mllm["dtype"] == "bfloat16" and "auto_map" not in mllm
    dit = files.read_config(here / "transformer")
    assert dit["_class_name"] == "ThinkGenTransformer2DModel" and dit["text_feat_dim"] == 64
    assert files.read_config(here / "vae")["_class_name"] == "AutoencoderKL"
    index = files.read_config(here / "model_index.json")
    assert index["vae"] == ["diffusers", "AutoencoderKL"] and len(index) == 7
    assert files.read_config(here / "scheduler" / "scheduler_config.json") == {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": "0.34.0",
        "dynamic_time_shift": True,
        "num_train_timesteps": 1000,
    }
    assert not (here / "processor").exists()


def test_the_released_dit_config_has_the_released_fields():
    """27 lines in the release: 13 numbers, two triples, class and version."""
    config = {**folders.TABLES["dit"].config_to_hf(folders.DitConfig()), **export.DIFFUSERS}
    assert len(json.dumps(config, indent=2).splitlines()) == 27


def test_large_trees_are_cut_and_later_saves_leave_nothing_behind(tmp_path):
    there, here = released.thinkgen(tmp_path / "there"), tmp_path / "here"
    trees = read(there, names=["dit"])
    export.write_folder(here, TINY, trees, max_shard_bytes=400_000)
    home = here / "transformer"
    shards = sorted(home.glob("*.safetensors"))
    assert len(shards) > 3 and shards[0].name.startswith("diffusion_pytorch_model-00001-of-")
    assert all(file.stat().st_size < 400_000 + 30_000 for file in shards)
    index = files.read_config(home / "diffusion_pytorch_model.safetensors.index.json")
    tensors = released.weights("transformer")
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    got = {k.split(":")[1]: x for k, x in released.all_tensors(here).items()}
    released.assert_same_tensors(got, tensors)
    export.write_folder(here, TINY, trees)
    assert sorted(file.name for file in home.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_an_interrupted_write_changes_nothing(tmp_path, monkeypatch):
    there = released.thinkgen(tmp_path / "there", shards=2)
    before, trees = contents(there), read(there, dtype="bfloat16")

    def torn(original, file):
        raise OSError("disk full")

    monkeypatch.setattr(export, "copyfile", torn)
    with pytest.raises(OSError, match="disk full"):
        export.write_folder(there, TINY, trees, there)
    assert contents(there) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"trees": {"clip": {}}}, r"cannot write trees \['clip'\]"),
        ({"trees": {}}, r"cannot write trees \[\]"),
        ({"plain": True}, r"\['dit'\] with plain=True"),
        ({"max_shard_bytes": 0}, "max_shard_bytes=0"),
        ({"dtype": "source"}, "no source has the tensors of tree 'dit'"),
        ({"source": "elsewhere"}, "elsewhere: no released folder"),
    ],
)
def test_bad_orders_are_refused(tmp_path, more, message):
    order = {"trees": {"dit": SHAPES["dit"]}, **more}
    with pytest.raises(ValueError, match=message):
        export.write_folder(tmp_path / "here", TINY, **order)
    assert not (tmp_path / "here").exists()
