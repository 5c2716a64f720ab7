# SPDX-License-Identifier: Apache-2.0
"""Where runs begin: released folders, whole and in parts, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import align
from tests.hf import released
from tests.hf.released import assert_trees_equal
from tests.toy import golden_tree
from thinkgen_jax import checkpoint, logs, parts, sharding, starts
from thinkgen_jax.structs import TrainState

LOG = logs.setup()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A released pipeline of tiny networks."""
    return str(released.thinkgen(tmp_path_factory.mktemp("thinkgen"), shards=2))


def config_of(**start):
    config = align.get_config("tiny")
    config.start.update(start)
    config.reinit = ()
    return config


def read(config, tree):
    with jax.set_mesh(sharding.make_mesh(**config.mesh)):
        return starts.tree_params(config, starts.system_of(config), tree, LOG)


def test_a_pipeline_is_a_whole_start(pipeline):
    config = config_of(**starts.of_checkpoint(pipeline))
    assert set(config.start.values()) == {pipeline}
    assert str(starts.words_folder(config)) == f"{pipeline}/processor"
    for tree in parts.TREES:
        got = read(config, tree)
        jax.tree.map(np.testing.assert_array_equal, got, golden_tree(tree))
        assert all(isinstance(x.sharding, jax.sharding.NamedSharding) for x in jax.tree.leaves(got))


def test_the_folder_decides_the_sizes(pipeline):
    """The preset has another vocabulary; the DiT's connector takes the MLLM's width."""
    plain = starts.system_of(config_of())
    taken = starts.system_of(config_of(mllm=pipeline))
    assert plain.mllm.vocab_size != taken.mllm.vocab_size
    assert taken.dit.condition_dim == 2 * taken.mllm.hidden_size
    assert (taken.name, taken.system_prompt) == (plain.name, plain.system_prompt)


def test_the_first_stage_begins_with_omnigen2(pipeline, tmp_path):
    """Its DiT but for connector and prepadding states, which are fresh and follow the seed."""
    folder = str(released.omnigen2(tmp_path))
    config = config_of(mllm=pipeline, dit=folder, vae=folder)
    got, want = read(config, "dit"), golden_tree("dit")
    np.testing.assert_array_equal(got["layers"]["norm1"]["scale"], want["layers"]["norm1"]["scale"])
    assert got["prepad_embed"].shape == want["prepad_embed"].shape
    assert not np.array_equal(got["prepad_embed"], want["prepad_embed"])
    jax.tree.map(np.testing.assert_array_equal, got, read(config, "dit"))
    config.seed = 1
    assert not np.array_equal(got["prepad_embed"], read(config, "dit")["prepad_embed"])
    assert starts.of_checkpoint(folder) == {"vae": folder}


def test_later_stages_keep_the_words_that_the_first_one_had(pipeline, tmp_path):
    """Stage 5 starts from stage 4, which started from a released folder."""
    before = pipeline
    for name in ("four", "five"):
        with checkpoint.Checkpoints(tmp_path / name) as saves:
            meta = {"start": {"mllm": before}}
            saves.save(1, {"mllm": {"params": np.zeros(1)}}, data={}, meta=meta)
            saves.wait()
        before = str(tmp_path / name)
        assert str(starts.words_folder(config_of(mllm=before))) == f"{pipeline}/processor"
    assert starts.words_folder(config_of(mllm="assets")) == parts.ASSETS


def test_a_run_and_words_are_no_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random").mkdir()
    assert starts.released("random") is None and starts.released("nowhere") is None
    assert starts.sources(config_of(dit="runs/x"))["dit"] == str(tmp_path / "runs/x")


def test_a_folder_without_the_tree_is_refused(pipeline, tmp_path):
    qwen = str(released.qwen(tmp_path))
    with pytest.raises(ValueError, match="transformer: no such folder"):
        read(config_of(mllm=pipeline, dit=qwen), "dit")


def test_a_run_of_another_marker_is_refused(tmp_path):
    """Its states stand behind another token: what learns on from it must say the same."""
    params = golden_tree("dit")
    with checkpoint.Checkpoints(tmp_path) as saves:
        state = {"dit": TrainState(jnp.zeros((), jnp.int32), params, {}, None)}
        meta = {"preset": "tiny", "system": {"marker": "<INS>"}}
        saves.save(1, state, data={}, meta=meta)
    config = config_of(dit=str(tmp_path))
    with pytest.raises(ValueError, match="learned with the marker '<INS>'"):
        read(config, "dit")
    config.marker = "<INS>"
    assert_trees_equal(read(config, "dit"), params)
