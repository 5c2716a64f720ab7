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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from thinkgen_jax.models.dit import Dit
from thinkgen_jax.sampling import flow
from thinkgen_jax.sampling.flow import NO_GUIDANCE, Guidance
from thinkgen_jax.structs import Condition, Packed, Tree

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


@partial(jax.jit, static_argnames=("dit", "guidance", "kernel"))
def rollout(
    dit: Dit,
    params: Tree,
    target: Packed,
    condition: Condition,
    negative: Condition | None,
    references: Packed | None,
    grid: Float[Array, "J1"],
    noise: Float[Array, "J"],
    key: jax.Array,
    *,
    guidance: Guidance = NO_GUIDANCE,
    kernel: str = "flow_sde",
) -> Float[Array, "J1 B T C"]:
    """Samples paths and keeps every state, the initial noise (`target.tokens`) first.

    Args:
      noise: noise level of each step; 0 makes it deterministic.
    """
    passes = guidance.passes(0, 1, references is not None)
    contexts = flow.stack_contexts(dit, params, flow.conditions_for(passes, condition, negative))
    first = target.tokens.astype(jnp.float32)

    def step(x, xs):
        t, after, level, step_key = xs
        parts = flow.branches(
            dit,
            params,
            x,
            t,
            target,
            contexts,
            references,
            with_references=flow.SEES_REFERENCES[passes],
        )
        u = flow.combine(parts, guidance)
        mean, std, _ = KERNELS[kernel](x, u, t, after, grid[1], level)
        x = mean + std * jax.random.normal(step_key, x.shape)
        return x, x

    keys = jax.random.split(key, noise.shape[0])
    _, path = jax.lax.scan(step, first, (grid[:-1], grid[1:], noise, keys))
    return jnp.concatenate([first[None], path])


def replay(
    dit: Dit,
    params: Tree,
    latents: Float[Array, "J1 B T C"],
    step: Int[Array, ""],
    target: Packed,
    conditions: list[Condition],
    references: Packed | None,
    grid: Float[Array, "J1"],
    noise: Float[Array, "J"],
    *,
    guidance: Guidance = NO_GUIDANCE,
    kernel: str = "flow_sde",
) -> tuple[Float[Array, "B"], Float[Array, "B T C"], Float[Array, ""]]:
    """Log-probability of the stored transition `step` under these parameters.

    The one function that the old, the new and the reference log-probabilities come from, so that
    the ratio is 1 before the first update. Only the prompt's branch carries a gradient.

    Args:
      step: index of the transition; its noise level must be above 0.
      conditions: one for each guidance pass, see `flow.conditions_for`.

    Returns:
      (log-probability [B], mean, diffusion s).
    """
    x, x_after, t = latents[step], latents[step + 1], grid[step]
    seen = flow.SEES_REFERENCES[len(conditions)]

    def run(tree: Tree, group: list[Condition], flags: tuple[bool, ...]) -> list[Array]:
        contexts = flow.stack_contexts(dit, tree, group)
        return flow.branches(dit, tree, x, t, target, contexts, references, with_references=flags)

    parts = run(params, conditions[:1], seen[:1])
    if len(conditions) > 1:
        parts += run(jax.lax.stop_gradient(params), conditions[1:], seen[1:])
    u = flow.combine(parts, guidance)
    mean, std, diffusion = KERNELS[kernel](x, u, t, grid[step + 1], grid[1], noise[step])
    mask = (target.segments > 0)[..., None].astype(jnp.float32)
    return logprob(x_after, mean, std, mask), mean, diffusion
