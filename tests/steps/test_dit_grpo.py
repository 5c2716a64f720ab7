# SPDX-License-Identifier: Apache-2.0
"""DiT-GRPO: stored paths replay, on-policy ratio, no signal without spread, accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.steps import small
from thinkgen_jax.sampling import flow, sde
from thinkgen_jax.sampling.flow import Guidance
from thinkgen_jax.steps import dit_grpo
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps.dit_grpo import DitGrpoConfig
from thinkgen_jax.steps.state import Learner
from thinkgen_jax.structs import Trajectory

GUIDED = DitGrpoConfig(guidance=Guidance(text=2.0))
PLAIN = DitGrpoConfig(kl=0.0)
GRID = jnp.asarray(flow.times(4, shift=2.0))
NOISE = jnp.full(4, 0.7)
STEPS = jnp.array([0, 2])


def path(cfg, advantages=(1.0, -1.0, 0.5, -0.5)):
    """A sampled path with its old log-probabilities; the negative condition where it is needed."""
    model, params = small.dit()
    places, condition = small.target(), small.condition()
    negative = small.condition(seed=9) if cfg.guidance.text > 1 else None
    latents = sde.rollout(
        model,
        params,
        places,
        condition,
        negative,
        None,
        GRID,
        NOISE,
        jax.random.key(4),
        guidance=cfg.guidance,
        kernel=cfg.kernel,
    )
    empty = jnp.zeros((2, 4))
    out = Trajectory(
        latents,
        GRID,
        empty,
        places,
        condition,
        None,
        jnp.asarray(advantages),
        jnp.ones(len(advantages)),
    )
    old = dit_grpo.make_logprobs(model, cfg)(params, out, negative, NOISE, STEPS)
    return out._replace(old=old), negative


def update(cfg, data, negative, accumulate=1):
    model, params = small.dit()
    learner = Learner(small.LEARNER.config, accumulate=accumulate)
    state = learning.create(jax.tree.map(jnp.copy, params), learner)
    reference = params if cfg.kl else None
    step = dit_grpo.make_step(model, learner, cfg)
    return step(state, reference, data, negative, NOISE, STEPS)


@pytest.mark.parametrize("cfg", [PLAIN, GUIDED], ids=["plain", "guided"])
def test_first_ratio_is_one(cfg):
    _, metrics = update(cfg, *path(cfg))
    assert float(metrics["ratio"]) == 1.0
    assert float(metrics["drift"]) == 0.0
    assert float(metrics["kl"]) == 0.0
    assert float(metrics["grad_norm"]) > 0


def test_stored_path_replays_to_the_sampled_density():
    """The density of each stored transition, from an independent pass at that state."""
    model, params = small.dit()
    data, _ = path(PLAIN)
    apply = jax.jit(model.apply)
    for row, i in enumerate(np.asarray(STEPS)):
        x = data.latents[i]
        t = jnp.full(4, GRID[i])
        packed = data.target._replace(tokens=x)
        u = apply({"params": params}, packed, t, data.condition)
        mean, std, _ = sde.flow_sde(x, u, GRID[i], GRID[i + 1], GRID[1], 0.7)
        z = np.asarray((data.latents[i + 1] - mean) / std, np.float64)
        want = (-(z**2) / 2 - np.log(float(std)) - np.log(2 * np.pi) / 2).mean(axis=(1, 2))
        np.testing.assert_allclose(data.old[row], want, rtol=0, atol=2e-5)
        assert abs(z.std() - 1) < 0.2


def test_equal_rewards_give_no_gradient():
    _, metrics = update(PLAIN, *path(PLAIN, advantages=(0.0,) * 4))
    assert float(metrics["grad_norm"]) == 0.0


def test_rows_without_weight_do_not_count():
    """Two rows of four are as good as those two alone."""
    data, negative = path(PLAIN)
    half = data._replace(weights=jnp.array([1.0, 1.0, 0.0, 0.0]))
    small_batch = data._replace(
        latents=data.latents[:, :2],
        old=data.old[:, :2],
        target=jax.tree.map(lambda x: x[:2], data.target),
        condition=jax.tree.map(lambda x: x[:2], data.condition),
        advantages=data.advantages[:2],
        weights=data.weights[:2],
    )
    _, a = update(PLAIN, half, negative)
    _, b = update(PLAIN, small_batch, negative)
    for name in ("loss", "grad_norm", "ratio"):
        np.testing.assert_allclose(float(a[name]), float(b[name]), rtol=1e-4, atol=1e-6)


def test_accumulation_changes_nothing():
    data, negative = path(GUIDED)
    whole, a = update(GUIDED, data, negative)
    cut, b = update(GUIDED, data, negative, accumulate=2)
    np.testing.assert_allclose(float(a["loss"]), float(b["loss"]), atol=1e-6)
    np.testing.assert_allclose(float(a["grad_norm"]), float(b["grad_norm"]), rtol=1e-4)


def test_noise_zero_rollout_is_euler():
    model, params = small.dit()
    args = (model, params, small.target(), small.condition(), None, None, GRID)
    path = sde.rollout(*args, jnp.zeros(4), jax.random.key(0))
    euler = flow.sample(*args, keep_steps=True).latents
    np.testing.assert_allclose(path[1:], euler, rtol=0, atol=1e-5)


def test_good_paths_become_likelier():
    model, _ = small.dit()
    data, negative = path(PLAIN)
    state, _ = update(PLAIN, data, negative)
    new = dit_grpo.make_logprobs(model, PLAIN)(state.params, data, negative, NOISE, STEPS)
    gain = jnp.sum(new - data.old, axis=0)
    assert float(gain[0]) > 0 > float(gain[1])
