# SPDX-License-Identifier: Apache-2.0
"""Closed questions about a picture, each with one exact answer and the thought that finds it."""

import random
from dataclasses import dataclass

from . import grammar, layout
from .grammar import NUMBERS, article, at, noun
from .layout import CELLS, COLOR_NAMES, LEGAL_COLORS, Look, cell
from .scenes import RELATIONS, SHAPES, Scene

QUESTIONS = {
    "count": (
        "how many {p} are there",
        "count the {p}",
        "how many {p} does the picture show",
        "the number of {p} in the picture",
        "how many {p} are in the picture",
        "count the {p} in the picture",
    ),
    "color": (
        "what color is the {s}",
        "the color of the {s}",
        "name the color of the {s}",
        "which color has the {s}",
        "what is the color of the {s}",
        "what color has the {s}",
    ),
    "shape": (
        "what shape is {c}",
        "what is {c}",
        "name the {c} shape",
        "which object is {c}",
        "what object is {c}",
        "which shape is {c}",
    ),
    "relation": (
        "what is {rel} the {s}",
        "name the object {rel} the {s}",
        "which object is {rel} the {s}",
        "the object {rel} the {s}",
        "what object is {rel} the {s}",
        "what does the picture show {rel} the {s}",
    ),
    "exists": (
        "is there {np}",
        "does the picture show {np}",
        "is {np} in the picture",
        "can you see {np}",
        "is there {np} in the picture",
        "can you see {np} in the picture",
    ),
    "place": (
        "where is the {s}",
        "name the place of the {s}",
        "the place of the {s}",
        "which place has the {s}",
        "what is the place of the {s}",
        "what place has the {s}",
    ),
    "describe": (
        "describe the picture",
        "what is in the picture",
        "name every object",
        "what does the picture show",
        "describe every object",
        "name every object in the picture",
    ),
    "word": (
        "what is the word",
        "read the sign",
        "which word is on the sign",
        "the word in the picture",
        "read the word",
        "what word is on the sign",
    ),
}
THOUGHTS = ("{seen}.", "i see that {seen}.", "look: {seen}. so the answer is {answer}.")


@dataclass(frozen=True)
class Question:
    """A question, its exact answer, and the thought that leads there."""

    prompt: str
    answer: str
    thought: str


def picture(rng: random.Random, tag: str, *, legal: bool, reserved: bool | None) -> Scene:
    """A random picture that the kind of question makes sense for."""
    if tag == "word":
        words = layout.TRAIN_WORDS if legal else layout.HELD_WORDS
        return layout.stack([(rng.choice(words), rng.choice(COLOR_NAMES))])
    if tag == "count" and rng.random() < 0.8:
        n = rng.choices((1, 2, 3, 4, 5, 6), (15, 25, 25, 20, 10, 10))[0]
        shapes = [
            s
            for s in SHAPES
            if (n < 5 or s != "star") and not (legal and (s, n) in layout.HELD_COUNTS)
        ]
        shape = rng.choice(shapes)
        color = rng.choice(LEGAL_COLORS[shape] if legal else COLOR_NAMES)
        look = Look(shape, color, "small" if n > 4 else "medium")
        return layout.arrange(rng, [look] * n, reserved=reserved)
    n = 2 if tag == "relation" else rng.choices((1, 2, 3), (25, 50, 25))[0]
    looks = layout.draw_looks(rng, n, legal=legal)
    cells = rng.choice(layout.RELATED[rng.choice(RELATIONS)]) if tag == "relation" else None
    return layout.arrange(rng, looks, cells, reserved=reserved)


def _ask_count(rng: random.Random, scene: Scene) -> tuple[dict[str, str], str, str]:
    shape = rng.choice(scene.objects).shape
    if rng.random() < 0.1:
        shape = rng.choice([s for s in SHAPES if all(o.shape != s for o in scene.objects)])
    found = [o for o in grammar.reading_order(scene.objects) if o.shape == shape]
    answer = NUMBERS[len(found)]
    places = ", ".join(CELLS[cell(o)] for o in found)
    seen = f"{answer} {noun(shape, 2)}: {places}" if found else f"there are no {noun(shape, 2)}"
    return {"p": noun(shape, 2)}, answer, seen


def _ask_color(rng: random.Random, scene: Scene) -> tuple[dict[str, str], str, str]:
    obj = rng.choice(scene.objects)
    seen = f"the {noun(obj.shape)} {at(cell(obj))} is {obj.color}"
    return {"s": noun(obj.shape)}, obj.color, seen


def _ask_shape(rng: random.Random, scene: Scene) -> tuple[dict[str, str], str, str]:
    colors = [o.color for o in scene.objects]
    unique = [o for o in scene.objects if colors.count(o.color) == 1]
    obj = rng.choice(unique or scene.objects[:1])
    answer = article(noun(obj.shape))
    return {"c": obj.color}, answer, f"{answer} {at(cell(obj))} is {obj.color}"


def _ask_relation(rng: random.Random, scene: Scene) -> tuple[dict[str, str], str, str]:
    a, b = rng.sample(scene.objects, 2)
    if cell(a) // 3 == cell(b) // 3:
        rel = "left of" if a.x < b.x else "right of"
    else:
        rel = "above" if a.y < b.y else "below"
    answer = grammar.phrase(a, sized=False)
    return {"rel": rel, "s": noun(b.shape)}, answer, f"{answer} is {rel} the {noun(b.shape)}"


def _ask_exists(rng: random.Random, scene: Scene) -> tuple[dict[str, str], str, str]:
    obj = rng.choice(scene.objects)
    shape, color = obj.shape, obj.color
    kind = rng.random()
    if kind < 0.25:
        color = rng.choice([c for c in COLOR_NAMES if c != color])
    elif kind < 0.5:
        shape = rng.choice([s for s in SHAPES if all(o.shape != s for o in scene.objects)])
    asked = article(f"{color} {noun(shape)}")
    if kind >= 0.5:
        return {"np": asked}, "yes", f"{asked} is {at(cell(obj))}"
    same = f"the {noun(shape)} is {obj.color}" if kind < 0.25 else f"there is no {noun(shape)}"
    return {"np": asked}, "no", same


def _ask_place(rng: random.Random, scene: Scene) -> tuple[dict[str, str], str, str]:
    obj = rng.choice(scene.objects)
    where = CELLS[cell(obj)]
    return {"s": noun(obj.shape)}, where, f"the {obj.color} {noun(obj.shape)} is at the {where}"


def _ask_describe(rng: random.Random, scene: Scene) -> tuple[dict[str, str], str, str]:
    n = len(scene.objects)
    return (
        {},
        grammar.describe(scene),
        f"there {'is one object' if n == 1 else f'are {NUMBERS[n]} objects'}",
    )


def _ask_word(rng: random.Random, scene: Scene) -> tuple[dict[str, str], str, str]:
    sign = scene.signs[0]
    return {}, grammar.quoted(sign.word), f"the {sign.color} sign reads {' '.join(sign.word)}"


_ASK = {
    "count": _ask_count,
    "color": _ask_color,
    "shape": _ask_shape,
    "relation": _ask_relation,
    "exists": _ask_exists,
    "place": _ask_place,
    "describe": _ask_describe,
    "word": _ask_word,
}


def question(rng: random.Random, tag: str, scene: Scene, template: int) -> Question:
    """A random question of one kind about a picture, in one of six surface forms."""
    words, answer, seen = _ASK[tag](rng, scene)
    thoughts = THOUGHTS[:2] if tag == "describe" else THOUGHTS
    thought = rng.choice(thoughts).format(seen=seen, answer=answer)
    return Question(QUESTIONS[tag][template].format(**words), answer, thought)
