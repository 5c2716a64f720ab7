# SPDX-License-Identifier: Apache-2.0
"""Remat by name: what is kept for the backward pass changes, its result does not."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.steps import small
from thinkgen_jax.models.dit import Dit
from thinkgen_jax.models.layers import POLICIES, remat_name
from thinkgen_jax.models.mllm import Mllm


def gradients(remat):
    """Of both networks, for fixed inputs; and the number of remat regions they were traced with."""
    _, words = small.mllm()
    _, pictures = small.dit()
    mllm = Mllm(replace(small.MLLM, remat=remat))
    dit = Dit(replace(small.DIT, remat=remat))

    def loss(trees):
        hidden = mllm.apply({"params": trees[0]}, small.prompt()).hidden
        t = jnp.full(4, 0.3)
        u = dit.apply({"params": trees[1]}, small.target(), t, small.condition())
        return jnp.sum(jnp.square(hidden)) + jnp.sum(jnp.square(u))

    trees = (words, pictures)
    count = str(jax.make_jaxpr(loss)(trees)).count("remat")
    return jax.device_get(jax.jit(jax.grad(loss))(trees)), count


@pytest.fixture(scope="module")
def plain():
    return gradients("none")


@pytest.mark.parametrize("remat", [*POLICIES, True])
def test_policies_change_no_gradient(plain, remat):
    (want, none), (got, count) = plain, gradients(remat)
    assert count > none
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_names():
    assert (remat_name(False), remat_name(True), remat_name("dots")) == ("none", "full", "dots")
    with pytest.raises(ValueError, match="remat 'some' .config.remat. is not one of"):
        remat_name("some")
