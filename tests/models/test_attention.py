# SPDX-License-Identifier: Apache-2.0
"""The blocked kernel, run step by step on CPU, agrees with plain attention, gradients included."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkgen_jax import sharding
from thinkgen_jax.models.attention import attend, cached, resolve

MESHES = {
    "one device": None,
    "rows": dict(data=2, fsdp=2),
    "rows and heads": dict(fsdp=2, tensor=2),
    "queries": dict(data=2, context=2),
}
DIT = ("rows", "seq", None, None)


def inputs(rows, length, heads, kv_heads, width, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = [(rows, length, n, width) for n in (heads, kv_heads, kv_heads, heads)]
    q, k, v, weight = (jax.random.normal(x, s) for x, s in zip(keys, shapes, strict=True))
    return (q, k, v), weight


def both_ways(arrays, weight, segments, mesh, **how):
    """Output and gradients of q, k, v by `xla` and by the kernel; padding has no say."""
    keep = (segments > 0)[..., None, None]
    placed = contextlib.nullcontext() if mesh is None else jax.set_mesh(sharding.make_mesh(**mesh))

    def run(impl):
        def loss(q, k, v):
            y = jnp.where(keep, attend(q, k, v, segments, segments, impl=impl, **how), 0.0)
            return jnp.sum(y * weight), y

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)

    with placed:
        return jax.device_get(run("xla")), jax.device_get(run("interpret"))


def assert_close(one, other):
    (grads, y), (other_grads, other_y) = one, other
    np.testing.assert_allclose(y, other_y, rtol=0, atol=2e-6)
    for a, b in zip(grads, other_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_causal_grouped_heads(mesh):
    arrays, weight = inputs(4, 200, 4, 2, 16)
    counts = jnp.asarray([[200], [130], [77], [1]])
    segments = (jnp.arange(200)[None] < counts).astype(jnp.int32)
    assert_close(*both_ways(arrays, weight, segments, MESHES[mesh], causal=True))


@pytest.mark.parametrize("mesh", MESHES)
def test_width_and_heads_of_the_dit(mesh):
    """Head width 120, three queries a key, padding in the middle, no causality."""
    arrays, weight = inputs(4, 144, 3, 1, 120)
    place = jnp.arange(144)[None]
    words = jnp.asarray([[20], [3], [16], [1]])
    segments = ((place < words) | (place >= 24)).astype(jnp.int32)
    assert_close(*both_ways(arrays, weight, segments, MESHES[mesh], names=DIT))


def test_pictures_do_not_see_each_other():
    arrays, weight = inputs(2, 128, 2, 2, 72)
    segments = jnp.asarray(np.repeat([[1, 2, 3, 0], [1, 1, 2, 2]], 32, axis=1))
    assert_close(*both_ways(arrays, weight, segments, None))


def test_longer_than_one_block():
    arrays, weight = inputs(1, 600, 2, 1, 32)
    segments = (jnp.arange(600)[None] < 580).astype(jnp.int32)
    assert_close(*both_ways(arrays, weight, segments, None, causal=True))


@pytest.mark.parametrize("group", [1, 3])
def test_what_a_group_shares_is_as_if_every_row_had_it(group):
    """Two prompts of 5 and 3 places before 4 own ones, of which the second query sees one more."""
    keys = jax.random.split(jax.random.key(3), 5)
    q = jax.random.normal(keys[0], (2 * group, 2, 4, 8))
    own = [jax.random.normal(key, (2 * group, 2, 4, 8)) for key in keys[1:3]]
    shared = [jax.random.normal(key, (2, 2, 5, 8)) for key in keys[3:]]
    seen = jnp.arange(5)[None] < jnp.array([[5], [3]])
    mask = jnp.broadcast_to(jnp.arange(4)[None] < jnp.array([[2], [3]]), (2 * group, 2, 4))
    got = cached(q, *own, mask, (*shared, seen))
    repeated = [jnp.repeat(x, group, axis=0) for x in (*shared, seen)]
    both = [jnp.concatenate([a, b], axis=2) for a, b in zip(repeated[:2], own, strict=True)]
    before = jnp.broadcast_to(repeated[2][:, None], (2 * group, 2, 5))
    want = cached(q, *both, jnp.concatenate([before, mask], axis=2))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'flash' is not one of"):
        resolve("flash")
