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
from collections.abc import Iterator, Mapping
from dataclasses import replace

from . import edits, facts, grammar, layout, pictured, prompted, puzzles
from .exercise import Draw, Item, Place
from .layout import SPLITS

SCENARIOS = (
    "composition",
    "arrangement",
    "reasoning",
    "text",
    "edit",
    "reasoning_edit",
    "in_context",
    "reflection",
    "understand",
)
NEW = ("composition", "arrangement", "reasoning", "text", "in_context")  # judged by a spec
TRIES = 2000  # redraws before an item is given up; a handful is typical

# Tags and how often they are drawn; composition as in GenEval, plus size, texture,
# comparison and absence.
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
        "bigger": 40,
        "absent": 30,
    },
    "arrangement": {"all1": 2, "all2": 3, "all3": 2, "all4": 2},
    "reasoning": dict(zip(facts.CATEGORIES, facts.SHARES, strict=True)),
    "text": {"text1": 50, "text2": 30, "text3": 12, "text4": 8},
    "edit": dict.fromkeys((*edits.OPS, "compose"), 1),
    "reasoning_edit": dict.fromkeys(puzzles.KINDS, 1),
    "in_context": {"refs1": 3, "refs2": 5, "refs3": 2},
    "reflection": {
        "color": 16,
        "shape": 14,
        "missing": 12,
        "extra": 12,
        "swap": 8,
        "size": 6,
        "letter": 8,
        "two": 14,
        "none": 10,
    },
    "understand": {
        "count": 20,
        "color": 15,
        "shape": 10,
        "relation": 10,
        "exists": 10,
        "place": 10,
        "describe": 20,
        "word": 5,
    },
}


def _seeded(*parts: object) -> random.Random:
    text = "|".join(map(str, parts))
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


# --- the door -----------------------------------------------------------------------------------

_MAKERS = {
    "composition": prompted.composition,
    "arrangement": prompted.arrangement,
    "reasoning": prompted.reasoning,
    "text": prompted.text,
    "edit": pictured.edit,
    "reasoning_edit": pictured.reasoning_edit,
    "in_context": pictured.in_context,
    "reflection": pictured.reflection,
    "understand": pictured.understand,
}


SOFT = 0.35  # share of held-out items whose combinations of looks are all known from train


def _draws(rng: random.Random, scenario: str, split: str) -> Draw:
    if split == "train":
        return Draw(legal=True, held=False)
    # Text has no free layout to reserve: its held-out part is the words.
    return Draw(legal=scenario != "text" and rng.random() < SOFT, held=True)


def _belongs(made: Item, draw: Draw) -> bool:
    """Whether an item may stand in its split: nothing held out in train, something otherwise."""
    picture = made.target or made.references[0]
    if not draw.legal:
        return bool(layout.held_out(picture))
    return bool(made.held_out) == draw.held and layout.is_reserved(picture) == draw.held


def item(
    scenario: str, index: int, split: str, tag: str | None = None, *, tidy: bool = False
) -> Item:
    """The item of a scenario at an index; the same for the same arguments.

    Args:
      scenario: one of `SCENARIOS`.
      index: any integer from 0 on; items of different indices are independent.
      split: "train" or "heldout".
      tag: One of `TAGS[scenario]`; None draws one by its weight.
      tidy: new pictures without the jitter of places and sizes; see `exercise.Draw`.

    Raises:
      ValueError: If scenario, split or tag is unknown.
    """
    if scenario not in _MAKERS:
        raise ValueError(f"scenario {scenario!r} is not one of {', '.join(SCENARIOS)}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    tags = TAGS[scenario]
    if tag is not None and tag not in tags:
        raise ValueError(f"tag {tag!r} of {scenario} is not one of {', '.join(tags)}")
    place = Place(scenario, index, split, tag, tidy)
    rng = _seeded(split, scenario, index, *([tag] if tag else []))
    draw = _draws(rng, scenario, split)._replace(tidy=tidy)
    tag = tag or rng.choices(tuple(tags), tuple(tags.values()))[0]
    for _ in range(TRIES):
        made = _MAKERS[scenario](rng, draw, tag)
        if made is not None and _belongs(made, draw):
            return replace(made, place=place)
    raise RuntimeError(f"no {split} item for {scenario} {tag} {index} in {TRIES} tries")


def mixed(weights: Mapping[str, float], index: int, split: str, *, tidy: bool = False) -> Item:
    """An item of a random scenario, drawn with the given weights.

    Args:
      weights: by scenario, or by scenario and tag: "edit", "text/text1".
    """
    rng = _seeded(split, "mixed", index)
    scenario, _, tag = rng.choices(tuple(weights), tuple(weights.values()))[0].partition("/")
    return item(scenario, index, split, tag or None, tidy=tidy)


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
    if made.scenario in NEW:
        reading = grammar.read(text)
        return reading is not None and grammar.meets(reading, made.spec)
    steps = sorted(text.split(" and "))
    return any(steps == sorted(right.split(" and ")) for right in (made.instruction, *made.accepts))


def corpus(count: int = 150) -> Iterator[str]:
    """Sentences that contain every word of the world, for training a tokenizer.

    Args:
      count: items per scenario and split, beside all facts, rules and words of signs.
    """
    for question, sentence in facts.lessons():
        yield question
        yield sentence
    for fact in facts.FACTS:
        yield from facts.riddle_forms(fact)
    yield from puzzles.premises()
    yield from map(grammar.quoted, (*layout.WORDS, "0123456789"))
    for split in SPLITS:
        for scenario in _MAKERS:
            for index in range(count):
                made = item(scenario, index, split)
                yield from (made.prompt, made.thought, made.instruction, made.explicit)
