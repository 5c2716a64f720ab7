# SPDX-License-Identifier: Apache-2.0
"""The reconstruction step: closed forms, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkgen_jax.models.vae import Vae, VaeConfig, scale_latents
from thinkgen_jax.optim import OptimConfig
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps import vae_sft
from thinkgen_jax.steps.state import Learner
from thinkgen_jax.steps.vae_sft import VaeLoss

CFG = VaeConfig(
    block_out_channels=(8, 16),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    scaling_factor=1.0,
    shift_factor=0.0,
)
VAE = Vae(CFG)


def pictures(count=4, side=16):
    """Bright rectangles on dark ground."""
    rng = np.random.default_rng(0)
    out = np.full((count, side, side, 3), 40, np.uint8)
    for picture in out:
        y, x = rng.integers(0, side // 2, 2)
        picture[y : y + 6, x : x + 5] = rng.integers(128, 256, 3)
    return out


LEARNER = Learner(OptimConfig(lr=3e-3, warmup_steps=0, weight_decay=0.0, ema_decay=0.9))
STEP = vae_sft.make_step(VAE, LEARNER, VaeLoss())  # compiled once for all tests


@pytest.fixture(scope="module")
def fresh():
    """A state at step 0, on the host."""
    params = jax.jit(VAE.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    return jax.device_get(learning.create(params, LEARNER))


@pytest.fixture
def state(fresh):
    return jax.tree.map(jnp.array, fresh)


def test_kl_closed_form():
    # KL(N(m, s²) || N(0, 1)) = (m² + s² - 1) / 2 - ln s
    mean, sigma = jnp.full((1, 1, 1, 2), 3.0), jnp.array([2.0, 0.5]).reshape(1, 1, 1, 2)
    want = np.mean([(9 + 4 - 1) / 2 - np.log(2), (9 + 0.25 - 1) / 2 - np.log(0.5)])
    got = vae_sft.kl_to_unit(mean, 2 * jnp.log(sigma))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    zero = jnp.zeros((2, 3, 3, 4))
    assert vae_sft.kl_to_unit(zero, zero) == 0


def test_edges_by_hand():
    # One white pixel on black: itself and its four neighbours see the full contrast.
    pixels = -jnp.ones((1, 4, 5, 3))
    pixels = pixels.at[0, 1, 2].set(1.0)
    want = np.zeros((4, 5))
    want[[1, 0, 2, 1, 1], [2, 2, 2, 1, 3]] = 1.0
    np.testing.assert_array_equal(vae_sft.edges(pixels)[0], want)
    # A step of 0.5 in one channel is a quarter of black to white; channels are not summed.
    half = jnp.zeros((1, 1, 2, 3)).at[0, 0, 1, 0].set(0.5)
    np.testing.assert_allclose(vae_sft.edges(half), jnp.full((1, 1, 2), 0.25))


def test_loss_is_the_sum_of_its_parts(state):
    pixels = vae_sft.to_pixels(jnp.asarray(pictures()))

    @jax.jit
    def both(params):
        key = jax.random.key(3)
        flat, steep = VaeLoss(mse=0.5, edge=0.0, kl=0.1), VaeLoss(mse=0.5, edge=2.0, kl=0.1)
        loss, parts = vae_sft.loss_fn(params, pixels, key, vae=VAE, weights=flat)
        return loss, parts, vae_sft.loss_fn(params, pixels, key, vae=VAE, weights=steep)[0]

    loss, parts, heavier = both(state.params)
    np.testing.assert_allclose(
        loss, parts["l1"] + 0.5 * parts["mse"] + 0.1 * parts["kl"], rtol=1e-6
    )
    np.testing.assert_allclose(parts["psnr"], 10 * np.log10(4 / parts["mse"]), rtol=1e-4)
    assert heavier > loss


def test_uint8_and_float_pixels_agree():
    pixels = np.array([[0, 255], [51, 204]], np.uint8).reshape(1, 2, 2, 1)
    got = vae_sft.to_pixels(jnp.asarray(np.repeat(pixels, 3, -1)))
    np.testing.assert_allclose(got[0, :, :, 0], [[-1, 1], [-0.6, 0.6]], atol=1e-6)
    assert vae_sft.to_pixels(got) is got


def test_training_lowers_the_loss_and_counts(fresh, state):
    losses = []
    for i in range(40):
        state, metrics = STEP(state, pictures(), jax.random.key(i))
        losses.append(float(metrics["l1"]))
    assert int(state.step) == 40
    assert losses[-1] < 0.5 * losses[0]
    # The average lies between the start and now, nearer to now.
    first, now, average = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(tree))])
        for tree in (fresh.params, state.params, state.ema)
    )
    assert np.linalg.norm(average - now) < np.linalg.norm(now - first)
    assert not np.array_equal(average, now)


def test_broken_update_leaves_the_state(state):
    bias = state.params["decoder"]["conv_out"]["bias"]
    state.params["decoder"]["conv_out"]["bias"] = bias.at[0].set(jnp.nan)
    want = jax.device_get(state)
    state, metrics = STEP(state, pictures(), jax.random.key(0))
    assert metrics["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), want)


def test_state_is_donated(state):
    kernel = state.params["encoder"]["conv_in"]["kernel"]
    STEP(state, pictures(), jax.random.key(0))
    assert kernel.is_deleted()


def test_latent_statistics_give_unit_latents(state):
    params = state.params
    # A wide posterior far from zero: only its mode counts.
    params["encoder"]["conv_out"]["bias"] = jnp.array([1.0, 2.0, 3.0, 4.0, 1.0, 1.0, 0.0, 0.0])
    batches = [pictures(), pictures()[:, ::-1] // 2]
    shift, scale = vae_sft.latent_statistics(VAE, params, iter(batches))
    pixels = vae_sft.to_pixels(jnp.asarray(np.concatenate(batches)))
    mode, _ = jax.jit(lambda x: VAE.apply({"params": params}, x, method="moments"))(pixels)
    cfg = VaeConfig(scaling_factor=scale, shift_factor=shift)
    latents = np.asarray(scale_latents(mode, cfg))
    assert abs(latents.mean()) < 1e-4 and abs(latents.std() - 1) < 1e-4


def test_statistics_need_pictures():
    with pytest.raises(ValueError, match="no batch"):
        vae_sft.latent_statistics(VAE, {}, [])
