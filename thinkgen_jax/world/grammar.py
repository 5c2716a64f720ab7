# SPDX-License-Identifier: Apache-2.0
"""Sentences about pictures: prompts in several surface forms, and one canonical instruction.

A prompt is a body in a frame ("a picture of a red circle left of a blue square"). An instruction
is the canonical sentence that stands behind a thought: every object with its article, its
attributes and, where places matter, its cell ("a red circle at the left and a blue square at the
right"). Both use one small vocabulary, so that an image model can learn from either.

* Everything is lower case but the words on signs, which stand in single quotes and upper case.
* Frames 4 and 5 of every family are held out; all their words occur in frames 0-3.
* `read` is the inverse of `instruction`, for measuring what a thought led to; pictures are never
  judged by it.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from .layout import CELLS, COLOR_NAMES, cell
from .scenes import BACKGROUNDS, BIGGER, RELATIONS, SHAPES, SIZES, Object, Scene, Sign, Spec, Want

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
TRAIN_FRAMES = 4  # frames from this index on are held out
STRIPES = {"hstripe": "horizontal", "vstripe": "vertical"}
DIRECTIONS = ("right", "down", "left", "up")  # clockwise, a quarter turn apart

FRAMES = {
    "scene": (
        "{}",
        "draw {}",
        "a picture of {}",
        "an image with {}",
        "draw a picture of {}",
        "an image of {}",
    ),
    "text": (
        "{}",
        "draw {}",
        "a picture of {}",
        "an image with {}",
        "draw a picture with {}",
        "draw an image of {}",
    ),
}


def article(phrase: str) -> str:
    """The phrase behind "a" or "an"."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def noun(shape: str, n: int = 1) -> str:
    """A shape as English: "crosses", "arrow pointing up"."""
    if shape.startswith("arrow-"):
        return f"arrow{'s' if n > 1 else ''} pointing {shape[6:]}"
    if n == 1:
        return shape
    return shape + ("es" if shape == "cross" else "s")


def name(thing: Want | Object, n: int = 1, *, sized: bool = True) -> str:
    """Size, colour, shape and stripes of an object or of what is wanted of it, no article.

    Free attributes are left out; of several accepted colours the first is named. An object's medium
    size and solid texture are left out as well, being what is drawn by default.

    Args:
      sized: Whether to name the size at all.
    """
    size, tex, color = thing.size, thing.tex, thing.color
    if isinstance(thing, Object):
        size = None if size == "medium" else size
    color = color[0] if isinstance(color, tuple) else color
    words = [size if sized else None, color, noun(thing.shape, n)]
    text = " ".join(word for word in words if word)
    return f"{text} with {STRIPES[tex]} stripes" if tex in STRIPES else text


def phrase(thing: Want | Object, n: int = 1, *, sized: bool = True) -> str:
    """`name` behind its article or number: "a red circle", "three rings"."""
    text = name(thing, n, sized=sized)
    return article(text) if n == 1 else f"{NUMBERS[n]} {text}"


def at(where: int) -> str:
    """Place words for an index into `CELLS`: "at the top left"."""
    return f"at the {CELLS[where]}"


def on(bg: str | None) -> str:
    """Trailing words for a background; empty for None, which leaves it to the default."""
    return f" on a {bg} background" if bg else ""


def quoted(word: str) -> str:
    """A sign's word as prompts write it."""
    return f"'{word}'"


def sign_name(word: str, color: str | None) -> str:
    """One sign with its article: "a red sign with the word 'STOP'"."""
    return article(f"{color} sign" if color else "sign") + f" with the word {quoted(word)}"


def sign_list(signs: Sequence[tuple[str, str | None]]) -> str:
    """Canonical words for a stack of signs, short enough for four of them."""
    if len(signs) == 1:
        return sign_name(*signs[0])
    listed = ", ".join(
        f"{color} {quoted(word)}" if color else quoted(word) for word, color in signs
    )
    return f"{NUMBERS[len(signs)]} signs from top to bottom: {listed}"


def body(spec: Spec, *, absent: str | None = None) -> str:
    """The words of a prompt for a spec, without frame: objects, relation, signs, background.

    Alike wants are counted; a relation joins the first two objects.

    Args:
      absent: a shape that the words rule out; nothing unasked for may be drawn anyway.
    """
    if spec.signs:
        return sign_list(spec.signs) + on(spec.bg)
    wants = spec.objects
    tail = (f" and no {noun(absent)}" if absent else "") + on(spec.bg)
    if len(wants) > 1 and len(set(wants)) == 1 and not spec.relations:
        return phrase(wants[0], len(wants)) + tail
    if spec.relations:
        i, rel, j = spec.relations[0]
        return f"{phrase(wants[i])} {rel} {phrase(wants[j])}" + tail
    return " and ".join(phrase(w) for w in wants) + tail


def instruction(spec: Spec, cells: Sequence[int] | None = None) -> str:
    """The canonical explicit sentence: like `body`, but relations become places.

    Args:
      cells: One index into `CELLS` per wanted object; None where places do not matter.
    """
    if spec.signs or cells is None:
        return body(spec)
    named = (f"{phrase(w)} {at(c)}" for w, c in zip(spec.objects, cells, strict=True))
    return " and ".join(named) + on(spec.bg)


def frame(family: str, index: int, text: str) -> str:
    """Puts a body into one of the surface forms of its family."""
    return FRAMES[family][index].format(text)


def listed(items: Sequence[str]) -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def reading_order(objects: Sequence[Object]) -> list[Object]:
    """Objects by cell, row after row."""
    return sorted(objects, key=lambda o: (cell(o), o.x, o.y))


def describe(scene: Scene) -> str:
    """A full sentence about a picture, objects in reading order, each with its place."""
    if scene.signs:
        ordered = sorted(scene.signs, key=lambda s: s.y)
        text = sign_list([(s.word, s.color) for s in ordered])
    else:
        text = " and ".join(f"{phrase(o)} {at(cell(o))}" for o in reading_order(scene.objects))
    return text + (on(scene.bg) if scene.bg != "gray" else "")


def refer(scene: Scene, obj: Object, *, full: bool = True) -> str:
    """A definite phrase that fits exactly one object of the picture.

    Args:
      full: Names the colour even where the shape alone would do.
    """
    alike = [o for o in scene.objects if o.shape == obj.shape]
    if len(alike) == 1 and not full:
        return f"the {noun(obj.shape)}"
    same = [o for o in alike if o.color == obj.color]
    text = f"the {obj.color} {noun(obj.shape)}"
    return text if len(same) == 1 else f"{text} {at(cell(obj))}"


def sign_ref(sign: Sign) -> str:
    """A definite phrase for a sign: "the sign 'STOP'"."""
    return f"the sign {quoted(sign.word)}"


def spec_of(scene: Scene) -> Spec:
    """The spec that demands every attribute of a picture but the places."""
    wants = tuple(Want(o.shape, o.color, o.tex, o.size) for o in scene.objects)
    signs = tuple((s.word, s.color) for s in sorted(scene.signs, key=lambda s: s.y))
    return Spec(wants, (), signs, scene.bg)


# --- reading instructions back ------------------------------------------------------------------


class Named(NamedTuple):
    """One object as a sentence describes it; None where it says nothing."""

    want: Want
    cell: int | None = None


class Reading(NamedTuple):
    """What an instruction asks for."""

    objects: tuple[Named, ...] = ()
    signs: tuple[tuple[str, str | None], ...] = ()
    relations: tuple[tuple[int, str, int], ...] = ()
    bg: str | None = None


def _either(words) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_PLAIN = [s for s in SHAPES if not s.startswith("arrow-")]
_NP = re.compile(
    rf"(?P<n>an?|{_either(NUMBERS[2:])}) (?:(?P<size>{_either(SIZES)}) )?"
    rf"(?:(?P<color>{_either(COLOR_NAMES)}) )?"
    rf"(?:(?P<shape>{_either(_PLAIN)})(?:e?s)?|arrows? pointing (?P<way>{_either(DIRECTIONS)}))"
    r"(?: with (?P<tex>horizontal|vertical) stripes)?"
    rf"(?: at the (?P<cell>{_either(CELLS)}))?"
)
_BG = re.compile(rf"(.*) on a ({_either((*BACKGROUNDS, 'white', 'black'))}) background")
_ABSENT = re.compile(rf" and no (?:{_either(map(noun, SHAPES))})$")
_ONE_SIGN = re.compile(rf"an? (?:({_either(COLOR_NAMES)}) )?sign with the word '([A-Z0-9]+)'")
_SIGNS = re.compile(r"(two|three|four) signs from top to bottom: (.*)")
_LISTED = re.compile(rf"(?:({_either(COLOR_NAMES)}) )?'([A-Z0-9]+)'")


def _read_signs(text: str) -> tuple | None:
    if found := _ONE_SIGN.fullmatch(text):
        return ((found[2], found[1]),)
    if not (found := _SIGNS.fullmatch(text)):
        return None
    parts = [_LISTED.fullmatch(part) for part in found[2].split(", ")]
    if None in parts or len(parts) != NUMBERS.index(found[1]):
        return None
    return tuple((part[2], part[1]) for part in parts)


def _read_objects(text: str) -> list[Named] | None:
    if not (found := _NP.fullmatch(text)):
        return None
    shape = found["shape"] or f"arrow-{found['way']}"
    tex = {v: k for k, v in STRIPES.items()}.get(found["tex"])
    where = CELLS.index(found["cell"]) if found["cell"] else None
    n = 1 if found["n"] in ("a", "an") else NUMBERS.index(found["n"])
    return [Named(Want(shape, found["color"], tex, found["size"]), where)] * n


def read(text: str) -> Reading | None:
    """What a bare prompt body or an instruction asks for, or None if it is no such sentence."""
    bg = None
    if found := _BG.fullmatch(text):
        text, bg = found[1], found[2]
    text = _ABSENT.sub("", text)  # whatever is not asked for is ruled out anyway
    if signs := _read_signs(text):
        return Reading(signs=signs, bg=bg)
    for rel in (*RELATIONS, BIGGER):
        if f" {rel} " in text:
            pair = [_read_objects(part) for part in text.split(f" {rel} ", 1)]
            if None in pair or any(len(part) != 1 for part in pair):
                return None
            return Reading((pair[0][0], pair[1][0]), relations=((0, rel, 1),), bg=bg)
    parts = [_read_objects(part) for part in text.split(" and ")]
    if None in parts:
        return None
    return Reading(tuple(named for part in parts for named in part), bg=bg)


def _fits(named: Named, want: Want) -> bool:
    said = named.want
    colors = want.color if isinstance(want.color, tuple) else (want.color,)
    return (
        (want.shape is None or said.shape == want.shape)
        and (want.color is None or said.color in colors)
        and (want.tex in (None, "solid") and said.tex in (None, want.tex) or said.tex == want.tex)
        and (want.size is None or said.size == want.size)
        and (want.cell is None or named.cell == want.cell)
    )


def _holds(a: Named, rel: str, b: Named) -> bool:
    if rel == BIGGER:
        first, second = (list(SIZES).index(n.want.size or "medium") for n in (a, b))
        return first > second
    if a.cell is None or b.cell is None:
        return False
    dx, dy = b.cell % 3 - a.cell % 3, b.cell // 3 - a.cell // 3
    along, across = (dx, dy) if rel in ("left of", "right of") else (dy, dx)
    return (along if rel in ("left of", "above") else -along) > abs(across)


def meets(reading: Reading, spec: Spec) -> bool:
    """True if a picture drawn exactly as the sentence says would satisfy the spec."""
    if spec.bg is not None and (reading.bg or "gray") != spec.bg:
        return False
    if len(reading.signs) != len(spec.signs) or len(reading.objects) != len(spec.objects):
        return False
    for (word, color), (wanted, wanted_color) in zip(reading.signs, spec.signs, strict=True):
        if word != wanted or wanted_color not in (None, color):
            return False

    def assign(chosen: tuple[int, ...]) -> bool:
        k = len(chosen)
        if k == len(spec.objects):
            return all(
                (chosen[i], rel, chosen[j]) in reading.relations
                or _holds(reading.objects[chosen[i]], rel, reading.objects[chosen[j]])
                for i, rel, j in spec.relations
            )
        options = (i for i in range(len(reading.objects)) if i not in chosen)
        return any(
            assign((*chosen, i)) for i in options if _fits(reading.objects[i], spec.objects[k])
        )

    return assign(())
