# SPDX-License-Identifier: Apache-2.0
"""The autoencoder against the official network's numbers, and its invariants."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.golden import assert_golden, cases, golden_dir
from tests.hf.reference import to_jax
from thinkgen_jax import sharding
from thinkgen_jax.hf import vae as table
from thinkgen_jax.models import vae as model
from thinkgen_jax.models.vae import GroupNorm, Vae, VaeConfig

STEM = "vae_tiny.cases"
ARRAYS, META = cases(STEM)
CFG = table.config_from_hf(META["config"])


def abstract(cfg, side=16):
    pixels = jnp.zeros((1, side, side, cfg.in_channels))
    return jax.eval_shape(Vae(cfg).init, jax.random.key(0), pixels)["params"]


def official():
    """The fixture's parameters."""
    tensors = load_file(golden_dir() / "vae_tiny.weights.safetensors")
    return jax.tree.map(jnp.asarray, to_jax(tensors, table.rules(CFG), abstract(CFG)))


@pytest.fixture(scope="module")
def params():
    return official()


def nhwc(key):
    return jnp.asarray(ARRAYS[key].transpose(0, 2, 3, 1))


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("case", "ab")
def test_encoder_equals_official(params, case):
    mean, logvar = Vae(CFG).apply({"params": params}, nhwc(f"{case}.image"), method="moments")
    assert_golden(STEM, f"{case}.mean", nchw(mean))
    assert_golden(STEM, f"{case}.logvar", nchw(logvar))
    sample = mean + jnp.exp(0.5 * logvar) * nhwc(f"{case}.eps")
    assert_golden(STEM, f"{case}.sample", nchw(sample))
    assert_golden(STEM, f"{case}.scaled", nchw(model.scale_latents(sample, CFG)))


@pytest.mark.parametrize("case", "ab")
def test_decoder_equals_official(params, case):
    pixels = Vae(CFG).apply({"params": params}, nhwc(f"{case}.z"), method="decode")
    assert_golden(STEM, f"{case}.decoded", nchw(pixels))


def test_every_output_of_the_fixture_is_compared():
    outputs = {key[2:] for key, about in META["arrays"].items() if about["kind"] == "output"}
    assert outputs == {"mean", "logvar", "sample", "scaled", "decoded"}


def test_released_sizes():
    shapes = abstract(VaeConfig())
    leaves = jax.tree.leaves(shapes)
    assert sum(leaf.size for leaf in leaves) == 83_819_683
    assert len(leaves) == 244
    assert VaeConfig().factor == 8
    # Every leaf has a sharding rule.
    sharding.infer(shapes, sharding.make_mesh(fsdp=8))


def test_paths_follow_the_released_names():
    kernel = abstract(CFG)["encoder"]["down_blocks_0"]["resnets_0"]["conv1"]["kernel"]
    assert kernel.shape == (3, 3, 16, 16)


def test_mode_draw_and_scaling(params):
    vae, pixels = Vae(CFG), nhwc("a.image")
    mean, logvar = vae.apply({"params": params}, pixels, method="moments")
    encode = jax.jit(lambda key: vae.apply({"params": params}, pixels, key, method="encode"))
    mode = encode(None)
    # Shift first, then scale.
    np.testing.assert_allclose(mode, (mean - 0.1159) * 0.3611, atol=1e-6)
    np.testing.assert_allclose(
        model.unscale_latents(mode, CFG), mean, atol=1e-6 * float(jnp.abs(mean).max())
    )
    keys = jax.random.split(jax.random.key(0), 2000)
    draws = jax.vmap(lambda key: model.draw(mean, logvar, key))(keys)
    sigma = jnp.exp(0.5 * logvar)
    # Means of 2000 draws: 5 standard errors; deviations: 5 / sqrt(2 · 2000) = 8 %.
    assert float(jnp.abs((draws.mean(0) - mean) / sigma).max()) < 5 / 2000**0.5
    np.testing.assert_allclose(draws.std(0) / sigma, 1.0, atol=0.08)
    one, same, other = (encode(keys[i]) for i in (0, 0, 1))
    assert jnp.array_equal(one, same) and not jnp.array_equal(one, other)


def test_logvar_is_clamped(params):
    loud = jax.tree.map(lambda x: x, params)
    bias = np.zeros(8, np.float32)
    bias[4:] = [100.0, -100.0, 0.0, 0.0]
    loud["encoder"]["conv_out"] = {"kernel": jnp.zeros((3, 3, 32, 8)), "bias": jnp.asarray(bias)}
    mean, logvar = Vae(CFG).apply({"params": loud}, jnp.zeros((1, 4, 4, 3)), method="moments")
    assert jnp.array_equal(mean, jnp.zeros((1, 2, 2, 4)))
    np.testing.assert_array_equal(logvar[0, 0, 0], [20.0, -30.0, 0.0, 0.0])


def test_group_norm_by_hand():
    # Two groups of two channels over 1 x 2 pixels: group one holds 1, 3, 5, 7 (mean 4, variance 5),
    # group two a large constant, which must give 0, not a rounding error.
    cfg = replace(CFG, norm_num_groups=2, norm_eps=0.0)
    x = jnp.array([[[[1.0, 3.0, 5e4, 5e4], [5.0, 7.0, 5e4, 5e4]]]])
    eps = replace(cfg, norm_eps=1e-6)
    affine = {"scale": jnp.array([1.0, 2.0, 1.0, 1.0]), "bias": jnp.array([0.0, 1.0, 0.5, 0.0])}
    got = GroupNorm(eps).apply({"params": affine}, x)[0, 0]
    root = 5**0.5
    want = [[-3 / root, 2 * -1 / root + 1, 0.5, 0], [1 / root, 2 * 3 / root + 1, 0.5, 0]]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_attention_in_blocks_equals_whole():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 10, 8))
    whole = model.attend_all(q, k, v)
    np.testing.assert_allclose(model.attend_all(q, k, v, block=4), whole, atol=1e-6)
    one = model.attend_all(jnp.zeros_like(q), k, v)  # equal logits: the mean of the values
    np.testing.assert_allclose(one, jnp.broadcast_to(v.mean(1, keepdims=True), v.shape), atol=1e-6)


def test_half_precision_stays_near_and_gives_float32(params):
    vae, z = Vae(replace(CFG, dtype="bfloat16")), nhwc("a.z")
    pixels = vae.apply({"params": params}, z, method="decode")
    assert pixels.dtype == jnp.float32
    # Eight bits of mantissa through some fifteen layers.
    assert float(jnp.abs(pixels - nhwc("a.decoded")).mean()) < 0.03


def test_ragged_side_is_refused(params):
    with pytest.raises(ValueError, match="15 x 16.*multiple of 2"):
        Vae(CFG).apply({"params": params}, jnp.zeros((1, 15, 16, 3)), method="moments")
