# SPDX-License-Identifier: Apache-2.0
"""Batches cut into parts that go through a network one after the other."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from thinkgen_jax import sharding
from thinkgen_jax.models.dit import Dit
from thinkgen_jax.structs import Condition, Packed, Prompt, Tree

CACHE = 5 * 2**20  # bytes of a CPU's caches that the widest states of one pass may take


def split(x: jax.Array, parts: int) -> jax.Array:
    """Cuts the leading axis: [B, ...] -> [parts, B / parts, ...], part i rows i, i + parts, ...

    Neighbours go to different parts, so that every device keeps its own rows.
    """
    if x.shape[0] % parts:
        raise ValueError(f"a batch of {x.shape[0]} does not divide into accumulate = {parts}")
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def in_parts(function: Callable[[Tree], Tree], batch: Tree, parts: int) -> Tree:
    """A function of rows, part by part, its rows put back in order.

    Args:
      batch: pytree whose leaves all lead with the batch axis; so must those of the result.
    """
    if parts == 1:
        return function(batch)
    cut = jax.tree.map(lambda x: split(x, parts), batch)
    out = jax.lax.map(function, cut)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), out)


def fewest(rows: int, most: float) -> int:
    """The fewest equal parts of which none has more than `most` rows; single rows if none fit."""
    fits = (n for n in range(1, rows) if rows % n == 0 and rows <= n * most)
    return next(fits, rows)


def denoise(
    dit: Dit,
    params: Tree,
    target: Packed,
    t: Float[Array, "B"],
    context: Condition,
    references: Packed | None,
) -> Float[Array, "B T C"]:
    """`Dit.denoise`, on a CPU in parts of few rows.

    Their states stay in its caches, which makes large batches about twice as fast.
    """

    def run(inputs):
        return dit.apply({"params": params}, *inputs, method=Dit.denoise)

    inputs = (target, t, context, references)
    if jax.default_backend() != "cpu" or sharding.parts(("rows", "seq")) > 1:
        return run(inputs)
    length = sum(part.segments.shape[1] for part in inputs if isinstance(part, tuple))
    row = length * dit.cfg.ffn_dim * jnp.dtype(dit.cfg.dtype).itemsize
    return in_parts(run, inputs, fewest(t.shape[0], CACHE / row))


def rows_first(prompt: Prompt) -> Prompt:
    """Positions as [B, 3, T], so that every leaf leads with the batch axis."""
    return prompt._replace(positions=jnp.moveaxis(prompt.positions, 0, 1))


def rows_last(prompt: Prompt) -> Prompt:
    """Inverse of `rows_first`."""
    return prompt._replace(positions=jnp.moveaxis(prompt.positions, 1, 0))
