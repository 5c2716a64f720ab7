# SPDX-License-Identifier: Apache-2.0
"""Reconstruction: how the miniature autoencoder learns (the released one is frozen and ready-made).

The loss is an absolute error with a little squared error, both weighted up at edges of the target
so that thin strokes count against wide flat ground, plus a small divergence of the posterior from
the unit Gaussian, which keeps neighbouring latents meaning neighbouring pictures.

* It trains on samples of the posterior, and on raw latents: shift and scale of the config are not
  used, and follow from `latent_statistics` afterwards.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from thinkgen_jax.models.vae import Vae, draw
from thinkgen_jax.steps.encode import to_signed
from thinkgen_jax.steps.state import Learner, learn
from thinkgen_jax.structs import Key, TrainState, Tree

Metrics = dict[str, Float[Array, ""]]


@dataclass(frozen=True)
class VaeLoss:
    """What counts how much.

    Attributes:
      mse: weight of the squared error beside the absolute one, >= 0.
      edge: extra weight of a pixel on a full-contrast edge; flat ground weighs 1, >= 0.
      kl: weight of the divergence per latent value in nats, >= 0.
    """

    mse: float = 0.5
    edge: float = 2.0
    kl: float = 3e-3


def make_step(vae: Vae, learner: Learner, weights: VaeLoss):
    """Builds the jitted, donating update (state, pixels, key) -> (state, metrics).

    Pixels are uint8, or float32 in [-1, 1]. The metrics are those of `state.learn` and `loss_fn`.
    """

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, pixels: Shaped[Array, "B height width 3"], key: Key):
        rows = pixels.shape[0]

        def loss(params: Tree, part):
            pixels, keys = part
            value, metrics = loss_fn(params, to_pixels(pixels), keys[0], vae=vae, weights=weights)
            count = jnp.float32(pixels.shape[0])
            return value * count, count, {k: v * count for k, v in metrics.items()}

        return learn(state, loss, (pixels, jax.random.split(key, rows)), learner)

    return step


def loss_fn(
    params: Tree,
    pixels: Float[Array, "B height width 3"],
    key: Key,
    *,
    vae: Vae,
    weights: VaeLoss,
) -> tuple[Float[Array, ""], Metrics]:
    """Loss of one batch and its parts.

    Metrics: `l1` and `mse`, unweighted, of pixels in [-1, 1]; `psnr` in dB, of pixels in
    [0, 1]; `kl` in nats per latent value; `latent_std`, of the posterior's means.
    """
    mean, logvar = vae.apply({"params": params}, pixels, method="moments")
    painted = vae.apply({"params": params}, draw(mean, logvar, key), method="paint")
    error = painted - pixels
    heed = 1.0 + weights.edge * edges(pixels)[..., None]
    divergence = kl_to_unit(mean, logvar)
    loss = jnp.mean(heed * (jnp.abs(error) + weights.mse * jnp.square(error)))
    loss = loss + weights.kl * divergence
    mse = jnp.mean(jnp.square(error))
    metrics = {
        "l1": jnp.mean(jnp.abs(error)),
        "mse": mse,
        "psnr": -10.0 * jnp.log10(mse / 4.0 + 1e-12),
        "kl": divergence,
        "latent_std": jnp.std(mean),
    }
    return loss, metrics


def kl_to_unit(mean: Float[Array, "B h w c"], logvar: Float[Array, "B h w c"]) -> Float[Array, ""]:
    """Divergence of N(mean, exp(logvar)) from N(0, 1) in nats, mean over all latent values."""
    return 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def edges(pixels: Float[Array, "B height width 3"]) -> Float[Array, "B height width"]:
    """Contrast of every pixel to its four neighbours, in [0, 1].

    The largest difference over neighbours and channels, in units of black to white.
    """

    def steps(axis: int) -> Float[Array, "B height width"]:
        jump = jnp.abs(jnp.diff(pixels, axis=axis)).max(-1)
        none = [(0, 0)] * 3
        after, before = list(none), list(none)
        after[axis], before[axis] = (0, 1), (1, 0)
        return jnp.maximum(jnp.pad(jump, after), jnp.pad(jump, before))

    return jnp.clip(jnp.maximum(steps(1), steps(2)) / 2.0, 0.0, 1.0)


def to_pixels(pixels: Shaped[Array, "B height width 3"]) -> Float[Array, "B height width 3"]:
    """uint8 to float32 in [-1, 1]; floats pass."""
    return to_signed(pixels) if pixels.dtype == jnp.uint8 else pixels


def latent_statistics(
    vae: Vae, params: Tree, batches: Iterable[Shaped[Array, "B height width 3"]]
) -> tuple[float, float]:
    """Measures (shift, scale) so that (mode - shift) * scale has mean 0 and deviation 1.

    One pair for all channels, as the config has it, over the modes of the posterior: the DiT of a
    system trained here sees nothing else. Sums are float64 on the host.

    Raises:
      ValueError: without any batch, or when all latents are equal.
    """

    @jax.jit
    def sums(params: Tree, pixels) -> tuple[Float[Array, ""], Float[Array, ""]]:
        mode, _ = vae.apply({"params": params}, to_pixels(pixels), method="moments")
        return jnp.mean(mode), jnp.mean(jnp.square(mode))

    parts: list[tuple[int, float, float]] = []
    for pixels in batches:
        first, second = sums(params, jnp.asarray(pixels))
        parts.append((pixels.shape[0], float(first), float(second)))
    if not parts:
        raise ValueError("latent_statistics: no batch to measure")
    count, first, second = np.asarray(parts, np.float64).T
    shift = np.average(first, weights=count)
    variance = np.average(second, weights=count) - shift**2
    if not variance > 0:
        raise ValueError(f"latent_statistics: variance {variance}, all latents are equal")
    return float(shift), float(variance**-0.5)
