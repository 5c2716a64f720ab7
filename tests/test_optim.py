# SPDX-License-Identifier: Apache-2.0
"""AdamW against hand arithmetic; what is frozen stays; what is not finite is skipped."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from thinkgen_jax import optim, parts
from thinkgen_jax.models import presets
from thinkgen_jax.optim import OptimConfig

PLAIN = OptimConfig(lr=0.1, warmup_steps=0, b2=0.99, weight_decay=0.0, clip_norm=None)


def params_of(dtype=jnp.float32):
    return {
        "connector": {"kernel": jnp.ones((2, 3), dtype), "bias": jnp.zeros((3,), dtype)},
        "layers": {"q": jnp.full((2, 2), 2.0, dtype)},
        "prepad": jnp.full((4,), -1.0, dtype),
    }


def ones_like(tree):
    return jax.tree.map(jnp.ones_like, tree)


def test_first_two_updates_by_hand():
    """With constant gradient g both corrected moments are g and g²: every update is -lr·sign(g)."""
    cfg = dataclasses.replace(PLAIN, weight_decay=0.5)
    tx = optim.make(cfg)
    params = {"w": jnp.asarray([2.0, -4.0])}
    grads = {"w": jnp.asarray([0.3, -7.0])}
    state = tx.init(params)
    want = np.asarray([2.0, -4.0])
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        want = want - 0.1 * (np.asarray([1.0, -1.0]) + 0.5 * want)
    np.testing.assert_allclose(params["w"], want, rtol=1e-6)


def test_changing_gradient_by_hand():
    tx = optim.make(PLAIN)
    params = {"w": jnp.asarray([1.0])}
    state = tx.init(params)
    for g in (1.0, 3.0):
        updates, state = tx.update({"w": jnp.asarray([g])}, state, params)
    mean = (0.9 * 0.1 * 1 + 0.1 * 3) / (1 - 0.9**2)
    square = (0.99 * 0.01 * 1 + 0.01 * 9) / (1 - 0.99**2)
    np.testing.assert_allclose(updates["w"], [-0.1 * mean / math.sqrt(square)], rtol=1e-5)


def test_clipping_counts_trained_gradients_only():
    """Adam forgets the scale of its first gradient, so clipping shows in the first moment."""
    cfg = dataclasses.replace(PLAIN, clip_norm=1.0, trainable=("prepad",))
    tx = optim.make(cfg)
    params = params_of()
    grads = {**jax.tree.map(lambda x: x * 0 + 1e6, params), "prepad": jnp.asarray([3.0, 4, 0, 0])}
    _, state = tx.update(grads, tx.init(params), params)
    moment = [x for x in jax.tree.leaves(state) if x.shape == (4,)][0]
    np.testing.assert_allclose(moment, [0.1 * 3 / 5, 0.1 * 4 / 5, 0, 0], rtol=1e-6)


def test_frozen_parameters_get_neither_update_nor_moments():
    tx = optim.make(
        dataclasses.replace(PLAIN, trainable=("^connector", "prepad"), weight_decay=0.1)
    )
    params = params_of()
    state = tx.init(params)
    moments = [x for x in jax.tree.leaves(state) if x.ndim]
    assert sorted(x.shape for x in moments) == [(2, 3), (2, 3), (3,), (3,), (4,), (4,)]
    updates, _ = jax.jit(tx.update)(ones_like(params), state, params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(after["layers"]["q"], params["layers"]["q"])
    for path in (("connector", "kernel"), ("connector", "bias"), ("prepad",)):
        a, b = params, after
        for part in path:
            a, b = a[part], b[part]
        assert (np.asarray(a) != np.asarray(b)).all(), path


def test_every_pattern_matches_and_every_parameter_is_decided():
    params = params_of()
    with pytest.raises(ValueError, match=r"config\.optim\.dit\.trainable: 'conector' matches no"):
        optim.make(OptimConfig(trainable=("conector",)), name="optim.dit").init(params)
    with pytest.raises(ValueError, match=r"config\.optim\.frozen: 'heads' matches no"):
        optim.make(OptimConfig(trainable=("prepad",), frozen=("heads",))).init(params)
    with pytest.raises(ValueError, match=r"1 parameters match neither .* e\.g\. layers/q"):
        cfg = OptimConfig(trainable=("prepad",), frozen=("connector",))
        optim.make(cfg).init(params)
    with pytest.raises(ValueError, match="config.optim.no_decay: 'norm'"):
        optim.make(OptimConfig(no_decay=("norm",))).init(params)
    cfg = OptimConfig(trainable=("prepad", "bias"), frozen=("kernel", "layers"))
    want = {"connector": {"kernel": False, "bias": True}, "layers": {"q": False}, "prepad": True}
    assert optim.trainable_mask(params, cfg) == want


def test_stop_frozen_gives_zero_gradient_there_alone():
    params = params_of()
    mask = optim.trainable_mask(params, OptimConfig(trainable=("bias",)))

    def loss(p):
        return sum(jnp.sum(x**2 + x) for x in jax.tree.leaves(optim.stop_frozen(p, mask)))

    grads = jax.grad(loss)(params)
    np.testing.assert_array_equal(grads["connector"]["bias"], np.ones(3))
    assert not np.any(grads["prepad"]) and not np.any(grads["connector"]["kernel"])


def test_no_decay_spares_its_parameters():
    cfg = dataclasses.replace(PLAIN, weight_decay=0.5, no_decay=("bias", "prepad"))
    params = params_of()
    tx = optim.make(cfg)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_array_equal(updates["prepad"], np.zeros(4))
    np.testing.assert_allclose(updates["layers"]["q"], np.full((2, 2), -0.1 * 0.5 * 2), rtol=1e-6)


def test_moments_are_float32_and_types_are_kept():
    params = params_of(jnp.bfloat16)
    tx = optim.make(PLAIN)
    state = tx.init(params)
    updates, state = tx.update(ones_like(params), state, params)
    assert {x.dtype for x in jax.tree.leaves(state) if x.ndim} == {np.dtype("float32")}
    after = optax.apply_updates(params, updates)
    assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype("bfloat16")}


def test_schedules_at_their_corners():
    cfg = OptimConfig(lr=2.0, warmup_steps=4)
    rates = [float(optim.schedule(cfg)(n)) for n in (0, 1, 3, 4, 1000)]
    assert rates == [0.5, 1.0, 2.0, 2.0, 2.0]
    cosine = dataclasses.replace(cfg, schedule="cosine", total_steps=104, final_fraction=0.1)
    rates = [float(optim.schedule(cosine)(n)) for n in (0, 4, 54, 104, 500)]
    np.testing.assert_allclose(rates, [0.5, 2.0, 2 * (0.1 + 0.45), 0.2, 0.2], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -1.0}, "config.optim.mllm.lr=-1.0: must be >= 0"),
        ({"schedule": "linear"}, "schedule='linear': must be one of constant, cosine"),
        ({"b2": 1.0}, r"b2=1.0: must be in \[0, 1\)"),
        ({"clip_norm": 0.0}, "clip_norm=0.0: must be > 0"),
        ({"schedule": "cosine", "total_steps": 500}, "total_steps=500: must be > warmup_steps=500"),
        ({"lr": float("nan")}, "lr=nan"),
    ],
)
def test_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        optim.make(OptimConfig(**change), name="optim.mllm")


def test_not_finite_is_found_and_skipped_bit_for_bit():
    grads = ones_like(params_of())
    one = jnp.float32(1)
    assert bool(optim.finite_or_skip(grads, one))
    assert not bool(optim.finite_or_skip(grads, jnp.float32(jnp.nan)))
    assert not bool(optim.finite_or_skip({**grads, "prepad": jnp.asarray([0, jnp.inf])}, one))
    # a finite gradient whose squared norm overflows is no reason to skip
    assert bool(optim.finite_or_skip({"w": jnp.full((3,), 1e30)}, one))

    tx = optim.make(PLAIN)
    params = params_of()
    old = (params, tx.init(params))

    @jax.jit
    def step(old, grads):
        updates, opt_state = tx.update(grads, old[1], old[0])
        new = (optax.apply_updates(old[0], updates), opt_state)
        return optim.select(optim.finite_or_skip(grads, one), new, old)

    bad = {**grads, "layers": {"q": jnp.full((2, 2), jnp.nan)}}
    kept = step(old, bad)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), kept, old))
    moved = step(kept, grads)
    assert not np.any(np.isnan(moved[0]["layers"]["q"]))
    np.testing.assert_allclose(moved[0]["prepad"], np.full(4, -1.1), rtol=1e-6)


def test_ema_warms_up_then_decays():
    ema, params = {"w": jnp.asarray([0.0])}, {"w": jnp.asarray([1.0])}
    first = optim.ema_update(ema, params, 0.99, 0)  # (1 + 0) / (10 + 0) = 0.1 of the old stays
    np.testing.assert_allclose(first["w"], [0.9], rtol=1e-6)
    later = optim.ema_update(ema, params, 0.99, jnp.int32(10_000))
    np.testing.assert_allclose(later["w"], [0.01], rtol=1e-4)
    narrow = optim.ema_update(ema, {"w": jnp.asarray([1.0], jnp.bfloat16)}, 0.5, 10)
    assert narrow["w"].dtype == jnp.float32
    assert optim.ema_update(None, params, 0.99, 0) is None


def test_muon_makes_matrices_orthogonal_and_leaves_the_rest_to_adamw():
    """The update of a full-rank matrix is near -lr·0.2·√max(rows, columns)·U·Vᵀ."""
    cfg = dataclasses.replace(PLAIN, method="muon")
    rng = np.random.default_rng(0)
    grad = rng.normal(size=(2, 6, 3, 4)) * 100  # [L, W, N, H]: two matrices of 6 x 12
    grads = {
        "layers": {"attn": {"to_q": {"kernel": jnp.asarray(grad, jnp.float32)}}},
        "x_embedder": {"kernel": jnp.asarray(grad[0, :, 0], jnp.float32)},
    }
    params = ones_like(grads)
    tx = optim.make(cfg)
    updates, _ = tx.update(grads, tx.init(params), params)
    got = np.asarray(updates["layers"]["attn"]["to_q"]["kernel"]).reshape(2, 6, 12)
    for layer in range(2):
        u, _, v = np.linalg.svd(grad[layer].reshape(6, 12), full_matrices=False)
        want = -0.1 * 0.2 * math.sqrt(12) * u @ v
        near = np.sum(got[layer] * want) / np.linalg.norm(got[layer]) / np.linalg.norm(want)
        assert near > 0.97
        assert 0.65 < np.linalg.norm(got[layer]) / np.linalg.norm(want) < 1.25
    nesterov = 1 + 0.9 * 0.1 / (1 - 0.9**2)  # of optax's muon, in its AdamW too
    np.testing.assert_allclose(
        updates["x_embedder"]["kernel"], -0.1 * nesterov * np.sign(grad[0, :, 0]), rtol=1e-5
    )


def test_every_matrix_of_both_transformers_goes_to_muon():
    """Only tables, ends, vectors and their stacks stay with AdamW."""
    matrix = re.compile(r"(layers|_refiner|decoder|blocks)/.*kernel$")
    for tree in ("dit", "mllm"):
        shapes = parts.shapes(presets.get("tiny"), tree)
        is_leaf = lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)  # noqa: E731
        found = jax.tree_util.tree_leaves_with_path(optim._matrices(shapes), is_leaf=is_leaf)
        for path, axes in found:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            assert (axes is not None) == bool(matrix.search(name)), name
