# SPDX-License-Identifier: Apache-2.0
"""Which shape each picture is trained in: a small fixed set of sizes, so that each compiles once.

A shape's sides are multiples of what the DiT needs, its area keeps a budget. A picture goes to the
shape nearest to its aspect in the largest scale that it fills: it is shrunk and its edges are cut
until it fits, and never enlarged. Records whose pictures have the same shapes form a group, and a
batch comes from one group.

Source: OmniGen2 (multiples of 16, never upscaled, budgets of references by their number); grouping
is ours, where OmniGen2 packs pictures of any size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from thinkgen_jax.data.records import Size

# Width over height. Neighbours are near enough for a picture to lose at most a seventh.
ASPECTS = (1 / 2, 9 / 16, 2 / 3, 3 / 4, 1, 4 / 3, 3 / 2, 16 / 9, 2)
SCALES = (1.0, 0.75, 0.5)  # of a side; smaller ones are for pictures that do not fill the first
REFERENCES = (1024**2, 1024**2, 768**2, 512**2)  # budget of each of 1, 2, 3, 4 or more references
COMMON = 4  # a group is common with a batch of records, or this part of all records alike
NONE = -1


@dataclass(frozen=True)
class Group:
    """Records that are drawn and shown in the same shapes.

    Attributes:
      target: (height, width) to draw.
      reference: (height, width) of every reference, None without any.
      pictures: references of a record.
      rows: numbers of its records, ascending.
    """

    target: Size
    reference: Size | None
    pictures: int
    rows: Int[np.ndarray, "_"]


def shapes(
    pixels: int, *, multiple: int, scales: Sequence[float] = SCALES, aspects: Sequence = ASPECTS
) -> tuple[tuple[Size, ...], ...]:
    """The sizes (height, width) of every scale, largest scale first.

    Args:
      pixels: area that none of them exceeds.
      multiple: every side is one of these many pixels.

    Raises:
      ValueError: when the budget is too small for one shape.
    """
    if pixels < multiple**2 or not scales or not 0 < min(scales) <= max(scales) <= 1:
        raise ValueError(
            f"pixels = {pixels}, scales = {tuple(scales)}: want at least {multiple**2} pixels and "
            "scales in (0, 1]"
        )
    found = []
    for scale in sorted(set(scales), reverse=True):
        area = pixels * scale**2
        sides = [(math.sqrt(area / a), math.sqrt(area * a)) for a in aspects]
        # A hair more, for the root of a square may fall below it.
        whole = {(_floored(h, multiple), _floored(w, multiple)) for h, w in sides}
        kept = tuple(sorted(size for size in whole if min(size) > 0))
        if kept:
            found.append(kept)
    return tuple(found)


def _floored(side: float, multiple: int) -> int:
    return int(side * (1 + 1e-9)) // multiple * multiple


def choose(
    sizes: Int[np.ndarray, "N 2"], table: Sequence[Sequence[Size]]
) -> Int[np.ndarray, "N 2"]:
    """The shape of every picture; (-1, -1) where it fills none.

    Args:
      sizes: (height, width) of the pictures.
      table: see `shapes`.
    """
    out = np.full((len(sizes), 2), NONE, np.int64)
    aspect = np.log(np.maximum(sizes[:, 1], 1) / np.maximum(sizes[:, 0], 1))
    open_ = np.ones(len(sizes), bool)
    for scale in table:
        known = np.asarray(scale)
        distance = np.abs(aspect[:, None] - np.log(known[:, 1] / known[:, 0])[None])
        nearest = known[distance.argmin(axis=1)]
        fits = open_ & (nearest <= sizes).all(axis=1)
        out[fits] = nearest[fits]
        open_ &= ~fits
    return out


def group(
    sizes: Int[np.ndarray, "N R1 2"],
    *,
    pixels: int,
    references: Sequence[int] = REFERENCES,
    multiple: int,
    scales: Sequence[float] = SCALES,
    batch: int = 1,
) -> tuple[list[Group], Int[np.ndarray, "_"]]:
    """Groups records by shape.

    A group that is not even a batch, and a small part of all, joins the nearest common one that its
    pictures fill: a batch of one picture again and again would teach little else.

    Args:
      sizes: (height, width) of the target and then of each reference; 0 where there is none.
      pixels: budget of targets; that of references is the least of it and `references`.
      batch: rows of a batch.

    Returns:
      The groups, and the numbers of the records whose pictures are smaller than every shape.
    """
    count = (sizes[:, 1:, 0] > 0).sum(axis=1)
    targets = choose(sizes[:, 0], shapes(pixels, multiple=multiple, scales=scales))
    refs = np.full_like(targets, 0)
    # All references of a record share one shape, which the smallest of them fills.
    least = np.where(sizes[:, 1:] > 0, sizes[:, 1:], np.iinfo(sizes.dtype).max).min(axis=1)
    for number in np.unique(count[count > 0]):
        budget = min(pixels, references[min(number, len(references)) - 1])
        rows = count == number
        table = shapes(budget, multiple=multiple, scales=scales)
        refs[rows] = choose(least[rows], table)
    small = (targets[:, 0] == NONE) | (refs[:, 0] == NONE)
    keys = np.concatenate([targets, refs, count[:, None]], axis=1)
    keys[~small] = _joined(keys[~small], sizes[~small, 0], least[~small], batch)
    found = []
    kept = np.flatnonzero(~small)
    unique, where = np.unique(keys[kept], axis=0, return_inverse=True)
    for place, key in enumerate(unique.tolist()):
        reference = (key[2], key[3]) if key[4] else None
        rows = kept[where.reshape(-1) == place]
        found.append(Group((key[0], key[1]), reference, key[4], rows))
    return found, np.flatnonzero(small)


def _joined(keys: np.ndarray, target: np.ndarray, least: np.ndarray, batch: int) -> np.ndarray:
    """Keys (target, reference, count) with those of rare groups replaced by a common one's."""
    keys = keys.copy()
    if not len(keys):
        return keys
    unique, where, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    where = where.reshape(-1)
    for number in np.unique(unique[:, 4]):
        alike = np.flatnonzero(unique[:, 4] == number)
        enough = min(batch, -(-counts[alike].sum() // COMMON))
        common = alike[counts[alike] >= enough]
        for rare in np.setdiff1d(alike, common):
            rows = np.flatnonzero(where == rare)
            distance = sum(
                _distance(unique[common, a : a + 2], unique[rare, a : a + 2])
                for a in ((0, 2) if number else (0,))
            )
            fills = (unique[None, common, :2] <= target[rows, None]).all(-1)
            if number:
                fills &= (unique[None, common, 2:4] <= least[rows, None]).all(-1)
            cost = np.where(fills, distance[None], np.inf)
            if len(common):
                best = cost.argmin(axis=1)
                joins = np.isfinite(cost[np.arange(len(rows)), best])
                keys[rows[joins]] = unique[common[best[joins]]]
    return keys


def _distance(known: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """How unlike shapes are: by aspect, and half as much by area."""
    logs, own = np.log(known), np.log(shape)
    aspect = np.abs((logs[:, 1] - logs[:, 0]) - (own[1] - own[0]))
    return aspect + 0.5 * np.abs(logs.sum(axis=1) - own.sum())
