# SPDX-License-Identifier: Apache-2.0
"""Draws a `Scene`: a pure function from the record to a 64 x 64 uint8 picture.

* Shapes are sampled 8 x 8 times a pixel and averaged, so edges are anti-aliased; signs lie on the
  pixel grid and are not sampled.
* Coverage masks are cached per (shape, diameter, texture, sub-pixel phase): centres are multiples
  of half a pixel, so a few thousand masks of at most 24 x 24 serve every picture.
* Stripes lie on whole pixel rows or columns, counted from the first one that the box touches.
"""

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, UInt8

from .glyphs import SIGN_HEIGHT, sign_ink, sign_width
from .scenes import BACKGROUNDS, CANVAS, COLORS, SHAPES, TEXTURES, Object, Scene

SAMPLES = 8  # per pixel and axis
CROSS_ARM = 0.34  # half width of a cross's arms, in units of half the diameter
STAR_INNER = 0.42  # inner radius of a star before it is stretched to its box
RING_INSET = 0.24  # width of a ring's band as a share of the diameter
STRIPE_BAR, STRIPE_GAP = 3, 2  # pixels

_PALETTE = BACKGROUNDS | {name: COLORS[name] for name in ("white", "black")}


def _fill_box(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Stretches a polygon so that it spans [-1, 1] on both axes."""
    low, high = points.min(0), points.max(0)
    return 2 * (points - low) / (high - low) - 1


def _star() -> Float[np.ndarray, "n 2"]:
    """Five tips, the first one up."""
    angle = np.arange(10) * math.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.0, STAR_INNER)
    return _fill_box(np.stack([radius * np.sin(angle), -radius * np.cos(angle)], 1))


def _heart() -> Float[np.ndarray, "n 2"]:
    """The curve (16 sin^3 t, 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t), tip down."""
    t = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _fill_box(np.stack([16 * np.sin(t) ** 3, -y], 1))


_ARROW = np.array([(-1, -0.35), (0.1, -0.35), (0.1, -1), (1, 0), (0.1, 1), (0.1, 0.35), (-1, 0.35)])
_QUARTER = np.array([[0, 1], [-1, 0]])  # points @ _QUARTER turns right into down

POLYGONS = {
    "triangle": np.array([(0, -1), (1, 1), (-1, 1)], float),
    "star": _star(),
    "heart": _heart(),
    "arrow-right": _ARROW,
    "arrow-down": _ARROW @ _QUARTER,
    "arrow-left": _ARROW @ _QUARTER @ _QUARTER,
    "arrow-up": _ARROW @ _QUARTER @ _QUARTER @ _QUARTER,
}


def _in_polygon(points, x, y):
    """Even-odd rule for a grid of samples, one edge after the other."""
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
        if y0 == y1:
            continue
        crosses = (y0 <= y) != (y1 <= y)
        inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


def covers(
    shape: str, x: Float[np.ndarray, "1 n"], y: Float[np.ndarray, "m 1"]
) -> Bool[np.ndarray, "m n"]:
    """Which points of a grid lie inside the shape.

    Args:
      x: Columns in units of half the diameter; the shape's box is [-1, 1] on both axes.
      y: Rows, likewise, downwards.

    Raises:
      ValueError: If the shape is not one of `SHAPES`.
    """
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "square":
        return (abs(x) <= 1) & (abs(y) <= 1)
    if shape == "diamond":
        return abs(x) + abs(y) <= 1
    if shape == "cross":
        inside = (abs(x) <= 1) & (abs(y) <= 1)
        return inside & ((abs(x) <= CROSS_ARM) | (abs(y) <= CROSS_ARM))
    if shape == "ring":
        radius = x**2 + y**2
        return (radius <= 1) & (radius >= (1 - 2 * RING_INSET) ** 2)
    if shape not in POLYGONS:
        raise ValueError(f"shape {shape!r} is not one of {', '.join(SHAPES)}")
    return _in_polygon(POLYGONS[shape], x, y)


@lru_cache(maxsize=8192)
def coverage(
    shape: str, d: int, tex: str = "solid", phase_x: float = 0.0, phase_y: float = 0.0
) -> Float[np.ndarray, "m n"]:
    """Share of every pixel that a shape covers, over the pixels that its box touches (read-only).

    Args:
      d: Diameter in pixels.
      phase_x: Where the box begins inside its first pixel, in [0, 1).
      phase_y: Likewise for rows.

    Raises:
      ValueError: If shape or texture is unknown.
    """
    if tex not in TEXTURES:
        raise ValueError(f"texture {tex!r} is not one of {', '.join(TEXTURES)}")
    columns, rows = math.ceil(phase_x + d), math.ceil(phase_y + d)
    x = ((np.arange(columns * SAMPLES) + 0.5) / SAMPLES - phase_x) * 2 / d - 1
    y = ((np.arange(rows * SAMPLES) + 0.5) / SAMPLES - phase_y) * 2 / d - 1
    inside = covers(shape, x[None], y[:, None])
    mask = inside.reshape(rows, SAMPLES, columns, SAMPLES).mean((1, 3), dtype=np.float32)
    if tex != "solid":
        axis = 0 if tex == "hstripe" else 1
        bar = np.arange(mask.shape[axis]) % (STRIPE_BAR + STRIPE_GAP) < STRIPE_BAR
        mask = mask * (bar[:, None] if axis == 0 else bar[None])
    mask.flags.writeable = False
    return mask


@lru_cache(maxsize=4096)
def _sign_pixels(word: str, color: str, ink: str) -> UInt8[np.ndarray, "11 width 3"]:
    """The finished pixels of one sign (read-only)."""
    rgb = np.where(sign_ink(word)[..., None], COLORS[ink], COLORS[color]).astype(np.uint8)
    rgb.flags.writeable = False
    return rgb


def _object_box(item: Object) -> tuple[int, int, int, int]:
    x, y, radius = float(item.x), float(item.y), item.d / 2
    ends = math.ceil(x + radius), math.ceil(y + radius)
    return math.floor(x - radius), math.floor(y - radius), *ends


def boxes(scene: Scene) -> list[tuple[int, int, int, int]]:
    """Pixel boxes (x0, y0, x1, y1) of the objects, then of the signs; x1 and y1 are exclusive."""
    signs = [
        (int(s.x), int(s.y), int(s.x) + sign_width(s.word), int(s.y) + SIGN_HEIGHT)
        for s in scene.signs
    ]
    return [_object_box(item) for item in scene.objects] + signs


def _paste(image, patch, x: int, y: int, mask=None) -> None:
    """Puts a patch onto the image with its top-left at (x, y), cut at the canvas."""
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + patch.shape[1], CANVAS), min(y + patch.shape[0], CANVAS)
    if x0 >= x1 or y0 >= y1:
        return
    inner = slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)
    if mask is None:
        image[y0:y1, x0:x1] = patch[inner]
        return
    under = image[y0:y1, x0:x1]
    # float32 + 0.5 rounds halves up; blends of uint8 values stay inside 0 to 255
    image[y0:y1, x0:x1] = under + mask[inner] * (patch[inner] - under) + np.float32(0.5)


@lru_cache(maxsize=4096)
def _object_patch(shape, color, d, tex, phase_x, phase_y):
    """Colour and coverage of one object."""
    mask = coverage(shape, d, tex, phase_x, phase_y)
    rgb = np.broadcast_to(np.asarray(COLORS[color], np.float32), (*mask.shape, 3))
    return rgb, mask[..., None]


def render(scene: Scene) -> UInt8[np.ndarray, "64 64 3"]:
    """The picture of a scene; later objects cover earlier ones, signs cover objects.

    Raises:
      ValueError: If a shape, colour, texture, background or letter is unknown.
    """
    for name, table in [(scene.bg, _PALETTE)] + [
        (item.color, COLORS) for item in (*scene.objects, *scene.signs)
    ]:
        if name not in table:
            raise ValueError(f"colour {name!r} is not one of {', '.join(table)}")
    image = np.empty((CANVAS, CANVAS, 3), np.uint8)
    image[:] = _PALETTE[scene.bg]
    for item in scene.objects:
        left, top = float(item.x) - item.d / 2, float(item.y) - item.d / 2
        x, y = math.floor(left), math.floor(top)
        rgb, mask = _object_patch(item.shape, item.color, item.d, item.tex, left - x, top - y)
        _paste(image, rgb, x, y, mask)
    for sign in scene.signs:
        _paste(image, _sign_pixels(sign.word, sign.color, sign.ink), int(sign.x), int(sign.y))
    return image
