# SPDX-License-Identifier: Apache-2.0
"""Adapters from the config to the pictures: a run that learns them, and what others read of it."""

import jax
import numpy as np
import pytest

from configs import nano_mllm
from thinkgen_jax import checkpoint, learned, logs, parts, recipe, sharding, starts, train
from thinkgen_jax.models import lora
from thinkgen_jax.models.lora import LoraConfig
from thinkgen_jax.pipeline import loading

KEY = jax.random.key(0)


def config_of(**start):
    config = nano_mllm.get_config("tiny")
    config.start.update(start)
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that learned the MLLM, and one that learned adapters on it."""
    folder = tmp_path_factory.mktemp("runs")
    base, adapted, others = (folder / name for name in ("base", "adapted", "others"))
    train.run(config_of(), base)
    with checkpoint.Checkpoints(others) as saves:
        random = {
            tree: {"params": parts.random_params(starts.system_of(config_of()), tree, KEY)}
            for tree in ("dit", "vae")
        }
        saves.save(1, random, data={}, meta={})
    config = config_of(mllm=str(base), dit=str(others), vae=str(others))
    config.lora.mllm.update(rank=2, alpha=8.0)
    train.run(config, adapted)
    return base, adapted


def assert_close(a, b, **how):
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_allclose(x, y, err_msg=jax.tree_util.keystr(path), **how)


def test_a_run_holds_adapters_alone_and_is_read_as_a_whole_tree(runs):
    base, adapted = runs
    system = starts.system_of(config_of())
    names = checkpoint.describe(adapted)
    params = [name for name in names if name.startswith("mllm/params/")]
    assert params and all(name.endswith(("lora_a", "lora_b")) for name in params)
    below, whole = (learned.read(run, system, "mllm") for run in runs)
    own = checkpoint.restore_learned(adapted, "mllm")
    want = lora.merge(below, own, LoraConfig(rank=2, alpha=8.0))
    assert_close(whole, want, rtol=0, atol=1e-7)
    changed = [
        jax.tree_util.keystr(path)
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(below), strict=True
        )
        if not np.array_equal(x, y)
    ]
    assert changed and all("proj']['kernel']" in name for name in changed)
    half = learned.read(adapted, system, "mllm", dtype="bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(half)} == {"bfloat16"}
    begun = checkpoint.read_meta(checkpoint.find(adapted))["start"]["mllm"]
    assert begun == str(base / "checkpoints" / "2")  # the commit, not what comes later


def test_who_draws_reads_the_merged_tree(runs):
    system, params = loading.load(runs[1])
    assert_close(params.mllm, learned.read(runs[1], system.system, "mllm"), rtol=0, atol=0)


def test_the_next_run_starts_from_the_merged_tree(runs):
    config = config_of(mllm=str(runs[1]))
    system = starts.system_of(config)
    with jax.set_mesh(sharding.make_mesh(**config.mesh)):
        got = starts.tree_params(config, system, "mllm", logs.setup())
    assert_close(got, learned.read(runs[1], system, "mllm"), rtol=0, atol=0)


def test_a_run_goes_on_with_the_tree_that_its_adapters_learned_on(runs):
    """The run below has learned on since: what it was is named, and can be named."""
    base, adapted = runs
    meta = checkpoint.read_meta(checkpoint.find(adapted))
    config = config_of(mllm=str(base))
    config.lora.mllm.rank = 2
    starts.check_base(config, meta)
    later = {**meta, "start": {**meta["start"], "mllm": str(base / "checkpoints" / "1")}}
    with pytest.raises(ValueError, match="the adapters learned on .*checkpoints/1, now there is"):
        starts.check_base(config, later)


def test_what_lies_below_must_be_there_and_stay(runs, tmp_path):
    config = config_of()
    config.lora.mllm.rank = 2
    with pytest.raises(ValueError, match="config.lora.mllm: adapters need a base"):
        recipe.adapters(config, "mllm")
    config = config_of(mllm="assets")
    config.lora.mllm.rank = 0
    with pytest.raises(ValueError, match="config.lora.mllm: rank = 0"):
        recipe.adapters(config, "mllm")
    assert recipe.adapters(config_of(), "mllm") is recipe.adapters(config_of(), "vae") is None
    system = starts.system_of(config_of())
    meta = {"lora": {"mllm": dict(rank=2, alpha=2.0, targets=".")}, "start": {"mllm": "gone"}}
    with checkpoint.Checkpoints(tmp_path) as saves:
        saves.save(1, {"mllm": {"params": {"x": np.zeros(1)}}}, data={}, meta=meta)
        saves.wait()
    with pytest.raises(ValueError, match="its mllm are adapters of gone, which is gone"):
        learned.read(tmp_path, system, "mllm")
