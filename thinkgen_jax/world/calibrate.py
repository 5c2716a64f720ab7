# SPDX-License-Identifier: Apache-2.0
"""Computes `limits.json` from drawn truth: `python -m thinkgen_jax.world.calibrate`.

Every shape is drawn many times, disturbed by the nuisances that the verifier must bear, and
measured. A limit is the 0.5 % quantile of what was measured where the class was right, under the
nuisance that is hardest for it, less a small slack. Model outputs never enter: a judge fitted to
its pupil stops judging.
"""

import argparse
import json
import logging

import numpy as np

from . import pixels, shapes
from .parse import parse
from .probes import STRIPED_DIAMETERS, generator
from .render import render
from .scenes import BACKGROUNDS, COLORS, SHAPES, SIZES, TEXTURED_SHAPES, Object, Scene

QUANTILE, TEXTURE_QUANTILE = 0.005, 0.03  # stripes lose their tips to a codec now and then
IOU_SLACK, SYMMETRY_SLACK = 0.02, 0.03  # for pictures between the nuisances that were drawn
MARGIN_SHARE = 0.6  # of the quantile, likewise
ASPECT_SLACK = 0.03  # a third of a pixel on a small shape
MIN_PURITY = 0.95  # of solid shapes; never loosened
MIN_MARGIN = 0.015
_KEYS = tuple(SHAPES) + tuple(f"{shape}+tex" for shape in TEXTURED_SHAPES)


def _sample(key: str, index: int) -> Scene:
    """One object of a class in the middle of the canvas, everything else random."""
    rng = generator("calibrate", key, index)
    shape, _, textured = key.partition("+")
    sizes = [d for size, (a, b) in SIZES.items() for d in range(a, b + 1)]
    if shape == "star":  # small stars are not legal
        sizes = [d for d in sizes if d > SIZES["small"][1]]
    d, tex = int(rng.choice(sizes)), "solid"
    if textured:
        d, tex = int(rng.choice(STRIPED_DIAMETERS)), str(rng.choice(("hstripe", "vstripe")))
    step = 1.0 if textured else 0.5
    x, y = (10 + step * int(v) + d / 2 for v in rng.integers(0, 20, 2))
    color, bg = str(rng.choice(list(COLORS))), str(rng.choice(list(BACKGROUNDS)))
    return Scene(bg, (Object(shape, color, d, x, y, tex),))


def measures(key: str, count: int) -> dict[str, list[shapes.Measure]]:
    """What the parser measures on `count` pictures of a class, per nuisance of the envelope.

    Pictures whose class, texture or number of blobs is mistaken are left out.
    """
    out = {name: [] for name in pixels.ENVELOPE}
    for index in range(count):
        scene = _sample(key, index)
        image = render(scene)
        for name, kept in out.items():
            found = parse(pixels.NUISANCES[name](image, index)).objects
            if len(found) == 1 and (found[0].measure.shape, found[0].tex) == (
                scene.objects[0].shape,
                scene.objects[0].tex,
            ):
                kept.append(found[0].measure)
    return out


def row(found: dict[str, list[shapes.Measure]]) -> dict[str, float]:
    """Limits that all but half a percent of the measures pass under every nuisance."""
    solid = found["clean"][0].tex == "solid"
    rare = {name: QUANTILE for name in found}
    if not solid:
        rare |= {name: TEXTURE_QUANTILE for name in found if name != "clean"}

    def low(name: str) -> float:
        return min(_quantile(kept, name, rare[n]) for n, kept in found.items())

    aspect_high = max(_quantile(kept, "aspect", 1 - rare[n]) for n, kept in found.items())
    return {
        "iou": round(low("iou") - IOU_SLACK, 3),
        "margin": round(max(MARGIN_SHARE * low("margin"), MIN_MARGIN), 3),
        "symmetry": round(low("symmetry") - SYMMETRY_SLACK, 3),
        "aspect_low": round(low("aspect") - ASPECT_SLACK, 3),
        "aspect_high": round(aspect_high + ASPECT_SLACK, 3),
        "stripes": 1.0 if solid else round(low("stripes") - IOU_SLACK, 3),
        "purity": MIN_PURITY if solid else round(min(MIN_PURITY, low("purity")), 3),
    }


def _quantile(kept: list[shapes.Measure], name: str, q: float) -> float:
    return float(np.quantile([getattr(m, name) for m in kept], q))


def main() -> None:
    """Writes the limits file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=400, help="per class and nuisance")
    parser.add_argument("--out", default=str(shapes.LIMITS_FILE))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    table = {}
    for key in _KEYS:
        found = measures(key, args.pictures)
        table[key] = row(found)
        share = sum(map(len, found.values())) / args.pictures / len(found)
        logging.info("%-14s right class %.3f  %s", key, share, table[key])
    with open(args.out, "w") as file:
        json.dump(table, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
