# SPDX-License-Identifier: Apache-2.0
"""Stochastic flow steps: the policy of DiT-GRPO, its log-probability, and the replay of a path.

A step is a Gaussian N(mean, std²) over latents; noise level 0 makes it the Euler step. Here t = 0
is noise, t = 1 is data and u = data - noise; Flow-GRPO writes sigma = 1 - t and v = -u.

* `flow_sde`: diffusion s² = a² (1 - t) / t, the second time of the grid standing for t at t = 0.
* `cps`: keeps the noise level of the grid at every step, so pictures stay clean during rollout.
* The log-probability is the mean over latent elements, so that ratios stay near 1 at any size.

Source: flow_grpo@ac4c86e (sd3_sde_with_logprob); coefficients-preserving sampling: flow_grpo.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from thinkgen_jax.models.dit import Dit, layered
from thinkgen_jax.sampling import flow
from thinkgen_jax.sampling.flow import NO_GUIDANCE, Guidance
from thinkgen_jax.structs import Condition, Packed, Trajectory, Tree

Latents = Float[Array, "B *X"]
Level = Float[Array, "..."] | float  # broadcastable against the latents


def flow_sde(
    x: Latents, u: Latents, t: Level, after: Level, second: Level | None, noise: Level
) -> tuple[Latents, Level, Level]:
    """One Flow-SDE transition.

    Args:
      t, after: this time and the next, broadcastable against x, in [0, 1].
      second: the second time of the grid, which stands for t where t = 0.
      noise: noise level a, 0.7 in Flow-GRPO.

    Returns:
      (mean, std of the step, diffusion s); std = s · sqrt(after - t).
    """
    span = after - t
    diffusion = noise * jnp.sqrt((1 - t) / jnp.where(t == 0, second, t))
    drift = jnp.square(diffusion) / (2 * (1 - t))
    return x + span * (u - drift * (x - t * u)), diffusion * jnp.sqrt(span), diffusion


def cps(
    x: Latents, u: Latents, t: Level, after: Level, second: Level | None, noise: Level
) -> tuple[Latents, Level, Level]:
    """One coefficients-preserving transition; noise level in [0, 1], typically 0.8.

    The predicted noise keeps the share cos(noise · pi / 2) and fresh noise the share sin of it; the
    third value, which scales the KL term, is the std itself.
    """
    del second
    level = 1 - after
    std = level * jnp.sin(noise * math.pi / 2)
    data, eps = x + (1 - t) * u, x - t * u
    mean = after * data + jnp.sqrt(jnp.square(level) - jnp.square(std)) * eps
    return mean, std, std


KERNELS = {"flow_sde": flow_sde, "cps": cps}


def logprob(x: Latents, mean: Latents, std: Level, mask: Level | None = None) -> Array:
    """Log-density of x under N(mean, std²), averaged over each row's elements, float32 [B].

    Args:
      mask: 1 at elements that count, broadcastable against x; None counts all.
    """
    z = jnp.square((x - mean) / std) / 2 + jnp.log(std) + 0.5 * math.log(2 * math.pi)
    weight = jnp.broadcast_to(jnp.ones(()) if mask is None else mask, x.shape).astype(jnp.float32)
    axes = tuple(range(1, x.ndim))
    return -jnp.sum(z * weight, axis=axes) / jnp.sum(weight, axis=axes)


class Rolled(NamedTuple):
    """Sampled paths: what their stochastic steps did, and where they ended."""

    latents: Float[Array, "J1 B T C"]  # before the first stochastic step and behind each
    logprobs: Float[Array, "J B"]
    end: Float[Array, "B T C"]


@partial(jax.jit, static_argnames=("dit", "width", "group", "guidance", "kernel"))
def rollout(
    dit: Dit,
    params: Tree,
    target: Packed,
    condition: Condition,
    negative: Condition | None,
    references: Packed | None,
    grid: Float[Array, "J1"],
    begin: Int[Array, ""] | int,
    noise: Float[Array, ""] | float,
    key: jax.Array,
    *,
    width: int,
    group: int = 1,
    guidance: Guidance = NO_GUIDANCE,
    kernel: str = "flow_sde",
) -> Rolled:
    """Samples `group` paths per condition: stochastic for `width` steps, else deterministic.

    Args:
      target: `tokens` hold the initial noise. With one row per condition, a group shares it and the
        steps before the stochastic ones, which are then taken once; else one row per path.
      negative: what guidance points away from; one row serves all.
      begin: first stochastic step, at most J - width.
      noise: noise level a of the stochastic steps.
    """
    steps, rows = grid.shape[0] - 1, condition.states.shape[0]
    params = layered(dit.cfg, params)
    first, begun = target.tokens.astype(jnp.float32), target.tokens.shape[0]
    passes = guidance.passes(0, 1, references is not None)
    conditions = flow.conditions_for(passes, condition, negative)
    contexts = flow.stack_contexts(dit, params, conditions, rows)

    def moved(i, x, level):
        """Mean and std of every path's step; there are as many paths as rows of x."""
        copies = x.shape[0] // rows
        many, refs = flow.spread(contexts, copies), flow.spread(references, copies)
        places, seen = flow.spread(target, x.shape[0] // begun), flow.SEES_REFERENCES[passes]
        parts = flow.branches(dit, params, x, grid[i], places, many, refs, with_references=seen)
        u = flow.combine(parts, guidance)
        return KERNELS[kernel](x, u, grid[i], grid[i + 1], grid[1], level)

    def step(i, carry):
        x, latents, logprobs = carry
        place, inside = i - begin, i < begin + width
        mean, std, _ = moved(i, x, jnp.where(inside, noise, 0.0))
        x = mean + std * jax.random.normal(jax.random.fold_in(key, i), x.shape)
        found = logprob(x, mean, jnp.where(inside, std, 1.0), mask)
        latents = latents.at[place + 1].set(x, mode="drop")
        return x, latents, logprobs.at[place].set(found, mode="drop")

    if width < steps:
        first = jax.lax.fori_loop(0, begin, lambda i, x: moved(i, x, 0.0)[0], first)
    first = flow.spread(first, rows * group // begun)
    mask = flow.spread(target.segments > 0, first.shape[0] // begun)[..., None].astype(jnp.float32)
    kept = jnp.zeros((width + 1, *first.shape)).at[0].set(first)
    carry = (first, kept, jnp.zeros((width, first.shape[0])))
    end, latents, logprobs = jax.lax.fori_loop(begin, steps, step, carry)
    return Rolled(latents, logprobs, end)


def replay(
    dit: Dit,
    params: Tree,
    path: Trajectory,
    negative: Condition | None,
    step: Int[Array, ""] | int,
    *,
    guidance: Guidance = NO_GUIDANCE,
    kernel: str = "flow_sde",
) -> tuple[Float[Array, "B"], Float[Array, "B T C"], Float[Array, ""]]:
    """Log-probability of the stored transition `step` under these parameters.

    The one function that the old, the new and the reference log-probabilities come from, so that
    the ratio is 1 before the first update. Only the prompt's branch carries a gradient.

    Returns:
      (log-probability [B], mean, diffusion s).
    """
    x, t = path.latents[step], path.times[step]
    passes = guidance.passes(0, 1, path.references is not None)
    conditions = flow.conditions_for(passes, path.condition, negative)
    seen = flow.SEES_REFERENCES[passes]

    def run(tree: Tree, group: list[Condition], flags: tuple[bool, ...]) -> list[Array]:
        contexts = flow.stack_contexts(dit, tree, group, x.shape[0])
        return flow.branches(
            dit, tree, x, t, path.target, contexts, path.references, with_references=flags
        )

    parts = run(params, conditions[:1], seen[:1])
    if passes > 1:
        parts += run(jax.lax.stop_gradient(params), conditions[1:], seen[1:])
    u = flow.combine(parts, guidance)
    mean, std, diffusion = KERNELS[kernel](x, u, t, path.times[step + 1], path.second, path.noise)
    mask = (path.target.segments > 0)[..., None].astype(jnp.float32)
    return logprob(path.latents[step + 1], mean, std, mask), mean, diffusion
