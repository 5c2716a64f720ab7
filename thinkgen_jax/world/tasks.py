# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation items of the miniature world: what is asked, thought, said and drawn.

`item(scenario, index, split)` is a pure function: the same arguments give the same item on every
machine, so data needs no files. An item carries the prompt, a reference thought, the instruction
that stands behind it, the pictures that come with the request, the picture that a perfect answer
draws, and the spec by which any answer is judged.

* "train" items contain no held-out combination, word, template or reserved picture; every "heldout"
  item contains at least one, and `held_out` names them.
* A wrong thought (`wrong_thought`) is the reference derivation with another value: mixing it into
  training leaves a language model with something to learn from rewards.
* The image model is trained on `explicit` and `instruction`, never on riddles.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from . import facts, grammar, layout
from .layout import COLOR_NAMES, SPLITS, Look
from .scenes import BACKGROUNDS, TEXTURED_SHAPES, Scene, Spec, Want

SCENARIOS = (
    "composition",
    "reasoning",
    "text",
    "edit",
    "reasoning_edit",
    "in_context",
    "reflection",
    "understand",
)
TRIES = 2000  # redraws before an item is given up; a handful is typical

# Tags and how often they are drawn; composition as in GenEval, plus size and texture.
TAGS: dict[str, dict[str, int]] = {
    "composition": {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
        "size": 80,
        "texture": 80,
    },
    "reasoning": dict(zip(facts.CATEGORIES, facts.SHARES, strict=True)),
    "text": {"text1": 50, "text2": 30, "text3": 12, "text4": 8},
}


@dataclass(frozen=True)
class Item:
    """One exercise.

    Attributes:
      scenario: one of `SCENARIOS`.
      tag: kind within the scenario: single_object ... texture, text1 ... text4, a fact category, an
        edit operation, a puzzle kind, a flaw, a question.
      prompt: what the user says.
      thought: reference thought, without its tags.
      instruction: what stands behind the thought; for "understand" the answer.
      references: pictures given with the request.
      target: what a perfect answer draws; None for "understand".
      spec: what is checked; None for "understand".
      answer: exact answer for "understand", else None.
      explicit: a prompt for the same target that leaves nothing to infer.
      held_out: held-out combinations in it; empty in train.
      wrong: (thought, instruction) pairs of plausible wrong derivations.
      accepts: further instructions that are as right as `instruction`.
    """

    scenario: str
    tag: str
    prompt: str
    thought: str
    instruction: str
    references: tuple[Scene, ...]
    target: Scene | None
    spec: Spec | None
    answer: str | None
    explicit: str
    held_out: tuple[str, ...]
    wrong: tuple[tuple[str, str], ...] = ()
    accepts: tuple[str, ...] = ()


def _seeded(*parts: object) -> random.Random:
    text = "|".join(map(str, parts))
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


class Draw(NamedTuple):
    """How an item is drawn.

    Attributes:
      legal: only combinations of looks and words that training may see.
      held: held-out surface forms and reserved pictures; train is (True, False).
    """

    legal: bool
    held: bool

    @property
    def reserved(self) -> bool | None:
        """What `layout.arrange` has to look for; pictures with held-out looks need no reserve."""
        return self.held if self.legal else None


def _template(rng: random.Random, draw: Draw) -> int:
    """Index of a surface form; in the held-out split half of them are held-out forms."""
    if not draw.held or rng.random() < 0.5:
        return rng.randrange(grammar.TRAIN_FRAMES)
    return rng.randrange(grammar.TRAIN_FRAMES, 6)


def _template_names(template: int) -> tuple[str, ...]:
    return (f"template:{template}",) if template >= grammar.TRAIN_FRAMES else ()


def _background(rng: random.Random, share: float = 0.2) -> str | None:
    """A background that the prompt names, or None for the default one."""
    return rng.choice(tuple(BACKGROUNDS)) if rng.random() < share else None


# --- composition --------------------------------------------------------------------------------

NOT_STAR = tuple(s for s in grammar.SHAPES if s != "star")

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
SIDES = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}


def _want(look: Look, *names: str) -> Want:
    """A want for the shape and the named attributes of a look."""
    return Want(look.shape, **{name: getattr(look, name) for name in names})


def _plan_one(rng: random.Random, legal: bool, tag: str) -> tuple[list[Look], list[Want]]:
    """Looks and wants of one-object prompts."""
    shapes = {"size": NOT_STAR, "texture": TEXTURED_SHAPES}.get(tag, grammar.SHAPES)
    look = layout.draw_looks(rng, 1, legal=legal, shapes=shapes)[0]
    colored = ("color",) if tag == "colors" or rng.random() < 0.6 else ()
    if tag == "size":
        look = look._replace(size=rng.choice(("small", "large")))
        return [look], [_want(look, "size", *colored)]
    if tag == "texture":
        look = layout.stripe(rng, look._replace(size=rng.choice(("medium", "medium", "large"))))
        named = ("size", "tex") if look.size == "large" else ("tex",)
        return [look], [_want(look, *named, *colored)]
    return [look], [_want(look, *(colored if tag == "colors" else ()))]


def _plan_two(rng: random.Random, legal: bool, tag: str) -> tuple[list[Look], list[Want]]:
    """Looks and wants of two-object prompts."""
    shapes = NOT_STAR if tag == "size" else grammar.SHAPES
    looks = layout.draw_looks(rng, 2, legal=legal, shapes=shapes)
    if tag == "size":
        sizes = rng.choice((("small", "large"), ("large", "small")))
        looks = [k._replace(size=s) for k, s in zip(looks, sizes, strict=True)]
        return looks, [_want(k, "size", "color") for k in looks]
    if tag == "texture":
        looks = [layout.stripe(rng, k) if k.shape in TEXTURED_SHAPES else k for k in looks]
        return looks, [_want(k, "color", *(("tex",) if k.tex != "solid" else ())) for k in looks]
    colored = tag == "color_attr" or (tag == "position" and rng.random() < 0.5)
    return looks, [_want(k, *(("color",) if colored else ())) for k in looks]


def _counting(rng: random.Random, legal: bool) -> tuple[list[Look], list[Want]]:
    n = rng.choices((2, 3, 4, 5, 6), (28, 26, 22, 12, 12))[0]
    while True:
        look = layout.draw_looks(rng, 1, legal=legal, shapes=NOT_STAR if n > 4 else grammar.SHAPES)[
            0
        ]
        if not (legal and (look.shape, n) in layout.HELD_COUNTS):
            break
    look = look._replace(size="small") if n > 4 else look
    return [look] * n, [_want(look, *(("color",) if rng.random() < 0.5 else ()))] * n


def _composition(rng: random.Random, draw: Draw, tag: str) -> Item:
    """One or two objects, a count or a relation, as in GenEval."""
    template, bg = _template(rng, draw), _background(rng)
    relations, cells = (), None
    if tag == "counting":
        looks, wants = _counting(rng, draw.legal)
    elif tag in ("single_object", "colors") or (tag in ("size", "texture") and rng.random() < 0.65):
        looks, wants = _plan_one(rng, draw.legal, tag)
    else:
        looks, wants = _plan_two(rng, draw.legal, tag)
        if tag == "texture" and all(k.tex == "solid" for k in looks):
            return _composition(rng, draw, tag)
        if tag == "position":
            rel = rng.choice(grammar.RELATIONS)
            relations, cells = ((0, rel, 1),), rng.choice(layout.RELATED[rel])
    scene = layout.arrange(rng, looks, cells, bg=bg or "gray", reserved=draw.reserved)
    spec = Spec(tuple(wants), relations, (), bg)
    prompt = grammar.frame("scene", template, grammar.body(spec))
    placed = [layout.cell(o) for o in scene.objects] if len(set(looks)) > 1 else None
    return Item(
        "composition",
        tag,
        prompt,
        _composition_thought(rng, spec),
        grammar.instruction(spec, placed),
        (),
        scene,
        spec,
        None,
        prompt,
        layout.held_out(scene, relations) + _template_names(template),
        _composition_wrong(rng, spec, placed),
    )


def _composition_thought(rng: random.Random, spec: Spec) -> str:
    wants = spec.objects
    named = [grammar.phrase(w) for w in wants]
    if spec.relations:
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
    return f"{text} the background is {spec.bg}." if spec.bg else text


def _composition_wrong(
    rng: random.Random, spec: Spec, cells: Sequence[int] | None
) -> tuple[tuple[str, str], ...]:
    """Swapped places and wrong counts, with the thought that leads there."""
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


def _reasoning(rng: random.Random, draw: Draw, tag: str) -> Item:
    """A prompt that hides one attribute behind a fact or a rule."""
    template = _template(rng, draw)
    riddle = facts.riddle(rng, tag, template)
    value = riddle.values[0]
    looks, wants = _riddle_looks(rng, riddle, value)
    ordered = riddle.attribute == "order"
    cells = layout.ROWS[0] if ordered else None
    scene = layout.arrange(rng, looks, cells, reserved=draw.reserved)
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


def _misspelt(rng: random.Random, word: str) -> str:
    """The word with one character exchanged for another of its kind."""
    at = rng.randrange(len(word))
    pool = "0123456789" if word[at].isdigit() else "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return word[:at] + rng.choice(pool.replace(word[at], "")) + word[at + 1 :]


def _text(rng: random.Random, draw: Draw, tag: str) -> Item:
    """One to four signs with words, half of the time with their colours."""
    n, template = int(tag[4:]), _template(rng, draw)
    words: list[str] = []
    while len(words) < n:
        word = _word(rng, draw.legal)
        if word not in words and len(word) <= (9 if n < 3 else 5):
            words.append(word)
    colors = [rng.choice(COLOR_NAMES) for _ in words]
    bg, colored = _background(rng, 0.1), rng.random() < 0.5
    scene = layout.stack(list(zip(words, colors, strict=True)), bg or "gray")
    signs = tuple((w, c if colored else None) for w, c in zip(words, colors, strict=True))
    spec = Spec((), (), signs, bg)
    prompt = grammar.frame("text", template, grammar.body(spec))
    at = rng.randrange(n)
    slipped = tuple((_misspelt(rng, w) if i == at else w, c) for i, (w, c) in enumerate(signs))
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
        layout.held_out(scene) + _template_names(template),
        ((_text_thought(rng, slipped), grammar.instruction(replace(spec, signs=slipped))),),
    )


# --- the door -----------------------------------------------------------------------------------

_MAKERS = {"composition": _composition, "reasoning": _reasoning, "text": _text}


SOFT = 0.35  # share of held-out items whose combinations of looks are all known from train


def _draws(rng: random.Random, scenario: str, split: str) -> Draw:
    if split == "train":
        return Draw(legal=True, held=False)
    # Text has no free layout to reserve: its held-out part is the words.
    return Draw(legal=scenario != "text" and rng.random() < SOFT, held=True)


def _belongs(made: Item, draw: Draw) -> bool:
    """Whether an item may stand in its split: nothing held out in train, something otherwise."""
    soft = ("template:", "fact:", "sum:", "order:")
    if not draw.legal:
        return any(not name.startswith(soft) for name in made.held_out)
    picture = made.target or made.references[0]
    if bool(made.held_out) != draw.held:
        return False
    return made.scenario == "text" or layout.is_reserved(picture) == draw.held


def item(scenario: str, index: int, split: str) -> Item:
    """The item of a scenario at an index; the same for the same arguments.

    Args:
      scenario: one of `SCENARIOS`.
      index: any integer from 0 on; items of different indices are independent.
      split: "train" or "heldout".

    Raises:
      ValueError: If scenario or split is unknown.
    """
    if scenario not in _MAKERS:
        raise ValueError(f"scenario {scenario!r} is not one of {', '.join(SCENARIOS)}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    rng = _seeded(split, scenario, index)
    draw = _draws(rng, scenario, split)
    tags = TAGS[scenario]
    tag = rng.choices(tuple(tags), tuple(tags.values()))[0]
    for _ in range(TRIES):
        made = _MAKERS[scenario](rng, draw, tag)
        if _belongs(made, draw):
            return made
    raise RuntimeError(f"no {split} item for {scenario} {tag} {index} in {TRIES} tries")


def mixed(weights: Mapping[str, float], index: int, split: str) -> Item:
    """An item of a random scenario, drawn with the given weights."""
    rng = _seeded(split, "mixed", index)
    scenario = rng.choices(tuple(weights), tuple(weights.values()))[0]
    return item(scenario, index, split)


def decoys(made: Item, rng: random.Random) -> list[tuple[str, str]]:
    """All plausible wrong (thought, instruction) pairs of an item, in random order."""
    return rng.sample(made.wrong, len(made.wrong))


def wrong_thought(made: Item, rng: random.Random) -> tuple[str, str]:
    """A plausible wrong (thought, instruction).

    Raises:
      ValueError: If the item hides nothing that one could get wrong.
    """
    if not made.wrong:
        raise ValueError(f"{made.scenario} item {made.tag!r} has no wrong derivation")
    return rng.choice(made.wrong)


def follows(made: Item, text: str) -> bool:
    """Whether an instruction leads to the right picture (or is the right answer).

    New pictures: the sentence is read and must satisfy the spec. Edits: the same operations in any
    order.
    """
    text = " ".join(text.split()).rstrip(".")
    if text == made.instruction or text in made.accepts:
        return True
    if made.spec is None:
        return False
    if made.scenario in ("composition", "reasoning", "text", "in_context"):
        reading = grammar.read(text)
        return reading is not None and grammar.meets(reading, made.spec)
    steps = sorted(text.split(" and "))
    return any(steps == sorted(right.split(" and ")) for right in (made.instruction, *made.accepts))


def corpus(count: int = 400) -> Iterator[str]:
    """Sentences that contain every word of the world, for training a tokenizer.

    Args:
      count: items per scenario and split.
    """
    for question, sentence in facts.lessons():
        yield question
        yield sentence
    for split in SPLITS:
        for scenario in _MAKERS:
            for index in range(count):
                made = item(scenario, index, split)
                yield from (made.prompt, made.thought, made.instruction, made.explicit)
