# SPDX-License-Identifier: Apache-2.0
"""The flow sampler: time grid with its shift, text and image guidance, Euler or DPM-Solver++ steps.

* t runs from 0 (noise) to 1 (data); x <- x + (t' - t) · u, in float32.
* The released shift is m = sqrt(latent height · width) / 40, t = s / (m - m s + s): more steps near
  the noise for larger pictures. Small models use one constant instead (`System.shift`).
* Guidance needs up to three velocities; they share one batched call of the DiT.
* Everything that time does not change (the refined context) is computed once.

Source: OmniGen2 scheduler; ThinkGen@7388ad5 pipelines (guidance rule, cfg_range).
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from thinkgen_jax.models.dit import Dit, layered
from thinkgen_jax.models.layers import rounded
from thinkgen_jax.sampling import reuse
from thinkgen_jax.sampling.reuse import Reuse
from thinkgen_jax.sampling.rows import denoise
from thinkgen_jax.structs import Condition, Packed, Tree

SHIFT_DIVISOR = 40.0


@dataclass(frozen=True)
class Guidance:
    """Guidance scales; 1 switches one off.

    Attributes:
      text: weight of the prompt against the negative prompt, typically 4.
      image: weight of the references against none, typically 2; needs references and text > 1.
      start, end: share of the steps (step / steps, inclusive) inside which guidance acts.
    """

    text: float = 1.0
    image: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def passes(self, step: int, steps: int, references: bool) -> int:
        """Velocities needed at a step: 1, 2 (text) or 3 (text and image)."""
        if not self.start <= step / steps <= self.end or self.text <= 1:
            return 1
        return 3 if references and self.image > 1 else 2


def times(
    steps: int, *, latent_pixels: int | None = None, shift: float | None = None
) -> Float[np.ndarray, "J1"]:
    """The J + 1 times of a run, 0 first and 1 last, computed in float64.

    Args:
      steps: J, at least 1.
      latent_pixels: latent height · width (not patches) for the released shift.
      shift: constant m; wins over `latent_pixels`. With neither the grid is uniform.

    Raises:
      ValueError: for less than one step.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}, must be at least 1")
    s = np.linspace(0, 1, steps + 1, dtype=np.float32)[:-1].astype(np.float64)
    m = shift if shift is not None else np.sqrt(latent_pixels or SHIFT_DIVISOR**2) / SHIFT_DIVISOR
    return np.append(s / (m - m * s + s), 1.0).astype(np.float32)


def training_times(
    key: jax.Array, count: int, *, tokens: int, shift: float | None
) -> Float[Array, "B"]:
    """Draws training times: sigmoid of a standard normal, then shifted towards noise.

    The released shift is exp(mu), mu linear in the number of patch tokens, 0.5 at 256 and 1.15 at
    4096, extrapolated beyond.

    Source: OmniGen2 ("lognorm" sampling, time shift v1).
    """
    mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
    m = jnp.exp(mu) if shift is None else shift
    t = jax.nn.sigmoid(jax.random.normal(key, (count,)))
    return t / (m * (1 - t) + t)


def widen(condition: Condition, length: int) -> Condition:
    """Right-pads a condition to `length` tokens."""
    gap = length - condition.states.shape[1]
    return Condition(
        jnp.pad(condition.states, ((0, 0), (0, gap), (0, 0))),
        jnp.pad(condition.segments, ((0, 0), (0, gap))),
    )


def stack_contexts(
    dit: Dit, params: Tree, conditions: list[Condition], rows: int | None = None
) -> Condition:
    """Refines the conditions of n branches; result [n · rows, S, W], one block for each branch.

    Args:
      rows: of a branch; None takes the first condition's. A condition with fewer stands for rows /
        its own of them, side by side (a group, or all), and is refined once for them.
    """
    rows = rows or conditions[0].states.shape[0]
    length = max(c.states.shape[1] for c in conditions)
    wide = [widen(c, length) for c in conditions]
    if len({c.states.shape[0] for c in wide}) == 1:
        joined = jax.tree.map(lambda *xs: jnp.concatenate(xs), *wide)
        refined = [dit.apply({"params": params}, joined, method=Dit.context)]
    else:  # apart, so that the larger one stays divisible among devices
        refined = [dit.apply({"params": params}, c, method=Dit.context) for c in wide]
    few = len(conditions) // len(refined)  # branches in each
    parts = [spread(c, rows * few // c.states.shape[0]) for c in refined]
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)


def spread(tree: Tree, group: int) -> Tree:
    """Repeats every row `group` times, copies side by side."""
    return tree if group == 1 else jax.tree.map(lambda x: jnp.repeat(x, group, axis=0), tree)


def branches(
    dit: Dit,
    params: Tree,
    x: Float[Array, "B T C"],
    t: Float[Array, ""],
    target: Packed,
    contexts: Condition,
    references: Packed | None,
    *,
    with_references: tuple[bool, ...],
) -> list[Float[Array, "B T C"]]:
    """Velocities of one x under several contexts, from one call for all; see `tiled`."""
    inputs = tiled(x, t, target, contexts, references, with_references=with_references)
    u = denoise(dit, params, *inputs)
    return jnp.split(u.astype(jnp.float32), len(with_references))


def tiled(
    x: Float[Array, "B T C"],
    t: Float[Array, ""],
    target: Packed,
    contexts: Condition,
    references: Packed | None,
    *,
    with_references: tuple[bool, ...],
) -> tuple[Packed, Float[Array, "nB"], Condition, Packed | None]:
    """Inputs of the DiT for n branches of one x.

    Args:
      contexts: refined contexts [n · B, S, W], one block of B rows for each branch.
      with_references: for each of the n branches, whether it sees the references.
    """
    count, rows = len(with_references), x.shape[0]

    def tile(a: Array) -> Array:
        return jnp.concatenate([a] * count)

    batch = Packed(tile(x), tile(target.positions), tile(target.segments))
    refs = None
    if references is not None:
        seen = [references.segments * int(flag) for flag in with_references]
        refs = Packed(tile(references.tokens), tile(references.positions), jnp.concatenate(seen))
    return batch, jnp.full((count * rows,), t, jnp.float32), contexts, refs


def combine(parts: list[Float[Array, "B T C"]], guidance: Guidance) -> Float[Array, "B T C"]:
    """The guided velocity from c; or c, u; or c, r, u.

    With c = prompt + references, r = negative + references, u = negative alone: three parts give
    u + image · (r - u) + text · (c - r), two parts u + text · (c - u), one part c.
    """
    cond, bare = parts[0], parts[-1]
    if len(parts) == 1:
        return cond
    if len(parts) == 2:
        return bare + guidance.text * (cond - bare)
    return bare + guidance.image * (parts[1] - bare) + guidance.text * (cond - parts[1])


NO_GUIDANCE = Guidance()

# Which branches of a guided call see the references, by the number of passes.
SEES_REFERENCES = {1: (True,), 2: (True, False), 3: (True, True, False)}


def conditions_for(
    passes: int, condition: Condition, negative: Condition | None
) -> list[Condition]:
    """Conditions of the batched call in the order `combine` expects."""
    if passes == 1:
        return [condition]
    if negative is None:
        raise ValueError("guidance.text > 1 needs a negative condition")
    return [condition] + [negative] * (passes - 1)


class Path(NamedTuple):
    """A whole run, for looking at it.

    Attributes:
      latents: tokens after every step.
      ran: for every step and guided branch of a row whether the joint layers ran; one entry per
        run of steps with the same number of branches, [steps, branches, B].
    """

    latents: Float[Array, "J B T C"]
    ran: list[Bool[Array, "J n B"]]


@partial(jax.jit, static_argnames=("dit", "guidance", "how", "keep_steps"))
def sample(
    dit: Dit,
    params: Tree,
    target: Packed,
    condition: Condition,
    negative: Condition | None,
    references: Packed | None,
    grid: Float[Array, "J1"],
    weights: Float[Array, "J 3"] | None = None,
    *,
    guidance: Guidance = NO_GUIDANCE,
    how: Reuse | None = None,
    keep_steps: bool = False,
) -> Float[Array, "B T C"] | Path:
    """Integrates from noise to data.

    Args:
      target: `tokens` hold the initial noise; positions and segments the picture's shape.
      condition: what to draw; `negative` what guidance points away from, needed when text > 1;
        one row of it serves all.
      grid: times from 0 to 1, see `times`.
      weights: of DPM-Solver++, see `dpm.weights`; None takes Euler steps.
      how: lets steps do without the joint layers; None runs them at every step.
      keep_steps: return the whole `Path` instead of the last latents.

    Returns:
      Latent tokens float32.
    """
    steps = grid.shape[0] - 1
    x, params = held(dit, target.tokens), layered(dit.cfg, params)
    state, kept, ran = (x, jnp.zeros_like(x)), [], []
    for begin, end, passes in phases_of(guidance, steps, references is not None):
        rows = x.shape[0]
        contexts = stack_contexts(dit, params, conditions_for(passes, condition, negative), rows)

        def inputs(x, t, contexts=contexts, seen=SEES_REFERENCES[passes]):
            return tiled(x, t, target, contexts, references, with_references=seen)

        def step(carry, span, inputs=inputs, passes=passes):
            (x, before), memory = carry
            t, after, mix, turn = span
            u, memory, done = reuse.velocity(dit, params, how, memory, turn, *inputs(x, t))
            u = combine(jnp.split(u.astype(jnp.float32), passes), guidance)
            data = x + (1 - t) * u
            x = x + (after - t) * u if mix is None else mix[0] * x + mix[1] * data + mix[2] * before
            x = held(dit, x)
            return ((x, data), memory), (x, done) if keep_steps else None

        spans = (
            grid[begin:end],
            grid[begin + 1 : end + 1],
            None if weights is None else weights[begin:end],
            reuse.turns(how, begin, end, steps),
        )
        memory = reuse.empty(how, dit, *inputs(x, grid[0]))
        (state, _), path = jax.lax.scan(step, (state, memory), spans)
        if keep_steps:
            kept.append(path[0])
            ran.append(path[1].reshape(end - begin, passes, -1))
    return Path(jnp.concatenate(kept), ran) if keep_steps else state[0]


def held(dit: Dit, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """What a sampler keeps between steps: float32, rounded to the DiT's dtype if it is told to."""
    x = x.astype(jnp.float32)
    return rounded(x, dit.cfg.dtype) if dit.cfg.round_latents else x


def phases_of(guidance: Guidance, steps: int, references: bool) -> list[tuple[int, int, int]]:
    """Runs of steps with the same number of passes: (begin, end, passes)."""
    counts = [guidance.passes(i, steps, references) for i in range(steps)]
    cuts = [i for i in range(1, steps) if counts[i] != counts[i - 1]]
    bounds = [0, *cuts, steps]
    return [(a, b, counts[a]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
