# SPDX-License-Identifier: Apache-2.0
"""Latents to DiT tokens and back: one size for a batch, or any sizes packed with segments."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from thinkgen_jax.models.layers import patchify, unpatchify
from thinkgen_jax.structs import Packed


def grid(h: int, w: int) -> np.ndarray:
    """(row, column) of every token of an h x w token grid, row-major, int32 [h · w, 2]."""
    return np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).reshape(-1, 2)


def pack(latents: Float[Array, "B h w c"], *, patch: int) -> Packed:
    """Packs latents of one size, one picture a row."""
    tokens = patchify(latents, patch=patch)
    rows, count, _ = tokens.shape
    places = jnp.asarray(grid(latents.shape[1] // patch, latents.shape[2] // patch), jnp.int32)
    positions = jnp.broadcast_to(places, (rows, count, 2))
    return Packed(tokens, positions, jnp.ones((rows, count), jnp.int32))


def unpack(tokens: Float[Array, "B T C"], *, patch: int, h: int, w: int) -> Float[Array, "B h w c"]:
    """Inverse of `pack` for a latent grid of h x w; padding behind it is dropped."""
    return unpatchify(tokens[:, : (h // patch) * (w // patch)], patch=patch, h=h, w=w)


def pack_ragged(
    rows: Sequence[Sequence[Float[Array, "_ _ c"]]], *, patch: int, length: int | None = None
) -> Packed:
    """Packs any number of pictures of any size a row, one behind the other, numbered from 1.

    Args:
      rows: pictures of each row; a row may be empty.
      length: tokens to pad to; None pads to the longest row (at least 1).

    Raises:
      ValueError: when a row is longer than `length`, or no row has a picture.
    """
    flat = [picture for row in rows for picture in row]
    if not flat:
        raise ValueError("no row has a picture to pack")
    counts = [sum(p.shape[0] * p.shape[1] for p in row) // patch**2 for row in rows]
    size = max(max(counts), 1) if length is None else length
    if max(counts) > size:
        raise ValueError(f"a row of {max(counts)} tokens does not fit the length {size}")
    values = patch * patch * flat[0].shape[-1]
    tokens, positions, segments = [], [], []
    for row, count in zip(rows, counts, strict=True):
        parts = [patchify(p[None], patch=patch)[0] for p in row]
        places = [grid(p.shape[0] // patch, p.shape[1] // patch) for p in row]
        numbers = [np.full(len(place), i + 1) for i, place in enumerate(places)]
        gap = size - count
        tokens.append(jnp.concatenate([*parts, jnp.zeros((gap, values))]))
        positions.append(np.concatenate([*places, np.zeros((gap, 2), int)]))
        segments.append(np.concatenate([*numbers, np.zeros(gap, int)]))
    return Packed(
        jnp.stack(tokens),
        jnp.asarray(np.stack(positions), jnp.int32),
        jnp.asarray(np.stack(segments), jnp.int32),
    )
