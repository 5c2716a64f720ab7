# SPDX-License-Identifier: Apache-2.0
"""One iteration of Flow-GRPO in PyTorch: paths, pictures, rewards, one update of the DiT.

As the original does it:

* every step of the rollout is stochastic and guided; log-probabilities of the taken steps are kept
  and serve as the old ones;
* training visits the first 99 % of the steps, each with a guided forward and a backward pass, the
  gradient summed over steps, then one clipped AdamW update;
* the KL term compares means with those of a frozen reference, mean((Δ mean)²) / (2 s²).

Kinder than the original where that saves PyTorch time: the negative branch runs without a gradient,
and its states are computed once, not once an iteration.

Times run as in this project: t = 0 is noise and u = data - noise (the original: sigma = 1 - t,
v = -u). Source: flow_grpo@ac4c86e (sd3_sde_with_logprob, train_sd3.py).
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from launch.peers import flow, models
from launch.peers.dit import Dit, Pictures, Text


class Settings(NamedTuple):
    """What an iteration is told; names as in our plans."""

    group: int
    scale: float  # of guidance; 1 for none
    grid: Sequence[float]  # times, J + 1
    noise: Sequence[float]  # level of each step
    steps: Sequence[int]  # trained ones
    parts: int  # micro-batches of an update
    clip: float
    kl: float
    limit: float  # of advantages
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
    """Networks, the optimizer of the DiT, and what guidance points away from."""

    mllm: nn.Module
    dit: Dit
    reference: Dit
    vae: nn.Module
    optimizer: torch.optim.Optimizer
    away: Text | None  # of one row


class Path(NamedTuple):
    """Sampled paths of a batch."""

    latents: Tensor  # [J + 1, B, T, C]
    old: Tensor  # [trained, B]
    text: Text
    away: Text | None  # of B rows
    positions: Tensor
    advantages: Tensor  # [B]


def peer(mllm: nn.Module, dit: Dit, vae: nn.Module, away: Text | None, how: Settings) -> Peer:
    """Puts the networks together; the reference is the DiT as it is now."""
    reference = copy.deepcopy(dit).requires_grad_(False)
    return Peer(mllm, dit, reference, vae, optimizer_of(dit, how), away)


def optimizer_of(model: nn.Module, how) -> torch.optim.Optimizer:
    """AdamW as our optimizer block says."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(
        trained, lr=how.lr, betas=how.betas, eps=how.eps, weight_decay=how.decay, fused=True
    )


def transition(x: Tensor, u: Tensor, grid: Sequence[float], step: int, level: float):
    """Mean, standard deviation and diffusion of one stochastic step."""
    t, span = grid[step], grid[step + 1] - grid[step]
    diffusion = level * math.sqrt((1 - t) / (grid[1] if t == 0 else t))
    drift = diffusion**2 / (2 * (1 - t))
    return x + span * (u - drift * (x - t * u)), diffusion * math.sqrt(span), diffusion


def logprob(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """Mean over latent elements of the log-density, [B]."""
    z = ((x - mean) / std) ** 2 / 2 + math.log(std) + 0.5 * math.log(2 * math.pi)
    return -z.flatten(1).mean(dim=1)


@torch.no_grad()
def rollout(peer: Peer, how: Settings, noise: Tensor, text: Text, draw: Callable) -> Path:
    """Samples a path for each row of initial noise [B, T, C].

    Args:
      draw: shape -> standard normal tensor.
    """
    rows = noise.shape[0]
    away = None if peer.away is None else models.repeat(peer.away, rows)
    positions = models.grid_places(how.h // how.patch, how.w // how.patch, rows)
    x, path, old = noise, [noise], []
    for step, level in enumerate(how.noise):
        t = x.new_full((rows,), how.grid[step])
        u = flow.velocity(peer.dit, Pictures(x, positions, None), t, text, away, how.scale)
        if level == 0:
            x = x + (how.grid[step + 1] - how.grid[step]) * u
        else:
            mean, std, _ = transition(x, u, how.grid, step, level)
            x = mean + std * draw(x.shape)
            if step in how.steps:
                old.append(logprob(x, mean, std))
        path.append(x)
    return Path(torch.stack(path), torch.stack(old), text, away, positions, noise.new_zeros(rows))


def advantages(rewards: np.ndarray, group: int) -> Tensor:
    """(r - mean of the group) / (deviation of the batch + 1e-4)."""
    table = rewards.astype(np.float64).reshape(-1, group)
    centred = (table - table.mean(axis=1, keepdims=True)) / (table.std() + 1e-4)
    return torch.tensor(centred.reshape(-1), dtype=torch.float32)


def update(peer: Peer, how: Settings, path: Path) -> dict[str, float]:
    """One AdamW step on the gradient over all trained steps."""
    peer.optimizer.zero_grad(set_to_none=True)
    rows = path.advantages.shape[0]
    total = ratio_sum = 0.0
    for number, step in enumerate(how.steps):
        for chosen in torch.arange(rows).chunk(how.parts):
            loss, ratio = _loss(peer, how, path, number, step, chosen)
            (loss / (rows * len(how.steps))).backward()
            total += float(loss.detach())
            ratio_sum += float(ratio)
    norm = nn.utils.clip_grad_norm_(peer.dit.parameters(), how.clip_norm)
    peer.optimizer.step()
    count = rows * len(how.steps)
    return {"loss": total / count, "ratio": ratio_sum / count, "grad_norm": float(norm)}


def _loss(peer: Peer, how: Settings, path: Path, number: int, step: int, chosen: Tensor):
    """Summed loss of some rows at one step, and their summed ratio."""
    text, away = _rows(path.text, chosen), path.away and _rows(path.away, chosen)
    x, after = path.latents[step, chosen], path.latents[step + 1, chosen]
    target, t = Pictures(x, path.positions[chosen], None), x.new_full((len(x),), how.grid[step])
    u = flow.velocity(peer.dit, target, t, text, away, how.scale)
    mean, std, diffusion = transition(x, u, how.grid, step, how.noise[step])
    ratio = (logprob(after, mean, std) - path.old[number, chosen]).exp()
    gain = path.advantages[chosen].clamp(-how.limit, how.limit)
    loss = torch.maximum(-ratio * gain, -ratio.clamp(1 - how.clip, 1 + how.clip) * gain)
    if how.kl:
        with torch.no_grad():
            u = flow.velocity(peer.reference, target, t, text, away, how.scale)
            other, _, _ = transition(x, u, how.grid, step, how.noise[step])
        loss = loss + how.kl * (mean - other).square().flatten(1).mean(1) / (2 * diffusion**2)
    return loss.sum(), ratio.detach().sum()


def _rows(text: Text, chosen: Tensor) -> Text:
    return Text(text.states[chosen], None if text.mask is None else text.mask[chosen])


def iterate(
    peer: Peer, how: Settings, ids: Tensor, mask: Tensor, reward: Callable, seed: int
) -> dict[str, float]:
    """One iteration on prompts [B, T] in the form with an empty thought.

    Args:
      reward: uint8 pictures [B, height, width, 3] -> scores [B].
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(shape) -> Tensor:
        return torch.randn(shape, generator=generator)

    with torch.no_grad():
        text, _ = models.condition(
            peer.mllm, ids, mask, close_id=how.close_id, most=how.most, drop_last=False
        )
    text = models.repeat(text, how.group)
    shape = ((how.h // how.patch) * (how.w // how.patch), peer.dit.cfg.token_dim)
    path = rollout(peer, how, draw((ids.shape[0] * how.group, *shape)), text, draw)
    with torch.no_grad():
        images = models.decode_pixels(peer.vae, path.latents[-1], patch=how.patch, h=how.h, w=how.w)
    scores = reward(images)
    found = update(peer, how, path._replace(advantages=advantages(scores, how.group)))
    return {**found, "reward": float(scores.mean())}
