# SPDX-License-Identifier: Apache-2.0
"""Random scenes and their specifications, for measuring the verifier.

Nine families: the eight of the compositional benchmark and text. Every scene is a pure function of
(split, family, index). `near_miss` changes one attribute of a specification, so that a picture of
the old one must fail it.
"""

import hashlib

import numpy as np

from .glyphs import FONT, SIGN_HEIGHT, sign_width
from .render import boxes
from .scenes import (
    CANVAS,
    COLORS,
    SHAPES,
    SIZES,
    TEXTURED_SHAPES,
    Object,
    Scene,
    Sign,
    Spec,
    Want,
)

FAMILIES = (
    *("single", "two", "counting", "colors", "position"),
    *("attribution", "size", "texture", "text"),
)
GAP, MARGIN, SIGN_GAP = 5, 2, 4  # pixels
STRIPED_DIAMETERS = (18, 23)
_BACKGROUNDS = ("gray", "gray", "cyan", "lavender", "teal", "navy")


def generator(split: str, family: str, index: int) -> np.random.Generator:
    """The random numbers of one scene."""
    digest = hashlib.sha256(f"{split}|{family}|{index}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _pick(rng, options):
    return options[int(rng.integers(len(options)))]


def place(rng, diameters, striped=(), gap: int = GAP) -> list[tuple[float, float]] | None:
    """Centres of objects that keep their distance; None if they do not fit.

    Args:
      diameters: In pixels.
      striped: Indices whose boxes must lie on whole pixels.
      gap: Smallest distance between boxes in pixels.
    """
    for _ in range(200):
        taken, centres = [], []
        for index, d in enumerate(diameters):
            step = 1.0 if index in striped else 0.5
            spots = int((CANVAS - 2 * MARGIN - d) / step) + 1
            left, top = (MARGIN + step * int(v) for v in rng.integers(0, spots, 2))
            box = (left, top, left + d, top + d)
            if any(
                box[0] < b[2] + gap
                and b[0] < box[2] + gap
                and box[1] < b[3] + gap
                and b[1] < box[3] + gap
                for b in taken
            ):
                break
            taken.append(box)
            centres.append((left + d / 2, top + d / 2))
        else:
            return centres
    return None


def _scene(rng, items) -> Scene:
    """A scene of (shape, colour, diameter, texture) at random places."""
    striped = [i for i, item in enumerate(items) if item[3] != "solid"]
    while (centres := place(rng, [item[2] for item in items], striped)) is None:
        pass
    made = tuple(
        Object(shape, color, int(d), x, y, tex)
        for (shape, color, d, tex), (x, y) in zip(items, centres, strict=True)
    )
    return Scene(_pick(rng, _BACKGROUNDS), made)


def _diameter(rng, shape: str, size: str | None = None) -> int:
    sizes = ("medium", "large") if shape == "star" else tuple(SIZES)
    low, high = SIZES[size or _pick(rng, sizes)]
    return int(rng.integers(low, high + 1))


def _relation(a: Object, b: Object) -> str | None:
    """The relation that clearly holds between two objects."""
    dx, dy = a.x - b.x, a.y - b.y
    gap = (a.d + b.d) / 2 + 2
    if abs(dx) > gap and abs(dx) > 1.5 * abs(dy):
        return "left of" if dx < 0 else "right of"
    if abs(dy) > gap and abs(dy) > 1.5 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def _composed(rng, family: str) -> tuple[Scene, Spec]:
    count = 1
    if family == "counting":
        count = int(rng.integers(2, 7))
    elif family in ("two", "position", "attribution"):
        count = 2
    small = count > 4
    shapes = [s for s in SHAPES if s != "star" or not (small or family == "size")]
    if family == "texture":
        shapes = list(TEXTURED_SHAPES)
    drawn = [str(s) for s in rng.choice(shapes, 1 if family == "counting" else count, False)]
    drawn = drawn * count if family == "counting" else drawn
    paints = [str(c) for c in rng.choice(list(COLORS), count, False)]
    paints = [paints[0]] * count if family == "counting" else paints
    items = []
    for shape, color in zip(drawn, paints, strict=True):
        size = "small" if small else "medium" if count > 2 else None
        d, tex = _diameter(rng, shape, size), "solid"
        if family == "texture":
            d, tex = _pick(rng, STRIPED_DIAMETERS), _pick(rng, ("hstripe", "vstripe"))
        items.append((shape, color, d, tex))
    scene = _scene(rng, items)
    colored = family not in ("single", "two", "counting", "position")
    wants = tuple(
        Want(
            o.shape,
            o.color if colored else None,
            o.tex if family == "texture" else "solid",
            o.size if family == "size" else None,
        )
        for o in scene.objects
    )
    relations = ()
    if family == "position":
        relation = _relation(*scene.objects)
        if relation is None:
            return _composed(rng, family)
        relations = ((0, relation, 1),)
    return scene, Spec(wants, relations)


def _word(rng) -> str:
    return "".join(_pick(rng, tuple(FONT)) for _ in range(int(rng.integers(3, 10))))


def _text(rng) -> tuple[Scene, Spec]:
    count = int(rng.integers(1, 5))
    free = CANVAS - 2 * MARGIN - count * SIGN_HEIGHT - (count - 1) * SIGN_GAP
    cuts = sorted(int(v) for v in rng.integers(0, free + 1, count))
    made, wants = [], []
    for i, cut in enumerate(cuts):
        word, color = _word(rng), _pick(rng, tuple(COLORS))
        x = MARGIN + int(rng.integers(0, CANVAS - 2 * MARGIN - sign_width(word) + 1))
        made.append(Sign(word, color, x, MARGIN + cut + i * (SIGN_HEIGHT + SIGN_GAP)))
        wants.append((word, color if rng.random() < 0.5 else None))
    scene = Scene(_pick(rng, _BACKGROUNDS), signs=tuple(made))
    assert all(b[2] <= CANVAS for b in boxes(scene))
    return scene, Spec(signs=tuple(wants))


def probe(family: str, index: int, split: str = "gates") -> tuple[Scene, Spec]:
    """One scene of a family and the specification that it satisfies.

    Raises:
      ValueError: If the family is unknown.
    """
    if family not in FAMILIES:
        raise ValueError(f"family {family!r} is not one of {', '.join(FAMILIES)}")
    rng = generator(split, family, index)
    return _text(rng) if family == "text" else _composed(rng, family)


def _other(rng, options, current):
    return _pick(rng, [o for o in options if o != current])


def near_miss(spec: Spec, seed: int) -> Spec:
    """The specification with one attribute changed, so that its picture no longer satisfies it."""
    rng = np.random.default_rng(seed)
    if spec.signs:
        words = [list(pair) for pair in spec.signs]
        pair = words[int(rng.integers(len(words)))]
        i = int(rng.integers(len(pair[0])))
        pair[0] = pair[0][:i] + _other(rng, tuple(FONT), pair[0][i]) + pair[0][i + 1 :]
        return Spec(signs=tuple((w, c) for w, c in words))
    changes = ["shape", "count"]
    first = spec.objects[0]
    changes += ["color"] if first.color else []
    changes += ["tex"] if first.tex != "solid" else []
    changes += ["size"] if first.size else []
    changes += ["relation"] if spec.relations else []
    change = _pick(rng, changes)
    if change == "relation":  # the opposite: on a diagonal two relations hold
        a, relation, b = spec.relations[0]
        return Spec(spec.objects, ((b, relation, a),))
    if change == "count":
        less = len(spec.objects) > 1 and rng.random() < 0.5
        objects = spec.objects[:-1] if less else (*spec.objects, spec.objects[-1])
        relations = () if less else spec.relations
        return Spec(objects, relations)
    index = int(rng.integers(len(spec.objects)))
    want = spec.objects[index]
    options = {
        "shape": [s for s in SHAPES if all(s != w.shape for w in spec.objects)],
        "color": [c for c in COLORS if all(c != w.color for w in spec.objects)],
        "tex": ["solid", "hstripe", "vstripe"],
        "size": list(SIZES),
    }[change]
    changed = {**vars(want), change: _other(rng, options, getattr(want, change))}
    objects = [*spec.objects]
    objects[index] = Want(**changed)
    return Spec(tuple(objects), spec.relations)
