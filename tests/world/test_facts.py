# SPDX-License-Identifier: Apache-2.0
"""Facts are well-formed and riddles by rule have the right answers."""

import random
import re
from collections import Counter

import pytest

from thinkgen_jax.world import facts
from thinkgen_jax.world.grammar import DIRECTIONS, NUMBERS
from thinkgen_jax.world.scenes import COLORS, SHAPES

POOLS = {"color": set(COLORS), "shape": set(SHAPES), "count": set(range(2, 7))}
POOLS["direction"] = set(DIRECTIONS)


def riddles(category, count=300, template=None):
    rng = random.Random(f"{category}")
    return [
        facts.riddle(rng, category, rng.randrange(4) if template is None else template)
        for _ in range(count)
    ]


def test_table_is_sound():
    assert len(facts.FACTS) >= 80
    assert len({f.key for f in facts.FACTS}) == len(facts.FACTS)
    assert {f.category for f in facts.FACTS} == set(facts.CATEGORIES)
    for fact in facts.FACTS:
        assert fact.values and set(fact.values) <= POOLS[fact.attribute], fact
        assert ("|" in fact.thing) == (fact.attribute == "count")
    assert sum(facts.SHARES) == 1000


@pytest.mark.parametrize(
    ("thing", "sentence"),
    [
        ("a stop sign", "a stop sign is red"),
        ("a leaf in autumn", "a leaf in autumn is orange or brown"),
        ("a dog|legs", "a dog has four legs"),
        ("the symbol of love", "the symbol of love is a heart"),
        ("the way a stone falls", "the way a stone falls is down"),
    ],
)
def test_sentences(thing, sentence):
    (fact,) = [f for f in facts.FACTS if f.thing == thing]
    assert fact.sentence() == sentence


@pytest.mark.parametrize("category", facts.CATEGORIES)
def test_wrong_values_are_wrong_and_said(category):
    for made in riddles(category):
        assert made.category == category and made.wrong
        for value, sentence in made.wrong:
            assert value not in made.values
            assert sentence != made.sentence


def _number(word):
    return NUMBERS.index(word)


def test_arithmetic_is_right():
    found = Counter()
    for made in riddles("physics", 250):
        body = re.sub(r"^(draw|a picture of|show) ", "", made.prompt)
        if m := re.match(r"(\w+) (plus|minus) (\w+) ", body):
            a, b = _number(m[1]), _number(m[3])
            assert made.values == (a + b if m[2] == "plus" else a - b,)
            # Pairs with a + 2 b divisible by five are held out.
            assert any(h.startswith("sum:") for h in made.held_out) == ((a + 2 * b) % 5 == 0)
            found[m[2]] += 1
        elif m := re.match(r"(half|double) of (\w+) ", body):
            n = _number(m[2])
            assert made.values == (n // 2 if m[1] == "half" else 2 * n,)
            found[m[1]] += 1
    assert len(found) == 4 and min(found.values()) > 1


def test_clock_turns_clockwise():
    clockwise = ["up", "right", "down", "left"]
    seen = 0
    for made in riddles("time", 250):
        if m := re.search(r"arrow pointing (\w+) after (\w+) quarter", made.prompt):
            end = clockwise[(clockwise.index(m[1]) + _number(m[2])) % 4]
            assert made.values == (end,)
            seen += 1
    assert seen > 20


def test_sequences_repeat():
    seen = 0
    for made in riddles("time", 250):
        if m := re.search(r"next color of (.*)", made.prompt):
            row = m[1].split(", ")
            period = 2 if row[0] == row[2] else 3
            assert row[0] == row[period] and made.values == (row[len(row) % period],)
            seen += 1
    assert seen > 20


def test_space_rules():
    kinds = Counter()
    for made in riddles("space", 400):
        if m := re.search(r"the opposite of (\w+)", made.prompt):
            pairs = {"left": "right", "right": "left", "up": "down", "down": "up"}
            assert made.values == (pairs[m[1]],)
        elif m := re.search(r"the mirror image of .* pointing (\w+)", made.prompt):
            pairs = {"left": "right", "right": "left", "up": "up", "down": "down"}
            assert made.values == (pairs[m[1]],)
        elif m := re.search(r"middle color of (\w+), (\w+), (\w+)", made.prompt):
            assert made.values == (m[2],)
        elif made.attribute == "order":
            named = [c for c in COLORS if re.search(rf"\b{c}\b", made.prompt)]
            assert made.values == (tuple(sorted(named)),)
        else:
            continue
        kinds[made.attribute] += 1
    assert set(kinds) == {"direction", "color", "order"}


def test_templates_keep_their_fields_and_words():
    for attribute, forms in facts.RIDDLES.items():
        assert len(forms) == 6
        # A carrier stands in the singular or in the plural.
        fields = [sorted(re.findall(r"\{(\w*)\}", f.replace("{p}", "{s}"))) for f in forms]
        assert all(f == fields[0] for f in fields), attribute
    everything = " ".join(form for forms in facts.RIDDLES.values() for form in forms[:4])
    for forms in facts.RIDDLES.values():
        for form in forms[4:]:
            words = set(re.findall(r"[a-z]+", re.sub(r"\{\w*\}", "", form)))
            # "an image with" is a frame of plain prompts.
            assert words <= set(everything.split()) | {"an", "image", "with", "of"}


def test_held_out_templates_are_named():
    assert all("template:4" in made.held_out for made in riddles("culture", 20, template=4))


def test_lessons_teach_every_fact():
    told = {sentence for _, sentence in facts.lessons()}
    assert told == {f.sentence() for f in facts.FACTS}
