# SPDX-License-Identifier: Apache-2.0
"""Places objects and signs on the canvas, and says which combinations training must not see.

A picture is planned as looks (what) and cells (where). The nine cells of a 3 x 3 grid are the only
places that sentences name; every object lies within a few pixels of its cell's anchor, so its name
is never in doubt, relations hold by a wide margin and gaps are kept without search.

* Medium and large objects need cells two columns or two rows apart; small ones fit anywhere.
* Centres are multiples of half a pixel. Signs are centred and evenly stacked, so letters keep
  their places.
* Combinations are held out by fixed rules (shape with colour, shape with count, pairs of shapes,
  relations of shapes, words); every shape, colour, count, relation and letter stays in train.
* A tenth of all pictures, by hash, is reserved for the held-out split without such a combination.
"""

import hashlib
import math
import random
import zlib
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from .scenes import CANVAS, COLORS, RELATIONS, SHAPES, SIZES, TEXTURED_SHAPES, Object, Scene, Sign

CELLS = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
ANCHORS = (12.0, 32.0, 52.0)  # pixels; of the three columns, and of the three rows
TRIES = 400  # arrangements that are looked at before one is taken as it is
GAP, EDIT_GAP, MARGIN = 5.0, 6.0, 2.0  # pixels between boxes, the same in edits, to the border
COLOR_NAMES = tuple(COLORS)
SPLITS = ("train", "heldout")

# Cells of 1 to 6 objects. Few arrangements: a small model must be able to learn to count.
PATTERNS = {
    1: ((4,), (4,), (4,), (0,), (1,), (2,), (3,), (5,), (6,), (7,), (8,)),
    2: ((3, 5), (3, 5), (1, 7), (1, 7), (0, 2), (6, 8), (0, 6), (2, 8), (0, 8), (2, 6)),
    3: ((0, 2, 7), (1, 6, 8), (2, 3, 8), (0, 5, 6), (0, 2, 6), (0, 2, 8), (0, 6, 8), (2, 6, 8)),
    4: ((0, 2, 6, 8),),
    5: ((0, 2, 4, 6, 8), (1, 3, 4, 5, 7), (0, 1, 2, 6, 8), (0, 2, 6, 7, 8)),
    6: ((0, 1, 2, 6, 7, 8), (0, 2, 3, 5, 6, 8)),
}
# Share of tidy pictures that have the first pattern, in the order of their looks, or white signs.
USUAL = 0.7
# Cells (of the first, of the second object) that satisfy a relation.
RELATED = {
    "left of": ((3, 5), (3, 5), (0, 2), (6, 8)),
    "right of": ((5, 3), (5, 3), (2, 0), (8, 6)),
    "above": ((1, 7), (1, 7), (0, 6), (2, 8)),
    "below": ((7, 1), (7, 1), (6, 0), (8, 2)),
}
SIGN_COLUMN, SIGN_ROWS = 3, (2, 18, 34, 50)  # pixels; of the top left corners of tidy signs
ROWS = ((3, 4, 5), (0, 1, 2), (6, 7, 8))
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# The first seven are held out by the rule below; all 26 letters remain in train.
WORDS = tuple(
    "BOX BLUE PARK SALE EARTH GRASS MUSIC "
    "OPEN STOP EXIT CAFE TAXI BIRD GREEN HELLO WORLD HAPPY DREAM NIGHT RIVER STORM PEACE SMILE "
    "HOTEL MARKET COFFEE PIZZA FRESH JUICE LEMON APPLE BREAD WATER FIRE STONE GLASS ZEBRA TIGER "
    "SNAKE QUEEN KING JAZZ CAR BUS ZOO SKY MOON STAR WIND SNOW RAIN GOLD TEA ICE DAY MAP PEN KEY "
    "CUP HAT FOX DOG CAT LION FISH MILK HOME ROAD NEWS GAME LOVE HOPE YES QUIZ "
    "GARDEN VIOLIN".split()
)


class Look(NamedTuple):
    """What an object looks like, without its place."""

    shape: str
    color: str
    size: str = "medium"
    tex: str = "solid"


def bucket(text: str, n: int = 5) -> int:
    """Hash of a text modulo n, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big") % n


def is_held_out_word(word: str) -> bool:
    """True for a fifth of all words and for every number of five digits or more."""
    return len(word) >= 5 if word.isdigit() else bucket(f"word|{word}") == 0


_INDEX = {shape: i for i, shape in enumerate(SHAPES)}
HELD_LOOKS = frozenset(
    (shape, color)
    for shape in SHAPES
    for cid, color in enumerate(COLOR_NAMES)
    if (_INDEX[shape] + 2 * cid) % 5 == 0
)
HELD_COUNTS = frozenset((s, n) for s in SHAPES for n in range(2, 7) if (_INDEX[s] + n) % 5 == 0)
_PAIRS = [(a, b) for a, b in combinations(SHAPES, 2) if bucket(f"two|{_INDEX[a]}|{_INDEX[b]}") == 0]
HELD_PAIRS = frozenset(_PAIRS + [(b, a) for a, b in _PAIRS])
_TRIPLES = [
    (a, rel, b)
    for a in SHAPES
    for b in SHAPES
    for r, rel in enumerate(RELATIONS)
    if a != b and bucket(f"pos|{_INDEX[a]}|{_INDEX[b]}|{r}") == 0
]
# A left of B is the same picture as B right of A, so both ways of saying it are held out.
HELD_TRIPLES = frozenset(_TRIPLES + [(b, INVERSE[rel], a) for a, rel, b in _TRIPLES])
HELD_WORDS = tuple(word for word in WORDS if is_held_out_word(word))
TRAIN_WORDS = tuple(word for word in WORDS if not is_held_out_word(word))
LEGAL_COLORS = {
    shape: tuple(c for c in COLOR_NAMES if (shape, c) not in HELD_LOOKS) for shape in SHAPES
}


def held_out(scene: Scene, relations: Sequence[tuple[int, str, int]] = ()) -> tuple[str, ...]:
    """Names of the held-out combinations in a picture, e.g. `look:red circle`; empty in train.

    Args:
      relations: (i, relation, j) over `scene.objects` that a sentence about the picture states;
        relations that merely hold are not counted.
    """
    shapes = [o.shape for o in scene.objects]
    found = [f"look:{o.color} {o.shape}" for o in scene.objects if (o.shape, o.color) in HELD_LOOKS]
    kinds = sorted(set(shapes), key=_INDEX.__getitem__)
    for kind in kinds:
        n = shapes.count(kind)
        if n > 1 and (kind, n) in HELD_COUNTS:
            found.append(f"count:{n} {kind}")
    found += [f"pair:{a}+{b}" for a, b in combinations(kinds, 2) if (a, b) in HELD_PAIRS]
    for i, rel, j in relations:
        if (shapes[i], rel, shapes[j]) in HELD_TRIPLES:
            found.append(f"position:{shapes[i]} {rel} {shapes[j]}")
    found += [f"word:{s.word}" for s in scene.signs if is_held_out_word(s.word)]
    return tuple(dict.fromkeys(found))


def is_held_out(scene: Scene, relations: Sequence[tuple[int, str, int]] = ()) -> bool:
    """True if the picture contains a combination that training must not show."""
    return bool(held_out(scene, relations))


def canonical(scene: Scene) -> str:
    """The same text for the same picture, whatever the order of its records."""
    objects = sorted(f"{o.x:g},{o.y:g} {o.d} {o.tex} {o.color} {o.shape}" for o in scene.objects)
    signs = sorted(f"{s.x},{s.y} {s.color} '{s.word}'" for s in scene.signs)
    return "; ".join((scene.bg, *objects, *signs))


def is_reserved(scene: Scene) -> bool:
    """True for the tenth of all pictures, by hash, that belongs to the held-out split."""
    return zlib.crc32(canonical(scene).encode()) % 10 == 0


def cell_of(x: float, y: float) -> int:
    """Index into `CELLS` of the anchor nearest to a point in pixels."""
    column = 0 if x < 22 else 1 if x <= 42 else 2
    return 3 * (0 if y < 22 else 1 if y <= 42 else 2) + column


def cell(obj: Object) -> int:
    """Index into `CELLS` of an object's centre."""
    return cell_of(obj.x, obj.y)


def gap(a: Object, b: Object) -> float:
    """Pixels between two bounding boxes along the axis on which they are further apart."""
    return max(abs(a.x - b.x), abs(a.y - b.y)) - (a.d + b.d) / 2


def is_clear(objects: Sequence[Object], least: float = GAP) -> bool:
    """True if all boxes keep the margin to the border and at least `least` pixels between them."""
    low, high = MARGIN, CANVAS - MARGIN
    for o in objects:
        r = o.d / 2
        if o.x - r < low or o.y - r < low or o.x + r > high or o.y + r > high:
            return False
    return all(gap(a, b) >= least for a, b in combinations(objects, 2))


def diameter(rng: random.Random, size: str, tex: str = "solid", *, tidy: bool = False) -> int:
    """A diameter in pixels of a size bucket; stripes need the widest one of their bucket.

    Args:
      tidy: takes the middle one (the larger of two) instead of a random one.
    """
    low, high = SIZES[size]
    if tex != "solid":
        return high
    return (low + high + 1) // 2 if tidy else rng.randint(low, high)


def put(
    rng: random.Random, look: Look, where: int, d: int | None = None, jitter: int = 0
) -> Object:
    """An object near the anchor of cell `where`, at most `jitter` half pixels off on each axis."""
    d = diameter(rng, look.size, look.tex) if d is None else d
    low = MARGIN + d / 2
    x, y = ANCHORS[where % 3], ANCHORS[where // 3]
    if jitter:
        x += rng.randint(-jitter, jitter) / 2
        y += rng.randint(-jitter, jitter) / 2
    x, y = min(max(x, low), CANVAS - low), min(max(y, low), CANVAS - low)
    if look.tex != "solid":
        x, y = on_grid(x, d), on_grid(y, d)
    return Object(look.shape, look.color, d, x, y, look.tex)


def on_grid(x: float, d: int) -> float:
    """The centre rounded down so that the box begins on a whole pixel, as stripes do."""
    return math.floor(x - d / 2) + d / 2


def arrange(
    rng: random.Random,
    looks: Sequence[Look],
    cells: Sequence[int] | None = None,
    *,
    bg: str = "gray",
    least: float = GAP,
    reserved: bool | None = None,
    tidy: bool = False,
) -> Scene:
    """A picture of the looks, each at its cell, with as much jitter as the gaps allow.

    Args:
      cells: One index into `CELLS` per look; by default a random pattern in random order.
      least: Smallest gap between boxes in pixels.
      reserved: Redraws until `is_reserved` says this; None takes the first picture.
      tidy: Mostly the usual cells in the order of the looks, and no jitter: objects lie at their
        anchors, or as near as margin and stripes allow, with the middle diameter of their size,
        stripes with the widest. Looks and cells alone decide the picture, so `reserved` has no
        other to look for.

    Raises:
      ValueError: If the cells are too close for the sizes, or there are more than 6 looks.
    """
    if cells is None:
        if not 0 < len(looks) <= 6:
            raise ValueError(f"{len(looks)} objects were asked for; a picture holds 1 to 6")
        patterns = PATTERNS[len(looks)]
        if tidy and rng.random() < USUAL:
            cells = list(patterns[0])
        else:
            cells = list(rng.choice(patterns))
            rng.shuffle(cells)
    alike = len(set(looks)) == 1
    for attempt in range(TRIES):
        shared = diameter(rng, looks[0].size, looks[0].tex) if alike else None
        widths = [diameter(rng, k.size, k.tex, tidy=True) if tidy else shared for k in looks]
        for jitter in (0,) if tidy else (6, 4, 2, 1, 0):
            objects = tuple(
                put(rng, k, c, d, jitter) for k, c, d in zip(looks, cells, widths, strict=True)
            )
            if is_clear(objects, least):
                break
        else:
            continue
        scene = Scene(bg, objects)
        last = tidy or attempt == TRIES - 1
        if last or reserved is None or is_reserved(scene) == reserved:
            return scene
    raise ValueError(
        f"cells {tuple(cells)} are too close for {tuple(looks)} with a gap of {least} px"
    )


def free_cells(objects: Sequence[Object], d: int, least: float = EDIT_GAP) -> list[int]:
    """Cells whose anchor can take one more object of diameter `d` beside the given ones."""
    found = []
    for where in range(9):
        low = MARGIN + d / 2
        x, y = (min(max(a, low), CANVAS - low) for a in (ANCHORS[where % 3], ANCHORS[where // 3]))
        extra = Object("circle", "red", d, x, y)
        if all(gap(extra, o) >= least for o in objects):
            found.append(where)
    return found


def draw_looks(
    rng: random.Random,
    n: int,
    *,
    legal: bool,
    shapes: Sequence[str] = SHAPES,
    size: str = "medium",
) -> list[Look]:
    """Random looks of n different shapes; with `legal`, only combinations that training may see."""
    while True:
        chosen = rng.sample(shapes, n)
        if legal and any(pair in HELD_PAIRS for pair in combinations(chosen, 2)):
            continue
        return [
            Look(s, rng.choice(LEGAL_COLORS[s] if legal else COLOR_NAMES), size) for s in chosen
        ]


def stripe(rng: random.Random, look: Look) -> Look:
    """The look with horizontal or vertical stripes.

    Raises:
      ValueError: If the shape loses its tips to stripes.
    """
    if look.shape not in TEXTURED_SHAPES:
        raise ValueError(f"stripes need one of {', '.join(TEXTURED_SHAPES)}, not {look.shape!r}")
    return look._replace(tex=rng.choice(("hstripe", "vstripe")))


def stack(signs: Sequence[tuple[str, str]], bg: str = "gray", *, tidy: bool = False) -> Scene:
    """A picture of up to four signs (word, colour), centred, from top to bottom.

    Args:
      tidy: in four rows that are the same everywhere, all words from the same column on: a letter's
        place is then its number, whatever the word, and rows repeat with the DiT's patches.

    Raises:
      ValueError: If a word does not fit or there are more than four.
    """
    n, height = len(signs), 11
    if not 0 < n <= 4:
        raise ValueError(f"{n} signs were asked for; a picture holds 1 to 4")
    space = (CANVAS - n * height) // (n + 1)
    top = (CANVAS - n * height - (n - 1) * space) // 2
    placed = []
    for i, (word, color) in enumerate(signs):
        if not 3 <= len(word) <= 9:
            raise ValueError(f"the word {word!r} has {len(word)} characters; signs hold 3 to 9")
        x, y = (CANVAS - (6 * len(word) + 3)) // 2, top + i * (height + space)
        if tidy:
            x, y = SIGN_COLUMN, SIGN_ROWS[(4 - n) // 2 + i]
        placed.append(Sign(word, color, x, y))
    return Scene(bg, (), tuple(placed))
