# SPDX-License-Identifier: Apache-2.0
"""The FLUX-type autoencoder: pictures to latents and back.

A convolutional encoder gives mean and log-variance of a diagonal Gaussian for each latent cell, a
decoder maps latents to pixels. Both are GroupNorm-SiLU-convolution residual blocks with one
single-head attention at the lowest resolution; there are no convolutions around the latents.

* Everything is NHWC. Pixels are in [-1, 1]; the decoder's output is not clipped.
* Latents are shifted first and scaled second: z = (sample - shift) * scale.
* The released system samples the posterior, also at inference; without a key we take its mode.
* GroupNorm and softmax are computed in float32 whatever `dtype` says.

Source: FLUX.1 autoencoder config; diffusers AutoencoderKL (layout and parameter names).
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from thinkgen_jax.models.layers import Dtype, Linear, lift, param
from thinkgen_jax.sharding import shard

LOGVAR_RANGE = (-30.0, 20.0)
QUERY_BLOCK = 2048  # queries attended at once; bounds the logits of a 1024-pixel picture


@dataclass(frozen=True)
class VaeConfig:
    """Dimensions of the autoencoder; the defaults are the released ones (FLUX.1)."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)  # one entry per resolution
    layers_per_block: int = 2  # residual blocks per resolution; the decoder has one more
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    mid_block_add_attention: bool = True
    scaling_factor: float = 0.3611
    shift_factor: float = 0.1159
    dtype: Dtype = "float32"  # of convolutions and matrix products

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one side."""
        return 2 ** (len(self.block_out_channels) - 1)


class Conv(nn.Module):
    """A square convolution, kernel [k, k, inputs, features]; `padding` as (before, after)."""

    features: int
    size: int = 3
    stride: int = 1
    padding: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: Float[Array, "B h w X"]) -> Float[Array, "B y x Y"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = param(self, "kernel", nn.initializers.lecun_normal(), shape)
        bias = param(self, "bias", nn.initializers.zeros, (self.features,))
        y = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            (self.stride, self.stride),
            (self.padding, self.padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + lift(bias, y)


class GroupNorm(nn.Module):
    """Normalises groups of neighbouring channels over the whole picture, statistics in float32."""

    cfg: VaeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B h w X"]) -> Float[Array, "B h w X"]:
        b, h, w, channels = x.shape
        scale = param(self, "scale", nn.initializers.ones, (channels,))
        bias = param(self, "bias", nn.initializers.zeros, (channels,))
        groups = self.cfg.norm_num_groups

        def mean(wide):  # [B h w X] -> [B 1 1 X], equal inside a group
            sums = wide.mean((1, 2)).reshape(b, groups, -1).mean(-1, keepdims=True)
            return jnp.broadcast_to(sums, (b, groups, channels // groups)).reshape(b, 1, 1, -1)

        wide = x.astype(jnp.float32)
        wide = wide - mean(wide)
        gain = jax.lax.rsqrt(mean(jnp.square(wide)) + self.cfg.norm_eps) * lift(scale, wide)
        return (wide * gain + lift(bias, wide)).astype(x.dtype)


class ResnetBlock(nn.Module):
    """Two normalised convolutions beside a skip; the skip is projected when the width changes."""

    cfg: VaeConfig
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B h w X"]) -> Float[Array, "B h w Y"]:
        y = nn.silu(GroupNorm(self.cfg, name="norm1")(x))
        y = Conv(self.features, name="conv1")(y)
        y = nn.silu(GroupNorm(self.cfg, name="norm2")(y))
        y = Conv(self.features, name="conv2")(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, size=1, padding=(0, 0), name="conv_shortcut")(x)
        return x + y


class Attention(nn.Module):
    """Single-head self-attention over all cells, with a skip."""

    cfg: VaeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B h w X"]) -> Float[Array, "B h w X"]:
        b, h, w, channels = x.shape
        y = GroupNorm(self.cfg, name="group_norm")(x).reshape(b, h * w, channels)
        q, k, v = (Linear((channels,), name=f"to_{name}")(y) for name in "qkv")
        y = Linear((channels,), name="to_out")(attend_all(q, k, v))
        return x + y.reshape(x.shape)


def attend_all(
    q: Float[Array, "B T X"],
    k: Float[Array, "B T X"],
    v: Float[Array, "B T X"],
    *,
    block: int = QUERY_BLOCK,
) -> Float[Array, "B T X"]:
    """Attends every cell to every cell, at most `block` queries at a time; one head of width X.

    The fused kernels stop at narrower heads, and the logits of 128 x 128 cells would fill 1 GiB.
    """

    def rows(some: Float[Array, "B S X"]) -> Float[Array, "B S X"]:
        logits = jnp.einsum("bqx,bkx->bqk", some, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1)
        return jnp.einsum("bqk,bkx->bqx", weights.astype(v.dtype), v)

    cells = q.shape[1]
    if cells <= block:
        return rows(q)
    parts = [rows(q[:, start : start + block]) for start in range(0, cells, block)]
    return jnp.concatenate(parts, axis=1)


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    cfg: VaeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B h w X"]) -> Float[Array, "B h w X"]:
        x = ResnetBlock(self.cfg, x.shape[-1], name="resnets_0")(x)
        if self.cfg.mid_block_add_attention:
            x = Attention(self.cfg, name="attentions_0")(x)
        return ResnetBlock(self.cfg, x.shape[-1], name="resnets_1")(x)


class DownBlock(nn.Module):
    """Residual blocks of one resolution; then, but for the last, half the side length."""

    cfg: VaeConfig
    features: int
    last: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B h w X"]) -> Float[Array, "B y x Y"]:
        for i in range(self.cfg.layers_per_block):
            x = ResnetBlock(self.cfg, self.features, name=f"resnets_{i}")(x)
        if self.last:
            return x
        # Padding lies right and below only.
        return Conv(self.features, stride=2, padding=(0, 1), name="downsamplers_0")(x)


class UpBlock(nn.Module):
    """Residual blocks of one resolution; then, but for the last, twice the side length."""

    cfg: VaeConfig
    features: int
    last: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B h w X"]) -> Float[Array, "B y x Y"]:
        for i in range(self.cfg.layers_per_block + 1):
            x = ResnetBlock(self.cfg, self.features, name=f"resnets_{i}")(x)
        if self.last:
            return x
        b, h, w, channels = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, channels))
        x = x.reshape(b, 2 * h, 2 * w, channels)  # nearest neighbour
        return Conv(self.features, name="upsamplers_0")(x)


class Encoder(nn.Module):
    """Pixels to [mean, log-variance], unclamped."""

    cfg: VaeConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "B height width 3"]) -> Float[Array, "B h w c2"]:
        widths = self.cfg.block_out_channels
        x = Conv(widths[0], name="conv_in")(pixels)
        for i, width in enumerate(widths):
            x = DownBlock(self.cfg, width, i == len(widths) - 1, name=f"down_blocks_{i}")(x)
        x = MidBlock(self.cfg, name="mid_block")(x)
        x = nn.silu(GroupNorm(self.cfg, name="conv_norm_out")(x))
        return Conv(2 * self.cfg.latent_channels, name="conv_out")(x)


class Decoder(nn.Module):
    """Unscaled latents to pixels."""

    cfg: VaeConfig

    @nn.compact
    def __call__(self, sample: Float[Array, "B h w c"]) -> Float[Array, "B height width 3"]:
        widths = self.cfg.block_out_channels[::-1]
        x = Conv(widths[0], name="conv_in")(sample)
        x = MidBlock(self.cfg, name="mid_block")(x)
        for i, width in enumerate(widths):
            x = UpBlock(self.cfg, width, i == len(widths) - 1, name=f"up_blocks_{i}")(x)
        x = nn.silu(GroupNorm(self.cfg, name="conv_norm_out")(x))
        return Conv(self.cfg.out_channels, name="conv_out")(x)


class Vae(nn.Module):
    """The autoencoder: `encode` and `decode` speak scaled latents, `moments` the posterior."""

    cfg: VaeConfig

    def setup(self):
        self.encoder = Encoder(self.cfg)
        self.decoder = Decoder(self.cfg)

    def __call__(
        self, pixels: Float[Array, "B height width 3"]
    ) -> Float[Array, "B height width 3"]:
        """Reconstructs from the posterior's mode; touches every parameter."""
        return self.decode(self.encode(pixels))

    def moments(
        self, pixels: Float[Array, "B height width 3"]
    ) -> tuple[Float[Array, "B h w c"], Float[Array, "B h w c"]]:
        """Mean and clamped log-variance of the posterior, unscaled, in float32.

        Args:
          pixels: in [-1, 1]; both sides multiples of `cfg.factor`.

        Raises:
          ValueError: for a side that is no multiple of `cfg.factor`.
        """
        height, width = pixels.shape[1:3]
        if height % self.cfg.factor or width % self.cfg.factor:
            raise ValueError(f"picture of {height} x {width}: no multiple of {self.cfg.factor}")
        pixels = shard(pixels, "rows", None, None, None)
        out = self.encoder(pixels.astype(self.cfg.dtype)).astype(jnp.float32)
        mean, logvar = jnp.split(out, 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def encode(
        self, pixels: Float[Array, "B height width 3"], key: Array | None = None
    ) -> Float[Array, "B h w c"]:
        """Gives the latents the DiT sees.

        Args:
          pixels: in [-1, 1].
          key: draws from the posterior as the released system does, see `draw`; None takes the
            mode.
        """
        return scale_latents(draw(*self.moments(pixels), key), self.cfg)

    def decode(self, latents: Float[Array, "B h w c"]) -> Float[Array, "B height width 3"]:
        """Paints scaled latents; values may lie a little outside [-1, 1]."""
        return self.paint(unscale_latents(latents, self.cfg))

    def paint(self, sample: Float[Array, "B h w c"]) -> Float[Array, "B height width 3"]:
        """Paints a posterior sample that is neither shifted nor scaled; what training needs."""
        sample = shard(sample, "rows", None, None, None)
        return self.decoder(sample.astype(self.cfg.dtype)).astype(jnp.float32)


def draw(
    mean: Float[Array, "B h w c"], logvar: Float[Array, "B h w c"], key: Array | None
) -> Float[Array, "B h w c"]:
    """One draw from the posterior; its mode without a key.

    Args:
      key: one for all rows, or [B] one for each.
    """
    if key is None:
        return mean
    if key.ndim:
        noise = jax.vmap(lambda one: jax.random.normal(one, mean.shape[1:], mean.dtype))(key)
    else:
        noise = jax.random.normal(key, mean.shape, mean.dtype)
    return mean + jnp.exp(0.5 * logvar) * noise


def scale_latents(sample: Float[Array, "B h w c"], cfg: VaeConfig) -> Float[Array, "B h w c"]:
    """Posterior samples to the latents the DiT sees."""
    return (sample - cfg.shift_factor) * cfg.scaling_factor


def unscale_latents(latents: Float[Array, "B h w c"], cfg: VaeConfig) -> Float[Array, "B h w c"]:
    """Inverse of `scale_latents`."""
    return latents / cfg.scaling_factor + cfg.shift_factor
