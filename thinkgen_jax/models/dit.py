# SPDX-License-Identifier: Apache-2.0
"""The diffusion transformer of OmniGen2 with ThinkGen's connector and prepadding states.

It predicts the velocity u = data - noise of latents x_t = t · data + (1 - t) · noise: t = 0 is
noise and t = 1 is data, opposite to FLUX and SD3.

* Text passes a context refiner, the noisy picture a noise refiner, every reference alone a
  reference refiner; then one sequence [text | references | target] passes the joint layers.
* Time modulates by scale and tanh gate, without shifts. Every block norms before and after.
* Pictures come as `Packed` tokens, so a batch may mix sizes and numbers of references.
* `context` needs neither time nor latents: samplers compute it once. What follows comes in three
  parts, for samplers that do not pass the joint layers at every step: `enter`, `pass_layers`,
  `leave`.

Source: ThinkGen@7388ad5 (transformer); OmniGen2 for everything but connector width and prepadding.
"""

from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from thinkgen_jax.models import dit_rope
from thinkgen_jax.models.attention import attend
from thinkgen_jax.models.layers import (
    Dtype,
    Linear,
    RMSNorm,
    apart,
    each,
    is_apart,
    lift,
    param,
    rematerialized,
    rounded,
    sinusoid,
)
from thinkgen_jax.sharding import shard
from thinkgen_jax.structs import Condition, Packed, Tree

TIME_FREQUENCIES = 256  # width of the sinusoidal time embedding
QK_EPS = 1e-5  # of the q/k norms, whatever norm_eps says
MAX_TIME_WIDTH = 1024
ATTENDED = ("rows", "seq", None, None)  # 21 heads lie whole on every device


@dataclass(frozen=True)
class DitConfig:
    """Sizes of the DiT; defaults are the released ones (3,982,838,840 parameters).

    Attributes:
      condition_dim: E, width of the states the connector reads (two MLLM layers side by side).
      num_prepad: learned states put before the condition; 0 leaves them out.
      axes_lens: number of positions of each rotary axis.
      scan_unroll: joint layers traced one by one per loop turn; small models unroll all.
      remat: what the backward pass computes again, see `layers.POLICIES`.
      round_time: t is rounded to `dtype` before its sinusoid, see `presets.as_released`.
      round_latents: `flow.sample` keeps latents rounded to `dtype` between steps, likewise.
    """

    patch_size: int = 2
    in_channels: int = 16
    hidden_size: int = 2520
    num_layers: int = 32
    num_refiner_layers: int = 2
    num_heads: int = 21
    num_kv_heads: int = 7
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    axes_dim_rope: tuple[int, int, int] = (40, 40, 40)
    axes_lens: tuple[int, int, int] = (10000, 10000, 10000)
    rope_theta: float = 10000.0
    condition_dim: int = 8192
    num_prepad: int = 23
    timestep_scale: float = 1000.0
    max_references: int = 5
    dtype: Dtype = "float32"
    attention: str = "auto"
    scan_unroll: int = 1
    remat: str | bool = "none"
    round_time: bool = False
    round_latents: bool = False

    @property
    def head_dim(self) -> int:
        """H."""
        return self.hidden_size // self.num_heads

    @property
    def ffn_dim(self) -> int:
        """F: four times the width, times the multiplier, rounded up to `multiple_of`."""
        inner = 4 * self.hidden_size
        if self.ffn_dim_multiplier is not None:
            inner = int(self.ffn_dim_multiplier * inner)
        return -(-inner // self.multiple_of) * self.multiple_of

    @property
    def time_dim(self) -> int:
        """Width of the time embedding."""
        return min(self.hidden_size, MAX_TIME_WIDTH)

    @property
    def token_dim(self) -> int:
        """C: values of one latent token."""
        return self.patch_size**2 * self.in_channels


class Attention(nn.Module):
    """Grouped-query attention, both ways, with normed and rotated queries and keys."""

    cfg: DitConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T W"],
        segments: Int[Array, "B T"],
        rotation: Float[Array, "b T X 2"],
    ) -> Float[Array, "B T W"]:
        cfg = self.cfg
        q = Linear((cfg.num_heads, cfg.head_dim), bias=False, name="to_q")(x)
        k = Linear((cfg.num_kv_heads, cfg.head_dim), bias=False, name="to_k")(x)
        v = Linear((cfg.num_kv_heads, cfg.head_dim), bias=False, name="to_v")(x)
        q = dit_rope.rotate(RMSNorm(QK_EPS, name="norm_q")(q), rotation)
        k = dit_rope.rotate(RMSNorm(QK_EPS, name="norm_k")(k), rotation)
        q = shard(q, *ATTENDED)
        y = attend(q, k, v, segments, segments, impl=cfg.attention, names=ATTENDED)
        return Linear((cfg.hidden_size,), axes=2, bias=False, name="to_out")(y)


class FeedForward(nn.Module):
    """SwiGLU; the gate's SiLU is evaluated in float32."""

    cfg: DitConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        gate = Linear((self.cfg.ffn_dim,), bias=False, name="gate")(x)
        up = Linear((self.cfg.ffn_dim,), bias=False, name="up")(x)
        gated = jax.nn.silu(gate.astype(jnp.float32)).astype(x.dtype) * up
        return Linear((self.cfg.hidden_size,), bias=False, name="down")(gated)


class Block(nn.Module):
    """One transformer block, modulated by time where `temb` is given."""

    cfg: DitConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T W"],
        segments: Int[Array, "B T"],
        rotation: Float[Array, "b T X 2"],
        temb: Float[Array, "B Z"] | None,
    ) -> tuple[Float[Array, "B T W"], None]:
        cfg = self.cfg
        scale_attn, gate_attn, scale_mlp, gate_mlp = (0.0, None, 0.0, None)
        if temb is not None:
            zeros = nn.initializers.zeros
            out = Linear((4 * cfg.hidden_size,), init=zeros, name="modulation")(jax.nn.silu(temb))
            scale_attn, gate_attn, scale_mlp, gate_mlp = jnp.split(out[:, None], 4, axis=-1)
        y = RMSNorm(cfg.norm_eps, name="norm1")(x) * (1 + scale_attn)
        y = Attention(cfg, name="attn")(y, segments, rotation)
        y = RMSNorm(cfg.norm_eps, name="norm2")(y)
        x = x + (y if gate_attn is None else jnp.tanh(gate_attn) * y)
        y = RMSNorm(cfg.norm_eps, name="ffn_norm1")(x) * (1 + scale_mlp)
        y = FeedForward(cfg, name="feed_forward")(y)
        y = RMSNorm(cfg.norm_eps, name="ffn_norm2")(y)
        x = x + (y if gate_mlp is None else jnp.tanh(gate_mlp) * y)
        return shard(x, "rows", "seq", "width"), None


def stack(cfg: DitConfig, length: int, name: str) -> nn.Module:
    """`length` blocks with parameters stacked on a leading [L], traced as one."""
    block = rematerialized(Block, cfg.remat)
    scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=length,
        unroll=min(cfg.scan_unroll, length),
    )
    return scanned(cfg, name=name)


class CaptionEmbedder(nn.Module):
    """The linear connector: RMSNorm and one linear map from condition states to the DiT's width.

    The norm's gain starts near 0, as the release's init loop leaves it.
    """

    cfg: DitConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B S E"]) -> Float[Array, "B S W"]:
        small = nn.initializers.truncated_normal(0.02)
        gain = param(self, "norm", small, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + QK_EPS)
        normed = wide.astype(x.dtype) * lift(gain, x)
        return Linear((self.cfg.hidden_size,), init=small, name="linear")(normed)


class TimestepEmbedder(nn.Module):
    """Sinusoid of the scaled time, then two linear maps with a SiLU between."""

    cfg: DitConfig

    @nn.compact
    def __call__(self, t: Float[Array, "B"]) -> Float[Array, "B Z"]:
        cfg, normal = self.cfg, nn.initializers.normal(0.02)
        t = rounded(t, cfg.dtype) if cfg.round_time else t
        x = sinusoid(t * cfg.timestep_scale, dim=TIME_FREQUENCIES).astype(cfg.dtype)
        x = jax.nn.silu(Linear((cfg.time_dim,), init=normal, name="linear_1")(x))
        return Linear((cfg.time_dim,), init=normal, name="linear_2")(x)


class Head(nn.Module):
    """LayerNorm without affine, scaled by time, projected to token values; starts at exactly 0."""

    cfg: DitConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T W"], temb: Float[Array, "B Z"]
    ) -> Float[Array, "B T C"]:
        zeros = nn.initializers.zeros
        scale = Linear((self.cfg.hidden_size,), init=zeros, name="linear_1")(jax.nn.silu(temb))
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normed = (centred * jax.lax.rsqrt(variance + 1e-6)).astype(x.dtype)
        y = normed * (1 + scale[:, None])
        return Linear((self.cfg.token_dim,), init=zeros, name="linear_2")(y)


class Joint(NamedTuple):
    """What enters the joint layers: [text | references | target].

    Attributes:
      segments: 1 for valid tokens, 0 for padding.
      rotation: cos and sin of every token.
      temb: embedding of the time.
    """

    states: Float[Array, "B T W"]
    segments: Int[Array, "B T"]
    rotation: Float[Array, "B T X 2"]
    temb: Float[Array, "B Z"]


def _joined(parts, temb) -> Joint:
    """One sequence of (states, segments, rotation) parts."""
    rows = parts[-1][0].shape[0]
    rotations = [jnp.broadcast_to(p[2], (rows, *p[2].shape[1:])) for p in parts]
    return Joint(
        jnp.concatenate([p[0] for p in parts], axis=1),
        jnp.concatenate([(p[1] > 0).astype(jnp.int32) for p in parts], axis=1),
        jnp.concatenate(rotations, axis=1),
        temb,
    )


class Dit(nn.Module):
    """The whole network: `context` once a sample, `denoise` every step; `__call__` does both."""

    cfg: DitConfig

    def setup(self) -> None:
        cfg = self.cfg
        self.x_embedder = Linear((cfg.hidden_size,))
        self.ref_image_patch_embedder = Linear((cfg.hidden_size,))
        self.image_index_embedding = param(
            self,
            "image_index_embedding",
            nn.initializers.normal(0.02),
            (cfg.max_references, cfg.hidden_size),
        )
        if cfg.num_prepad:
            self.prepad_embed = param(
                self,
                "prepad_embed",
                nn.initializers.normal(1.0),
                (cfg.num_prepad, cfg.condition_dim),
            )
        self.timestep_embedder = TimestepEmbedder(cfg)
        self.caption_embedder = CaptionEmbedder(cfg)
        self.context_refiner = stack(cfg, cfg.num_refiner_layers, "context_refiner")
        self.noise_refiner = stack(cfg, cfg.num_refiner_layers, "noise_refiner")
        self.ref_image_refiner = stack(cfg, cfg.num_refiner_layers, "ref_image_refiner")
        self.layers = stack(cfg, cfg.num_layers, "layers")
        self.norm_out = Head(cfg)

    def __call__(
        self,
        target: Packed,
        t: Float[Array, "B"],
        condition: Condition,
        references: Packed | None = None,
    ) -> Float[Array, "B T C"]:
        """Predicts the velocity data - noise of every target token at time t (0 noise, 1 data)."""
        return self.denoise(target, t, self.context(condition), references)

    def context(self, condition: Condition) -> Condition:
        """Prepends the prepadding states, connects to the DiT's width and refines.

        Raises:
          ValueError: when prepadding and condition are longer than the rotary table.
        """
        cfg = self.cfg
        states = condition.states.astype(cfg.dtype)
        segments = (condition.segments > 0).astype(jnp.int32)
        if cfg.num_prepad:
            rows = states.shape[0]
            prepad = jnp.broadcast_to(self.prepad_embed, (rows, *self.prepad_embed.shape))
            states = jnp.concatenate([prepad.astype(states.dtype), states], axis=1)
            segments = jnp.pad(segments, ((0, 0), (cfg.num_prepad, 0)), constant_values=1)
        length = states.shape[1]
        if length >= min(cfg.axes_lens):
            raise ValueError(
                f"{length} condition tokens do not fit model.dit.axes_lens {cfg.axes_lens}"
            )
        x = shard(self.caption_embedder(states), "rows", "seq", "width")
        rotation = self._rotations(dit_rope.text_positions(length))
        x, _ = self.context_refiner(x, segments, rotation, None)
        return Condition(x, segments)

    def denoise(
        self,
        target: Packed,
        t: Float[Array, "B"],
        context: Condition,
        references: Packed | None = None,
    ) -> Float[Array, "B T C"]:
        """Predicts the velocity under an already refined context of width W."""
        joint = self.enter(target, t, context, references)
        return self.leave(self.pass_layers(joint)[:, -target.tokens.shape[1] :], joint.temb)

    def enter(
        self,
        target: Packed,
        t: Float[Array, "B"],
        context: Condition,
        references: Packed | None = None,
    ) -> Joint:
        """Embeds and refines the pictures; the joint sequence [text | references | target]."""
        cfg = self.cfg
        temb = self.timestep_embedder(t)
        shift = jnp.sum(context.segments > 0, axis=1)
        text_rotation = self._rotations(dit_rope.text_positions(context.states.shape[1]))
        parts = [(context.states, context.segments, text_rotation)]
        if references is not None:
            sizes = dit_rope.extents(
                references.positions, references.segments, count=cfg.max_references
            )
            parts.append(self._refine_references(references, shift, sizes, temb))
            shift = shift + jnp.sum(sizes, axis=1)
        x = self.x_embedder(target.tokens.astype(cfg.dtype))
        shifts = jnp.broadcast_to(shift[:, None], x.shape[:2])
        rotation = self._rotations(dit_rope.picture_positions(target.positions, shifts))
        x = self._through("noise_refiner", x, target.segments, rotation, temb)
        parts.append((x, target.segments, rotation))
        return _joined(parts, temb)

    def pass_layers(self, joint: Joint) -> Float[Array, "B T W"]:
        """The joint layers."""
        states = shard(joint.states, "rows", "seq", "width")
        return self._through("layers", states, joint.segments, joint.rotation, joint.temb)

    def leave(
        self, states: Float[Array, "B T W"], temb: Float[Array, "B Z"]
    ) -> Float[Array, "B T C"]:
        """Velocities of the target's states behind the joint layers."""
        return self.norm_out(states, temb)

    def _refine_references(self, references: Packed, shift, sizes, temb):
        """Refines each reference alone; returns (states, segments, rotation)."""
        number = jnp.maximum(references.segments - 1, 0)
        before = jnp.cumsum(sizes, axis=1) - sizes
        shifts = shift[:, None] + jnp.take_along_axis(before, number, axis=1)
        positions = dit_rope.picture_positions(references.positions, shifts)
        rotation = self._rotations(positions)
        x = self.ref_image_patch_embedder(references.tokens.astype(self.cfg.dtype))
        x = x + self.image_index_embedding[number].astype(x.dtype)
        x = self._through("ref_image_refiner", x, references.segments, rotation, temb)
        return x, references.segments, rotation

    def _through(self, name: str, x, segments, rotation, temb) -> Float[Array, "B T W"]:
        """The states behind a stack of blocks, which may be `layered`."""
        blocks = self.variables["params"].get(name, {})
        if not is_apart(blocks):
            return getattr(self, name)(x, segments, rotation, temb)[0]
        block = Block(self.cfg, parent=None)
        for layer in each(blocks, len(blocks)):
            x, _ = block.apply({"params": layer}, x, segments, rotation, temb)
        return x

    def _rotations(self, positions: Int[Array, "b T 3"]) -> Float[Array, "b T X 2"]:
        cfg = self.cfg
        return dit_rope.rotations(
            positions, axes_dim=cfg.axes_dim_rope, axes_lens=cfg.axes_lens, theta=cfg.rope_theta
        )


def layered(cfg: DitConfig, params: Tree) -> Tree:
    """Stacks that run at every step as one tree per layer, if `scan_unroll` covers the joint ones.

    See `layers.apart`. Without gradients alone: nothing is rematerialised.
    """
    if cfg.scan_unroll < cfg.num_layers:
        return params
    refiners = dict.fromkeys(("noise_refiner", "ref_image_refiner"), cfg.num_refiner_layers)
    return apart(params, {"layers": cfg.num_layers, **refiners})
