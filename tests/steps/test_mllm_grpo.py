# SPDX-License-Identifier: Apache-2.0
"""MLLM-GRPO: on-policy ratio, no signal without spread, accumulation, clipping of drift."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.steps import small
from thinkgen_jax.steps import mllm_grpo
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps.mllm_grpo import MllmGrpoConfig
from thinkgen_jax.steps.state import Learner
from thinkgen_jax.structs import Thoughts

CFG = MllmGrpoConfig()


def thoughts(cfg=CFG, advantages=(1.0, -1.0, 0.5, -0.5), params=None):
    model, own = small.mllm()
    prompt = small.prompt()
    mask = (jnp.arange(10)[None] >= 4) & (prompt.segments > 0)
    logprobs = mllm_grpo.make_logprobs(model, cfg)
    old = logprobs(params or own, prompt, mask)
    ref = logprobs(own, prompt, mask) if cfg.kl else None
    return Thoughts(prompt, mask, old, ref, jnp.asarray(advantages))


def update(data, cfg=CFG, accumulate=1):
    model, params = small.mllm()
    learner = Learner(small.LEARNER.config, accumulate=accumulate)
    state = learning.create(jax.tree.map(jnp.copy, params), learner)
    return mllm_grpo.make_step(model, learner, cfg)(state, data)


def test_first_ratio_is_one():
    _, metrics = update(thoughts())
    assert float(metrics["ratio"]) == 1.0
    assert float(metrics["drift"]) == 0.0
    assert float(metrics["kl"]) == 0.0
    assert float(metrics["grad_norm"]) > 0


def test_equal_rewards_give_no_gradient():
    _, metrics = update(thoughts(advantages=(0.0,) * 4), MllmGrpoConfig(kl=0.0))
    assert float(metrics["grad_norm"]) == 0.0


def test_kl_alone_pulls_back():
    """Without advantages the gradient is that of the KL term, and it lowers it."""
    model, params = small.mllm()
    moved = jax.tree.map(lambda x: x + 0.05 * jnp.sign(x), params)
    data = thoughts(advantages=(0.0,) * 4)
    learner = small.LEARNER
    state = learning.create(moved, learner)
    step = mllm_grpo.make_step(model, learner, MllmGrpoConfig(kl=1.0))
    state, before = step(state, data)
    state, after = step(state, data)
    assert float(before["kl"]) > 1e-4
    assert float(after["kl"]) < float(before["kl"])


@pytest.mark.parametrize("per_sequence", [False, True])
def test_accumulation_changes_nothing(per_sequence):
    cfg = MllmGrpoConfig(per_sequence=per_sequence)
    whole, a = update(thoughts(cfg), cfg)
    cut, b = update(thoughts(cfg), cfg, accumulate=2)
    np.testing.assert_allclose(float(a["loss"]), float(b["loss"]), atol=1e-6)
    for x, y in zip(jax.tree.leaves(whole.params), jax.tree.leaves(cut.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5)


def test_good_responses_become_likelier():
    data = thoughts()
    model, _ = small.mllm()
    state, _ = update(data)
    logprobs = mllm_grpo.make_logprobs(model, CFG)
    gain = jnp.sum(logprobs(state.params, data.prompt, data.mask) - data.old, axis=1)
    assert float(gain[0]) > 0 > float(gain[1])
