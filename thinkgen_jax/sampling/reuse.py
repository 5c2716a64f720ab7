# SPDX-License-Identifier: Apache-2.0
"""Steps that do without the joint layers: TeaCache and TaylorSeer.

* TeaCache watches the first layer's modulated input. While it has changed little since the layers
  last ran, what they added then is added again.
* TaylorSeer runs them every few steps and extrapolates their output in between, by divided
  differences up to order 4. A skipped layer overwrites what came before it, so the last layer's
  output is all that has to be kept.
* Every row, hence every branch of guidance, has a memory and a decision of its own: a picture does
  not depend on its neighbours. The layers run when any row needs them.
* A change in the number of guided branches starts both anew (the release's TeaCache fails there).

Source: ThinkGen@7388ad5 (caches of the inference script); arXiv 2411.19108, 2503.06923.
"""

from dataclasses import dataclass
from math import factorial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from thinkgen_jax.models.dit import Dit, Joint
from thinkgen_jax.models.layers import Linear, RMSNorm, each
from thinkgen_jax.sampling.rows import denoise
from thinkgen_jax.structs import Condition, Packed, Tree


@dataclass(frozen=True)
class TeaCache:
    """Skips the layers until the rescaled changes of their input add up to the threshold.

    Attributes:
      threshold: 0 never skips; the release has 0.05.
      coefficients: of the polynomial that rescales a relative change, highest power first.
    """

    threshold: float = 0.05
    coefficients: tuple[float, ...] = (
        -5.48259225,
        11.48772289,
        -4.47407401,
        2.47730926,
        -0.03316487,
    )


@dataclass(frozen=True)
class TaylorSeer:
    """Runs the layers in the first steps, then at every `interval`-th.

    Attributes:
      first: steps from the start that all run.
      interval: distance of the runs after them.
      order: highest divided difference that is used.
    """

    first: int = 5
    interval: int = 3
    order: int = 4


Reuse = TeaCache | TaylorSeer


class Turns(NamedTuple):
    """What is known of each of J steps before any is taken.

    Attributes:
      full: whether the layers run, whatever their input.
      distance: steps since the last full one.
      known: TaylorSeer's differences of each order, 1 where they exist after the step.
    """

    full: Bool[np.ndarray, "J"]
    distance: Float[np.ndarray, "J"]
    known: Float[np.ndarray, "J K"]


class Memory(NamedTuple):
    """What a row keeps from step to step.

    Attributes:
      kept: TeaCache: what the layers added when they last ran, [1, B, T, W]; TaylorSeer: their
        output and its differences, [K, B, T, W].
      watched: TeaCache: the first layer's modulated input of the step before.
      change: TeaCache: sum of the changes since the layers last ran.
    """

    kept: Float[Array, "K B T W"]
    watched: Float[Array, "B T W"] | None
    change: Float[Array, "B"]


def turns(how: Reuse | None, begin: int, end: int, steps: int) -> Turns | None:
    """Plans steps `begin` to `end` of `steps`; memory is empty before the first."""
    if how is None:
        return None
    count = end - begin
    full = np.zeros(count, bool)
    if isinstance(how, TeaCache):
        full[0] = True
        full[-1] |= end == steps
        return Turns(full, np.zeros(count, np.float32), np.zeros((count, 1), np.float32))
    full[: how.first] = True
    full[how.first - 1 :: how.interval] = True
    distance = np.zeros(count, np.float32)
    known = np.zeros((count, how.order + 1), np.float32)
    last, orders = 0, 0
    for i in range(count):
        distance[i] = i - last
        if full[i]:
            # The first steps are too far apart in what they do: differences begin after them.
            orders = min(orders + 1, how.order) if i >= how.first - 1 else 0
            known[i, : orders + 1] = 1
            last = i
    return Turns(full, distance, known)


def empty(
    how: Reuse | None,
    dit: Dit,
    target: Packed,
    t: Float[Array, "B"],
    context: Condition,
    references: Packed | None,
) -> Memory | None:
    """Memory before the first step, for what `velocity` is going to be called with."""
    if how is None:
        return None
    rows = t.shape[0]
    parts = [part for part in (context, references, target) if part is not None]
    length = sum(part.segments.shape[1] for part in parts)
    orders = how.order + 1 if isinstance(how, TaylorSeer) else 1
    size = (rows, length, dit.cfg.hidden_size)
    watched = jnp.zeros(size, dit.cfg.dtype) if isinstance(how, TeaCache) else None
    return Memory(jnp.zeros((orders, *size), dit.cfg.dtype), watched, jnp.zeros(rows))


def velocity(
    dit: Dit,
    params: Tree,
    how: Reuse | None,
    memory: Memory | None,
    turn: Turns | None,
    target: Packed,
    t: Float[Array, "B"],
    context: Condition,
    references: Packed | None,
) -> tuple[Float[Array, "B T C"], Memory | None, Bool[Array, "B"]]:
    """`Dit.denoise` with a memory; without a `how` it is just that.

    Args:
      turn: one step of the plan, without its leading axis.

    Returns:
      The velocity, the memory for the next step, and for which rows the layers ran.
    """
    tree, inputs = {"params": params}, (target, t, context, references)
    if how is None:
        return denoise(dit, params, *inputs), None, jnp.ones(t.shape, bool)
    joint = dit.apply(tree, *inputs, method=Dit.enter)

    def run() -> Float[Array, "B T W"]:
        return dit.apply(tree, joint, method=Dit.pass_layers)

    step = _tea if isinstance(how, TeaCache) else _taylor
    states, memory, ran = step(how, dit, params, memory, turn, joint, run)
    states = states[:, -target.tokens.shape[1] :]
    return dit.apply(tree, states, joint.temb, method=Dit.leave), memory, ran


def _tea(how: TeaCache, dit: Dit, params: Tree, memory: Memory, turn: Turns, joint: Joint, run):
    watched = first_input(dit, params, joint)
    moved, size = (
        jnp.sum(jnp.abs(x.astype(jnp.float32)) * (joint.segments > 0)[..., None], axis=(1, 2))
        for x in (watched - memory.watched, memory.watched)
    )
    relative = moved / jnp.maximum(size, jnp.finfo(size.dtype).tiny)
    change = memory.change + jnp.polyval(jnp.asarray(how.coefficients), relative)
    ran = turn.full | (change >= how.threshold)
    added = jax.lax.cond(jnp.any(ran), lambda: run() - joint.states, lambda: memory.kept[0])
    added = jnp.where(ran[:, None, None], added, memory.kept[0])
    memory = Memory(added[None], watched, jnp.where(ran, 0.0, change))
    return joint.states + added, memory, ran


def _taylor(
    how: TaylorSeer, dit: Dit, params: Tree, memory: Memory, turn: Turns, joint: Joint, run
):
    def full():
        kept = [run()]
        for k in range(how.order):
            slope = (kept[k] - memory.kept[k]) / jnp.maximum(turn.distance, 1.0)
            kept.append((slope * turn.known[k + 1]).astype(kept[0].dtype))
        return kept[0], jnp.stack(kept)

    def guess():
        powers = [turn.distance**k / factorial(k) for k in range(how.order + 1)]
        states = jnp.einsum("k,kbtw->btw", jnp.stack(powers), memory.kept)
        return states.astype(memory.kept.dtype), memory.kept

    states, kept = jax.lax.cond(turn.full, full, guess)
    ran = jnp.broadcast_to(turn.full, memory.change.shape)
    return states, memory._replace(kept=kept), ran


def first_input(dit: Dit, params: Tree, joint: Joint) -> Float[Array, "B T W"]:
    """What the first joint layer's attention reads: normed, scaled by time."""
    cfg = dit.cfg
    first = each(params["layers"], cfg.num_layers)[0]
    modulation = Linear((4 * cfg.hidden_size,)).apply(
        {"params": first["modulation"]}, jax.nn.silu(joint.temb)
    )
    normed = RMSNorm(cfg.norm_eps).apply({"params": first["norm1"]}, joint.states)
    return normed * (1 + modulation[:, None, : cfg.hidden_size])
