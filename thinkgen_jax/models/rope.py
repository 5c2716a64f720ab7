# SPDX-License-Identifier: Apache-2.0
"""Rotary positions of the MLLM: interleaved three-axis M-RoPE for text, two-axis for pictures.

* Both rotate halves: channel k of a head turns with channel k + H / 2.
* Text frequency j belongs to the row axis if j mod 3 = 1, to the column axis if j mod 3 = 2, while
  j < 3 · section of that axis; all others follow time. Equal axes give plain 1-D rotary positions.
* Position ids are made on the host; decoding continues them with `next_position`.

Source: transformers@4.57.1 models/qwen3_vl/modeling_qwen3_vl.py.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

PAD_POSITION = 1  # what padding carries, on every axis
VISION_THETA = 10000.0

Grid = tuple[int, int]  # (rows, columns) of a picture in patches


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


# --- host ---


def position_ids(
    ids: np.ndarray,
    segments: np.ndarray,
    grids: Sequence[Sequence[Grid]] | None = None,
    *,
    image_token_id: int,
    merge: int = 2,
) -> np.ndarray:
    """Makes int32 [3, B, T] positions (time, row, column) of token rows; padding carries 1.

    Text moves all axes on together. A picture that follows position s - 1 holds time s, rows from s
    and columns from s; the text behind it starts one past the largest of them.

    Args:
      ids: token ids [B, T].
      segments: [B, T], 0 at padding, on whichever side.
      grids: per row the pictures whose pixels the model gets, in order, in patches; in a row
        without any an image token is an ordinary token.
      merge: patches per merged token and side.

    Raises:
      ValueError: when a row's image tokens are not those of its pictures.
    """
    out = np.full((3, *ids.shape), PAD_POSITION, np.int32)
    for row in range(ids.shape[0]):
        places = np.flatnonzero(segments[row])
        pictures = grids[row] if grids is not None else ()
        out[:, row, places] = _row_positions(ids[row, places] == image_token_id, pictures, merge)
    return out


def _row_positions(is_image: np.ndarray, pictures: Sequence[Grid], merge: int) -> np.ndarray:
    count = len(is_image)
    if not pictures:
        return np.broadcast_to(np.arange(count), (3, count))
    wanted = sum(rows * columns for rows, columns in pictures) // merge**2
    if wanted != is_image.sum():
        raise ValueError(f"{is_image.sum()} image tokens stand for pictures of {wanted} tokens")
    parts, place, start = [], 0, 0
    for rows, columns in pictures:
        text = int(np.argmax(is_image[place:]))
        parts.append(np.broadcast_to(start + np.arange(text), (3, text)))
        place, start = place + text, start + text
        h, w = rows // merge, columns // merge
        row, column = np.divmod(np.arange(h * w), w)
        if not is_image[place : place + h * w].all():
            raise ValueError(f"the image tokens of a {rows}x{columns} picture are interrupted")
        parts.append(start + np.stack([np.zeros_like(row), row, column]))
        place, start = place + h * w, start + max(h, w)
    rest = count - place
    parts.append(np.broadcast_to(start + np.arange(rest), (3, rest)))
    return np.concatenate(parts, axis=1)


def patch_positions(rows: int, columns: int, *, merge: int) -> np.ndarray:
    """(row, column) of a picture's patches, int32 [P, 2], in the order the vision tower wants.

    Patches come block by block of merge x merge, row-major among and inside blocks.
    """
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    blocks = grid.reshape(rows // merge, merge, columns // merge, merge, 2)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2).astype(np.int32)
