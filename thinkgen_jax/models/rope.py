# SPDX-License-Identifier: Apache-2.0
"""Rotary positions of the MLLM: interleaved three-axis M-RoPE for text, two-axis for pictures.

* Both rotate halves: channel k of a head turns with channel k + H / 2.
* Text frequency j belongs to the row axis if j mod 3 = 1, to the column axis if j mod 3 = 2, while
  j < 3 · section of that axis; all others follow time. Equal axes give plain 1-D rotary positions.
* Position ids are made on the host, in data/prompts.py; decoding continues them with
  `next_position`.

Source: transformers@4.57.1 models/qwen3_vl/modeling_qwen3_vl.py.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

PAD_POSITION = 1  # what padding carries, on every axis, as in data/prompts.py
VISION_THETA = 10000.0


def inverse_frequencies(dim: int, theta: float) -> np.ndarray:
    """theta^(-2j / dim) for j = 0 .. dim / 2 - 1, float32."""
    exponents = np.arange(0, dim, 2, dtype=np.float64) / dim
    return (theta**-exponents).astype(np.float32)


def frequency_axes(half: int, section: Sequence[int]) -> np.ndarray:
    """Axis (0 time, 1 row, 2 column) that each of the `half` text frequencies follows.

    Raises:
      ValueError: when the sections do not add up to `half` or do not fit interleaved.
    """
    if sum(section) != half or 3 * max(section[1:]) > half + 2:
        raise ValueError(f"model.mllm.mrope_section {tuple(section)} does not fit {half} pairs")
    index = np.arange(half)
    axes = np.zeros(half, np.int32)
    for axis in (1, 2):
        axes[(index % 3 == axis) & (index < 3 * section[axis])] = axis
    return axes


def text_angles(
    positions: Int[Array, "3 B T"], *, head_dim: int, theta: float, section: Sequence[int]
) -> Float[Array, "B T X"]:
    """Angle of each of the X = H / 2 channel pairs of every token, in radians."""
    axes = frequency_axes(head_dim // 2, section)
    chosen = jnp.moveaxis(positions, 0, -1).astype(jnp.float32)[..., axes]
    return chosen * jnp.asarray(inverse_frequencies(head_dim, theta))[None, None]


def vision_angles(positions: Int[Array, "B P 2"], *, head_dim: int) -> Float[Array, "B P X"]:
    """Angles of every patch: the H / 4 pairs of its row, then the H / 4 of its column."""
    frequencies = inverse_frequencies(head_dim // 2, VISION_THETA)
    angles = positions.astype(jnp.float32)[..., None] * jnp.asarray(frequencies)[None, None, None]
    return angles.reshape(*positions.shape[:-1], -1)


def rotate(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T X"], sin: Float[Array, "B T X"]
) -> Float[Array, "B T N H"]:
    """Turns channel k against channel k + H / 2, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def next_position(positions: Int[Array, "3 B T"], segments: Int[Array, "B T"]) -> Int[Array, "B"]:
    """Position of the token that follows each row: one past the largest of any axis."""
    return jnp.max(jnp.where(segments > 0, positions, -1), axis=(0, 2)) + 1
