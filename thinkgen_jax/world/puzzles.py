# SPDX-License-Identifier: Apache-2.0
"""Edits that need a thought first: what time, causes, space or logic make of a picture.

Each puzzle has one right answer, which is an ordinary edit of `edits`: the state that is seen, the
rule that applies, and the step that follows. Wrong steps are the same operation with another value.

* temporal: traffic light, ripening, an arrow that turns; causal: paint, fire, rust, acid, falling;
  spatial: mirror, swap, opposite corner, in between; logical: patterns, the odd one out, counts.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from . import edits, layout
from .edits import NOT_STAR, PLAIN_SHAPES, Step
from .grammar import DIRECTIONS, NUMBERS, TRAIN_FRAMES, article, at, noun, refer
from .layout import CELLS, COLOR_NAMES, EDIT_GAP, LEGAL_COLORS, Look, cell
from .scenes import Scene

KINDS = ("temporal", "causal", "spatial", "logical")
_ASKS = ("{}. show the result", "{}. draw the result", "show the result: {}")
_POLITE = ("{}. please show the result", "{}. please draw the result", "please show the result: {}")


@dataclass(frozen=True)
class Puzzle:
    """One reasoning edit.

    Attributes:
      kind: one of `KINDS`.
      name: which rule.
      prompt: the whole prompt.
      source: the picture given.
      seen: the state, in words.
      rule: what makes the answer.
      steps: the right edit.
      wrong: (rule as someone might misremember it, steps) of wrong answers.
    """

    kind: str
    name: str
    prompt: str
    source: Scene
    seen: str
    rule: str
    steps: tuple[Step, ...]
    wrong: tuple[tuple[str, tuple[Step, ...]], ...]


def _ask(premise: str, template: int) -> str:
    """A statement, and the request to show what follows from it."""
    forms = _POLITE if template >= TRAIN_FRAMES - 1 else _ASKS
    return forms[template % 3].format(premise)


def _order(forms: tuple[str, str, str], template: int) -> str:
    """A request in one of its own three forms, plain or polite."""
    text = forms[template % 3]
    return f"please {text}" if template >= TRAIN_FRAMES - 1 else text


def _scene(rng: random.Random, legal: bool, n: int = 0, **kinds) -> Scene:
    """One or two medium objects; `n` fixes how many."""
    n = n or rng.choice((1, 1, 2))
    looks = layout.draw_looks(rng, n, legal=legal, **kinds)
    return layout.arrange(rng, looks, least=EDIT_GAP)


def _painted(scene: Scene, color: str) -> Scene:
    """The picture with another colour for its first object."""
    return replace(scene, objects=(replace(scene.objects[0], color=color), *scene.objects[1:]))


# (premise about {the shape}, colour before or None for any, colour after, rule, kind)
BECOMES = (
    ("is a traffic light and goes one step on", "green", "yellow", "after green comes yellow"),
    ("is a traffic light and goes one step on", "yellow", "red", "after yellow comes red"),
    ("is a traffic light and goes one step on", "red", "green", "after red comes green"),
    ("is a banana after a week", "yellow", "brown", "an old banana is brown"),
    ("is a tomato and gets ripe", "green", "red", "a ripe tomato is red"),
    ("is a hill and winter comes", "green", "white", "a hill in winter is white"),
    ("is a hill and spring comes", "white", "green", "a hill in spring is green"),
    ("is the sky and midnight comes", "blue", "black", "the sky at midnight is black"),
    ("is the sky and noon comes", "black", "blue", "the sky at noon is blue"),
)
CAUSED = (
    ("is a lamp and goes out", None, "black", "a lamp without light is black"),
    ("is paper and burns", None, "black", "burnt paper is black"),
    ("is iron and gets rust", None, "brown", "rust is brown"),
    ("is litmus and falls into acid", None, "red", "litmus in acid is red"),
    ("is litmus and falls into base", None, "blue", "litmus in base is blue"),
    ("is covered with snow", None, "white", "snow is white"),
)
MIXES = (
    ("blue", "yellow", "green"),
    ("red", "yellow", "orange"),
    ("red", "blue", "purple"),
    ("red", "white", "pink"),
)


def _changed_color(
    rng: random.Random, legal: bool, template: int, kind: str, table
) -> Puzzle | None:
    """A colour that becomes another one by time or cause."""
    premise, before, after, rule = rng.choice(table)
    scene = _scene(rng, legal, shapes=PLAIN_SHAPES)
    obj = scene.objects[0]
    before = before or rng.choice([c for c in COLOR_NAMES if c != after])
    if legal and not {before, after} <= set(LEGAL_COLORS[obj.shape]):
        return None
    scene = _painted(scene, before)
    obj = scene.objects[0]
    others = rng.sample([c for c in COLOR_NAMES if c not in (before, after)], 4)
    wrong = tuple((rule.replace(after, c), (edits.recolor(scene, obj, c),)) for c in others)
    return Puzzle(
        kind,
        "color",
        _ask(f"{refer(scene, obj, full=False)} {premise}", template),
        scene,
        f"the {noun(obj.shape)} is {before}",
        rule,
        (edits.recolor(scene, obj, after),),
        wrong,
    )


def _mix(rng: random.Random, legal: bool, template: int, kind: str) -> Puzzle | None:
    """Paint of one object is mixed into another."""
    a, b, after = rng.choice(MIXES)
    if rng.random() < 0.5:
        a, b = b, a
    scene = _scene(rng, legal, 2, shapes=PLAIN_SHAPES)
    first, second = scene.objects
    if legal and not (
        a in LEGAL_COLORS[first.shape] and {b, after} <= set(LEGAL_COLORS[second.shape])
    ):
        return None
    scene = replace(scene, objects=(replace(first, color=a), replace(second, color=b)))
    first, second = scene.objects
    premise = f"the paint of the {noun(first.shape)} is mixed into the {noun(second.shape)}"
    others = rng.sample([c for c in COLOR_NAMES if c not in (b, after)], 4)
    mixing = f"{a} paint mixed with {b} paint is"
    return Puzzle(
        kind,
        "mix",
        _ask(premise, template),
        scene,
        f"the {noun(first.shape)} is {a} and the {noun(second.shape)} is {b}",
        f"{mixing} {after}",
        (edits.recolor(scene, second, after),),
        tuple((f"{mixing} {c}", (edits.recolor(scene, second, c),)) for c in others),
    )


def _arrow_scene(rng: random.Random, legal: bool, way: str) -> Scene:
    shape = f"arrow-{way}"
    looks = [Look(shape, rng.choice(LEGAL_COLORS[shape] if legal else COLOR_NAMES))]
    if rng.random() < 0.4:
        looks += layout.draw_looks(rng, 1, legal=legal, shapes=PLAIN_SHAPES)
    return layout.arrange(rng, looks, least=EDIT_GAP)


def _turned(rng: random.Random, legal: bool, template: int, kind: str) -> Puzzle | None:
    """An arrow makes quarter turns, or a magnet flips it."""
    start = rng.randrange(4)
    turns = 2 if kind == "causal" else rng.randint(1, 3)
    path = [DIRECTIONS[(start + i) % 4] for i in range(turns + 1)]
    scene = _arrow_scene(rng, legal, path[0])
    obj = scene.objects[0]
    if kind == "causal":
        premise, rule = "a magnet flips the arrow", f"the opposite of {path[0]} is {path[-1]}"
    else:
        plural = "s" if turns > 1 else ""
        premise = f"the arrow makes {NUMBERS[turns]} quarter turn{plural}"
        rule = "the arrow goes " + ", ".join(path)
    others = [w for w in DIRECTIONS if w not in (path[0], path[-1])]
    wrong = []
    for way in others:
        said = rule[: -len(path[-1])] + way
        wrong.append((said, (edits.turn(scene, obj, way),)))
    return Puzzle(
        kind,
        "turn",
        _ask(premise, template),
        scene,
        f"the arrow points {path[0]}",
        rule,
        (edits.turn(scene, obj, path[-1]),),
        tuple(wrong),
    )


def _falls(rng: random.Random, legal: bool, template: int, kind: str) -> Puzzle | None:
    """Something falls to the floor or flies up, in its own column."""
    scene = _scene(rng, legal, shapes=PLAIN_SHAPES)
    obj = scene.objects[0]
    down, column = rng.random() < 0.5, cell(obj) % 3
    end = column + (6 if down else 0)
    others = scene.objects[1:]
    free = layout.free_cells(others, obj.d)
    if cell(obj) == end or end not in free:
        return None
    the = refer(scene, obj, full=False)
    premise = f"{the} is a stone and falls" if down else f"{the} is a balloon and flies away"
    rule = "a stone falls down" if down else "a balloon flies up"
    other = column + (0 if down else 6)
    wrong = [other] if other in free and other != cell(obj) else []
    return Puzzle(
        kind,
        "fall",
        _ask(premise, template),
        scene,
        f"the {noun(obj.shape)} is {at(cell(obj))}",
        rule,
        (edits.move(scene, obj, end),),
        tuple(
            ("a stone falls up" if down else "a balloon flies down", (edits.move(scene, obj, c),))
            for c in wrong
        ),
    )


def _mirror(rng: random.Random, legal: bool, template: int, kind: str) -> Puzzle | None:
    """A lone arrow, left and right exchanged."""
    way = rng.choice(("left", "right"))
    shape = f"arrow-{way}"
    look = Look(shape, rng.choice(LEGAL_COLORS[shape] if legal else COLOR_NAMES))
    scene = layout.arrange(rng, [look], (rng.choice((1, 4, 7)),), least=EDIT_GAP)
    obj = scene.objects[0]
    other = DIRECTIONS[(DIRECTIONS.index(way) + 2) % 4]
    wrong = [(f"a mirror swaps {way} and {w}", w) for w in ("up", "down")]
    return Puzzle(
        kind,
        "mirror",
        _ask("a mirror is put beside the arrow", template),
        scene,
        f"the arrow points {way}",
        f"a mirror swaps {way} and {other}",
        (edits.turn(scene, obj, other),),
        tuple((rule, (edits.turn(scene, obj, w),)) for rule, w in wrong),
    )


def _exchange(rng: random.Random, legal: bool, template: int, kind: str) -> Puzzle | None:
    """Two objects change places."""
    scene = _scene(rng, legal, 2)
    a, b = scene.objects
    step = edits.swap(scene, a, b)
    if not layout.is_clear(step.target.objects):
        return None
    free = [c for c in layout.free_cells([b], a.d) if c not in (cell(a), cell(b))]
    wrong = tuple(
        (f"the {noun(a.shape)} is {at(c)}", (edits.move(scene, a, c),)) for c in rng.sample(free, 2)
    )
    return Puzzle(
        kind,
        "exchange",
        _ask(f"the {noun(a.shape)} and the {noun(b.shape)} change places", template),
        scene,
        f"the {noun(a.shape)} is {at(cell(a))} and the {noun(b.shape)} is {at(cell(b))}",
        "each goes to the place of the other",
        (step,),
        wrong,
    )


def _opposite(rng: random.Random, legal: bool, template: int, kind: str) -> Puzzle | None:
    """To the corner or side across."""
    looks = layout.draw_looks(rng, 1, legal=legal)
    start = rng.choice((0, 1, 2, 3, 5, 6, 7, 8))
    scene = layout.arrange(rng, looks, (start,), least=EDIT_GAP)
    obj, end = scene.objects[0], 8 - start
    others = rng.sample([c for c in range(9) if c not in (start, end)], 3)
    the = refer(scene, obj, full=False)
    rule = f"the opposite of {CELLS[start]} is "
    return Puzzle(
        kind,
        "opposite",
        _ask(f"{the} goes to the opposite place", template),
        scene,
        f"the {noun(obj.shape)} is {at(start)}",
        rule + CELLS[end],
        (edits.move(scene, obj, end),),
        tuple((rule + CELLS[c], (edits.move(scene, obj, c),)) for c in others),
    )


def _between(rng: random.Random, legal: bool, template: int, kind: str) -> Puzzle | None:
    """One object goes between two others."""
    ends, middles = rng.choice((((3, 5), (1, 7)), ((1, 7), (3, 5)), ((0, 8), (2, 6))))
    looks = [
        k._replace(size="small") for k in layout.draw_looks(rng, 3, legal=legal, shapes=_SMALL)
    ]
    start = rng.choice(middles)
    scene = layout.arrange(rng, looks, (*ends, start), least=EDIT_GAP)
    a, b, obj = scene.objects
    others = [c for c in range(9) if c not in (*ends, start, 4)]
    names = [noun(o.shape) for o in (obj, a, b)]
    premise = f"the {names[0]} goes between the {names[1]} and the {names[2]}"
    rule = f"between {CELLS[ends[0]]} and {CELLS[ends[1]]} is the "
    return Puzzle(
        kind,
        "between",
        _ask(premise, template),
        scene,
        f"the {names[1]} is {at(ends[0])}, the {names[2]} {at(ends[1])}",
        rule + CELLS[4],
        (edits.move(scene, obj, 4),),
        tuple((rule + CELLS[c], (edits.move(scene, obj, c),)) for c in rng.sample(others, 2)),
    )


_SMALL = tuple(s for s in NOT_STAR if not s.startswith("arrow-"))


def _pattern(rng: random.Random, legal: bool, template: int, kind: str) -> Puzzle | None:
    """Two rows that repeat, with one object missing."""
    columns = rng.choice((2, 3))
    shape = rng.choice(_SMALL)
    colors = LEGAL_COLORS[shape] if legal else COLOR_NAMES
    a, b = rng.sample(colors, 2)
    n = 2 * columns - 1
    if legal and {(shape, n), (shape, n + 1)} & layout.HELD_COUNTS:
        return None
    size = "medium" if columns == 2 else "small"
    rows = ((a, b), (b, a)) if columns == 2 else ((a, b, a), (a, b, a))
    cells = ((0, 2), (6, 8)) if columns == 2 else ((0, 1, 2), (6, 7, 8))
    places = [(cells[r][c], rows[r][c]) for r in range(2) for c in range(columns)]
    gone = rng.randrange(len(places))
    where, color = places.pop(gone)
    whole = [Look(shape, shade, size) for _, shade in places]
    scene = layout.arrange(rng, whole, [c for c, _ in places], least=EDIT_GAP)
    d = scene.objects[0].d
    scene = replace(scene, objects=tuple(replace(o, d=d) for o in scene.objects))
    if not layout.is_clear(scene.objects, EDIT_GAP):
        return None

    def answer(shade: str) -> tuple[Step, ...]:
        return (edits.add(scene, layout.put(rng, Look(shape, shade, size), where, d)),)

    forms = ("complete the pattern", "fill the gap", "add what is missing")
    others = [b if color == a else a, *rng.sample([c for c in COLOR_NAMES if c not in (a, b)], 2)]
    seen = f"the gap is {at(where)}"
    row = ", ".join(rows[gone // columns])
    return Puzzle(
        kind,
        "pattern",
        _order(forms, template),
        scene,
        seen,
        f"the row is {row}",
        answer(color),
        tuple((f"the row is {row}".replace(color, shade), answer(shade)) for shade in others),
    )


def _odd(rng: random.Random, legal: bool, template: int, kind: str) -> Puzzle | None:
    """One of three or four differs in shape or colour."""
    n = rng.choice((3, 4))
    many, one = layout.draw_looks(rng, 2, legal=legal)
    by_color = rng.random() < 0.5
    if by_color:
        colors = LEGAL_COLORS[many.shape] if legal else COLOR_NAMES
        one = Look(many.shape, rng.choice([c for c in colors if c != many.color]))
    elif many.color not in (LEGAL_COLORS[one.shape] if legal else COLOR_NAMES):
        return None
    else:
        one = one._replace(color=many.color)
    if legal and {(many.shape, n - 1), (many.shape, n if by_color else 0)} & layout.HELD_COUNTS:
        return None
    scene = layout.arrange(rng, [one] + [many] * (n - 1), least=EDIT_GAP)
    odd, rest = scene.objects[0], scene.objects[1:]
    forms = ("remove the odd one out", "take the odd one away", "erase what does not fit")
    difference = odd.color if by_color else noun(odd.shape)
    like = many.color if by_color else noun(many.shape)
    rule = f"only one is {difference if by_color else article(difference)}"
    bad = f"only one is {like if by_color else article(like)}"
    return Puzzle(
        kind,
        "odd",
        _order(forms, template),
        scene,
        f"{NUMBERS[n - 1]} are {like}"
        if by_color
        else f"{NUMBERS[n - 1]} are {noun(many.shape, 2)}",
        rule,
        (edits.remove(scene, odd),),
        tuple((bad, (edits.remove(scene, o),)) for o in rest[:2]),
    )


def _corners(rng: random.Random, legal: bool, template: int, kind: str) -> Puzzle | None:
    """A sum of four, of which three stand in their corners."""
    look = layout.draw_looks(rng, 1, legal=legal)[0]
    if legal and {(look.shape, 3), (look.shape, 4)} & layout.HELD_COUNTS:
        return None
    cells = [0, 2, 6, 8]
    where = cells.pop(rng.randrange(4))
    scene = layout.arrange(rng, [look] * 3, cells, least=EDIT_GAP)
    new = layout.put(rng, look, where, scene.objects[0].d)
    a = rng.choice((1, 2, 3))
    text = f"{NUMBERS[a]} plus {NUMBERS[4 - a]}"
    plural = noun(look.shape, 2)
    forms = (
        f"make it {text} {plural}, one in every corner",
        f"draw {text} {plural}, one in every corner",
        f"show {text} {plural}, one in every corner",
    )
    return Puzzle(
        kind,
        "corners",
        _order(forms, template),
        scene,
        f"i see three {plural}",
        f"{text} is four",
        (edits.add(scene, new),),
        (),
    )


def _by_time(rng, legal, template, kind):
    return _changed_color(rng, legal, template, kind, BECOMES)


def _by_cause(rng, legal, template, kind):
    return _changed_color(rng, legal, template, kind, CAUSED)


_RULES: dict[str, tuple[tuple[Callable, int], ...]] = {
    "temporal": ((_by_time, 5), (_turned, 3)),
    "causal": ((_by_cause, 4), (_mix, 3), (_falls, 2), (_turned, 1)),
    "spatial": ((_mirror, 2), (_exchange, 2), (_opposite, 3), (_between, 3)),
    "logical": ((_pattern, 4), (_odd, 4), (_corners, 2)),
}


def premises() -> tuple[str, ...]:
    """What may be said of an object, and the rules that follow from it."""
    told = [(f"the circle {row[0]}", row[3]) for row in (*BECOMES, *CAUSED)]
    return tuple(text for pair in told for text in pair)


def puzzle(rng: random.Random, kind: str, template: int, *, legal: bool) -> Puzzle | None:
    """A random puzzle of a kind, or None if the draw did not work out.

    Args:
      kind: One of `KINDS`.
      template: Surface form, 0 to 5; 4 and 5 are held out.
      legal: Only combinations that training may see.
    """
    rules, weights = zip(*_RULES[kind], strict=True)
    made = rng.choices(rules, weights)[0](rng, legal, template, kind)
    if made is None or not layout.is_clear(made.steps[-1].target.objects):
        return None
    return made
