# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL's vision tower: patches of any number of pictures to tokens of the MLLM's width.

* A row holds the patches of all its pictures, block by block of merge x merge; a patch sees the
  patches of its own picture.
* The learned position table is read bilinearly at (row, column) stretched over its side, so each
  patch carries the grid of its picture.
* Besides the merged tokens come deepstack features: the states behind a few blocks, each through a
  merger of its own, which the decoder adds to its first layers.

Source: transformers@4.57.1 models/qwen3_vl/modeling_qwen3_vl.py (vision classes).
"""

from dataclasses import dataclass
from math import isqrt

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from thinkgen_jax.models import rope
from thinkgen_jax.models.attention import attend
from thinkgen_jax.models.layers import Dtype, Linear, param, rematerialized
from thinkgen_jax.sharding import shard
from thinkgen_jax.structs import Patches

NORM_EPS = 1e-6
ATTENDED = ("rows", None, None, None)  # a picture's patches and heads lie whole on every device


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower; defaults are Qwen3-VL-8B's (576,388,336 parameters).

    Attributes:
      num_position_embeddings: entries of the learned table, a square number.
      deepstack_visual_indexes: blocks whose output is tapped, rising; may be empty.
      dtype, attention, scan_unroll, remat, initializer_range: as in `MllmConfig`, which overrides
        them.
    """

    depth: int = 27
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    out_hidden_size: int = 4096
    num_position_embeddings: int = 2304
    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)
    initializer_range: float = 0.02
    dtype: Dtype = "float32"
    attention: str = "auto"
    scan_unroll: int = 1
    remat: str | bool = "none"

    @property
    def head_dim(self) -> int:
        """H."""
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """X: values of one patch, ordered (channel, time, row, column)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


def linear(cfg: VisionConfig, features: tuple[int, ...], name: str) -> Linear:
    """A projection with Qwen's initial spread."""
    return Linear(features, init=nn.initializers.normal(cfg.initializer_range), name=name)


def layer_norm(cfg: VisionConfig, name: str) -> nn.LayerNorm:
    """LayerNorm with float32 statistics that keeps the activation's dtype."""
    return nn.LayerNorm(NORM_EPS, dtype=cfg.dtype, use_fast_variance=False, name=name)


class PositionTable(nn.Module):
    """The learned table, read bilinearly."""

    cfg: VisionConfig

    @nn.compact
    def __call__(
        self, positions: Int[Array, "B P 2"], grids: Int[Array, "B P 2"]
    ) -> Float[Array, "B P W"]:
        cfg = self.cfg
        side = isqrt(cfg.num_position_embeddings)
        table = param(
            self,
            "embedding",
            nn.initializers.normal(cfg.initializer_range),
            (cfg.num_position_embeddings, cfg.hidden_size),
        )
        # Row r of n lies at r · (side - 1) / (n - 1); in integers, so that the floor is exact.
        steps = jnp.maximum(grids - 1, 1)
        low, rest = jnp.divmod(positions * (side - 1), steps)
        high = jnp.minimum(low + 1, side - 1)
        share = rest.astype(jnp.float32) / steps.astype(jnp.float32)
        out = jnp.zeros((), jnp.float32)
        for row, row_share in ((low, 1 - share), (high, share)):
            for column, column_share in ((low, 1 - share), (high, share)):
                weight = row_share[..., 0] * column_share[..., 1]
                out = out + weight[..., None] * table[row[..., 0] * side + column[..., 1]]
        return out.astype(cfg.dtype)


class Attention(nn.Module):
    """Full attention inside each picture, with rotated queries and keys."""

    cfg: VisionConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B P W"],
        cos: Float[Array, "B P X"],
        sin: Float[Array, "B P X"],
        segments: Int[Array, "B P"],
    ) -> Float[Array, "B P W"]:
        cfg = self.cfg
        qkv = linear(cfg, (3, cfg.num_heads, cfg.head_dim), "qkv")(x)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        q, k = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
        y = attend(q, k, v, segments, segments, impl=cfg.attention, names=ATTENDED)
        return linear(cfg, (cfg.hidden_size,), "proj")(y.reshape(x.shape))


class Mlp(nn.Module):
    """Two linear maps with the tanh form of GELU between."""

    cfg: VisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B P W"]) -> Float[Array, "B P W"]:
        y = linear(self.cfg, (self.cfg.intermediate_size,), "linear_fc1")(x)
        y = jax.nn.gelu(y, approximate=True)
        return linear(self.cfg, (self.cfg.hidden_size,), "linear_fc2")(y)


class Block(nn.Module):
    """One pre-norm block; writes its output to place `tap` of the taps, the last being scrap."""

    cfg: VisionConfig

    @nn.compact
    def __call__(self, carry, tap, cos, sin, segments):
        x, taps = carry
        y = layer_norm(self.cfg, "norm1")(x)
        x = x + Attention(self.cfg, name="attn")(y, cos, sin, segments)
        x = x + Mlp(self.cfg, name="mlp")(layer_norm(self.cfg, "norm2")(x))
        x = shard(x, "rows", None, "width")
        if taps is not None:
            taps = jax.lax.dynamic_update_index_in_dim(taps, x, tap, 0)
        return (x, taps), None


class Merger(nn.Module):
    """merge² neighbouring patches to one token of the MLLM's width.

    Attributes:
      norm_merged: norm the joined patches (deepstack) instead of each one.
    """

    cfg: VisionConfig
    norm_merged: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B P W"]) -> Float[Array, "B M D"]:
        cfg = self.cfg
        width = cfg.hidden_size * cfg.spatial_merge_size**2
        shape = (x.shape[0], -1, width)
        norm = layer_norm(cfg, "norm")
        y = norm(x.reshape(shape)) if self.norm_merged else norm(x).reshape(shape)
        y = jax.nn.gelu(linear(cfg, (width,), "linear_fc1")(y), approximate=False)
        return linear(cfg, (cfg.out_hidden_size,), "linear_fc2")(y)


class VisionTower(nn.Module):
    """Patches to merged tokens [B, M, D] and deepstack features [K, B, M, D]."""

    cfg: VisionConfig

    @nn.compact
    def __call__(self, patches: Patches) -> tuple[Float[Array, "B M D"], Float[Array, "K B M D"]]:
        cfg = self.cfg
        x = linear(cfg, (cfg.hidden_size,), "patch_embed")(patches.pixels.astype(cfg.dtype))
        x = x + PositionTable(cfg, name="pos_embed")(patches.positions, patches.grids)
        angles = rope.vision_angles(patches.positions, head_dim=cfg.head_dim)
        places = np.full(cfg.depth, len(cfg.deepstack_visual_indexes), np.int32)
        places[list(cfg.deepstack_visual_indexes)] = np.arange(len(cfg.deepstack_visual_indexes))
        count = len(cfg.deepstack_visual_indexes)
        taps = jnp.zeros((count + 1, *x.shape), x.dtype) if count else None
        block = rematerialized(Block, cfg.remat)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=cfg.depth,
            unroll=min(cfg.scan_unroll, cfg.depth),
        )
        (x, taps), _ = blocks(cfg, name="blocks")(
            (x, taps), jnp.asarray(places), jnp.cos(angles), jnp.sin(angles), patches.segments
        )
        merged = Merger(cfg, norm_merged=False, name="merger")(x)
        if not count:
            return merged, jnp.zeros((0, *merged.shape), merged.dtype)
        mergers = nn.vmap(
            Merger, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=count
        )
        return merged, mergers(cfg, norm_merged=True, name="deepstack_mergers")(taps[:count])
