# SPDX-License-Identifier: Apache-2.0
"""Edits of pictures: pure functions from Scene to Scene, each with its sentences.

A `Step` is one operation on one picture: its kind, the words that its sentences need, and the
picture that it leads to. `instruct(step)` is the canonical sentence, which names colours and places
in full; `ask(step, template)` is what a user might say, in six forms.

* Nothing but what the sentence says changes: other objects keep every attribute and their place.
* A new size keeps the centre, so resized objects are placed far enough from the border beforehand.
* `flaws` builds on it: damage to a correct picture, and the steps that lead back.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from . import grammar, layout
from .grammar import DIRECTIONS, STRIPES, TRAIN_FRAMES, at, phrase, refer
from .layout import CELLS, COLOR_NAMES, EDIT_GAP, LEGAL_COLORS, Look, cell
from .scenes import BACKGROUNDS, SHAPES, TEXTURED_SHAPES, Object, Scene, Sign

# Three ways to ask for an operation; the first is canonical. With "please" before them they make
# six: 0-2 and "please" + 0 are for training, "please" + 1 and 2 are held out.
ASKS = {
    "add": ("add {np} {at}", "put {np} {at}", "draw {np} {at}"),
    "remove": ("remove {the}", "take {the} away", "erase {the}"),
    "replace": ("replace {the} with {np}", "change {the} into {np}", "put {np} in place of {the}"),
    "recolor": ("change the color of {the} to {c}", "make {the} {c}", "paint {the} {c}"),
    "resize": ("make {the} {size}", "draw {the} {size}", "change the size of {the} to {size}"),
    "texture": (
        "give {the} {tex} stripes",
        "draw {tex} stripes on {the}",
        "put {tex} stripes on {the}",
    ),
    "style": (
        "make every object {c}",
        "paint every object {c}",
        "change the color of every object to {c}",
    ),
    "background": (
        "change the background to {bg}",
        "make the background {bg}",
        "paint the background {bg}",
    ),
    "extract": (
        "keep only {the} on a {bg} background",
        "show only {the} on a {bg} background",
        "cut out {the} on a {bg} background",
    ),
    "move": ("move {the} to the {cell}", "put {the} at the {cell}", "take {the} to the {cell}"),
    "turn": ("turn {the} to point {way}", "make {the} point {way}", "let {the} point {way}"),
    "swap": ("swap {the} with {that}", "exchange {the} with {that}", "let {the} and {that} swap"),
    "reword": (
        "change the word {word} to {new}",
        "replace the word {word} with {new}",
        "make the word {new}",
    ),
}
# What a thought says about the outcome.
OUTCOMES = {
    "add": "{np} appears",
    "remove": "it goes away",
    "replace": "it becomes {np}",
    "recolor": "its color becomes {c}",
    "resize": "it becomes {size}",
    "texture": "it gets {tex} stripes",
    "style": "every color becomes {c}",
    "background": "the background becomes {bg}",
    "extract": "only it stays",
    "move": "it goes to the {cell}",
    "turn": "it points {way}",
    "swap": "they change places",
    "reword": "the word becomes {new}",
}
OPS = (
    "add",
    "remove",
    "replace",
    "recolor",
    "resize",
    "texture",
    "style",
    "background",
    "extract",
    "move",
    "turn",
)
# Pairs of operations that make a composite edit; those of the second table only in the test.
COMPOSED = (
    ("recolor", "background"),
    ("recolor", "move"),
    ("move", "background"),
    ("remove", "background"),
    ("add", "recolor"),
    ("add", "move"),
    ("turn", "background"),
    ("replace", "recolor"),
)
HELD_COMPOSED = (
    ("add", "background"),
    ("remove", "recolor"),
    ("remove", "resize"),
    ("remove", "texture"),
)
NO_CHANGE = "no change is needed"
PLAIN_SHAPES = tuple(s for s in SHAPES if not s.startswith("arrow-"))  # they have no direction
NOT_STAR = tuple(s for s in SHAPES if s != "star")  # small stars are hard to tell


@dataclass(frozen=True)
class Step:
    """One operation, in words and as a picture.

    Attributes:
      op: key of `ASKS`.
      words: what fills the sentences, as sorted pairs: the (full reference), short (by shape alone
        where that is enough), np, at, c, size, tex, bg, cell, way, that, word, new.
      target: the picture after the step.
    """

    op: str
    words: tuple[tuple[str, str], ...]
    target: Scene


def instruct(step: Step) -> str:
    """The canonical sentence of a step."""
    return ASKS[step.op][0].format(**dict(step.words))


def ask(step: Step, template: int, *, short: bool = False) -> str:
    """What a user might say for a step, in one of six forms; `short` leaves colours out."""
    words = dict(step.words)
    if short and "short" in words:
        words["the"] = words["short"]
    # 0 1 2 are the plain forms; 3 4 5 the polite ones.
    text = ASKS[step.op][template % 3].format(**words)
    return f"please {text}" if template >= TRAIN_FRAMES - 1 else text


def outcome(step: Step) -> str:
    """What a thought says that the step does."""
    return OUTCOMES[step.op].format(**dict(step.words))


# --- operations ---------------------------------------------------------------------------------


def _exchange(scene: Scene, old: Object, *new: Object) -> Scene:
    """The picture with one object replaced, in place; by nothing if `new` is empty."""
    at_ = scene.objects.index(old)
    return replace(scene, objects=scene.objects[:at_] + new + scene.objects[at_ + 1 :])


def _step(op: str, target: Scene, **words: str) -> Step:
    return Step(op, tuple(sorted(words.items())), target)


def _named(scene: Scene, obj: Object) -> dict[str, str]:
    return {"the": refer(scene, obj), "short": refer(scene, obj, full=False)}


def add(scene: Scene, obj: Object) -> Step:
    """One more object."""
    target = replace(scene, objects=(*scene.objects, obj))
    return _step("add", target, np=phrase(obj), at=at(cell(obj)))


def remove(scene: Scene, obj: Object) -> Step:
    """One object less."""
    return _step("remove", _exchange(scene, obj), **_named(scene, obj))


def replaced(scene: Scene, obj: Object, shape: str, color: str) -> Step:
    """Another shape and colour at the same place, in the same size."""
    new = replace(obj, shape=shape, color=color, tex="solid")
    return _step("replace", _exchange(scene, obj, new), np=phrase(new), **_named(scene, obj))


def recolor(scene: Scene, obj: Object, color: str) -> Step:
    """Another colour."""
    target = _exchange(scene, obj, replace(obj, color=color))
    return _step("recolor", target, c=color, **_named(scene, obj))


def resize(scene: Scene, obj: Object, size: str, d: int) -> Step:
    """Another size around the same centre."""
    target = _exchange(scene, obj, replace(obj, d=d))
    return _step("resize", target, size=size, **_named(scene, obj))


def texture(scene: Scene, obj: Object, tex: str) -> Step:
    """Stripes instead of a plain surface."""
    target = _exchange(scene, obj, replace(obj, tex=tex))
    return _step("texture", target, tex=STRIPES[tex], **_named(scene, obj))


def style(scene: Scene, color: str) -> Step:
    """One colour for all."""
    objects = tuple(replace(o, color=color) for o in scene.objects)
    return _step("style", replace(scene, objects=objects), c=color)


def background(scene: Scene, bg: str) -> Step:
    """Another background."""
    return _step("background", replace(scene, bg=bg), bg=bg)


def extract(scene: Scene, obj: Object) -> Step:
    """One object alone, where it is, on white; on black if it is white itself."""
    bg = "black" if obj.color == "white" else "white"
    return _step("extract", Scene(bg, (obj,)), bg=bg, **_named(scene, obj))


def move(scene: Scene, obj: Object, where: int) -> Step:
    """To the anchor of another cell."""
    new = layout.put(random.Random(0), _look(obj), where, obj.d)
    return _step("move", _exchange(scene, obj, new), cell=CELLS[where], **_named(scene, obj))


def turn(scene: Scene, obj: Object, way: str) -> Step:
    """An arrow to another direction; it is named by its colour alone."""
    target = _exchange(scene, obj, replace(obj, shape=f"arrow-{way}"))
    return _step("turn", target, way=way, the=f"the {obj.color} arrow", short="the arrow")


def swap(scene: Scene, a: Object, b: Object) -> Step:
    """Two objects change places."""
    moved = {a: replace(a, x=b.x, y=b.y), b: replace(b, x=a.x, y=a.y)}
    target = replace(scene, objects=tuple(moved.get(o, o) for o in scene.objects))
    return _step("swap", target, that=refer(scene, b), **_named(scene, a))


def reword(scene: Scene, sign: Sign, word: str) -> Step:
    """Another word of the same length on a sign."""
    signs = tuple(replace(s, word=word) if s == sign else s for s in scene.signs)
    target = replace(scene, signs=signs)
    return _step("reword", target, word=grammar.quoted(sign.word), new=grammar.quoted(word))


def _look(obj: Object) -> Look:
    return Look(obj.shape, obj.color, obj.size, obj.tex)


# --- random edits -------------------------------------------------------------------------------


def _colors(shape: str, legal: bool) -> tuple[str, ...]:
    return LEGAL_COLORS[shape] if legal else COLOR_NAMES


def source(rng: random.Random, op: str, *, legal: bool, least: int = 1) -> Scene:
    """A picture of one to three medium objects on which the operation makes sense."""
    n = max(least, rng.choices((1, 2, 3), (25, 50, 25))[0])
    shapes = NOT_STAR if op == "resize" else SHAPES
    looks = layout.draw_looks(rng, n, legal=legal, shapes=shapes)
    if op == "texture" and not any(k.shape in TEXTURED_SHAPES for k in looks):
        looks[0] = layout.draw_looks(rng, 1, legal=legal, shapes=TEXTURED_SHAPES)[0]
    elif op == "turn":
        arrow = f"arrow-{rng.choice(DIRECTIONS)}"
        plain = layout.draw_looks(rng, n, legal=legal, shapes=PLAIN_SHAPES)
        looks = [Look(arrow, rng.choice(_colors(arrow, legal))), *plain[1:]]
    elif n > 1 and rng.random() < 0.25:
        # Two of one shape, so that colour is needed to tell them apart.
        shape, first = looks[0].shape, looks[0].color
        others = [c for c in _colors(shape, legal) if c != first]
        looks[1] = Look(shape, rng.choice(others))
    bg = rng.choice(tuple(BACKGROUNDS)) if rng.random() < 0.2 else "gray"
    scene = layout.arrange(rng, looks, bg=bg, least=EDIT_GAP)
    if op == "resize":
        # Room for the largest diameter at every place.
        low, high = 13.5, 50.5
        objects = (
            replace(o, x=min(max(o.x, low), high), y=min(max(o.y, low), high))
            for o in scene.objects
        )
        scene = replace(scene, objects=tuple(objects))
    return scene


def _add(rng: random.Random, scene: Scene, legal: bool, obj: Object) -> Step | None:
    d = layout.diameter(rng, "medium")
    cells = layout.free_cells(scene.objects, d)
    if not cells or len(scene.objects) > 2:
        return None
    present = {o.shape for o in scene.objects}
    look = layout.draw_looks(rng, 1, legal=legal, shapes=[s for s in SHAPES if s not in present])[0]
    return add(scene, layout.put(rng, look, rng.choice(cells), d))


def _replace(rng: random.Random, scene: Scene, legal: bool, obj: Object) -> Step | None:
    present = {o.shape for o in scene.objects}
    look = layout.draw_looks(rng, 1, legal=legal, shapes=[s for s in SHAPES if s not in present])[0]
    return replaced(scene, obj, look.shape, look.color)


def _recolor(rng: random.Random, scene: Scene, legal: bool, obj: Object) -> Step | None:
    return recolor(scene, obj, rng.choice([c for c in _colors(obj.shape, legal) if c != obj.color]))


def _resize(rng: random.Random, scene: Scene, legal: bool, obj: Object) -> Step | None:
    size = rng.choice(("small", "large"))
    step = resize(scene, obj, size, layout.diameter(rng, size))
    return step if obj.shape != "star" and layout.is_clear(step.target.objects) else None


def _texture(rng: random.Random, scene: Scene, legal: bool, obj: Object) -> Step | None:
    return texture(scene, obj, rng.choice(tuple(STRIPES)))


def _style(rng: random.Random, scene: Scene, legal: bool, obj: Object) -> Step | None:
    colors = [c for c in COLOR_NAMES if any(o.color != c for o in scene.objects)]
    if legal:
        colors = [c for c in colors if all(c in LEGAL_COLORS[o.shape] for o in scene.objects)]
    return style(scene, rng.choice(colors)) if colors else None


def _background(rng: random.Random, scene: Scene, legal: bool, obj: Object) -> Step | None:
    return background(scene, rng.choice([b for b in BACKGROUNDS if b != scene.bg]))


def _move(rng: random.Random, scene: Scene, legal: bool, obj: Object) -> Step | None:
    others = [o for o in scene.objects if o != obj]
    cells = [c for c in layout.free_cells(others, obj.d) if c != cell(obj)]
    return move(scene, obj, rng.choice(cells)) if cells else None


def _turn(rng: random.Random, scene: Scene, legal: bool, obj: Object) -> Step | None:
    ways = [w for w in DIRECTIONS if w != obj.shape[6:]]
    if legal:
        ways = [w for w in ways if obj.color in LEGAL_COLORS[f"arrow-{w}"]]
    return turn(scene, obj, rng.choice(ways)) if ways else None


_RANDOM = {
    "add": _add,
    "remove": lambda rng, scene, legal, obj: remove(scene, obj),
    "replace": _replace,
    "recolor": _recolor,
    "resize": _resize,
    "texture": _texture,
    "style": _style,
    "background": _background,
    "extract": lambda rng, scene, legal, obj: extract(scene, obj),
    "move": _move,
    "turn": _turn,
}


def _fits_op(op: str, obj: Object) -> bool:
    if op == "texture":
        return obj.shape in TEXTURED_SHAPES and obj.tex == "solid"
    return obj.shape.startswith("arrow-") if op == "turn" else True


def propose(
    rng: random.Random, op: str, scene: Scene, *, legal: bool, keep: Sequence[Object] = ()
) -> Step | None:
    """A random step of one kind, or None if the picture does not allow it.

    Args:
      legal: Only shape-colour combinations that training may see.
      keep: Objects that must not be the ones that change.
    """
    options = [o for o in scene.objects if _fits_op(op, o) and o not in keep]
    if not options:
        return None
    obj = rng.choice(options)
    if op == "texture":
        # Stripes need the widest medium diameter.
        if obj.d != 18:
            return None
    return _RANDOM[op](rng, scene, legal, obj)


@dataclass(frozen=True)
class Change:
    """A picture and the steps that change it, in order."""

    tag: str
    source: Scene
    steps: tuple[Step, ...]

    @property
    def target(self) -> Scene:
        """The picture after all steps."""
        return self.steps[-1].target if self.steps else self.source

    @property
    def instruction(self) -> str:
        """Canonical sentence of all steps."""
        return " and ".join(map(instruct, self.steps)) if self.steps else NO_CHANGE


def random_edit(rng: random.Random, op: str, *, legal: bool, held: bool = False) -> Change | None:
    """A random picture and one operation on it (two for "compose"), or None if they do not fit.

    Args:
      held: For "compose", take the pairs of operations that are held out.
    """
    ops = rng.choice(HELD_COMPOSED if held else COMPOSED) if op == "compose" else (op,)
    least = 2 if {"remove", "extract", "style"} & set(ops) or len(ops) > 1 else 1
    kind = next((o for o in ops if o in ("texture", "turn", "resize")), ops[0])
    first = scene = source(rng, kind, legal=legal, least=least)
    if "texture" in ops:
        first = scene = replace(scene, objects=tuple(_widened(o) for o in scene.objects))
        if not layout.is_clear(scene.objects, EDIT_GAP):
            return None
    steps: list[Step] = []
    for o in ops:
        # The second step leaves alone what the first one made.
        made = [x for x in scene.objects if x not in first.objects]
        step = propose(rng, o, scene, legal=legal, keep=made)
        if step is None:
            return None
        steps.append(step)
        scene = step.target
    return Change(op, first, tuple(steps))


def _widened(obj: Object) -> Object:
    """An object that stripes fit on: the widest medium diameter, on whole pixels."""
    if obj.shape not in TEXTURED_SHAPES:
        return obj
    return replace(obj, d=18, x=layout.on_grid(obj.x, 18), y=layout.on_grid(obj.y, 18))
