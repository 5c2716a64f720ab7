# SPDX-License-Identifier: Apache-2.0
"""Exercises without a given picture: composition, arrangement, reasoning, text.

* The instruction names cells wherever two objects differ, so that a thought settles the layout.
* Riddles are resolved by a fact; wrong values give the decoys.
* Train signs also show numbers and random letters: letters are to be learnt, not words.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from . import facts, grammar, layout
from .edits import NOT_STAR
from .exercise import Draw, Item, pick_background, pick_template, template_names
from .flaws import misspelt
from .layout import COLOR_NAMES, Look
from .scenes import BIGGER, RELATIONS, SHAPES, TEXTURED_SHAPES, Scene, Spec, Want

# --- composition --------------------------------------------------------------------------------

THOUGHTS = {
    "one": (
        "one object: {0}. nothing else appears.",
        "the prompt asks for {0} alone.",
        "there is only {0} in the picture.",
    ),
    "two": (
        "two objects: {0} and {1}. nothing else appears.",
        "the prompt asks for {0} and for {1}. they stay apart.",
        "first {0}, then {1}. that is all.",
    ),
    "count": (
        "count: {0}. so there are {1}.",
        "the number of {2} is {3}: {0}.",
        "{0}: that makes {1} and nothing else.",
    ),
    "position": (
        "{2} means that {0} goes to the {3} and {1} to the {4}.",
        "two objects: {0} and {1}. {2}: so {0} is at the {3}.",
        "the first is {0} at the {3}. the second is {1} at the {4}.",
    ),
}
ALONE = ("single_object", "colors", "absent")  # tags of one object
SAID = {"small": "small", "large": "large"}  # sizes that sentences name; medium is the default
COMPARED = (  # a turned comparison does not claim the first
    "{0} is the bigger one: it is {2} and {1} is {3}.",
    "two sizes: {2} for {0} and {3} for {1}.",
    "the first is {0}, {2}. the second is {1}, {3}.",
)
SIDES = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}


def _want(look: Look, *names: str) -> Want:
    """A want for the shape and the named attributes of a look."""
    return Want(look.shape, **{name: getattr(look, name) for name in names})


def _arranged(
    rng: random.Random,
    draw: Draw,
    looks: Sequence[Look],
    cells: Sequence[int] | None,
    bg: str | None = None,
) -> Scene:
    return layout.arrange(
        rng, looks, cells, bg=bg or "gray", reserved=draw.reserved, tidy=draw.tidy
    )


def _plan_one(rng: random.Random, legal: bool, tag: str) -> tuple[list[Look], list[Want]]:
    """Looks and wants of one-object prompts."""
    shapes = {"size": NOT_STAR, "texture": TEXTURED_SHAPES}.get(tag, SHAPES)
    look = layout.draw_looks(rng, 1, legal=legal, shapes=shapes)[0]
    colored = ("color",) if tag == "colors" or rng.random() < 0.6 else ()
    if tag == "size":
        look = look._replace(size=rng.choice(("small", "large")))
        return [look], [_want(look, "size", *colored)]
    if tag == "texture":
        # The arms of a large striped cross are too wide to be told from a square's corners.
        sizes = ("medium",) if look.shape == "cross" else ("medium", "medium", "large")
        look = layout.stripe(rng, look._replace(size=rng.choice(sizes)))
        named = ("size", "tex") if look.size == "large" else ("tex",)
        return [look], [_want(look, *named, *colored)]
    return [look], [_want(look, *(() if tag == "single_object" else colored))]


def _plan_two(rng: random.Random, legal: bool, tag: str) -> tuple[list[Look], list[Want]]:
    """Looks and wants of two-object prompts."""
    shapes = NOT_STAR if tag in ("size", "bigger") else SHAPES
    looks = layout.draw_looks(rng, 2, legal=legal, shapes=shapes)
    if tag == "size":
        sizes = rng.choice((("small", "large"), ("large", "small")))
        looks = [k._replace(size=s) for k, s in zip(looks, sizes, strict=True)]
        return looks, [_want(k, "size", "color") for k in looks]
    if tag == "texture":
        looks = [layout.stripe(rng, k) if k.shape in TEXTURED_SHAPES else k for k in looks]
        return looks, [_want(k, "color", *(("tex",) if k.tex != "solid" else ())) for k in looks]
    if tag == "bigger":
        sizes = rng.choice((("large", "small"), ("large", "medium"), ("medium", "small")))
        looks = [k._replace(size=s) for k, s in zip(looks, sizes, strict=True)]
    colored = tag == "color_attr" or (tag in ("position", "bigger") and rng.random() < 0.5)
    return looks, [_want(k, *(("color",) if colored else ())) for k in looks]


def _counting(rng: random.Random, legal: bool) -> tuple[list[Look], list[Want]]:
    n = rng.choices((2, 3, 4, 5, 6), (28, 26, 22, 12, 12))[0]
    while True:
        look = layout.draw_looks(rng, 1, legal=legal, shapes=NOT_STAR if n > 4 else SHAPES)[0]
        if not (legal and (look.shape, n) in layout.HELD_COUNTS):
            break
    look = look._replace(size="small") if n > 4 else look
    return [look] * n, [_want(look, *(("color",) if rng.random() < 0.5 else ()))] * n


def composition(rng: random.Random, draw: Draw, tag: str) -> Item:
    """One or two objects, a count or a relation, as in GenEval."""
    template, bg = pick_template(rng, draw), pick_background(rng)
    relations, cells = (), None
    if tag == "counting":
        looks, wants = _counting(rng, draw.legal)
    elif tag in ALONE or (tag in ("size", "texture") and rng.random() < 0.65):
        looks, wants = _plan_one(rng, draw.legal, tag)
    else:
        looks, wants = _plan_two(rng, draw.legal, tag)
        if tag == "texture" and all(k.tex == "solid" for k in looks):
            return composition(rng, draw, tag)
        if tag == "position":
            rel = rng.choice(RELATIONS)
            relations, cells = ((0, rel, 1),), rng.choice(layout.RELATED[rel])
        elif tag == "bigger":
            relations = ((0, BIGGER, 1),)
    scene = _arranged(rng, draw, looks, cells, bg)
    spec = Spec(tuple(wants), relations, (), bg)
    absent = _absent(rng, looks) if tag == "absent" else None
    prompt = grammar.frame("scene", template, grammar.body(spec, absent=absent))
    placed = [layout.cell(o) for o in scene.objects] if len(set(looks)) > 1 else None
    said = _sized(spec, [k.size for k in looks]) if tag == "bigger" else spec
    return Item(
        "composition",
        tag,
        prompt,
        _composition_thought(rng, said, absent),
        grammar.instruction(said, placed),
        (),
        scene,
        spec,
        None,
        prompt,
        layout.held_out(scene, relations) + template_names(template),
        _composition_wrong(rng, said, placed, absent),
    )


def _absent(rng: random.Random, looks: Sequence[Look]) -> str:
    """A shape that is not in the picture; of an arrow's ways none is ruled out beside another."""
    kinds = {k.shape.partition("-")[0] for k in looks}
    return rng.choice([s for s in SHAPES if s.partition("-")[0] not in kinds])


def _sized(spec: Spec, sizes: Sequence[str]) -> Spec:
    """The spec with every size said but the medium one."""
    pairs = zip(spec.objects, sizes, strict=True)
    return replace(spec, objects=tuple(replace(w, size=SAID.get(s)) for w, s in pairs))


def _composition_thought(
    rng: random.Random, spec: Spec, absent: str | None = None, *, turned: bool = False
) -> str:
    wants = spec.objects
    named = [grammar.phrase(w) for w in wants]
    if spec.relations and spec.relations[0][1] == BIGGER:
        plain = [grammar.phrase(w, sized=False) for w in wants]
        text = rng.choice(COMPARED[turned:]).format(*plain, *(w.size or "medium" for w in wants))
    elif spec.relations:
        rel = spec.relations[0][1]
        text = rng.choice(THOUGHTS["position"]).format(*named, rel, *SIDES[rel])
    elif len(wants) == 1:
        text = rng.choice(THOUGHTS["one"]).format(*named)
    elif wants[0] == wants[1]:
        n = len(wants)
        text = rng.choice(THOUGHTS["count"]).format(
            ", ".join(grammar.NUMBERS[1 : n + 1]),
            grammar.phrase(wants[0], n),
            grammar.name(wants[0], 2),
            grammar.NUMBERS[n],
        )
    else:
        text = rng.choice(THOUGHTS["two"]).format(*named)
    text += f" there is no {grammar.noun(absent)}." if absent else ""
    return f"{text} the background is {spec.bg}." if spec.bg else text


def _composition_wrong(
    rng: random.Random, spec: Spec, cells: Sequence[int] | None, absent: str | None
) -> tuple[tuple[str, str], ...]:
    """Swapped places or sizes, wrong counts, what was ruled out; each with its thought."""
    if absent:
        both = replace(spec, objects=(*spec.objects, Want(absent)))
        return ((_composition_thought(rng, both), grammar.instruction(both)),)
    if spec.relations and spec.relations[0][1] == BIGGER:
        turned = _sized(spec, [w.size or "medium" for w in spec.objects[::-1]])
        thought = _composition_thought(rng, turned, turned=True)
        return ((thought, grammar.instruction(turned, cells)),)
    if spec.relations and cells:
        i, rel, j = spec.relations[0]
        turned = replace(spec, relations=((i, layout.INVERSE[rel], j),))
        thought = _composition_thought(rng, turned)
        return ((thought, grammar.instruction(turned, cells[::-1])),)
    n = len(spec.objects)
    if n > 1 and spec.objects[0] == spec.objects[1]:
        others = [replace(spec, objects=spec.objects[:1] * k) for k in (n - 1, n + 1) if 1 < k < 7]
        return tuple((_composition_thought(rng, o), grammar.instruction(o)) for o in others)
    return ()


# --- arrangement --------------------------------------------------------------------------------

ARRANGED = (
    "{n} objects: {all}. nothing else appears.",
    "the prompt gives every object its place: {all}.",
    "from first to last: {all}.",
)


def _dressed(rng: random.Random, look: Look) -> Look:
    """The look as it is, or in another size, or with stripes, where its shape allows that."""
    kind = rng.random()
    if kind < 0.15 and look.shape in TEXTURED_SHAPES:
        return layout.stripe(rng, look)
    if kind > 0.6 and look.shape in NOT_STAR:
        return look._replace(size=rng.choice(("small", "large")))
    return look


def _relations(cells: Sequence[int]) -> tuple[tuple[int, str, int], ...]:
    """The relations that objects at these cells have beyond doubt."""
    found = []
    for (i, a), (j, b) in combinations(enumerate(cells), 2):
        dx, dy = b % 3 - a % 3, b // 3 - a // 3
        if abs(dx) > abs(dy):
            found.append((i, "left of" if dx > 0 else "right of", j))
        elif abs(dy) > abs(dx):
            found.append((i, "above" if dy > 0 else "below", j))
    return tuple(found)


def arrangement(rng: random.Random, draw: Draw, tag: str) -> Item:
    """One to four different objects, each described in full and told its cell.

    What the cells say about two objects counts as said: no held-out relation occurs in train.
    """
    template, n = pick_template(rng, draw), int(tag[3:])
    looks = [_dressed(rng, k) for k in layout.draw_looks(rng, n, legal=draw.legal)]
    cells = list(rng.choice(layout.PATTERNS[n]))
    rng.shuffle(cells)
    scene = _arranged(rng, draw, looks, cells)
    bare = Spec(tuple(_want(k, "color", *(("tex",) if k.tex != "solid" else ())) for k in looks))
    said = _sized(bare, [k.size for k in looks]).objects
    spec = Spec(tuple(replace(w, cell=c) for w, c in zip(said, cells, strict=True)))
    instruction = grammar.instruction(spec, cells)
    prompt = grammar.frame("scene", template, instruction)
    named = grammar.listed([grammar.phrase(w) for w in said])
    thought = rng.choice(ARRANGED).format(n=grammar.NUMBERS[n], all=named)
    turned = [*cells[1:], cells[0]] if n > 1 else [(cells[0] + rng.randint(1, 8)) % 9]
    return Item(
        "arrangement",
        tag,
        prompt,
        thought,
        instruction,
        (),
        scene,
        spec,
        None,
        prompt,
        layout.held_out(scene, _relations(cells)) + template_names(template),
        ((thought, grammar.instruction(spec, turned)),),
    )


# --- reasoning ----------------------------------------------------------------------------------

REASONS = (
    "{sentence}. so the {attribute} is {value}.",
    "i know that {sentence}. the {attribute} must be {value}.",
    "the prompt hides the {attribute}. {sentence}. that gives {value}.",
)


def _riddle_looks(
    rng: random.Random, riddle: facts.Riddle, value: object
) -> tuple[list[Look], list[Want]]:
    """Looks and wants of the picture that a value of the hidden attribute leads to."""
    attribute, carrier = riddle.attribute, riddle.carrier
    if attribute == "order":
        looks = [Look(carrier, color, "small") for color in value]
        return looks, [Want(carrier, color) for color in value]
    if attribute == "count":
        size = "small" if value > 4 else "medium"
        look = Look(carrier, rng.choice(layout.LEGAL_COLORS[carrier]), size)
        return [look] * value, [Want(carrier)] * value
    if attribute == "color":
        accepted = riddle.values if value == riddle.values[0] else (value,)
        return [Look(carrier, value)], [Want(carrier, accepted if len(accepted) > 1 else value)]
    shape = value if attribute == "shape" else f"arrow-{value}"
    return [Look(shape, carrier)], [Want(shape, carrier)]


def _spelled(attribute: str, value: object) -> str:
    """A value of a hidden attribute as words."""
    if attribute == "count":
        return grammar.NUMBERS[value]
    return ", ".join(value) if attribute == "order" else str(value)


def _resolve(
    rng: random.Random, riddle: facts.Riddle, value: object, sentence: str
) -> tuple[str, str]:
    """The thought for one value, right or wrong, and the instruction that it leads to."""
    thought = rng.choice(REASONS).format(
        sentence=sentence, attribute=riddle.attribute, value=_spelled(riddle.attribute, value)
    )
    _, wants = _riddle_looks(rng, riddle, value)
    cells = layout.ROWS[0] if riddle.attribute == "order" else None
    wants = [replace(w, color=value) if isinstance(w.color, tuple) else w for w in wants]
    return thought, grammar.instruction(Spec(tuple(wants)), cells)


def reasoning(rng: random.Random, draw: Draw, tag: str) -> Item:
    """A prompt that hides one attribute behind a fact or a rule."""
    template = pick_template(rng, draw)
    riddle = facts.riddle(rng, tag, template)
    value = riddle.values[0]
    looks, wants = _riddle_looks(rng, riddle, value)
    ordered = riddle.attribute == "order"
    cells = layout.ROWS[0] if ordered else None
    scene = _arranged(rng, draw, looks, cells)
    relations = ((0, "left of", 1), (1, "left of", 2)) if ordered else ()
    thought, instruction = _resolve(rng, riddle, value, riddle.sentence)
    wrong = tuple(_resolve(rng, riddle, v, sentence) for v, sentence in riddle.wrong)
    others = tuple(_resolve(rng, riddle, v, riddle.sentence)[1] for v in riddle.values[1:])
    return Item(
        "reasoning",
        tag,
        riddle.prompt,
        thought,
        instruction,
        (),
        scene,
        Spec(tuple(wants), relations),
        None,
        grammar.frame("scene", template, instruction),
        layout.held_out(scene) + riddle.held_out,
        wrong,
        others,
    )


# --- text ---------------------------------------------------------------------------------------

SPELLINGS = {
    1: (
        "one {0}. it reads {1}.",
        "the prompt asks for one {0}. the letters are {1}.",
        "on the {0}: {1}. nothing else appears.",
    ),
    2: (
        "{0} signs from top to bottom: {1}.",
        "the prompt asks for {0} signs. they read {1}.",
        "{0} signs. the letters are {1}.",
    ),
}


def _word(rng: random.Random, legal: bool) -> str:
    """A word for a sign; in train also numbers and random letters, so that letters are learnt."""
    if not legal:
        kind = rng.random()
        if kind < 0.2:
            return str(rng.randint(10000, 99999))
        return rng.choice(layout.HELD_WORDS if kind < 0.75 else layout.TRAIN_WORDS)
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(layout.TRAIN_WORDS)
    if kind < 0.65:
        return str(rng.randint(100, 9999))
    while True:
        word = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(3, 6)))
        if not layout.is_held_out_word(word):
            return word


def _text_thought(rng: random.Random, signs: Sequence[tuple[str, str | None]]) -> str:
    spelled = [(f"{color} " if color else "") + " ".join(word) for word, color in signs]
    if len(signs) == 1:
        word, color = signs[0]
        first = f"{color} sign" if color else "sign"
        return rng.choice(SPELLINGS[1]).format(first, " ".join(word))
    return rng.choice(SPELLINGS[2]).format(grammar.NUMBERS[len(signs)], ", ".join(spelled))


def text(rng: random.Random, draw: Draw, tag: str) -> Item:
    """One to four signs with words, half of the time with their colours."""
    n, template = int(tag[4:]), pick_template(rng, draw)
    words: list[str] = []
    while len(words) < n:
        word = _word(rng, draw.legal)
        if word not in words and len(word) <= (9 if n < 3 else 5):
            words.append(word)
    colors = [rng.choice(COLOR_NAMES) for _ in words]
    bg, colored = pick_background(rng, 0.1), rng.random() < 0.5
    if draw.tidy and not colored and rng.random() < layout.USUAL:
        colors = ["white"] * n
    scene = layout.stack(list(zip(words, colors, strict=True)), bg or "gray", tidy=draw.tidy)
    signs = tuple((w, c if colored else None) for w, c in zip(words, colors, strict=True))
    spec = Spec((), (), signs, bg)
    prompt = grammar.frame("text", template, grammar.body(spec))
    at = rng.randrange(n)
    slipped = tuple((misspelt(rng, w) if i == at else w, c) for i, (w, c) in enumerate(signs))
    return Item(
        "text",
        tag,
        prompt,
        _text_thought(rng, signs),
        grammar.instruction(spec),
        (),
        scene,
        spec,
        None,
        prompt,
        layout.held_out(scene) + template_names(template),
        ((_text_thought(rng, slipped), grammar.instruction(replace(spec, signs=slipped))),),
    )
