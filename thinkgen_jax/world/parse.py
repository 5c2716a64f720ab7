# SPDX-License-Identifier: Apache-2.0
"""Reads a picture back into what it holds; knows nothing of any prompt.

Pixels take the label of the nearest of the ten colours and the background; connected blobs are
signs, legal shapes, or "unknown". Whatever is left over counts as specks. A blob is only named if
it passes the calibrated limits of `shapes.is_legal`: learners exploit whatever a judge lets pass.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from . import pixels, shapes, signs
from .layout import cell_of
from .scenes import CANVAS

UNKNOWN = "unknown"
_BLUR_FROM, _VOTE_FROM = 4.0, 1.5  # noise levels
_MIN_PART, _MIN_SPECK, _MIN_BLOB = 6, 3, 24  # pixels
_SPECK_CONTRAST = 34.0  # CIELAB distance from the background
_MIN_FLAW = 5  # pixels of another colour inside a shape that make a speck
_STRIPED = 0.12  # share of a blob's inside that shows background from which it is striped
OFF_PALETTE = 20.5  # CIELAB distance from the named colour
# the same for stripes and signs; lightness is on CIELAB's scale
_OFF_FINE, _OFF_SIGN, _OFF_LIGHTNESS = 32.0, 42.0, 12.0
_FINE_WEIGHTS = np.array([1.0, 0.6, 0.6], np.float32)  # of L, a, b when fine things are named
_SMEAR_BETWEEN = 0.8  # share of a chroma step that a codec may carry in between stripes
_STRAY = 40.0  # grey levels between a pixel and the blends of colour and backdrop
_BAR_STRAY = 0.1  # share of a sign's pixels that may be of another colour
_EXTENT = 0.4  # share of its colour down to which a pixel belongs to a blob
_SIGMA = 8.0  # grey levels of noise to expect in luminance and in chroma
_SMEAR = np.array([0.0, 0.25, 0.25], np.float32)  # of the step in a channel, on top
_TO_YCC = np.array([[0.299, 0.701, -0.299], [0.587, -0.587, -0.587], [0.114, -0.114, 0.886]])
_TO_YCC = _TO_YCC.astype(np.float32)
_ROUND = np.ones((3, 3), bool)  # 8-connectivity


@dataclass(frozen=True)
class Found:
    """One blob that is not a sign.

    Attributes:
      shape: one of `SHAPES`, or "unknown".
      color: majority colour of its core.
      tex: texture.
      d: diameter in pixels.
      box: (x0, y0, x1, y1) in pixels with fractions.
      center: (x, y) middle of the box.
      clipped: whether it touches the edge of the canvas.
      measure: the evidence behind the shape.
    """

    shape: str
    color: str
    tex: str
    d: float
    box: tuple[float, float, float, float]
    center: tuple[float, float]
    clipped: bool
    measure: shapes.Measure

    @property
    def cell(self) -> int:
        """Index of the cell of the 3 x 3 grid that its middle lies in."""
        return cell_of(*self.center)

    @property
    def size(self) -> str:
        """Size bucket by diameter."""
        return "small" if self.d < 14.5 else "medium" if self.d < 19.5 else "large"


@dataclass(frozen=True)
class FoundSign:
    """One sign: the word as read ("?" where illegible), the bar's colour, its box."""

    word: str
    color: str
    box: tuple[int, int, int, int]
    clipped: bool = False


@dataclass(frozen=True)
class Parsed:
    """Everything a picture holds.

    Attributes:
      bg: name of the nearest background.
      objects: blobs in reading order, legal or unknown.
      signs: signs from top to bottom.
      specks: number of marks that belong to nothing.
      off_palette: share of core pixels, or of the background, far from every named colour.
      noise: estimated noise in grey levels.
    """

    bg: str
    objects: tuple[Found, ...]
    signs: tuple[FoundSign, ...]
    specks: int
    off_palette: float
    noise: float

    @property
    def clipped(self) -> int:
        """How many things touch the edge of the canvas."""
        return sum(item.clipped for item in (*self.objects, *self.signs))


class _Planes(NamedTuple):
    """The picture in the forms that the parser needs."""

    rgb: Float[np.ndarray, "64 64 3"]
    lab: Float[np.ndarray, "64 64 3"]
    labels: Int[np.ndarray, "64 64"]
    backdrop: Float[np.ndarray, "3"]  # background as observed, RGB
    backdrop_lab: Float[np.ndarray, "3"]


def _planes(image, noise: float) -> _Planes:
    rgb = pixels.smooth(image) if noise > _BLUR_FROM else image
    backdrop = pixels.border_median(rgb)
    lab, backdrop_lab = pixels.to_lab(rgb), pixels.to_lab(backdrop)
    labels = pixels.nearest_labels(lab, backdrop_lab, vote=noise > _VOTE_FROM)
    return _Planes(rgb.astype(np.float32), lab, labels, backdrop.astype(np.float32), backdrop_lab)


def _without_holes(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask with every hole filled; its outermost pixels are empty."""
    outside, _ = ndimage.label(~mask)
    return outside != outside[0, 0]


class _Blob(NamedTuple):
    """A connected blob in a window that leaves three empty pixels on every side."""

    x: int  # of the window; may be negative
    y: int
    closed: Bool[np.ndarray, "h w"]  # gaps between stripes closed, holes kept
    filled: Bool[np.ndarray, "h w"]
    raw: Bool[np.ndarray, "h w"]  # labelled pixels only
    labels: Int[np.ndarray, "h w"]
    rgb: Float[np.ndarray, "h w 3"]
    clipped: bool


_MARGIN = 3


def _window(plane, y, x):
    """The part of a padded plane that belongs to a window."""
    return plane[y.start : y.stop + 2 * _MARGIN, x.start : x.stop + 2 * _MARGIN]


def _blobs(planes: _Planes, foreground) -> list[_Blob]:
    """The closed, 8-connected parts of the foreground."""
    padded = np.pad(foreground, _MARGIN)
    parts, _ = ndimage.label(pixels.close(padded), _ROUND)
    parts_inner = parts[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    labels = np.pad(planes.labels, _MARGIN, constant_values=pixels.BACKGROUND)
    rgb = np.pad(planes.rgb, [(_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)], mode="edge")
    out = []
    for index, place in enumerate(ndimage.find_objects(parts_inner), 1):
        if place is None:
            continue
        y, x = place
        closed = _window(parts, y, x) == index
        clipped = y.start == 0 or x.start == 0 or y.stop == CANVAS or x.stop == CANVAS
        out.append(
            _Blob(
                x=x.start - _MARGIN,
                y=y.start - _MARGIN,
                closed=closed,
                filled=_without_holes(closed),
                raw=closed & _window(padded, y, x),
                labels=_window(labels, y, x),
                rgb=_window(rgb, y, x),
                clipped=clipped,
            )
        )
    return out


def _majority(labels: Int[np.ndarray, "n"]) -> int:
    return int(np.bincount(labels, minlength=pixels.BACKGROUND)[: pixels.BACKGROUND].argmax())


def _trim(box, alpha):
    """Takes off rows and columns of a bar that hold little of its colour."""
    x0, y0, x1, y1 = box
    while y1 - y0 > 3 and alpha[y0, x0:x1].mean() < _EXTENT:
        y0 += 1
    while y1 - y0 > 3 and alpha[y1 - 1, x0:x1].mean() < _EXTENT:
        y1 -= 1
    while x1 - x0 > 3 and alpha[y0:y1, x0].mean() < _EXTENT:
        x0 += 1
    while x1 - x0 > 3 and alpha[y0:y1, x1 - 1].mean() < _EXTENT:
        x1 -= 1
    return x0, y0, x1, y1


def _ring(like, box, inset: int):
    """One-pixel frame inside a box."""
    x0, y0, x1, y1 = box
    out = np.zeros(like.shape, bool)
    out[y0 + inset : y1 - inset, x0 + inset : x1 - inset] = True
    inset += 1
    out[y0 + inset : y1 - inset, x0 + inset : x1 - inset] = False
    return out


def _sign(blob: _Blob, backdrop) -> tuple[FoundSign, np.ndarray] | None:
    """The sign that a blob is, with its bar's pixels in the window; None if it is no sign."""
    box = signs.is_bar(blob.filled)
    if box is None:
        return None
    box = _trim(box, _coverage(blob, _ring(blob.raw, box, 1), backdrop))
    x0, y0, x1, y1 = box
    if not signs.has_sign_height(y1 - y0):
        return None
    ring = _ring(blob.raw, box, 1)
    base = np.median(blob.rgb[ring], 0)
    if (((blob.rgb[ring] - base) ** 2).sum(-1) > signs.STRAY**2).mean() > _BAR_STRAY:
        return None
    color = pixels.NAMES[_fine_name(blob.rgb[ring])]
    reading = signs.read(blob.rgb[y0:y1, x0:x1], base, color)
    if reading.stray > _BAR_STRAY:
        return None
    place = (x0 + blob.x, y0 + blob.y, x1 + blob.x, y1 + blob.y)
    return FoundSign(reading.word, color, place, blob.clipped), ring


def _coverage(blob: _Blob, core, backdrop) -> Float[np.ndarray, "h w"]:
    """Share of the blob's own colour in every pixel, by projection between backdrop and colour.

    The weights are those of the best linear estimate when every channel is noisy and codecs, on
    top, smear chroma over its neighbours by a share of the chroma step.
    """
    difference = (blob.rgb - backdrop) @ _TO_YCC
    axis = np.median(difference[core], 0)
    weight = axis / (_SIGMA**2 + (_SMEAR * axis) ** 2)
    return np.clip(difference @ weight / max(float(axis @ weight), 1e-3), 0, 1)


def _stray(blob: _Blob, core, backdrop, alpha, smear: float) -> Bool[np.ndarray, "h w"]:
    """Pixels that no blend of the blob's colour and the backdrop explains.

    Args:
      alpha: Share of the colour in the nearest blend.
      smear: Further error of chroma to allow, as a share of its step.
    """
    difference = (blob.rgb - backdrop) @ _TO_YCC
    axis = np.median(difference[core], 0)
    rest = abs(difference - alpha[..., None] * axis)
    allowed = _STRAY + np.array([0.0, smear, smear], np.float32) * abs(axis)
    return (rest > allowed).any(-1)


def _overshoot(blob: _Blob, core, backdrop) -> Bool[np.ndarray, "h w"]:
    """Pixels of the blob far brighter or darker than both its colour and the backdrop."""
    luminance = (blob.rgb - backdrop) @ _TO_YCC[:, 0]
    own = float(np.median(luminance[core]))
    beyond = (luminance < min(own, 0) - _STRAY) | (luminance > max(own, 0) + _STRAY)
    return blob.closed & beyond


def _count_parts(mask: Bool[np.ndarray, "h w"], least: int) -> int:
    """Number of 8-connected parts of at least `least` pixels."""
    parts, _ = ndimage.label(mask, _ROUND)
    return int((np.bincount(parts.ravel())[1:] >= least).sum())


def _fine_name(rgb: Float[np.ndarray, "n 3"]) -> int:
    """Label of the median colour of a fine thing: chroma is more diluted there than lightness."""
    lab = pixels.to_lab(np.median(rgb, 0).astype(np.uint8))
    gaps = (pixels.PALETTE_LAB - lab) * _FINE_WEIGHTS
    return int(np.linalg.norm(gaps, axis=1).argmin())


class _Layers(NamedTuple):
    """A blob taken apart by colour."""

    label: int  # of its own colour
    core: Bool[np.ndarray, "h w"]  # pixels that show the colour undiluted
    mask: Float[np.ndarray, "h w"]  # coverage to be compared with the bank
    hole: float
    tex: str
    fit: float  # of the stripe pattern
    inside: Bool[np.ndarray, "h w"]
    flaws: Bool[np.ndarray, "h w"]  # pixels of other colours inside or beside the shape


def _layers(blob: _Blob, backdrop) -> _Layers:
    core = pixels.erode(blob.raw)
    core = core if core.any() else blob.raw
    # gaps whose chroma was smeared still have the backdrop's luminance
    contrast = abs((blob.rgb - backdrop) @ _TO_YCC[:, 0])
    clear = core & (contrast >= np.median(contrast[core]) - 2)
    label = _majority(blob.labels[clear])
    own = blob.labels == label
    core = clear & own if (clear & own).any() else blob.raw
    alpha = _coverage(blob, core, backdrop)
    # fringes of blurred chroma carry foreign labels; the shape ends where its colour does
    solid = pixels.close(blob.closed & (alpha >= _EXTENT))
    solid = solid if solid.any() else blob.closed
    filled = _without_holes(solid)
    hole = 1 - float(solid.sum() / filled.sum())
    is_ring = hole >= shapes.HOLE
    inside = pixels.erode(solid if is_ring else filled)
    inside = inside if inside.any() else solid
    bare = inside & (alpha < _EXTENT)
    striped = not is_ring and bare.sum() > _STRIPED * inside.sum()
    tex, fit = shapes.stripes(alpha, solid) if striped else ("solid", 1.0)
    if striped:
        core = core & (alpha >= np.median(alpha[core]))  # the middle of the bars
        label = _fine_name(blob.rgb[core])
        mask = solid.astype(np.float32)
        flaws = inside & ~own & _stray(blob, core, backdrop, alpha, _SMEAR_BETWEEN)
    else:
        # noise deep inside and outside is not coverage
        outline = pixels.dilate(solid) & ~inside
        mask = np.where(inside & (alpha >= 0.5), 1, np.where(outline | inside, alpha, 0))
        flaws = inside & ~own
    mask = mask.astype(np.float32)
    flaws = flaws | _overshoot(blob, core, backdrop)
    # what is no fringe and no faint sliver of the same colour
    beside = blob.closed & ~pixels.dilate(pixels.dilate(filled))
    beside = beside & _stray(blob, core, backdrop, alpha, 0.0)
    return _Layers(label, core, mask, hole, tex, fit, inside, flaws | beside)


def _shape(blob: _Blob, backdrop) -> tuple[Found, np.ndarray, int]:
    """The shape that a blob is, its core pixels in the window, and the number of its flaws."""
    layers = _layers(blob, backdrop)
    purity = 1 - float((layers.flaws & layers.inside).sum() / layers.inside.sum())
    measure = shapes.measure(layers.mask, layers.hole, purity, layers.tex, layers.fit)
    x0, y0, x1, y1 = (float(v) for v in shapes.soft_box(layers.mask))
    box = (x0 + blob.x, y0 + blob.y, x1 + blob.x, y1 + blob.y)
    found = Found(
        shape=measure.shape if shapes.is_legal(measure) else UNKNOWN,
        color=pixels.NAMES[layers.label],
        tex=layers.tex,
        d=measure.d,
        box=box,
        center=((box[0] + box[2]) / 2, (box[1] + box[3]) / 2),
        clipped=blob.clipped,
        measure=measure,
    )
    return found, layers.core, _count_parts(layers.flaws, _MIN_FLAW)


def _loose_marks(planes: _Planes, parts, sizes, taken) -> int:
    """Counts small parts that stand out from the background outside every object."""
    count = 0
    for index in np.flatnonzero((sizes >= _MIN_SPECK) & (sizes < _MIN_PART)):
        here = parts == index
        contrast = np.linalg.norm(planes.lab[here].mean(0) - planes.backdrop_lab)
        count += int(contrast > _SPECK_CONTRAST and not (here & taken).any())
    return count


def _is_off(planes: _Planes, blob: _Blob, core, color: str, most: float) -> bool:
    """Whether the median of a blob's core is far from the named colour.

    Args:
      most: Largest distance, however right the lightness is: chroma of stripes and signs mixes
        with its surroundings even in a good JPEG, so there lightness decides first.
    """
    h, w = np.nonzero(core)
    here = np.median(planes.lab[h + blob.y, w + blob.x], 0)
    gap = here - pixels.PALETTE_LAB[pixels.NAMES.index(color)]
    distance, lightness = float(np.linalg.norm(gap)), abs(float(gap[0]))
    return distance > most or (distance > OFF_PALETTE and lightness > _OFF_LIGHTNESS)


def parse(image: np.ndarray) -> Parsed:
    """What a picture, uint8 [64, 64, 3], holds: objects, signs, specks, background.

    Raises:
      ValueError: If the picture is not 64 x 64 RGB bytes.
    """
    if image.shape != (CANVAS, CANVAS, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"a picture of the miniature world is uint8 [64, 64, 3], "
            f"not {image.dtype} {list(image.shape)}"
        )
    noise = pixels.noise_level(image)
    planes = _planes(image, noise)
    parts, _ = ndimage.label(planes.labels != pixels.BACKGROUND, _ROUND)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    objects, found_signs, specks, off, core_pixels = [], [], 0, 0, 0
    taken = np.zeros((CANVAS, CANVAS), bool)
    for blob in _blobs(planes, (sizes >= _MIN_PART)[parts]):
        h, w = blob.raw.shape
        y0, x0 = max(blob.y + _MARGIN - 1, 0), max(blob.x + _MARGIN - 1, 0)
        taken[y0 : blob.y + h - _MARGIN + 1, x0 : blob.x + w - _MARGIN + 1] = True
        if blob.raw.sum() < _MIN_BLOB:
            specks += 1
            continue
        sign = _sign(blob, planes.backdrop)
        if sign is not None:
            item, core = sign
            found_signs.append(item)
            size, most = int(core.sum()), _OFF_SIGN
        else:
            item, core, flaws = _shape(blob, planes.backdrop)
            objects.append(item)
            specks += flaws
            size = int(core.sum())
            most = OFF_PALETTE if item.tex == "solid" else _OFF_FINE
        core_pixels += size
        off += size * _is_off(planes, blob, core, item.color, most)
    backdrop = np.linalg.norm(pixels.BACKGROUND_LAB - planes.backdrop_lab, axis=1)
    return Parsed(
        bg=pixels.BACKGROUND_NAMES[int(backdrop.argmin())],
        objects=tuple(objects),
        signs=tuple(sorted(found_signs, key=lambda s: (s.box[1], s.box[0]))),
        specks=specks + _loose_marks(planes, parts, sizes, taken),
        off_palette=1.0 if backdrop.min() > OFF_PALETTE else off / max(core_pixels, 1),
        noise=noise,
    )
