# SPDX-License-Identifier: Apache-2.0
"""Stochastic steps against flow_grpo's numbers and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import assert_golden, cases
from thinkgen_jax.sampling import sde

A, META = cases("flow_grpo")
NOISE = META["config"]["noise_level"]


def column(values):
    return jnp.asarray(values, jnp.float32).reshape(-1, 1, 1, 1)


def transition(index):
    """Our kernel on the fixture's inputs, in our convention: t = 1 - sigma, u = -v."""
    sigmas = A["sde.sigmas"]
    index = np.atleast_1d(index)
    x, u = jnp.asarray(A["sde.sample"]), -jnp.asarray(A["sde.velocity"])
    second = column([1 - sigmas[1]])
    return x, sde.flow_sde(
        x, u, column(1 - sigmas[index]), column(1 - sigmas[index + 1]), second, NOISE
    )


@pytest.mark.parametrize("i", range(10))
def test_steps_equal_official(i):
    x, (mean, std, diffusion) = transition(i)
    after = mean + std * jnp.asarray(A["sde.noise"])
    key = f"sde.step{i}"
    assert_golden("flow_grpo", f"{key}.mean", mean)
    assert_golden("flow_grpo", f"{key}.prev_sample", after)
    assert_golden(
        "flow_grpo", f"{key}.std_dev_t", jnp.broadcast_to(diffusion, (x.shape[0], 1, 1, 1))
    )
    assert_golden("flow_grpo", f"{key}.log_prob", sde.logprob(after, mean, std))
    given = jnp.asarray(A[f"{key}.given_prev_used"])
    assert_golden("flow_grpo", f"{key}.given_log_prob", sde.logprob(given, mean, std))


def test_mixed_steps_equal_official():
    _, (mean, std, diffusion) = transition(META["cases"]["sde.mixed"]["step_indices"])
    after = mean + std * jnp.asarray(A["sde.noise"])
    assert_golden("flow_grpo", "sde.mixed.mean", mean)
    assert_golden("flow_grpo", "sde.mixed.prev_sample", after)
    assert_golden("flow_grpo", "sde.mixed.std_dev_t", diffusion)
    assert_golden("flow_grpo", "sde.mixed.log_prob", sde.logprob(after, mean, std))


def test_noise_zero_is_euler():
    x, u = jnp.ones((2, 3)), jnp.full((2, 3), 2.0)
    for kernel in sde.KERNELS.values():
        mean, std, _ = kernel(x, u, jnp.float32(0.25), jnp.float32(0.5), jnp.float32(0.1), 0.0)
        np.testing.assert_allclose(np.asarray(mean), 1.5, rtol=1e-6)
        assert float(std) == 0


def test_cps_keeps_the_noise_level():
    """Data 0 and noise n at time t become noise of variance (1 - t')² after the step."""
    key = jax.random.key(0)
    n = jax.random.normal(key, (20000, 1))
    t, after = 0.4, 0.5
    mean, std, _ = sde.cps((1 - t) * n, -n, jnp.float32(t), jnp.float32(after), None, 0.8)
    moved = mean + std * jax.random.normal(jax.random.key(1), n.shape)
    assert abs(float(jnp.std(moved)) - (1 - after)) < 0.01


def test_flow_sde_keeps_the_marginal():
    """For data 0 the marginal at t is N(0, (1 - t)²): many small steps must keep it."""
    key = jax.random.key(0)
    grid = jnp.linspace(0, 0.9, 401)
    x = jax.random.normal(key, (20000, 1))

    def step(x, xs):
        t, after, k = xs
        u = -x / (1 - t)  # E[data - noise | x_t] when the data is 0
        mean, std, _ = sde.flow_sde(x, u, t, after, grid[1], 0.7)
        return mean + std * jax.random.normal(k, x.shape), None

    keys = jax.random.split(jax.random.key(1), 400)
    x, _ = jax.lax.scan(step, x, (grid[:-1], grid[1:], keys))
    assert abs(float(jnp.std(x)) - 0.1) < 0.01


def test_logprob_is_the_mean_over_counted_elements():
    x = jnp.array([[0.0, 5.0]])
    mask = jnp.array([[1.0, 0.0]])
    want = -0.5 * np.log(2 * np.pi)
    got = sde.logprob(x, jnp.zeros((1, 2)), jnp.ones(()), mask)
    np.testing.assert_allclose(np.asarray(got), [want], rtol=1e-6)
