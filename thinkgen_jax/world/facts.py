# SPDX-License-Identifier: Apache-2.0
"""What a picture-maker must know beside drawing: a table of facts, and puzzles made by rule.

A riddle hides one attribute behind a fact: "a circle in the color of a stop sign". The facts are
taught to the language model as sentences; the image model is trained on explicit prompts only, so a
riddle is solved by the thought or not at all.

* Hidden attributes: color, shape, count, direction (of an arrow), order (of colours in a row).
* A value can be a set ("a leaf in autumn": orange or brown); then each of them is right.
* `Riddle` is one instance: prompt body, the sentence that solves it, the values, and the plausible
  wrong values with the sentence that a wrong thought would say.
"""

import random
from dataclasses import dataclass
from functools import cache

from .grammar import DIRECTIONS, NUMBERS, TRAIN_FRAMES, article, listed, noun
from .layout import COLOR_NAMES, bucket
from .scenes import SHAPES

CATEGORIES = ("culture", "time", "space", "biology", "physics", "chemistry")
# Shares of 1000 prompts: ids 1-400, 401-567, 568-700, 701-800, 801-900, 901-1000.
SHARES = (400, 167, 133, 100, 100, 100)
PLAIN_SHAPES = tuple(s for s in SHAPES if not s.startswith("arrow-"))


@dataclass(frozen=True)
class Fact:
    """One piece of knowledge.

    Attributes:
      category: one of `CATEGORIES`.
      attribute: what it tells: color, shape, count or direction.
      thing: how riddles name it; for counts "owner|parts" ("a dog|legs").
      values: what is right, at least one; counts are ints.
    """

    category: str
    attribute: str
    thing: str
    values: tuple[str | int, ...]

    @property
    def key(self) -> str:
        """Identifier in splits."""
        return f"{self.category}|{self.attribute}|{self.thing}"

    def sentence(self, value: str | int | None = None) -> str:
        """The fact in words; with `value`, the (perhaps wrong) claim that this value is right."""
        if self.attribute == "count":
            owner, parts = self.thing.split("|")
            return f"{owner} has {NUMBERS[self.values[0] if value is None else value]} {parts}"
        words = [str(v) for v in (self.values if value is None else (value,))]
        if self.attribute == "shape":
            words = [article(noun(word)) for word in words]
        return f"{self.thing} is {' or '.join(words)}"


# Sections name category and attribute.
# A line is "thing = value", or "thing = value / value" where each is right.
_TABLE_TEXT = """
[culture color]
a stop sign = red
a taxi in new york = yellow
a wedding dress = white
mourning in europe = black
mourning in china = white
good luck in china = red
a fire engine = red
a school bus = yellow
a flag of surrender = white
a pirate flag = black
the robe of a king = purple
the dutch team = orange
the irish holiday = green
a basketball = orange
a teddy bear = brown
a piggy bank = pink
a pair of jeans = blue
a ruby = red
an emerald = green
a sapphire = blue
[culture shape]
the symbol of love = heart
the symbol of marriage = ring
the badge of a sheriff = star
the sign of a hospital = cross
a slice of pizza = triangle
a field of a chess board = square
a kite = diamond
a coin = circle
a donut = ring
the top of a christmas tree = star
the sign for plus = cross
the side of a pyramid = triangle
[culture count]
the olympic flag|rings = 5
a violin|strings = 4
a guitar|strings = 6
a car|wheels = 4
a bicycle|wheels = 2
a tricycle|wheels = 3
a die|sides = 6
a trio|players = 3
a basketball team|players = 5
a traffic light|colors = 3
[time color]
the traffic light after green = yellow
the traffic light after yellow = red
the traffic light after red = green
a banana after a week = brown
a leaf in autumn = orange / brown
a leaf in spring = green
a hill in winter = white
the sky at noon = blue
the sky at midnight = black
the month of halloween = orange
a tomato in may = green
a ripe tomato = red
[time count]
a year|seasons = 4
a weekend|days = 2
half a year|months = 6
a month|weeks = 4
[space direction]
the way to the sunrise on a map = right
the way to the sunset on a map = left
the way to north on a map = up
the way to south on a map = down
the way to east on a map = right
the way to west on a map = left
[space shape]
the full moon = circle
the band around saturn = ring
[space count]
a compass|points = 4
a cube|dimensions = 3
[biology color]
a ripe banana = yellow
a flamingo = pink
grass = green
a frog = green
a snow hare in winter = white
a polar bear = white
a raven = black
blood = red
a carrot = orange
a pig = pink
a plum = purple
a young chick = yellow
a pumpkin = orange
[biology count]
an insect|legs = 6
a dog|legs = 4
a bird|legs = 2
a starfish|arms = 5
a lucky clover|leaves = 4
a hand|fingers = 5
[biology shape]
a starfish = star
[physics color]
blue paint mixed with yellow paint = green
red paint mixed with yellow paint = orange
red paint mixed with blue paint = purple
red paint mixed with white paint = pink
a shadow = black
[physics direction]
the way a stone falls = down
the way a balloon flies = up
the way smoke moves = up
the way rain moves = down
the way a rocket starts = up
[physics count]
a triangle|corners = 3
a square|corners = 4
[chemistry color]
litmus in acid = red
litmus in base = blue
charcoal = black
table salt = white
a copper flame = green
a sodium flame = yellow
rust = brown / orange
sulfur = yellow
a lithium flame = red
a potassium flame = purple
chalk = white
soot = black
[chemistry count]
water|atoms = 3
ammonia|atoms = 4
methane|atoms = 5
oxygen gas|atoms = 2
"""


def _parse_table(text: str) -> tuple[Fact, ...]:
    rows, category, attribute = [], "", ""
    for line in text.strip().splitlines():
        if line.startswith("["):
            category, attribute = line.strip("[]").split()
            continue
        thing, _, values = line.partition(" = ")
        named = tuple(int(v) if v.isdigit() else v for v in values.split(" / "))
        rows.append(Fact(category, attribute, thing, named))
    return tuple(rows)


FACTS = _parse_table(_TABLE_TEXT)

# {s} carrier shape, {p} its plural, {c} carrier colour, {t} thing, {o} owner, {u} its parts.
RIDDLES = {
    "color": (
        "a {s} in the color of {t}",
        "draw a {s} in the color of {t}",
        "a {s} with the same color as {t}",
        "the color of {t} as a {s}",
        "draw the color of {t} as a {s}",
        "a picture of a {s} with the same color as {t}",
    ),
    "shape": (
        "{t} in {c}",
        "draw {t} in {c}",
        "a picture of {t} in {c}",
        "the shape of {t} in {c}",
        "draw the shape of {t} in {c}",
        "an image with {t} in {c}",
    ),
    "count": (
        "as many {p} as {o} has {u}",
        "draw as many {p} as {o} has {u}",
        "a picture of as many {p} as {o} has {u}",
        "one {s} for each of the {u} of {o}",
        "draw one {s} for each of the {u} of {o}",
        "an image with as many {p} as {o} has {u}",
    ),
    "direction": (
        "{c} arrow pointing {t}",
        "draw {c} arrow pointing {t}",
        "{c} arrow that points {t}",
        "a picture of {c} arrow pointing {t}",
        "draw {c} arrow that points {t}",
        "an image with {c} arrow pointing {t}",
    ),
    "rule": (
        "{}",
        "draw {}",
        "a picture of {}",
        "show {}",
        "draw a picture of {}",
        "an image of {}",
    ),
}


@dataclass(frozen=True)
class Riddle:
    """One knowledge prompt.

    Attributes:
      category: one of `CATEGORIES`.
      attribute: color, shape, count, direction or order.
      carrier: the attribute that the prompt does give: a shape, or a colour.
      prompt: the whole prompt.
      values: right values of the hidden attribute, the one to draw first; an order is a tuple.
      sentence: what solves it.
      wrong: (value, sentence) of plausible wrong derivations.
      held_out: what training may not see, empty in train.
    """

    category: str
    attribute: str
    carrier: str
    prompt: str
    values: tuple
    sentence: str
    wrong: tuple[tuple[object, str], ...]
    held_out: tuple[str, ...]


def _is_held_triple(key: str, carrier: str, template: int) -> bool:
    return bucket(f"fact|{key}|{carrier}|{template}") == 0


_TABLE = {
    (category, attribute): [f for f in FACTS if (f.category, f.attribute) == (category, attribute)]
    for category in CATEGORIES
    for attribute in ("color", "shape", "count", "direction")
}
_POOL = {
    "color": COLOR_NAMES,
    "shape": PLAIN_SHAPES,
    "count": (2, 3, 4, 5, 6),
    "direction": DIRECTIONS,
}


def _wrong_values(rng: random.Random, attribute: str, right: tuple, n: int = 4) -> list:
    """Values that someone might believe instead; the same ones are not always first."""
    others = [v for v in _POOL[attribute] if v not in right]
    return rng.sample(others, min(n, len(others)))


def _from_table(rng: random.Random, fact: Fact, template: int) -> Riddle:
    """Asks for one fact with a random carrier."""
    attribute, values = fact.attribute, list(fact.values)
    rng.shuffle(values)
    owner, _, parts = fact.thing.partition("|")
    if attribute in ("color", "count"):
        shapes = PLAIN_SHAPES if attribute == "color" else _COUNTABLE[values[0] > 4]
        carrier = rng.choice(shapes)
    else:
        carrier = rng.choice(COLOR_NAMES)
    color = article(carrier) if attribute == "direction" else carrier
    prompt = RIDDLES[attribute][template].format(
        s=noun(carrier), p=noun(carrier, 2), c=color, t=fact.thing, o=owner, u=parts
    )
    held = [f"fact:{fact.thing}"] if _is_held_triple(fact.key, carrier, template) else []
    wrong = [(v, fact.sentence(v)) for v in _wrong_values(rng, attribute, fact.values)]
    return Riddle(
        fact.category,
        attribute,
        carrier,
        prompt,
        tuple(values),
        fact.sentence(),
        tuple(wrong),
        tuple(held),
    )


# Shapes that can be counted up to four, and beyond (small ones; small stars are hard to tell).
_COUNTABLE = (PLAIN_SHAPES, tuple(s for s in PLAIN_SHAPES if s != "star"))


def _ruled(rng, template, category, attribute, carrier, key, body, value, sentence, said) -> Riddle:
    """A riddle made by rule; `said(v)` is the sentence of someone who believes v."""
    held = [f"fact:{key}"] if _is_held_triple(key, carrier, template) else []
    wrong = tuple((v, said(v)) for v in _wrong_values(rng, attribute, (value,)))
    prompt = RIDDLES["rule"][template].format(body)
    return Riddle(category, attribute, carrier, prompt, (value,), sentence, wrong, tuple(held))


def _arithmetic(rng: random.Random, template: int) -> Riddle:
    """A sum or difference of small numbers; pairs with (a + 2 b) mod 5 = 0 are held out."""
    kind = rng.choice(("plus", "plus", "minus", "half", "double"))
    if kind == "half":
        n = rng.choice((2, 3))
        a, b, text = 2 * n, 0, f"half of {NUMBERS[2 * n]}"
    elif kind == "double":
        n = 2 * rng.choice((1, 2, 3))
        a, b, text = n // 2, 0, f"double of {NUMBERS[n // 2]}"
    else:
        n = rng.randint(2, 6 if kind == "plus" else 5)
        b = rng.randint(1, n - 1 if kind == "plus" else 6 - n)
        a = n - b if kind == "plus" else n + b
        text = f"{NUMBERS[a]} {kind} {NUMBERS[b]}"
    carrier = rng.choice(_COUNTABLE[n > 4])
    riddle = _ruled(
        rng,
        template,
        "physics",
        "count",
        carrier,
        text,
        f"{text} {noun(carrier, 2)}",
        n,
        f"{text} is {NUMBERS[n]}",
        lambda v: f"{text} is {NUMBERS[v]}",
    )
    if b and (a + 2 * b) % 5 == 0:
        return _held_too(riddle, f"sum:{text}")
    return riddle


def _held_too(riddle: Riddle, what: str) -> Riddle:
    fields = vars(riddle) | {"held_out": (*riddle.held_out, what)}
    return Riddle(**fields)


def _sequence(rng: random.Random, template: int) -> Riddle:
    """The next colour of a repeating row."""
    period = rng.choice((2, 2, 3))
    colors = rng.sample(COLOR_NAMES, period)
    shown = [colors[i % period] for i in range(4 if period == 2 else 5)]
    nxt, row = colors[len(shown) % period], ", ".join(shown)
    carrier = rng.choice(PLAIN_SHAPES)
    return _ruled(
        rng,
        template,
        "time",
        "color",
        carrier,
        row,
        f"a {carrier} in the next color of {row}",
        nxt,
        f"after {row} comes {nxt}",
        lambda v: f"after {row} comes {v}",
    )


def _clock(rng: random.Random, template: int) -> Riddle:
    """An arrow that makes a quarter turn every hour, clockwise."""
    start, hours = rng.randrange(4), rng.randint(1, 3)
    path = [DIRECTIONS[(start + i) % 4] for i in range(hours + 1)]
    color = rng.choice(COLOR_NAMES)
    count = f"{NUMBERS[hours]} quarter turn{'s' if hours > 1 else ''}"

    def said(value: str) -> str:
        return "the arrow goes " + ", ".join((*path[:-1], value))

    return _ruled(
        rng,
        template,
        "time",
        "direction",
        color,
        f"{path[0]} {count}",
        f"{article(color)} arrow pointing {path[0]} after {count}",
        path[-1],
        said(path[-1]),
        said,
    )


def _opposite(rng: random.Random, template: int) -> Riddle:
    """The other way, or the mirror image (left and right swap, up and down stay)."""
    at, color = rng.randrange(4), rng.choice(COLOR_NAMES)
    way = DIRECTIONS[at]
    if rng.random() < 0.5:
        value, thing = DIRECTIONS[(at + 2) % 4], f"the opposite of {way}"
        body = f"{article(color)} arrow pointing {thing}"
    else:
        value = DIRECTIONS[(at + 2) % 4] if at % 2 == 0 else way
        thing = f"the mirror image of {way}"
        body = f"the mirror image of {article(color)} arrow pointing {way}"
    return _ruled(
        rng,
        template,
        "space",
        "direction",
        color,
        thing,
        body,
        value,
        f"{thing} is {value}",
        lambda v: f"{thing} is {v}",
    )


def _middle(rng: random.Random, template: int) -> Riddle:
    """The colour that stands between the two others."""
    row = rng.sample(COLOR_NAMES, 3)
    carrier, text = rng.choice(PLAIN_SHAPES), ", ".join(row)
    return _ruled(
        rng,
        template,
        "space",
        "color",
        carrier,
        f"middle {text}",
        f"a {carrier} in the middle color of {text}",
        row[1],
        f"{row[1]} is between {row[0]} and {row[2]}",
        lambda v: f"{v} is between {row[0]} and {row[2]}",
    )


def _alphabet(rng: random.Random, template: int) -> Riddle:
    """Three objects from left to right in alphabetical order of their colours."""
    row = tuple(rng.sample(COLOR_NAMES, 3))
    order = tuple(sorted(row))
    carrier = rng.choice(_COUNTABLE[1])
    key = f"order {' '.join(row)}"
    held = (f"fact:{key}",) if _is_held_triple(key, carrier, template) else ()
    others = [(a, b, c) for a in row for b in row for c in row if len({a, b, c}) == 3]
    wrong = [v for v in others if v != order]
    rng.shuffle(wrong)
    body = f"three {noun(carrier, 2)} in {listed(row)}, left to right in alphabetical order"
    return Riddle(
        "space",
        "order",
        carrier,
        RIDDLES["rule"][template].format(body),
        (order,),
        f"the alphabetical order is {', '.join(order)}",
        tuple((v, f"the alphabetical order is {', '.join(v)}") for v in wrong[:4]),
        held,
    )


# Per category: table attributes and generators with weights.
_SOURCES = {
    "culture": (("color", 20), ("shape", 12), ("count", 10)),
    "time": (("color", 12), ("count", 4), (_sequence, 8), (_clock, 8)),
    "space": (
        ("direction", 6),
        ("shape", 2),
        ("count", 2),
        (_opposite, 5),
        (_middle, 3),
        (_alphabet, 4),
    ),
    "biology": (("color", 13), ("count", 6), ("shape", 1)),
    "physics": (("color", 5), ("direction", 5), ("count", 2), (_arithmetic, 8)),
    "chemistry": (("color", 12), ("count", 4)),
}


def riddle(rng: random.Random, category: str, template: int) -> Riddle:
    """A random riddle of a category in one of six surface forms (4 and 5 are held out)."""
    sources, weights = zip(*_SOURCES[category], strict=True)
    source = rng.choices(sources, weights)[0]
    if isinstance(source, str):
        made = _from_table(rng, rng.choice(_TABLE[category, source]), template)
    else:
        made = source(rng, template)
    if template >= TRAIN_FRAMES:
        return _held_too(made, f"template:{template}")
    return made


# --- lessons ------------------------------------------------------------------------------------

QUESTIONS = {
    "color": ("what color is {t}", "name the color of {t}"),
    "shape": ("what shape is {t}", "name the shape of {t}"),
    "count": ("how many {u} has {o}", "name the number of {u} of {o}"),
    "direction": ("what direction is {t}", "name the direction: {t}"),
}


def riddle_forms(fact: Fact) -> list[str]:
    """A fact's riddle in all six surface forms, with one carrier."""
    owner, _, parts = fact.thing.partition("|")
    words = dict(s="circle", p="circles", c="red", t=fact.thing, o=owner, u=parts)
    if fact.attribute == "direction":
        words["c"] = "a red"
    return [form.format(**words) for form in RIDDLES[fact.attribute]]


@cache
def lessons() -> tuple[tuple[str, str], ...]:
    """All (question, fact sentence) pairs: what the language model is taught as text alone."""
    pairs = []
    for fact in FACTS:
        owner, _, parts = fact.thing.partition("|")
        for question in QUESTIONS[fact.attribute]:
            pairs.append((question.format(t=fact.thing, o=owner, u=parts), fact.sentence()))
    return tuple(pairs)
