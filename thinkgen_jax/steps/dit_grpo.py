# SPDX-License-Identifier: Apache-2.0
"""DiT-GRPO (Flow-GRPO): the update of stage 5 on sampled denoising paths, one term per step.

* Each (sample, step) is one action; its log-probability is the mean over latent elements, so the
  clip range is tiny (1e-4).
* The KL term is mean((mean - reference mean)²) / (2 s²) with s the diffusion, without the time
  step.
* The trained steps are those that were stochastic; the negative branch carries no gradient.
* Gradients are summed over the trained steps one after the other: memory is that of one step.

Source: flow_grpo@ac4c86e (loss, constants); paper 4 (SepGRPO).
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from thinkgen_jax import sharding
from thinkgen_jax.models.dit import Dit
from thinkgen_jax.sampling import flow, sde
from thinkgen_jax.sampling.flow import Guidance
from thinkgen_jax.steps import grpo
from thinkgen_jax.steps.state import Learner, apply, full, gradient
from thinkgen_jax.structs import Condition, TrainState, Trajectory, Tree

METRICS = ("kl", "ratio", "clipped", "drift")


@dataclass(frozen=True)
class DitGrpoConfig:
    """Constants of the path objective.

    Attributes:
      clip: ratio bounds 1 ± clip.
      kl: weight of the KL term; 0 needs no reference pass.
      advantage_limit: advantages are clipped to ± this.
      kernel: stochastic step, a key of `sde.KERNELS`.
      guidance: scales of rollout and training; the negative branch carries no gradient.
    """

    clip: float = 1e-4
    kl: float = 0.04
    advantage_limit: float = 5.0
    kernel: str = "flow_sde"
    guidance: Guidance = flow.NO_GUIDANCE

    def __post_init__(self) -> None:
        if self.kernel not in sde.KERNELS:
            raise ValueError(f"kernel = {self.kernel!r} is not one of {sorted(sde.KERNELS)}")


def make_logprobs(dit: Dit, cfg: DitGrpoConfig):
    """Builds the jitted (params, trajectory, negative) -> log-probabilities [J, B] of its steps."""

    @jax.jit
    def logprobs(params: Tree, path: Trajectory, negative: Condition | None):
        def one(step):
            return _replay(dit, params, path, negative, step, cfg)[0]

        return jax.lax.map(one, jnp.arange(path.times.shape[0] - 1))

    return logprobs


def make_step(dit: Dit, learner: Learner, cfg: DitGrpoConfig):
    """Builds the jitted, donating `grpo_step`.

    (state, reference params or None, trajectory, negative condition of one row or None, base) ->
    (state, metrics); `base` is the frozen tree below adapters, see `state.Learner`.
    """

    @partial(jax.jit, donate_argnums=0)
    def grpo_step(
        state: TrainState,
        reference: Tree | None,
        path: Trajectory,
        negative: Condition | None,
        base: Tree | None = None,
    ):
        near = sharding.ahead(reference, learner.dtype)

        def one(carry, xs):
            step, old = xs

            def loss(params: Tree, part):
                part, old = part
                part = _steps_first(part, path)
                other = sharding.ahead(near, learner.dtype)  # there already, a loop is told so
                params = full(params, base, learner)
                return step_loss(dit, params, other, part, negative, step, old, cfg)

            new = gradient(state.params, loss, (_rows_first(path), old), learner)
            return jax.tree.map(jnp.add, carry, new), None

        nothing = {name: jnp.zeros(()) for name in METRICS}
        zero = (jax.tree.map(jnp.zeros_like, state.params), jnp.zeros(()), nothing)
        steps = path.old.shape[0]
        total, _ = jax.lax.scan(one, zero, (jnp.arange(steps), path.old))
        return apply(state, *jax.tree.map(lambda x: x / steps, total), learner)

    return grpo_step


def step_loss(dit, params, reference, path: Trajectory, negative, step, old, cfg: DitGrpoConfig):
    """Summed objective of one denoising step over a micro-batch; see `state.Loss`."""
    new, mean, diffusion = _replay(dit, params, path, negative, step, cfg)
    limit = cfg.advantage_limit
    loss, ratio, clipped = grpo.surrogate(
        new, old, jnp.clip(path.advantages, -limit, limit), clip_low=cfg.clip, clip_high=cfg.clip
    )
    kl = jnp.zeros_like(loss)
    if reference is not None:
        _, other, _ = _replay(dit, reference, path, negative, step, cfg)
        mask = (path.target.segments > 0)[..., None].astype(jnp.float32)
        gap = jnp.square(mean - jax.lax.stop_gradient(other)) * mask
        kl = jnp.sum(gap, axis=(1, 2)) / (jnp.sum(mask, axis=(1, 2)) * mean.shape[-1])
        kl = kl / (2 * jnp.square(diffusion))
        loss = loss + cfg.kl * kl
    extra = {"kl": kl, "ratio": ratio, "clipped": clipped, "drift": jnp.abs(new - old)}
    extra = {name: jnp.sum(value * path.weights) for name, value in extra.items()}
    return jnp.sum(loss * path.weights), jnp.sum(path.weights), extra


def _replay(dit, params, path: Trajectory, negative, step, cfg: DitGrpoConfig):
    return sde.replay(dit, params, path, negative, step, guidance=cfg.guidance, kernel=cfg.kernel)


def _rows_first(path: Trajectory) -> Trajectory:
    """Every leaf leading with the batch axis; what is not per row is empty."""
    empty = jnp.zeros((path.latents.shape[1], 0))
    latents = jnp.moveaxis(path.latents, 0, 1)
    return path._replace(latents=latents, times=empty, second=empty, noise=empty, old=empty)


def _steps_first(part: Trajectory, path: Trajectory) -> Trajectory:
    """A micro-batch of `_rows_first` as a trajectory again; `old` travels beside it."""
    latents = jnp.moveaxis(part.latents, 0, 1)
    return part._replace(latents=latents, times=path.times, second=path.second, noise=path.noise)
