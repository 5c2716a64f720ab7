# SPDX-License-Identifier: Apache-2.0
"""Recognises one shape from its coverage: comparison with a bank of drawn shapes.

* A coverage mask is stretched to 24 x 24 by its own sub-pixel box and compared, by soft IoU, with
  every shape at all sizes near its own, two sub-pixel phases and two blurs, prepared in exactly the
  same way.
* The best class is believed only if IoU, margin over the second class, mirror symmetry, aspect
  ratio, purity of colour and (for stripes) the fit of the stripe pattern pass limits that were
  calibrated per shape on drawn truth: `limits.json`.
"""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from .pixels import close
from .render import STRIPE_BAR, STRIPE_GAP, coverage
from .scenes import SHAPES, TEXTURED_SHAPES

GRID = 24  # side of the stretched mask
_DIAMETERS = tuple(range(11, 25))
_MAX_STRETCH = 2.0  # pixels by which a blob's box may differ from a bank entry's
_BLURS = (0.0, 0.7)
_PHASES = ((0.0, 0.0), (0.5, 0.5))
HOLE = 0.06  # a ring's hole is larger than this share of the filled shape, no other shape's is
_PERIOD = STRIPE_BAR + STRIPE_GAP
LIMITS_FILE = Path(__file__).with_name("limits.json")

# axes of mirror symmetry: "x" swaps left and right, "y" top and bottom
_MIRRORS = {shape: "xy" for shape in ("circle", "square", "diamond", "cross", "ring")}
_MIRRORS |= {shape: "x" for shape in ("triangle", "star", "heart", "arrow-down", "arrow-up")}
_MIRRORS |= {shape: "y" for shape in ("arrow-right", "arrow-left")}


class Measure(NamedTuple):
    """What was measured on one blob, whether or not it is believed.

    Attributes:
      shape: best class of the bank.
      tex: "solid", "hstripe" or "vstripe".
      d: diameter in pixels, corrected for tips that blur away.
      iou: soft IoU with the best class, 0 to 1.
      margin: IoU of the best class minus that of the second.
      symmetry: lowest soft IoU with the mask's own mirror images.
      aspect: width over height.
      stripes: correlation with the stripe pattern, 1 for solid shapes.
      purity: share of inner pixels that carry the blob's own colour.
      scores: best IoU per class in the order of `SHAPES`.
    """

    shape: str
    tex: str
    d: float
    iou: float
    margin: float
    symmetry: float
    aspect: float
    stripes: float
    purity: float
    scores: tuple[float, ...]

    @property
    def key(self) -> str:
        """Row of the limits table."""
        return self.shape if self.tex == "solid" else f"{self.shape}+tex"


def _edge(profile: Float[np.ndarray, "n"]) -> float:
    """Where a profile first crosses one half, in pixels from the start of the array."""
    i = int(np.argmax(profile >= 0.5))
    before, here = (profile[i - 1] if i else 0.0), profile[i]
    return float(i - 0.5 + (0.5 - before) / (here - before))


def soft_box(mask: Float[np.ndarray, "h w"]) -> tuple[float, float, float, float]:
    """Sub-pixel box (x0, y0, x1, y1) of a coverage mask."""
    columns, rows = mask.max(0), mask.max(1)
    x1, y1 = mask.shape[1] - _edge(columns[::-1]), mask.shape[0] - _edge(rows[::-1])
    return _edge(columns), _edge(rows), x1, y1


def _sampler(low: float, high: float, n: int) -> Float[np.ndarray, "24 n"]:
    """Rows that interpolate a line of `n` pixels at 24 points spread over [low, high]."""
    x = low + (np.arange(GRID) + 0.5) / GRID * (high - low) - 0.5
    return np.maximum(0, 1 - abs(x[:, None] - np.arange(n))).astype(np.float32)


def stretch(mask: Float[np.ndarray, "h w"], box) -> Float[np.ndarray, "24 24"]:
    """The part of a mask inside a sub-pixel box, stretched to 24 x 24."""
    x0, y0, x1, y1 = box
    h, w = mask.shape
    return _sampler(y0, y1, h) @ mask @ _sampler(x0, x1, w).T


class _Bank(NamedTuple):
    grids: Float[np.ndarray, "n 576"]
    areas: Float[np.ndarray, "n"]
    owner: np.ndarray  # index into SHAPES
    d: np.ndarray  # true diameter
    sides: np.ndarray  # width and height of the measured box


@cache
def _bank(tex: str) -> _Bank:
    """Every shape at every size; for stripes the binary masks that closing leaves."""
    grids, owner, diameters, sides = [], [], [], []
    for index, shape in enumerate(SHAPES):
        if tex != "solid" and shape not in TEXTURED_SHAPES:
            continue
        for mask, d in _prepared(shape, tex):
            x0, y0, x1, y1 = soft_box(mask)
            grids.append(stretch(mask, (x0, y0, x1, y1)).ravel())
            owner.append(index)
            diameters.append(d)
            sides.append((x1 - x0, y1 - y0))
    grids = np.stack(grids)
    return _Bank(grids, grids.sum(1), np.array(owner), np.array(diameters), np.array(sides))


def _prepared(shape: str, tex: str):
    """Coverage masks of one shape as the parser would see them, with their diameters."""
    for d in _DIAMETERS:
        for phase in _PHASES:
            for sigma in _BLURS:
                mask = np.pad(coverage(shape, d, tex, *phase), 3)
                mask = ndimage.gaussian_filter(mask, sigma) if sigma else mask
                if tex != "solid":
                    mask = close(mask >= 0.5).astype(np.float32)
                yield mask, d


def _class_scores(grid, sides, tex: str, hole: float):
    """Best soft IoU per class, the best class, and its diameter corrected for the box found."""
    bank = _bank(tex)
    near = (abs(bank.sides - sides) <= _MAX_STRETCH).all(1)
    scores = np.zeros(len(SHAPES), np.float32)
    if not near.any():
        return scores, 0, float(max(sides))
    flat, owner = grid.ravel(), bank.owner[near]
    shared = np.minimum(bank.grids[near], flat).sum(1)
    iou = shared / (bank.areas[near] + flat.sum() - shared)
    is_ring = owner == SHAPES.index("ring")
    iou = np.where(is_ring == (hole >= HOLE), iou, 0)
    np.maximum.at(scores, owner, iou)
    entry = int(iou.argmax())
    grown = float((np.asarray(sides) - bank.sides[near][entry]).max())
    return scores, int(owner[entry]), float(bank.d[near][entry]) + grown


def _symmetry(grid, axes: str) -> float:
    mirrors = {"x": grid[:, ::-1], "y": grid[::-1]}
    return min(
        float(np.minimum(grid, mirrors[a]).sum() / np.maximum(grid, mirrors[a]).sum()) for a in axes
    )


@cache
def _stripe_patterns(n: int) -> Float[np.ndarray, "k n"]:
    """Zero-mean unit stripe profiles of `n` pixels, started at -1 to 1 pixel in quarter steps."""
    fine = np.arange(n * 4) / 4 + 0.125
    rows = []
    for start in np.arange(-1, 1.01, 0.25):
        bar = ((fine - start) % _PERIOD < STRIPE_BAR).reshape(n, 4).mean(1)
        rows.append(bar - bar.mean())
    rows = np.stack(rows)
    # A profile no longer than a bar can be all bar: it has no stripes and correlates with nothing.
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def _stripe_fit(profile: Float[np.ndarray, "n"]) -> float:
    """Highest correlation of a brightness profile with the drawn stripes."""
    centred = profile - profile.mean()
    norm = np.linalg.norm(centred)
    return float((_stripe_patterns(len(profile)) @ centred).max() / norm) if norm > 1e-3 else 0.0


def stripes(alpha: Float[np.ndarray, "h w"], closed: Bool[np.ndarray, "h w"]) -> tuple[str, float]:
    """Direction of the stripes inside a closed blob and how well they fit.

    Args:
      alpha: Coverage by the blob's colour.
      closed: The blob with its gaps filled.
    """
    found = []
    for name, axis in (("hstripe", 1), ("vstripe", 0)):
        area = closed.sum(axis)
        profile = (alpha * closed).sum(axis)[area > 0] / area[area > 0]
        found.append((float(profile.std()), name, _stripe_fit(profile)))
    _, name, fit = max(found)
    return name, fit


def measure(
    mask: Float[np.ndarray, "h w"], hole: float, purity: float, tex: str, fit: float
) -> Measure:
    """Finds the class of a blob.

    Args:
      mask: Coverage of the blob, at least one empty pixel around it.
      hole: Share of the filled blob that is hole.
      purity: Share of inner pixels of the blob's own colour.
      tex: Texture, "solid" or a stripe direction.
      fit: Correlation with the stripe pattern; 1 for solid blobs.
    """
    box = soft_box(mask)
    width, height = box[2] - box[0], box[3] - box[1]
    grid = stretch(mask, box)
    scores, best, d = _class_scores(grid, (width, height), tex, hole)
    second = float(np.delete(scores, best).max())
    return Measure(
        shape=SHAPES[best],
        tex=tex,
        d=d,
        iou=float(scores[best]),
        margin=float(scores[best]) - second,
        symmetry=_symmetry(grid, _MIRRORS[SHAPES[best]]),
        aspect=width / height,
        stripes=fit,
        purity=purity,
        scores=tuple(scores.tolist()),
    )


@cache
def limits() -> dict[str, dict[str, float]]:
    """The calibrated limits, one row per shape and per textured shape."""
    return json.loads(LIMITS_FILE.read_text())


def is_legal(m: Measure) -> bool:
    """Whether a measured blob passes every calibrated limit of its class."""
    row = limits().get(m.key)
    if row is None:
        return False
    return (
        m.iou >= row["iou"]
        and m.margin >= row["margin"]
        and m.symmetry >= row["symmetry"]
        and row["aspect_low"] <= m.aspect <= row["aspect_high"]
        and m.stripes >= row["stripes"]
        and m.purity >= row["purity"]
    )
