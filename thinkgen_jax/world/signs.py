# SPDX-License-Identifier: Apache-2.0
"""Reads the word on a sign: template matching with the world's own font, open vocabulary.

The number of letters follows from the width of the bar; every letter is compared with all 36 glyphs
at four half-pixel offsets and three blurs, in windows that may lie one pixel off. A letter that
nothing fits is "?", and a word whose ink is not explained by its letters ends in "?".
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from .glyphs import FONT, GLYPH_HEIGHT, GLYPH_WIDTH, PITCH, SIGN_HEIGHT, SIGN_MARGIN, glyph
from .scenes import COLORS, LIGHT_SIGNS

UNREAD = "?"
LETTERS = "".join(FONT)
MIN_LETTERS, MAX_LETTERS = 3, 9
_BLURS = (0.0, 0.5, 0.8)
_WINDOW = GLYPH_HEIGHT + 2, GLYPH_WIDTH + 2  # one pixel of bar around the letter
_SIDE_WEIGHT = 0.5  # of that pixel: under blur the neighbouring letters reach into it
_MIN_CORRELATION = 0.6
_MIN_CONTRAST = 0.35  # of full ink
_MIN_EXPLAINED = 0.9  # share of the ink that the letters must cover
STRAY = 90.0  # RGB distance from bar, ink and their blends
_INK = 0.5  # coverage from which a pixel counts as ink


def is_bar(filled: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int] | None:
    """The box (x0, y0, x1, y1) of a solid bar in a blob without holes; None if it is not one."""
    width, height = filled.any(0).sum(), filled.any(1).sum()
    rows = np.flatnonzero(filled.sum(1) > 0.6 * width)
    columns = np.flatnonzero(filled.sum(0) > 0.6 * height)
    if not len(rows) or not len(columns):
        return None
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    if y1 - y0 < 9 or (x1 - x0) / (y1 - y0) <= 1.6:
        return None
    return None if filled[y0:y1, x0:x1].mean() <= 0.93 else (int(x0), int(y0), int(x1), int(y1))


class Reading(NamedTuple):
    """What stands on a sign.

    Attributes:
      word: the letters; "?" where one is illegible.
      stray: share of pixels that are neither bar, ink nor a blend of both.
    """

    word: str
    stray: float


class _Templates(NamedTuple):
    vectors: Float[np.ndarray, "n 63"]  # weighted, zero mean, unit norm
    letter: np.ndarray  # index into LETTERS
    weights: Float[np.ndarray, "63"]


@cache
def _templates() -> _Templates:
    weights = np.ones(_WINDOW, np.float32)
    weights[:, [0, -1]] = weights[[0, -1]] = _SIDE_WEIGHT
    vectors, letter = [], []
    for index, char in enumerate(LETTERS):
        fine = np.pad(glyph(char).astype(np.float32), 3).repeat(2, 0).repeat(2, 1)
        for dy in (0, 1):
            for dx in (0, 1):
                moved = np.roll(fine, (dy, dx), (0, 1))
                plane = moved.reshape(13, 2, 11, 2).mean((1, 3))
                for sigma in _BLURS:
                    soft = ndimage.gaussian_filter(plane, sigma) if sigma else plane
                    vectors.append(soft[2:-2, 2:-2].ravel())
                    letter.append(index)
    flat = weights.ravel()
    vectors = np.stack(vectors)
    vectors = (vectors - (vectors @ flat / flat.sum())[:, None]) * np.sqrt(flat)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return _Templates(vectors, np.array(letter), flat)


_MIN_RISE = 40.0  # grey levels between bar and ink
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def _ink_coverage(rgb, base, color: str):
    """Share of ink per pixel, and the distance of every pixel from the axis from bar to ink.

    Ink is black or white and always differs in luminance, which survives chroma subsampling.
    """
    expected = "black" if color in LIGHT_SIGNS else "white"
    planes = {}
    for name in ("black", "white"):
        axis = np.array(COLORS[name], np.float32) - base
        rise = float(axis @ _LUMINANCE)
        if abs(rise) < _MIN_RISE:
            continue
        share = np.clip((rgb - base) @ _LUMINANCE / rise, 0, 1)
        planes[name] = share, np.linalg.norm(rgb - base - share[..., None] * axis, axis=-1)
    # a picture may err in the ink: believe what is there
    other = "white" if expected == "black" else "black"
    if expected not in planes or (
        other in planes and planes[other][0].sum() > 2 * planes[expected][0].sum()
    ):
        expected = other
    return planes[expected]


def _windows(ink, left: int, top: int):
    """The nine windows around a letter's place, one pixel to each side."""
    h, w = _WINDOW
    out = []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            y, x = top + dy - 1, left + dx - 1
            out.append((dy, dx, ink[y : y + h, x : x + w].ravel()))
    return out


def _read_letter(ink, left: int, top: int):
    """Best letter at a place: (character, x, y) of its ink box in `ink`."""
    bank = _templates()
    places = _windows(ink, left, top)
    stack = np.stack([p[2] for p in places])
    centred = (stack - (stack @ bank.weights / bank.weights.sum())[:, None]) * np.sqrt(bank.weights)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    fit = (centred / np.maximum(norm, 1e-3)) @ bank.vectors.T
    place, entry = np.unravel_index(fit.argmax(), fit.shape)
    dy, dx, window = places[place]
    legible = fit[place, entry] >= _MIN_CORRELATION and window.max() >= _MIN_CONTRAST
    return LETTERS[bank.letter[entry]] if legible else UNREAD, left + dx, top + dy


def read(rgb: Float[np.ndarray, "h w 3"], base: Float[np.ndarray, "3"], color: str) -> Reading:
    """Reads the word on a bar.

    Args:
      rgb: Pixels of the bar alone.
      base: Colour of the bar as observed.
      color: Its name, which tells the ink to expect.
    """
    h, w = rgb.shape[:2]
    share, rest = _ink_coverage(rgb, base, color)
    inner = np.zeros((h, w), bool)
    inner[1:-1, 1:-1] = True
    stray = float((rest[inner] > STRAY).mean())
    count = round((w + 1 - 2 * SIGN_MARGIN) / PITCH)
    if not MIN_LETTERS <= count <= MAX_LETTERS:
        return Reading(UNREAD, stray)
    pad = 4
    ink = np.pad(np.where(inner, share, 0).astype(np.float32), pad)
    # a bar cut or grown by a pixel keeps its letters in the middle
    left = pad + (w - (PITCH * count - 1)) // 2
    top = pad + (h - GLYPH_HEIGHT) // 2
    word, explained = "", np.zeros(ink.shape, bool)
    for i in range(count):
        char, x, y = _read_letter(ink, left + PITCH * i, top)
        word += char
        if char != UNREAD:
            explained[y : y + GLYPH_HEIGHT, x : x + GLYPH_WIDTH] |= glyph(char)
    explained = ndimage.binary_dilation(explained, np.ones((3, 3)))
    strong = np.where(ink >= _INK, ink, 0)
    if strong.sum() > 0 and strong[explained].sum() < _MIN_EXPLAINED * strong.sum():
        word += UNREAD
    return Reading(word, stray)


def has_sign_height(height: int) -> bool:
    """Whether a bar is as high as a sign, give or take two pixels."""
    return abs(height - SIGN_HEIGHT) <= 2
