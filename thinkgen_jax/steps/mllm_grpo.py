# SPDX-License-Identifier: Apache-2.0
"""MLLM-GRPO: the update of stage 4 on sampled thoughts, per token, with a KL to the reference.

* Old, new and reference log-probabilities come from one function at one shape: the first inner
  step's ratio is 1.
* The loss is the mean over all response tokens of the global batch; `per_sequence` first averages
  inside each response (the paper's form).
* The gradient reaches the MLLM through token log-probabilities only; the DiT and the VAE drew the
  pictures and are not part of this program.

Source: paper 4 (SepGRPO); constants: EasyR1 defaults.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from thinkgen_jax.models.mllm import Mllm
from thinkgen_jax.sampling import decode
from thinkgen_jax.sampling.rows import in_parts, rows_first, rows_last
from thinkgen_jax.steps import grpo
from thinkgen_jax.steps.state import Learner, full, learn
from thinkgen_jax.structs import Prompt, Thoughts, TrainState, Tree


@dataclass(frozen=True)
class MllmGrpoConfig:
    """Constants of the token objective.

    Attributes:
      clip_low, clip_high: ratio bounds 1 - low and 1 + high.
      kl: weight of the KL term; 0 needs no reference pass.
      per_sequence: average inside each response before averaging over responses.
      temperature: the one responses were sampled at.
    """

    clip_low: float = 0.2
    clip_high: float = 0.3
    kl: float = 1e-2
    per_sequence: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature = {self.temperature}: must be above 0")


def make_logprobs(mllm: Mllm, cfg: MllmGrpoConfig, parts: int = 1):
    """Builds the jitted (params, prompt, mask) -> log-probabilities, 0 off the mask.

    Args:
      parts: micro-batches, the learner's: the update then meets the same rows at the same shapes.
    """

    @jax.jit
    def logprobs(params: Tree, prompt: Prompt, mask):
        def one(part: Prompt):
            return decode.logprobs(mllm, params, rows_last(part), temperature=cfg.temperature)

        return jnp.where(mask, in_parts(one, rows_first(prompt), parts), 0.0)

    return logprobs


def make_step(mllm: Mllm, learner: Learner, cfg: MllmGrpoConfig):
    """Builds the jitted, donating `grpo_step` (state, thoughts, base) -> (state, metrics).

    `base` is the frozen tree below adapters, see `state.Learner`.
    """

    @partial(jax.jit, donate_argnums=0)
    def grpo_step(state: TrainState, thoughts: Thoughts, base: Tree | None = None):
        def loss(params: Tree, part: Thoughts):
            part = part._replace(prompt=rows_last(part.prompt))
            return token_loss(mllm, full(params, base, learner), part, cfg)

        return learn(state, loss, thoughts._replace(prompt=rows_first(thoughts.prompt)), learner)

    return grpo_step


def token_loss(mllm: Mllm, params: Tree, thoughts: Thoughts, cfg: MllmGrpoConfig):
    """Summed objective, its count and metrics; see `state.Loss`."""
    new = decode.scores(mllm, params, thoughts.prompt, temperature=cfg.temperature)
    mask = thoughts.mask.astype(jnp.float32)
    advantage = jnp.broadcast_to(thoughts.advantages[:, None], mask.shape)
    loss, ratio, clipped = grpo.surrogate(
        jnp.where(thoughts.mask, new.logprobs, 0.0),
        thoughts.old,
        advantage,
        clip_low=cfg.clip_low,
        clip_high=cfg.clip_high,
        dual_clip=grpo.DUAL_CLIP,
    )
    kl = jnp.zeros_like(loss)
    if thoughts.ref is not None:
        kl = grpo.kl_estimate(jnp.where(thoughts.mask, new.logprobs, 0.0), thoughts.ref)
        loss = loss + cfg.kl * kl
    weight, count = mask, jnp.sum(mask)
    if cfg.per_sequence:
        weight = mask / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1.0)
        count = jnp.float32(mask.shape[0])
    extra = {
        "kl": jnp.sum(kl * weight),
        "ratio": jnp.sum(ratio * weight),
        "clipped": jnp.sum(clipped * weight),
        "entropy": jnp.sum(new.entropy * weight),
        "drift": jnp.sum(jnp.abs(jnp.log(ratio)) * weight),
    }
    return jnp.sum(loss * weight), count, extra
