# SPDX-License-Identifier: Apache-2.0
"""Group arithmetic against official numbers and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import assert_golden, cases
from thinkgen_jax.steps import grpo

A, META = cases("flow_grpo")


@pytest.mark.parametrize("key, scope", [("adv.group_std", "group"), ("adv.global_std", "batch")])
def test_advantages_equal_official(key, scope):
    """The fixture interleaves groups of unequal size; ours are rows, so each is put in its own."""
    rewards, group = A["adv.rewards"].astype(np.float64), A["adv.group"]
    out = np.zeros(len(rewards))
    spread = rewards.std()
    for g in np.unique(group):
        mine = rewards[None, group == g]
        if scope == "group":
            out[group == g] = grpo.advantages(mine, scope="group", ddof=0, eps=1e-4)[0]
        else:  # the batch's spread is known, so a group's advantage is its centred reward over it
            out[group == g] = (mine - mine.mean())[0] / (spread + 1e-4)
    assert_golden("flow_grpo", key, out)
    if scope == "group":  # a reward a step: every step of a path has the path's advantage
        assert_golden("flow_grpo", "adv.time_axis_group_std", np.tile(out[:, None], 3))


def test_batch_scope_divides_by_the_spread_of_all():
    rewards = np.array([[0.0, 1.0], [2.0, 4.0]])
    got = grpo.advantages(rewards, scope="batch", ddof=0, eps=0.0)
    std = np.sqrt(np.mean((np.array([0, 1, 2, 4]) - 1.75) ** 2))
    np.testing.assert_allclose(got, [[-0.5 / std, 0.5 / std], [-1 / std, 1 / std]], rtol=1e-6)


def test_group_scope_by_hand():
    got = grpo.advantages(np.array([[1.0, 3.0]]), scope="group", ddof=1, eps=0.0)
    np.testing.assert_allclose(got, [[-1 / np.sqrt(2), 1 / np.sqrt(2)]], rtol=1e-6)
    flat = grpo.advantages(np.full((1, 4), 0.3), scope="group", ddof=1, eps=1e-6)
    np.testing.assert_array_equal(flat, np.zeros((1, 4)))


@pytest.mark.parametrize(
    "rewards, scope, words",
    [
        (np.ones((2, 1)), "group", "group size 1"),
        (np.ones((2, 2)), "row", "scope 'row'"),
        (np.array([[0.0, np.nan]]), "group", "not finite"),
    ],
)
def test_refusals(rewards, scope, words):
    with pytest.raises(ValueError, match=words):
        grpo.advantages(rewards, scope=scope, ddof=0, eps=1e-4)


def test_surrogate_clips_only_what_pays():
    """Ratios 1.5 and 0.5 under both signs, bounds [0.8, 1.3]."""
    new = jnp.log(jnp.array([1.5, 1.5, 0.5, 0.5]))
    advantage = jnp.array([1.0, -1.0, 1.0, -1.0])
    loss, ratio, clipped = grpo.surrogate(new, jnp.zeros(4), advantage, clip_low=0.2, clip_high=0.3)
    np.testing.assert_allclose(ratio, [1.5, 1.5, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(loss, [-1.3, 1.5, -0.5, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [1, 0, 0, 1])


def test_clipped_elements_carry_no_gradient():
    grad = jax.grad(
        lambda new: jnp.sum(
            grpo.surrogate(new, jnp.zeros(2), jnp.ones(2), clip_low=0.2, clip_high=0.3)[0]
        )
    )(jnp.log(jnp.array([1.5, 1.1])))
    np.testing.assert_allclose(grad, [0.0, -1.1], rtol=1e-6)


def test_dual_clip_bounds_bad_samples():
    loss, *_ = grpo.surrogate(
        jnp.log(jnp.array([9.0])),
        jnp.zeros(1),
        jnp.array([-2.0]),
        clip_low=0.2,
        clip_high=0.3,
        dual_clip=3.0,
    )
    np.testing.assert_allclose(loss, [6.0], rtol=1e-6)


def test_kl_estimate_is_unbiased_and_never_negative():
    """Over p the mean of e^d - d - 1 is KL(p || q) exactly."""
    p, q = jnp.array([0.7, 0.3]), jnp.array([0.4, 0.6])
    terms = grpo.kl_estimate(jnp.log(p), jnp.log(q))
    assert np.all(np.asarray(terms) >= 0)
    want = float(jnp.sum(p * jnp.log(p / q)))
    np.testing.assert_allclose(float(jnp.sum(p * terms)), want, rtol=1e-5)
