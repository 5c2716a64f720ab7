# SPDX-License-Identifier: Apache-2.0
"""DiT-GRPO: stored paths replay, on-policy ratio, no signal without spread, accumulation."""

from dataclasses import replace

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
BEGIN, WIDTH = 1, 2


def roll(cfg, *, begin=BEGIN, width=WIDTH, noise=0.7, rows=4, **more):
    """Sampled paths; one row of the negative condition where it is needed."""
    model, params = small.dit()
    negative = small.condition(seed=9, rows=1) if cfg.guidance.text > 1 else None
    condition = small.condition(rows=rows // more.get("group", 1))
    settings = dict(width=width, guidance=cfg.guidance, kernel=cfg.kernel, **more)
    args = (condition, negative, None, GRID, begin, noise, jax.random.key(4))
    return sde.rollout(model, params, small.target(rows=rows), *args, **settings), negative


def path(cfg, advantages=(1.0, -1.0, 0.5, -0.5)):
    """A sampled path with its old log-probabilities; the negative condition where it is needed."""
    model, params = small.dit()
    rolled, negative = roll(cfg)
    out = Trajectory(
        latents=rolled.latents,
        times=GRID[BEGIN : BEGIN + WIDTH + 1],
        second=GRID[1],
        noise=jnp.float32(0.7),
        old=rolled.logprobs,
        target=small.target(),
        condition=small.condition(),
        references=None,
        advantages=jnp.asarray(advantages),
        weights=jnp.ones(len(advantages)),
    )
    return out._replace(old=dit_grpo.make_logprobs(model, cfg)(params, out, negative)), negative


def update(cfg, data, negative, accumulate=1):
    model, params = small.dit()
    # A larger eps: Adam makes whole steps of the rounding of gradients that are nearly 0.
    learner = Learner(replace(small.LEARNER.config, eps=1e-4), accumulate=accumulate)
    state = learning.create(jax.tree.map(jnp.copy, params), learner)
    reference = params if cfg.kl else None
    step = dit_grpo.make_step(model, learner, cfg)
    return step(state, reference, data, negative)


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
    for row, i in enumerate(range(BEGIN, BEGIN + WIDTH)):
        x = data.latents[row]
        t = jnp.full(4, GRID[i])
        packed = data.target._replace(tokens=x)
        u = apply({"params": params}, packed, t, data.condition)
        mean, std, _ = sde.flow_sde(x, u, GRID[i], GRID[i + 1], GRID[1], 0.7)
        z = np.asarray((data.latents[row + 1] - mean) / std, np.float64)
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
    for x, y in zip(jax.tree.leaves(whole.params), jax.tree.leaves(cut.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)


def test_noise_zero_rollout_is_euler():
    model, params = small.dit()
    args = (model, params, small.target(), small.condition(), None, None, GRID)
    euler = flow.sample(*args, keep_steps=True).latents
    for begin, width in ((0, 4), (1, 2), (3, 1)):
        rolled, _ = roll(PLAIN, begin=begin, width=width, noise=0.0)
        np.testing.assert_allclose(rolled.end, euler[-1], rtol=0, atol=1e-5)
        got = rolled.latents[1:]
        np.testing.assert_allclose(got, euler[begin : begin + width], rtol=0, atol=1e-5)


@pytest.mark.parametrize("cfg", [PLAIN, GUIDED], ids=["plain", "guided"])
def test_rollout_knows_its_own_log_probabilities(cfg):
    rolled, _ = roll(cfg)
    np.testing.assert_allclose(rolled.logprobs, path(cfg)[0].old, rtol=0, atol=2e-6)


def test_steps_outside_the_window_are_deterministic():
    """Behind the window a path is what Euler steps make of the window's last state."""
    model, params = small.dit()
    rolled, _ = roll(PLAIN)
    last = small.target()._replace(tokens=rolled.latents[-1])
    args = (model, params, last, small.condition(), None, None)
    want = flow.sample(*args, GRID[BEGIN + WIDTH :])
    np.testing.assert_allclose(rolled.end, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cfg", [PLAIN, GUIDED], ids=["plain", "guided"])
def test_shared_beginning_equals_repeated_rows(cfg):
    """Two groups of two from two noises: as four paths from repeated noise and conditions."""
    model, params = small.dit()
    two = small.target(rows=2)
    negative = small.condition(seed=9, rows=1) if cfg.guidance.text > 1 else None
    tail = (negative, None, GRID, BEGIN, 0.7, jax.random.key(4))
    how = dict(width=WIDTH, guidance=cfg.guidance)
    condition = small.condition(rows=2)
    shared = sde.rollout(model, params, two, condition, *tail, group=2, **how)
    four, wide = (jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), t) for t in (two, condition))
    apart = sde.rollout(model, params, four, wide, *tail, **how)
    for got, want in zip(shared, apart, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    first = np.asarray(shared.latents[0])
    np.testing.assert_array_equal(first[0], first[1])
    assert np.abs(np.asarray(shared.end)[0] - np.asarray(shared.end)[1]).max() > 0.1


def test_good_paths_become_likelier():
    model, _ = small.dit()
    data, negative = path(PLAIN)
    state, _ = update(PLAIN, data, negative)
    new = dit_grpo.make_logprobs(model, PLAIN)(state.params, data, negative)
    gain = jnp.sum(new - data.old, axis=0)
    assert float(gain[0]) > 0 > float(gain[1])
