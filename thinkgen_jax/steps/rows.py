# SPDX-License-Identifier: Apache-2.0
"""Batches cut into parts that go through a network one after the other."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from thinkgen_jax.structs import Prompt, Tree


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


def rows_first(prompt: Prompt) -> Prompt:
    """Positions as [B, 3, T], so that every leaf leads with the batch axis."""
    return prompt._replace(positions=jnp.moveaxis(prompt.positions, 0, 1))


def rows_last(prompt: Prompt) -> Prompt:
    """Inverse of `rows_first`."""
    return prompt._replace(positions=jnp.moveaxis(prompt.positions, 1, 0))
