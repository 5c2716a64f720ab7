# SPDX-License-Identifier: Apache-2.0
"""Flaws in a drawn picture, and the steps that repair them: the material of reflection.

A correct picture is damaged once or twice; the repair undoes the damage in reverse order, so its
last picture is the correct one again.

* A flaw must be a flaw by the caption: a colour can only be wrong where the caption names one.
* What the caption leaves open can be repaired in several ways; `repairs` lists the sentences.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from . import edits, grammar, layout
from .edits import Change, Step
from .layout import COLOR_NAMES, LEGAL_COLORS, Look
from .scenes import SHAPES, Object, Scene, Spec

FLAWS = ("color", "shape", "missing", "extra", "swap", "size", "letter")
VERDICTS = {
    "color": "the color is wrong",
    "shape": "the shape is wrong",
    "missing": "one object is missing",
    "extra": "one object is too much",
    "swap": "the places are wrong",
    "size": "the size is wrong",
    "letter": "one letter is wrong",
}
# A damaged picture, and what undoes the damage on it.
Damage = tuple[Scene, Callable[[Scene], Step]]


def _exchanged(scene: Scene, old: Object, new: Object) -> Scene:
    return replace(scene, objects=tuple(new if o == old else o for o in scene.objects))


def _color(rng: random.Random, scene: Scene, spec: Spec, i: int, legal: bool) -> Damage | None:
    good = scene.objects[i]
    if spec.objects[i].color is None:
        return None
    colors = LEGAL_COLORS[good.shape] if legal else COLOR_NAMES
    bad = replace(good, color=rng.choice([c for c in colors if c != good.color]))
    return _exchanged(scene, good, bad), lambda s: edits.recolor(s, bad, good.color)


def _shape(rng: random.Random, scene: Scene, spec: Spec, i: int, legal: bool) -> Damage | None:
    good = scene.objects[i]
    present = {o.shape for o in scene.objects}
    shapes = [s for s in SHAPES if s not in present and (good.d >= 16 or s != "star")]
    if legal:
        shapes = [s for s in shapes if good.color in LEGAL_COLORS[s]]
    if good.tex != "solid" or not shapes:
        return None
    bad = replace(good, shape=rng.choice(shapes))
    return _exchanged(scene, good, bad), lambda s: edits.replaced(s, bad, good.shape, good.color)


def _missing(rng: random.Random, scene: Scene, spec: Spec, i: int, legal: bool) -> Damage | None:
    good, want = scene.objects[i], spec.objects[i]
    # Its colour must be known from the caption or from its like.
    alike = spec.objects.count(want) > 1
    if len(scene.objects) < 2 or (want.color is None and not alike):
        return None
    rest = tuple(o for o in scene.objects if o != good)
    return replace(scene, objects=rest), lambda s: edits.add(s, good)


def _extra(rng: random.Random, scene: Scene, spec: Spec, i: int, legal: bool) -> Damage | None:
    first = scene.objects[0]
    if len(set(spec.objects)) == 1 and len(spec.objects) > 1:
        look, d = Look(first.shape, first.color, first.size, first.tex), first.d
        if legal and (first.shape, len(spec.objects) + 1) in layout.HELD_COUNTS:
            return None
    else:
        present = {o.shape for o in scene.objects}
        others = [s for s in SHAPES if s not in present]
        look = layout.draw_looks(rng, 1, legal=legal, shapes=others)[0]
        d = layout.diameter(rng, "medium")
    cells = layout.free_cells(scene.objects, d, layout.GAP)
    if not cells or len(scene.objects) > 5:
        return None
    bad = layout.put(rng, look, rng.choice(cells), d)
    return replace(scene, objects=(*scene.objects, bad)), lambda s: edits.remove(s, bad)


def _swap(rng: random.Random, scene: Scene, spec: Spec, i: int, legal: bool) -> Damage | None:
    if not spec.relations:
        return None
    bad = edits.swap(scene, *scene.objects[:2]).target
    if not layout.is_clear(bad.objects):
        return None
    return bad, lambda s: edits.swap(s, *s.objects[:2])


def _size(rng: random.Random, scene: Scene, spec: Spec, i: int, legal: bool) -> Damage | None:
    good = scene.objects[i]
    if spec.objects[i].size is None or good.tex != "solid":
        return None
    size = rng.choice([s for s in ("small", "medium", "large") if s != good.size])
    bad = replace(good, d=layout.diameter(rng, size))
    damaged = _exchanged(scene, good, bad)
    if not layout.is_clear(damaged.objects):
        return None
    return damaged, lambda s: edits.resize(s, bad, good.size, good.d)


def misspelt(rng: random.Random, word: str) -> str:
    """The word with one character exchanged for another of its kind."""
    at = rng.randrange(len(word))
    pool = "0123456789" if word[at].isdigit() else "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return word[:at] + rng.choice(pool.replace(word[at], "")) + word[at + 1 :]


def _letter(rng: random.Random, scene: Scene, spec: Spec, i: int, legal: bool) -> Damage | None:
    if not scene.signs:
        return None
    at = rng.randrange(len(scene.signs))
    good = scene.signs[at]
    word = misspelt(rng, good.word)
    if (legal and layout.is_held_out_word(word)) or word in {s.word for s in scene.signs}:
        return None
    bad = replace(good, word=word)
    signs = tuple(bad if s == good else s for s in scene.signs)
    return replace(scene, signs=signs), lambda s: edits.reword(s, bad, good.word)


_DAMAGE = {
    "color": _color,
    "shape": _shape,
    "missing": _missing,
    "extra": _extra,
    "swap": _swap,
    "size": _size,
    "letter": _letter,
}


def damage(
    rng: random.Random, scene: Scene, spec: Spec, kinds: tuple[str, ...], *, legal: bool
) -> Change | None:
    """Damages a picture that satisfies the spec; the change leads from the flawed to the whole one.

    Two flaws hit two different objects.

    Args:
      kinds: One or two of `FLAWS`, or nothing for an unflawed picture.
      legal: Only looks, counts and words that training may see.

    Returns:
      The repair, whose source is the flawed picture; None if a flaw is impossible here.
    """
    victims = list(range(len(scene.objects))) or [0]
    rng.shuffle(victims)
    undo, whole = [], scene
    for kind, i in zip(kinds, victims * 2, strict=False):
        made = (
            _DAMAGE[kind](rng, scene, spec, i, legal) if i < len(scene.objects) or not i else None
        )
        if made is None or (scene.objects and len(scene.objects) != len(spec.objects)):
            return None
        scene = made[0]
        undo.append(made[1])
    source, steps = scene, []
    for step_back in reversed(undo):
        steps.append(step_back(scene))
        scene = steps[-1].target
    if layout.canonical(scene) != layout.canonical(whole):
        return None
    tag = "+".join(kinds) or "none"
    return Change(tag, source, tuple(steps))


def repairs(change: Change, spec: Spec) -> tuple[str, ...]:
    """Further instructions that repair a single flaw as well as the canonical one does."""
    if len(change.steps) != 1 or spec.relations:
        return ()
    step = change.steps[0]
    if step.op == "add":
        new = next(o for o in change.target.objects if o not in change.source.objects)
        cells = layout.free_cells(change.source.objects, new.d, layout.GAP)
        text = f"add {grammar.phrase(new)} "
        found = (text + grammar.at(c) for c in cells)
    elif step.op == "remove":
        gone = next(o for o in change.source.objects if o not in change.target.objects)
        alike = [o for o in change.source.objects if (o.shape, o.color) == (gone.shape, gone.color)]
        found = (f"remove {grammar.refer(change.source, o)}" for o in alike)
    else:
        return ()
    return tuple(sentence for sentence in found if sentence != change.instruction)


def inventory(scene: Scene) -> str:
    """What is in a picture, without places: "two red circles and a blue star"."""
    if scene.signs:
        return grammar.sign_list([(s.word, s.color) for s in scene.signs])
    groups: dict[tuple, list[Object]] = {}
    for o in grammar.reading_order(scene.objects):
        groups.setdefault((o.shape, o.color, o.size, o.tex), []).append(o)
    return " and ".join(grammar.phrase(g[0], len(g)) for g in groups.values()) or "nothing"
