# SPDX-License-Identifier: Apache-2.0
"""One update: accumulation, skipping, averages, frozen parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkgen_jax.optim import OptimConfig
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps.state import Learner

PLAIN = OptimConfig(lr=0.1, warmup_steps=0, weight_decay=0.0, clip_norm=None, ema_decay=0.5)


def loss(params, part):
    """Weighted squares: the count is the sum of the weights."""
    x, weight = part
    error = jnp.square(params["w"] * x - 1.0) * weight
    return jnp.sum(error), jnp.sum(weight), {"x": jnp.sum(x * weight)}


def batch():
    x = jnp.array([1.0, 2.0, 3.0, 4.0])
    return x, jnp.array([1.0, 0.0, 2.0, 1.0])


def run(accumulate, config=PLAIN, data=None):
    learner = Learner(config, accumulate=accumulate)
    first = learning.create({"w": jnp.array(0.5)}, learner)
    step = jax.jit(lambda s: learning.learn(s, loss, data or batch(), learner))
    return first, *step(first)


def test_gradient_is_that_of_the_global_mean():
    """At w = 0.5 it is sum 2 w_i x_i (x_i / 2 - 1) / 4 = (-1 + 6 + 8) / 4."""
    _, _, metrics = run(1)
    np.testing.assert_allclose(float(metrics["grad_norm"]), 3.25, rtol=1e-6)
    np.testing.assert_allclose(float(metrics["loss"]), (0.25 + 2 * 0.25 + 1) / 4, rtol=1e-6)
    np.testing.assert_allclose(float(metrics["x"]), (1 + 6 + 4) / 4, rtol=1e-6)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_changes_nothing(parts):
    _, whole, a = run(1)
    _, cut, b = run(parts)
    np.testing.assert_allclose(cut.params["w"], whole.params["w"], rtol=1e-6)
    np.testing.assert_allclose(float(a["loss"]), float(b["loss"]), rtol=1e-6)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="accumulate = 3"):
        run(3)


def test_nan_skips_the_step_bit_for_bit():
    x, weight = batch()
    first, after, metrics = run(1, data=(x.at[0].set(jnp.nan), weight))
    assert float(metrics["skipped"]) == 1
    for old, new in zip(jax.tree.leaves(first), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old, new)


def test_average_and_step_move():
    _, after, metrics = run(1)
    assert int(after.step) == 1 and float(metrics["skipped"]) == 0
    # The first update's decay is (1 + 0) / (10 + 0); Adam's first step is lr long.
    np.testing.assert_allclose(float(after.params["w"]), 0.4, rtol=1e-5)
    np.testing.assert_allclose(float(after.ema["w"]), 0.5 + 0.9 * (0.4 - 0.5), rtol=1e-5)
