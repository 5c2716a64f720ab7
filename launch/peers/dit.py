# SPDX-License-Identifier: Apache-2.0
"""The diffusion transformer in plain PyTorch, under the released parameter names.

Written as a PyTorch user would for speed, not as the release is in every line:

* fused attention (`scaled_dot_product_attention`), without a mask where nothing is padded;
* rotary tables are precomputed in float32 and looked up; the release multiplies in complex128;
* text, references and target lie behind one another in one padded sequence, without loops over
  samples; positions are explicit, so padding between them changes nothing.

Pictures are tokens here, as in our sampler; to cut latents into them is a reshape.

Source: ThinkGen@7388ad5 (transformer); OmniGen2 for the blocks.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinkgen_jax.hf import dit as table
from thinkgen_jax.hf import streams
from thinkgen_jax.models.dit import QK_EPS, TIME_FREQUENCIES, DitConfig
from thinkgen_jax.structs import Tree


class Pictures(NamedTuple):
    """Latent tokens of a batch; `numbers` is 0 at padding, for references the picture's number."""

    tokens: Tensor  # [B, T, C]
    positions: Tensor  # [B, T, 2] (row, column)
    numbers: Tensor | None  # [B, T]; None where nothing is padded


class Text(NamedTuple):
    """Condition states, right-padded; `mask` is None where nothing is padded."""

    states: Tensor  # [B, S, E]
    mask: Tensor | None  # bool [B, S]


class Rotation(NamedTuple):
    """Cosine and sine of every token and channel pair, [B or 1, T, 1, H / 2]."""

    cos: Tensor
    sin: Tensor


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns adjacent channel pairs of x [B, T, N, H]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotation
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


class Attention(nn.Module):
    """Grouped-query attention over a padded sequence."""

    def __init__(self, cfg: DitConfig):
        super().__init__()
        width, head = cfg.hidden_size, cfg.head_dim
        self.heads, self.kv_heads = cfg.num_heads, cfg.num_kv_heads
        self.to_q = nn.Linear(width, cfg.num_heads * head, bias=False)
        self.to_k = nn.Linear(width, cfg.num_kv_heads * head, bias=False)
        self.to_v = nn.Linear(width, cfg.num_kv_heads * head, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(cfg.num_heads * head, width, bias=False)])
        self.norm_q, self.norm_k = nn.RMSNorm(head, QK_EPS), nn.RMSNorm(head, QK_EPS)

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None) -> Tensor:
        """`mask` is bool, broadcastable to [B, 1, T, T], True where a query sees a key."""
        q = rotate(self.norm_q(self.to_q(x).unflatten(-1, (self.heads, -1))), rotation)
        k = rotate(self.norm_k(self.to_k(x).unflatten(-1, (self.kv_heads, -1))), rotation)
        v = self.to_v(x).unflatten(-1, (self.kv_heads, -1))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return self.to_out[0](y.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU: `linear_1` gates, `linear_3` lifts, `linear_2` returns."""

    def __init__(self, cfg: DitConfig):
        super().__init__()
        self.linear_1 = nn.Linear(cfg.hidden_size, cfg.ffn_dim, bias=False)
        self.linear_2 = nn.Linear(cfg.ffn_dim, cfg.hidden_size, bias=False)
        self.linear_3 = nn.Linear(cfg.hidden_size, cfg.ffn_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Over the last axis."""
        return self.linear_2(F.silu(self.linear_1(x)) * self.linear_3(x))


class Modulation(nn.Module):
    """The first norm of a block with the scales and gates that time gives it."""

    def __init__(self, cfg: DitConfig):
        super().__init__()
        self.linear = nn.Linear(cfg.time_dim, 4 * cfg.hidden_size)
        self.norm = nn.RMSNorm(cfg.hidden_size, cfg.norm_eps)


class Block(nn.Module):
    """One transformer block, modulated by time or not."""

    def __init__(self, cfg: DitConfig, *, modulated: bool):
        super().__init__()
        width = cfg.hidden_size
        self.attn, self.feed_forward = Attention(cfg), FeedForward(cfg)
        self.norm1 = Modulation(cfg) if modulated else nn.RMSNorm(width, cfg.norm_eps)
        self.norm2 = nn.RMSNorm(width, cfg.norm_eps)
        self.ffn_norm1 = nn.RMSNorm(width, cfg.norm_eps)
        self.ffn_norm2 = nn.RMSNorm(width, cfg.norm_eps)

    def forward(
        self, x: Tensor, rotation: Rotation, mask: Tensor | None, temb: Tensor | None
    ) -> Tensor:
        """`temb` [B, Z] behind its SiLU; None for a block that time does not modulate."""
        if temb is None:
            x = x + self.norm2(self.attn(self.norm1(x), rotation, mask))
            return x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))
        scale_a, gate_a, scale_f, gate_f = self.norm1.linear(temb).unsqueeze(1).chunk(4, dim=-1)
        y = self.attn(self.norm1.norm(x) * (1 + scale_a), rotation, mask)
        x = x + gate_a.tanh() * self.norm2(y)
        y = self.feed_forward(self.ffn_norm1(x) * (1 + scale_f))
        return x + gate_f.tanh() * self.ffn_norm2(y)


class TimestepEmbedder(nn.Module):
    """Sinusoid of the scaled time, cosines first, then two linear maps."""

    def __init__(self, cfg: DitConfig):
        super().__init__()
        self.scale, half = cfg.timestep_scale, TIME_FREQUENCIES // 2
        frequencies = torch.exp(-np.log(10000.0) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.linear_1 = nn.Linear(TIME_FREQUENCIES, cfg.time_dim)
        self.linear_2 = nn.Linear(cfg.time_dim, cfg.time_dim)

    def forward(self, t: Tensor) -> Tensor:
        """t [B], 0 noise and 1 data."""
        angles = (t * self.scale)[:, None] * self.frequencies
        x = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.linear_2(F.silu(self.linear_1(x)))


class TimeCaptionEmbed(nn.Module):
    """Time embedder and the connector from condition states to the DiT's width."""

    def __init__(self, cfg: DitConfig):
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(cfg)
        self.caption_embedder = nn.Sequential(
            nn.RMSNorm(cfg.condition_dim, QK_EPS), nn.Linear(cfg.condition_dim, cfg.hidden_size)
        )


class Head(nn.Module):
    """LayerNorm without affine, scaled by time, then to token values."""

    def __init__(self, cfg: DitConfig):
        super().__init__()
        self.linear_1 = nn.Linear(cfg.time_dim, cfg.hidden_size)
        self.linear_2 = nn.Linear(cfg.hidden_size, cfg.token_dim)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """`temb` behind its SiLU."""
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return self.linear_2(normed * (1 + self.linear_1(temb).unsqueeze(1)))


class Dit(nn.Module):
    """The whole network; predicts the velocity data - noise of the target's tokens."""

    def __init__(self, cfg: DitConfig):
        super().__init__()
        self.cfg = cfg
        width = cfg.hidden_size
        self.x_embedder = nn.Linear(cfg.token_dim, width)
        self.ref_image_patch_embedder = nn.Linear(cfg.token_dim, width)
        self.image_index_embedding = nn.Parameter(torch.zeros(cfg.max_references, width))
        if cfg.num_prepad:
            self.prepad_embed = nn.Parameter(torch.zeros(1, cfg.num_prepad, cfg.condition_dim))
        self.time_caption_embed = TimeCaptionEmbed(cfg)
        self.context_refiner = self._stack(cfg.num_refiner_layers, modulated=False)
        self.noise_refiner = self._stack(cfg.num_refiner_layers, modulated=True)
        self.ref_image_refiner = self._stack(cfg.num_refiner_layers, modulated=True)
        self.layers = self._stack(cfg.num_layers, modulated=True)
        self.norm_out = Head(cfg)
        for axis, (dim, length) in enumerate(zip(cfg.axes_dim_rope, cfg.axes_lens, strict=True)):
            steps = torch.arange(0, dim, 2, dtype=torch.float64) / dim
            angles = torch.arange(length, dtype=torch.float64)[:, None] * cfg.rope_theta**-steps
            self.register_buffer(f"cos_{axis}", angles.cos().float(), persistent=False)
            self.register_buffer(f"sin_{axis}", angles.sin().float(), persistent=False)

    def _stack(self, count: int, *, modulated: bool) -> nn.ModuleList:
        return nn.ModuleList([Block(self.cfg, modulated=modulated) for _ in range(count)])

    def forward(
        self, target: Pictures, t: Tensor, text: Text, references: Pictures | None = None
    ) -> Tensor:
        """Velocities [B, T, C] at times t [B]; 0 is noise, 1 is data."""
        embed, rows = self.time_caption_embed, target.tokens.shape[0]
        temb = embed.timestep_embedder(t)
        temb = F.silu(temb)  # every use is behind a SiLU
        states, valid = self._prepadded(text)
        x = embed.caption_embedder(states)
        places = torch.arange(x.shape[1], device=x.device)
        rotation = self._rotation(*(places[None],) * 3)
        x = self._pass(self.context_refiner, x, rotation, valid, None)
        shift = torch.full((1,), x.shape[1], device=x.device) if valid is None else valid.sum(1)
        parts = [(x, rotation, valid)]
        if references is not None:
            part, shift = self._references(references, shift.expand(rows), temb)
            parts.append(part)
        y = self.x_embedder(target.tokens)
        rotation = self._picture_rotation(target.positions, shift[:, None])
        seen = None if target.numbers is None else target.numbers > 0
        y = self._pass(self.noise_refiner, y, rotation, seen, temb)
        parts.append((y, rotation, seen))
        out = self._pass(self.layers, *_joined(parts), temb)
        return self.norm_out(out[:, -y.shape[1] :], temb)

    def _prepadded(self, text: Text) -> Text:
        states, mask = text
        if self.cfg.num_prepad:
            rows = states.shape[0]
            states = torch.cat([self.prepad_embed.expand(rows, -1, -1), states], dim=1)
            mask = None if mask is None else F.pad(mask, (self.cfg.num_prepad, 0), value=True)
        return Text(states, mask)

    def _references(self, references: Pictures, shift: Tensor, temb: Tensor):
        """Refines every reference alone; returns the part and the shift behind it."""
        numbers = references.numbers
        count = torch.arange(1, self.cfg.max_references + 1, device=numbers.device)
        longest = references.positions.amax(-1) + 1
        sizes = torch.where(numbers[..., None] == count, longest[..., None], 0).amax(1)
        before = sizes.cumsum(1) - sizes
        index = (numbers - 1).clamp(min=0)
        rotation = self._picture_rotation(
            references.positions, shift[:, None] + before.gather(1, index)
        )
        x = self.ref_image_patch_embedder(references.tokens) + self.image_index_embedding[index]
        same = numbers[:, None, :, None] == numbers[:, None, None, :]
        for block in self.ref_image_refiner:
            x = block(x, rotation, same, temb)
        return (x, rotation, numbers > 0), shift + sizes.sum(1)

    def _pass(self, blocks, x, rotation: Rotation, valid: Tensor | None, temb: Tensor | None):
        mask = None if valid is None else valid[:, None, None, :]
        for block in blocks:
            x = block(x, rotation, mask, temb)
        return x

    def _picture_rotation(self, positions: Tensor, shift: Tensor) -> Rotation:
        index = shift.expand(positions.shape[:2])
        return self._rotation(index, positions[..., 0], positions[..., 1])

    def _rotation(self, *places: Tensor) -> Rotation:
        """Looks up the tables at the places [B or 1, T] of the three axes."""
        cos = [getattr(self, f"cos_{axis}")[place] for axis, place in enumerate(places)]
        sin = [getattr(self, f"sin_{axis}")[place] for axis, place in enumerate(places)]
        return Rotation(torch.cat(cos, -1).unsqueeze(2), torch.cat(sin, -1).unsqueeze(2))


def _joined(parts) -> tuple[Tensor, Rotation, Tensor | None]:
    """One sequence of (states, rotation, valid or None) parts."""
    rows = max(len(states) for states, _, _ in parts)
    x = torch.cat([states for states, _, _ in parts], dim=1)
    turns = (
        torch.cat([rotation[i].expand(rows, -1, -1, -1) for _, rotation, _ in parts], dim=1)
        for i in range(2)
    )
    masks = [mask for _, _, mask in parts]
    valid = None
    if any(mask is not None for mask in masks):
        whole = [states.new_ones(states.shape[:2], dtype=torch.bool) for states, _, _ in parts]
        known = [a if b is None else b for a, b in zip(whole, masks, strict=True)]
        valid = torch.cat(known, dim=1)
    return x, Rotation(*turns), valid


def of_tree(cfg: DitConfig, params: Tree) -> Dit:
    """The network with our parameters, through the released names."""
    model = Dit(cfg)
    model.load_state_dict(tensors_of(cfg, params))
    return model


def tensors_of(cfg: DitConfig, params: Tree) -> Mapping[str, Tensor]:
    """Our parameters under the released names, copied."""
    entries = streams.released(params, table.rules(cfg))
    return {name: torch.tensor(array) for name, array in streams.Lazy(entries).items()}
