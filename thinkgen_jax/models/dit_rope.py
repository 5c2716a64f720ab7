# SPDX-License-Identifier: Apache-2.0
"""Three-axis rotary embedding of the DiT: (sequence or picture index, row, column).

* Channels (2k, 2k+1) of a head form a pair; pairs of axis 0 come first, then axis 1, then axis 2.
* Text token n sits at (n, n, n). A picture sits at (shift, row, column), where the shift starts at
  the number of valid text tokens and grows by max(rows, columns) with every reference; the target
  comes last.
* Tables are built in float64 on the host, so that large positions keep their phase.

Source: ThinkGen@7388ad5; the three-axis layout is Lumina-Image-2's.
"""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@lru_cache(maxsize=16)
def table(dim: int, length: int, theta: float) -> np.ndarray:
    """Cosines and sines of one axis, float32 [length, dim / 2, 2]."""
    frequencies = 1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    angles = np.arange(length, dtype=np.float64)[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def rotations(
    positions: Int[Array, "B T 3"],
    *,
    axes_dim: tuple[int, ...],
    axes_lens: tuple[int, ...],
    theta: float,
) -> Float[Array, "B T X 2"]:
    """Looks up the rotation of every token: (cos, sin) of each of the H / 2 pairs."""
    parts = [
        jnp.asarray(table(dim, length, theta))[positions[..., axis]]
        for axis, (dim, length) in enumerate(zip(axes_dim, axes_lens, strict=True))
    ]
    return jnp.concatenate(parts, axis=-2)


def rotate(
    x: Float[Array, "B T N H"], rotation: Float[Array, "b T X 2"]
) -> Float[Array, "B T N H"]:
    """Turns adjacent channel pairs by their angle, in float32."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cos, sin = rotation[..., None, :, 0], rotation[..., None, :, 1]
    a, b = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def text_positions(count: int) -> Int[Array, "1 T 3"]:
    """(n, n, n) for the first `count` tokens."""
    return jnp.broadcast_to(jnp.arange(count)[None, :, None], (1, count, 3))


def extents(
    positions: Int[Array, "B T 2"], segments: Int[Array, "B T"], *, count: int
) -> Int[Array, "B R"]:
    """Longer side, in tokens, of each of the `count` references of a row; 0 where there is none."""
    longest = jnp.max(positions, axis=-1) + 1
    number = jnp.arange(1, count + 1)[None, None]
    return jnp.max(jnp.where(segments[..., None] == number, longest[..., None], 0), axis=1)


def picture_positions(
    positions: Int[Array, "B T 2"], shift: Int[Array, "B T"]
) -> Int[Array, "B T 3"]:
    """(shift, row, column) of every picture token."""
    return jnp.concatenate([shift[..., None], positions], axis=-1)
