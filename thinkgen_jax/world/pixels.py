# SPDX-License-Identifier: Apache-2.0
"""Pixel arithmetic below the parser: noise estimate, CIELAB, nearest palette colour, nuisances.

Everything works on one 64 x 64 picture in well under a millisecond; no scipy filter is used where a
few shifted arrays do.
"""

import io

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from scipy import ndimage

from .scenes import BACKGROUNDS, CANVAS, COLORS

NAMES = tuple(COLORS)  # labels 0 to 9; label 10 is the background
BACKGROUND = len(NAMES)
_CENTRE_WEIGHT = 2.2  # of a pixel in its own 3 x 3 vote
_NEAR_BACKGROUND = 20.0  # CIELAB distance below which a colour is not told from the background


def _linear_table() -> Float[np.ndarray, "256"]:
    v = np.arange(256) / 255
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4).astype(np.float32)


_LINEAR = _linear_table()
_WHITE = np.array([0.95047, 1.0, 1.08883])  # D65
_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_TO_XYZ = (_TO_XYZ / _WHITE[:, None]).T.astype(np.float32)
_TO_LAB = np.array([[0, 500, 0], [116, -500, 200], [0, 0, -200]], np.float32)


def to_lab(rgb: UInt8[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """CIELAB (D65) of sRGB bytes."""
    xyz = _LINEAR[rgb] @ _TO_XYZ
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), xyz * (24389 / 27 / 116) + 16 / 116)
    return f @ _TO_LAB - np.array([16, 0, 0], np.float32)


PALETTE_LAB = to_lab(np.array(list(COLORS.values()), np.uint8))
# what a background may be called; white and black only occur after "extract"
BACKGROUND_NAMES = (*BACKGROUNDS, "white", "black")
BACKGROUND_LAB = to_lab(
    np.array([*BACKGROUNDS.values(), COLORS["white"], COLORS["black"]], np.uint8)
)


def neighbours(plane: np.ndarray) -> list[np.ndarray]:
    """The nine 3 x 3 neighbours of every pixel, edges repeated; index 4 is the pixel itself."""
    padded = np.pad(plane, [(1, 1), (1, 1)] + [(0, 0)] * (plane.ndim - 2), mode="edge")
    h, w = plane.shape[:2]
    return [padded[i : i + h, j : j + w] for i in range(3) for j in range(3)]


# Compare-exchange pairs that bring the median of nine to position 4.
_MEDIAN_NETWORK = (
    *((1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3)),
    *((5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2)),
)


def median3(plane: np.ndarray) -> np.ndarray:
    """3 x 3 median of a plane."""
    p = neighbours(plane)
    for a, b in _MEDIAN_NETWORK:
        p[a], p[b] = np.minimum(p[a], p[b]), np.maximum(p[a], p[b])
    return p[4]


def noise_level(rgb: UInt8[np.ndarray, "64 64 3"]) -> float:
    """Estimate of the standard deviation of pixel noise, in grey levels.

    The median of |I - median3x3(I)| ignores edges. Luminance averages three channels and so
    understates independent noise by a quarter; the green channel guards against the opposite.
    """
    luminance = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    green = rgb[..., 1].astype(np.float32)
    planes = ((luminance, 1.25), (green, 1.0))
    return max(1.4826 * k * float(np.median(abs(p - median3(p)))) for p, k in planes)


def smooth(rgb: UInt8[np.ndarray, "64 64 3"]) -> UInt8[np.ndarray, "64 64 3"]:
    """Gaussian of half a pixel, against visible noise."""
    side = np.exp(-2.0)  # exp(-1 / (2 * 0.5^2))
    padded = np.pad(rgb.astype(np.float32), [(1, 1), (1, 1), (0, 0)], mode="edge")
    rows = padded[1:-1] + side * (padded[:-2] + padded[2:])
    both = rows[:, 1:-1] + side * (rows[:, :-2] + rows[:, 2:])
    return (both / (1 + 2 * side) ** 2 + 0.5).astype(np.uint8)


def box3(image: np.ndarray) -> Float[np.ndarray, "64 64 3"]:
    """3 x 3 mean of an image, edges repeated."""
    return sum(p.astype(np.float32) for p in neighbours(image)) / 9


def border_median(rgb: UInt8[np.ndarray, "64 64 3"]) -> UInt8[np.ndarray, "3"]:
    """Median colour of the outermost two pixels on every side."""
    ring = [rgb[:2].reshape(-1, 3), rgb[-2:].reshape(-1, 3)]
    ring += [rgb[2:-2, :2].reshape(-1, 3), rgb[2:-2, -2:].reshape(-1, 3)]
    return np.median(np.concatenate(ring), 0).astype(np.uint8)


def nearest_labels(
    lab: Float[np.ndarray, "64 64 3"], background: Float[np.ndarray, "3"], vote: bool
) -> Int[np.ndarray, "64 64"]:
    """Labels every pixel with the nearest colour: 0 to 9 as `NAMES`, or `BACKGROUND`.

    Args:
      background: CIELAB of the background; palette colours too close to it are left out.
      vote: Whether each pixel takes the weighted majority of its 3 x 3 neighbourhood, which heals
        single noisy pixels.
    """
    centres = np.concatenate([PALETTE_LAB, background[None]])
    distance = (centres**2).sum(1) - 2 * (lab.reshape(-1, 3) @ centres.T)
    near = np.linalg.norm(PALETTE_LAB - background, axis=1) < _NEAR_BACKGROUND
    distance[:, :BACKGROUND][:, near] = np.inf
    labels = distance.argmin(1).reshape(CANVAS, CANVAS)
    if not vote:
        return labels
    onehot = np.zeros((CANVAS * CANVAS, len(centres)), np.float32)
    onehot[np.arange(CANVAS * CANVAS), labels.ravel()] = 1
    onehot = onehot.reshape(CANVAS, CANVAS, -1)
    padded = np.pad(onehot, [(1, 1), (1, 1), (0, 0)], mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    votes = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + (_CENTRE_WEIGHT - 1) * onehot
    return votes.argmax(-1)


def dilate(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """3 x 3 dilation; outside the array counts as empty."""
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    rows = out.copy()
    out[:, 1:] |= rows[:, :-1]
    out[:, :-1] |= rows[:, 1:]
    return out


def erode(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """3 x 3 erosion; outside the array counts as empty."""
    out = np.zeros_like(mask)
    rows = mask[:-2] & mask[1:-1] & mask[2:]
    out[1:-1, 1:-1] = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
    return out


def close(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """3 x 3 closing; fills gaps of at most two pixels."""
    return erode(dilate(np.pad(mask, 2)))[2:-2, 2:-2]


# --- nuisances ------------------------------------------------------------------------------------


def add_noise(image: UInt8[np.ndarray, "64 64 3"], sigma: float, seed: int):
    """Independent Gaussian noise of `sigma` grey levels."""
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(image + noise + 0.5, 0, 255).astype(np.uint8)


def blur(image: UInt8[np.ndarray, "64 64 3"], sigma: float):
    """Gaussian blur of `sigma` pixels."""
    soft = ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0), mode="nearest")
    return (soft + 0.5).astype(np.uint8)


def jpeg(image: UInt8[np.ndarray, "64 64 3"], quality: int):
    """One trip through JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def shift_color(image: UInt8[np.ndarray, "64 64 3"], amount: float, seed: int):
    """Adds plus or minus `amount` grey levels to each channel of the whole picture."""
    offset = amount * np.random.default_rng(seed).choice([-1.0, 1.0], 3)
    return np.clip(image + offset + 0.5, 0, 255).astype(np.uint8)


def half_pixel(image: UInt8[np.ndarray, "64 64 3"]):
    """Moves the picture by half a pixel to the right and down."""
    p = image.astype(np.float32)
    p = (p + np.pad(p, [(0, 0), (1, 0), (0, 0)], mode="edge")[:, :-1]) / 2
    p = (p + np.pad(p, [(1, 0), (0, 0), (0, 0)], mode="edge")[:-1]) / 2
    return (p + 0.5).astype(np.uint8)


def rescale(image: UInt8[np.ndarray, "64 64 3"], factor: float):
    """Shrinks the picture by `factor` and enlarges it again."""
    side = round(CANVAS / factor)
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC))


NUISANCES = {
    "clean": lambda image, seed: image,
    "shift 12": lambda image, seed: shift_color(image, 12.0, seed),
    "noise 8": lambda image, seed: add_noise(image, 8.0, seed),
    "blur .8": lambda image, seed: blur(image, 0.8),
    "jpeg 90": lambda image, seed: jpeg(image, 90),
    "blur .5": lambda image, seed: blur(image, 0.5),
    "half pixel": lambda image, seed: half_pixel(image),
    "shift 8, blur .5, noise 8": lambda image, seed: add_noise(
        blur(shift_color(image, 8.0, seed), 0.5), 8.0, seed
    ),
    "noise 16": lambda image, seed: add_noise(image, 16.0, seed),
    "noise 24": lambda image, seed: add_noise(image, 24.0, seed),
    "blur 1": lambda image, seed: blur(image, 1.0),
    "jpeg 75": lambda image, seed: jpeg(image, 75),
    "jpeg 50": lambda image, seed: jpeg(image, 50),
    "down and up": lambda image, seed: rescale(image, 1.5),
}
ENVELOPE = ("clean", "shift 12", "noise 8", "blur .8", "jpeg 90")  # what must be accepted
