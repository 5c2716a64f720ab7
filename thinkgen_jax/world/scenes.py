# SPDX-License-Identifier: Apache-2.0
"""Vocabulary and records of the miniature world: what a 64 x 64 picture can hold.

A `Scene` is a complete description of one picture; `render.render` is a pure function of it. A
`Spec` says what a picture must show (free attributes are None), and is all that the verifier's
scores know about a prompt.

* Coordinates are pixels, x to the right, y downwards, (0, 0) the top-left corner of the canvas.
* Colours are the ten of GenEval; minimum pairwise CIELAB distance 45.
"""

from dataclasses import dataclass

CANVAS = 64  # side of the picture in pixels

SHAPES = (
    "circle",
    "square",
    "triangle",
    "diamond",
    "cross",
    "star",
    "heart",
    "ring",
    "arrow-right",
    "arrow-down",
    "arrow-left",
    "arrow-up",
)
COLORS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (250, 225, 40),
    "green": (40, 160, 60),
    "blue": (20, 120, 230),
    "purple": (130, 30, 140),
    "pink": (255, 130, 195),
    "brown": (120, 70, 35),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
}
BACKGROUNDS = {
    "gray": (150, 150, 150),
    "cyan": (110, 210, 220),
    "lavender": (165, 160, 225),
    "teal": (0, 125, 125),
    "navy": (25, 40, 95),
}
# "white" and "black" also occur as backgrounds, but only as the result of an "extract" edit.
TEXTURES = ("solid", "hstripe", "vstripe")
TEXTURED_SHAPES = ("circle", "square", "diamond", "cross")  # others lose their tips to the stripes
SIZES = {"small": (12, 13), "medium": (16, 18), "large": (22, 23)}  # diameters in pixels
RELATIONS = ("left of", "right of", "above", "below")
BIGGER = "bigger than"  # the one relation that is not about places
LIGHT_SIGNS = ("white", "yellow", "pink", "orange", "green")  # signs whose ink is black


@dataclass(frozen=True)
class Object:
    """One drawn shape: diameter `d` in pixels (12 to 23), centre (x, y)."""

    shape: str
    color: str
    d: int
    x: float
    y: float
    tex: str = "solid"

    @property
    def size(self) -> str:
        """Size bucket by diameter: at most 14 small, at most 19 medium, else large."""
        return "small" if self.d <= 14 else "medium" if self.d <= 19 else "large"


@dataclass(frozen=True)
class Sign:
    """One word of 3-9 characters A-Z0-9 on a bar of (6 L + 3) x 11 pixels; (x, y) its top-left."""

    word: str
    color: str
    x: int
    y: int

    @property
    def ink(self) -> str:
        """Colour of the letters: black on light bars, white on dark ones."""
        return "black" if self.color in LIGHT_SIGNS else "white"


@dataclass(frozen=True)
class Scene:
    """A whole picture: background name, objects, signs."""

    bg: str = "gray"
    objects: tuple[Object, ...] = ()
    signs: tuple[Sign, ...] = ()


@dataclass(frozen=True)
class Want:
    """What one required object must be; None leaves the attribute free.

    `color` may be a tuple of names, any of which is right ("a leaf in autumn": orange or brown).
    """

    shape: str | None = None
    color: str | tuple[str, ...] | None = None
    tex: str | None = None
    size: str | None = None
    cell: int | None = None  # of the 3 x 3 grid, row by row


@dataclass(frozen=True)
class Spec:
    """What a picture must show, and nothing beside it (closed world).

    Attributes:
      objects: required objects; anything else in the picture counts against it.
      relations: (i, relation, j) over indices of `objects`, relation one of `RELATIONS` or
        `BIGGER`.
      signs: (word, colour or None) from top to bottom.
      bg: required background name, None leaves it free.
    """

    objects: tuple[Want, ...] = ()
    relations: tuple[tuple[int, str, int], ...] = ()
    signs: tuple[tuple[str, str | None], ...] = ()
    bg: str | None = None
