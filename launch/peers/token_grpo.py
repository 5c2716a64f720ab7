# SPDX-License-Identifier: Apache-2.0
"""One iteration of GRPO on the MLLM in PyTorch: thoughts, their pictures, rewards, one update.

What a PyTorch user writes with transformers: `generate` samples a group for each prompt, one
teacher-forced pass gives the states that condition the DiT, the frozen DiT draws each group from
one initial noise, then old and reference log-probabilities and one clipped AdamW update. Logits are
made for response tokens alone.
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from launch.peers import flow, models
from launch.peers.dit import Dit, Pictures, Text
from launch.peers.flow_grpo import optimizer_of


class Settings(NamedTuple):
    """What an iteration is told; names as in our plans."""

    group: int
    scale: float  # of guidance; 1 for none
    grid: Sequence[float]  # times of the drawing
    new_tokens: int
    stop_id: int
    pad_id: int
    temperature: float
    parts: int  # micro-batches of an update
    clip_low: float
    clip_high: float
    dual_clip: float
    kl: float
    lr: float
    decay: float
    betas: tuple[float, float]
    eps: float
    clip_norm: float
    close_id: int
    most: int  # longest instruction
    patch: int
    h: int
    w: int


class Peer(NamedTuple):
    """Networks, the optimizer of the MLLM, and what guidance points away from."""

    mllm: nn.Module
    reference: nn.Module
    dit: Dit
    vae: nn.Module
    optimizer: torch.optim.Optimizer
    away: Text | None  # of one row


class Rows(NamedTuple):
    """Prompts and responses of a batch; `keep` last places hold all responses."""

    ids: Tensor  # [B, T]
    mask: Tensor  # bool, False at padding
    response: Tensor  # bool, True at response tokens
    old: Tensor  # [B, keep]
    ref: Tensor | None
    advantages: Tensor  # [B]


def peer(mllm: nn.Module, dit: Dit, vae: nn.Module, away: Text | None, how: Settings) -> Peer:
    """Puts the networks together; the reference is the MLLM as it is now."""
    reference = copy.deepcopy(mllm).requires_grad_(False)
    return Peer(mllm, reference, dit, vae, optimizer_of(mllm, how), away)


@torch.no_grad()
def write(peer: Peer, how: Settings, prompts: Sequence[Sequence[int]]):
    """Samples a group for each prompt; left-padded prompts, then responses.

    Returns:
      (ids [B, T], mask [B, T], first place of the responses).
    """
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), how.pad_id)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, tokens in enumerate(prompts):
        ids[row, longest - len(tokens) :] = torch.tensor(list(tokens))
        mask[row, longest - len(tokens) :] = 1
    out = peer.mllm.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=how.new_tokens,
        do_sample=True,
        temperature=how.temperature,
        top_k=0,
        top_p=1.0,
        num_return_sequences=how.group,
        eos_token_id=how.stop_id,
        pad_token_id=how.pad_id,
    )
    response = out[:, longest:]
    ended = ((response == how.stop_id).long().cumsum(dim=1) - (response == how.stop_id).long()) > 0
    mask = torch.cat([mask.repeat_interleave(how.group, dim=0).bool(), ~ended], dim=1)
    return out, mask, longest


def logprobs(mllm: nn.Module, how: Settings, ids: Tensor, mask: Tensor, keep: int) -> Tensor:
    """Log-probabilities of the last `keep` tokens of each row given those before, [B, keep]."""
    hidden = mllm.model.language_model(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=models.places(mask),
        use_cache=False,
    ).last_hidden_state
    logits = mllm.lm_head(hidden[:, -keep - 1 : -1]) / how.temperature
    chosen = logits.gather(-1, ids[:, -keep:, None])[..., 0]
    return chosen - logits.logsumexp(dim=-1)


def advantages(rewards: np.ndarray, group: int) -> Tensor:
    """(r - mean) / (sample deviation + 1e-6) inside each group."""
    table = rewards.astype(np.float64).reshape(-1, group)
    spread = table.std(axis=1, ddof=1, keepdims=True)
    centred = (table - table.mean(axis=1, keepdims=True)) / (spread + 1e-6)
    return torch.tensor(centred.reshape(-1), dtype=torch.float32)


def update(peer: Peer, how: Settings, rows: Rows) -> dict[str, float]:
    """One AdamW step on the mean over all response tokens."""
    peer.optimizer.zero_grad(set_to_none=True)
    keep = rows.old.shape[1]
    count = int(rows.response.sum())
    total = ratio_sum = 0.0
    for chosen in torch.arange(rows.ids.shape[0]).chunk(how.parts):
        seen = rows.response[chosen][:, -keep:]
        new = logprobs(peer.mllm, how, rows.ids[chosen], rows.mask[chosen], keep)
        ratio = (new - rows.old[chosen]).clamp(-20, 20).exp()
        gain = rows.advantages[chosen][:, None]
        loss = torch.maximum(
            -ratio * gain, -ratio.clamp(1 - how.clip_low, 1 + how.clip_high) * gain
        )
        loss = torch.where(gain < 0, torch.minimum(loss, -how.dual_clip * gain), loss)
        if rows.ref is not None:
            d = (rows.ref[chosen] - new).clamp(-20, 20)
            loss = loss + how.kl * (d.exp() - d - 1)
        loss = loss[seen].sum()
        (loss / count).backward()
        total += float(loss.detach())
        ratio_sum += float(ratio.detach()[seen].sum())
    trained = [weight for weight in peer.mllm.parameters() if weight.grad is not None]
    norm = nn.utils.clip_grad_norm_(trained, how.clip_norm)
    peer.optimizer.step()
    return {"loss": total / count, "ratio": ratio_sum / count, "grad_norm": float(norm)}


def iterate(
    peer: Peer, how: Settings, prompts: Sequence[Sequence[int]], reward: Callable, seed: int
) -> dict[str, float]:
    """One iteration on the token ids of prompts.

    Args:
      reward: uint8 pictures [B, height, width, 3] -> scores [B].
    """
    torch.manual_seed(seed)  # generate takes no generator
    ids, mask, first = write(peer, how, prompts)
    keep = ids.shape[1] - first
    with torch.no_grad():
        text, valid = models.condition(
            peer.mllm, ids, mask, close_id=how.close_id, most=how.most, drop_last=True
        )
        images = _draw(peer, how, text, len(prompts))
    scores = np.where(valid.numpy(), reward(images), 0.0)
    response = mask.clone()
    response[:, :first] = False
    with torch.no_grad():
        old = logprobs(peer.mllm, how, ids, mask, keep)
        ref = logprobs(peer.reference, how, ids, mask, keep) if how.kl else None
    rows = Rows(ids, mask, response, old, ref, advantages(scores, how.group))
    found = update(peer, how, rows)
    tokens = float(response.sum()) / len(ids)
    return {**found, "reward": float(scores.mean()), "tokens": tokens, "longest": keep}


def _draw(peer: Peer, how: Settings, text: Text, prompts: int) -> np.ndarray:
    h, w, rows = how.h // how.patch, how.w // how.patch, prompts * how.group
    noise = torch.randn(prompts, h * w, peer.dit.cfg.token_dim).repeat_interleave(how.group, dim=0)
    target = Pictures(noise, models.grid_places(h, w, rows), None)
    away = None if peer.away is None else models.repeat(peer.away, rows)
    tokens = flow.sample(peer.dit, target, text, away, how.grid, how.scale)
    return models.decode_pixels(peer.vae, tokens, patch=how.patch, h=how.h, w=how.w)
