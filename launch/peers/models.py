# SPDX-License-Identifier: Apache-2.0
"""The other two networks: Qwen3-VL of transformers and the autoencoder of diffusers.

Both load the folder that our export writes, so that the weights are the same, and are used as
their libraries offer them: fused attention, `generate` with a cache, convolutions channels-last.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from launch.peers.dit import Pictures, Text
from thinkgen_jax.hf import export
from thinkgen_jax.models.presets import System
from thinkgen_jax.structs import Condition, Packed, Prompt, Tree


def mllm_of(system: System, params: Tree) -> nn.Module:
    """Qwen3-VL with our parameters."""
    with tempfile.TemporaryDirectory() as folder:
        export.write_folder(folder, system, {"mllm": params}, plain=True)
        return Qwen3VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()


def vae_of(system: System, params: Tree) -> nn.Module:
    """The autoencoder with our parameters."""
    with tempfile.TemporaryDirectory() as folder:
        export.write_folder(folder, system, {"vae": params})
        model = AutoencoderKL.from_pretrained(Path(folder) / "vae", torch_dtype=torch.float32)
    return model.eval().to(memory_format=torch.channels_last)


# --- our records as theirs ---


def tensor(array: object) -> Tensor:
    """A copy; integers become int64, which is what torch indexes with."""
    found = torch.tensor(np.asarray(array))
    return found if found.is_floating_point() or found.dtype == torch.bool else found.long()


def text_of(condition: Condition) -> Text:
    """Condition states padded to the longest row, as the release pads."""
    segments = np.asarray(condition.segments) > 0
    length = max(int(segments.sum(axis=1).max()), 1)
    mask = segments[:, :length]
    states = tensor(condition.states[:, :length])
    return Text(states, None if mask.all() else tensor(mask))


def pictures_of(packed: Packed) -> Pictures:
    """Latent tokens; without numbers where nothing is padded and there is one picture a row."""
    numbers = np.asarray(packed.segments)
    plain = bool((numbers == 1).all())
    return Pictures(
        tensor(packed.tokens), tensor(packed.positions), None if plain else tensor(numbers)
    )


def rows_of(prompt: Prompt) -> tuple[Tensor, Tensor]:
    """Token ids and mask, right-padded to the longest row."""
    segments = np.asarray(prompt.segments) > 0
    length = int(segments.sum(axis=1).max())
    return tensor(prompt.ids)[:, :length], tensor(segments[:, :length])


# --- what both phases do with them ---


def last_layers(mllm: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Residual streams behind the last two layers, before the final norm, side by side [B, T, E].

    Hooks, because `hidden_states[-1]` is before or behind the norm by version of the library.
    """
    decoder, found = mllm.model.language_model, []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: found.append(out))
        for layer in decoder.layers[-2:]
    ]
    try:
        decoder(
            input_ids=ids, attention_mask=mask.long(), position_ids=places(mask), use_cache=False
        )
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat([out[0] if isinstance(out, tuple) else out for out in found], dim=-1)


def places(mask: Tensor) -> Tensor:
    """Position of every token in its row; padding stands at 0."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def condition(
    mllm: nn.Module, ids: Tensor, mask: Tensor, *, close_id: int, most: int, drop_last: bool
) -> tuple[Text, Tensor]:
    """States behind the first `</think>` of each row, and which rows have one with words behind.

    Args:
      most: longest instruction in tokens.
      drop_last: leave out the last token, whose state generating does not compute.
    """
    states = last_layers(mllm, ids, mask)
    rows, valid = [], []
    for state, row, seen in zip(states, ids, mask, strict=True):
        state, row = state[seen], row[seen]
        marks = (row == close_id).nonzero()
        cut = int(marks[0]) + 1 if len(marks) else 0
        cut = cut if cut < len(row) else 0
        end = len(row) - int(drop_last)
        valid.append(0 < cut < end)
        rows.append(state[cut:end][:most])
    lengths = torch.tensor([len(row) for row in rows])
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    known = torch.arange(padded.shape[1])[None] < lengths[:, None]
    return Text(padded, None if bool(known.all()) else known), torch.tensor(valid)


def repeat(text: Text, count: int) -> Text:
    """Every row `count` times, copies side by side."""
    mask = None if text.mask is None else text.mask.repeat_interleave(count, dim=0)
    return Text(text.states.repeat_interleave(count, dim=0), mask)


def grid_places(height: int, width: int, rows: int) -> Tensor:
    """(row, column) of every token of a picture, [rows, T, 2]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([y, x], dim=-1).reshape(1, -1, 2).expand(rows, -1, -1)


def decode_pixels(vae: nn.Module, tokens: Tensor, *, patch: int, h: int, w: int) -> np.ndarray:
    """Latent tokens of an h x w latent grid to uint8 pictures [B, height, width, 3]."""
    rows = tokens.shape[0]
    x = tokens.reshape(rows, h // patch, w // patch, patch, patch, -1)
    latents = x.permute(0, 5, 1, 3, 2, 4).reshape(rows, -1, h, w)
    latents = latents.contiguous(memory_format=torch.channels_last)
    cfg = vae.config
    pixels = vae.decode(latents / cfg.scaling_factor + cfg.shift_factor).sample
    pixels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).numpy()
