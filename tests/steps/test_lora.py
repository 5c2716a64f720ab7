# SPDX-License-Identifier: Apache-2.0
"""Adapters that learn: as the tree would at first, alone, and merged as they were trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.steps import small, test_dit_grpo, test_mllm_grpo
from thinkgen_jax import sharding
from thinkgen_jax.models import lora
from thinkgen_jax.models.lora import LoraConfig
from thinkgen_jax.steps import dit_grpo, mllm_grpo
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps.state import Learner

CFG = LoraConfig(rank=2, alpha=4.0)
ADAPTED = Learner(small.LEARNER.config, lora=CFG)


def begin(base, mesh=None):
    adapters = lora.init(base, CFG, jax.random.key(1))
    if mesh is not None:
        adapters = jax.device_put(adapters, sharding.infer(adapters, mesh))
    return learning.create(adapters, ADAPTED)


def mllm_step(learner):
    """(state, base) -> (state, metrics) of the token objective, and the tree."""
    model, params = small.mllm()
    data = test_mllm_grpo.thoughts()
    step = mllm_grpo.make_step(model, learner, test_mllm_grpo.CFG)
    return lambda state, base=None: step(state, data, base), params


def dit_step(learner):
    """The same of the path objective; the base is also the reference."""
    model, params = small.dit()
    cfg = test_dit_grpo.PLAIN
    data, negative = test_dit_grpo.path(cfg)
    step = dit_grpo.make_step(model, learner, cfg)
    return lambda state, base=None: step(state, params, data, negative, base), params


@pytest.mark.parametrize("made", [mllm_step, dit_step])
def test_only_adapters_learn_and_merged_they_are_what_was_trained(made):
    step, base = made(ADAPTED)
    kept = jax.tree.map(np.array, base)
    state, first = step(begin(base), base)
    plain, same = made(small.LEARNER)[0](
        learning.create(jax.tree.map(jnp.copy, base), small.LEARNER)
    )
    for key in ("loss", "ratio", "kl"):  # nothing was added yet
        assert float(first[key]) == pytest.approx(float(same[key]), abs=1e-6), key
    state, _ = step(state, base)
    jax.tree.map(np.testing.assert_array_equal, base, kept)
    start = begin(base).params
    for (path, now), then in zip(
        jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(start), strict=True
    ):
        if "ref_image" not in jax.tree_util.keystr(path):  # no references here
            assert not np.array_equal(now, then), jax.tree_util.keystr(path)
    moments = jax.tree.leaves(state.opt_state)
    assert sum(x.size for x in moments) < 2.1 * sum(x.size for x in jax.tree.leaves(state.params))

    merged = lora.merge(base, state.params, CFG)  # as it is loaded; the next loss tells
    unmerged = step(state, base)[1]
    merged = jax.tree.map(jnp.copy, merged)  # what was not adapted is the base's own, and donated
    whole = made(small.LEARNER)[0](learning.create(merged, small.LEARNER))[1]
    for key in ("loss", "ratio", "kl"):
        assert float(unmerged[key]) == pytest.approx(float(whole[key]), rel=1e-5, abs=1e-6), key
    assert float(unmerged["kl"]) != pytest.approx(float(first["kl"]), abs=1e-6)


def test_adapters_on_eight_devices_end_where_one_device_ends():
    ends = []
    _, base = mllm_step(ADAPTED)
    alone = mllm_step(ADAPTED)[0](begin(base), base)[0].params
    mesh = sharding.make_mesh(fsdp=4, data=2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(base, sharding.infer(base, mesh))
        step = mllm_step(ADAPTED)[0]
        state = step(begin(placed, mesh), placed)[0]
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
            where = sharding.spec_of(sharding.path_name(path), leaf.shape, mesh)
            want = jax.sharding.NamedSharding(mesh, where)
            assert leaf.sharding.is_equivalent_to(want, leaf.ndim), path
    ends = zip(jax.tree.leaves(jax.device_get(state.params)), jax.tree.leaves(alone), strict=True)
    for a, b in ends:
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
