# SPDX-License-Identifier: Apache-2.0
"""Sentences say what the records say, and canonical ones can be read back."""

import re

import pytest

from thinkgen_jax.world import grammar
from thinkgen_jax.world.scenes import Object, Scene, Sign, Spec, Want

RED, BLUE = Want("circle", "red"), Want("square", "blue")


@pytest.mark.parametrize(
    ("want", "n", "text"),
    [
        (Want("circle", "red"), 1, "a red circle"),
        (Want("circle", "orange"), 1, "an orange circle"),
        (Want("arrow-up"), 1, "an arrow pointing up"),
        (Want("arrow-left", "red"), 3, "three red arrows pointing left"),
        (Want("cross"), 2, "two crosses"),
        (
            Want("square", "pink", "vstripe", "large"),
            1,
            "a large pink square with vertical stripes",
        ),
        (Want("heart", ("brown", "orange")), 1, "a brown heart"),
    ],
)
def test_phrases(want, n, text):
    assert grammar.phrase(want, n) == text


def test_objects_leave_defaults_unsaid():
    assert grammar.phrase(Object("ring", "red", 17, 32.0, 32.0)) == "a red ring"
    assert grammar.phrase(Object("ring", "red", 12, 32.0, 32.0)) == "a small red ring"


@pytest.mark.parametrize(
    ("spec", "cells", "text"),
    [
        (Spec((RED,)), None, "a red circle"),
        (Spec((RED, BLUE)), None, "a red circle and a blue square"),
        (Spec((RED, BLUE), ((0, "left of", 1),)), None, "a red circle left of a blue square"),
        (
            Spec((RED, BLUE), ((0, "left of", 1),)),
            (3, 5),
            "a red circle at the left and a blue square at the right",
        ),
        (Spec((RED,) * 3, bg="teal"), None, "three red circles on a teal background"),
        (Spec(signs=(("STOP", "red"),)), None, "a red sign with the word 'STOP'"),
        (
            Spec(signs=(("STOP", None), ("GO2", "blue"))),
            None,
            "two signs from top to bottom: 'STOP', blue 'GO2'",
        ),
    ],
)
def test_instructions_and_their_reading(spec, cells, text):
    assert grammar.instruction(spec, cells) == text
    reading = grammar.read(text)
    assert grammar.meets(reading, spec)
    assert reading.bg == spec.bg


@pytest.mark.parametrize(
    "text",
    [
        "a blue circle at the left and a red square at the right",  # colours exchanged
        "a red circle at the right and a blue square at the left",  # places exchanged
        "a red circle at the top left and a blue square at the bottom right",  # neither clearly
        "a red circle and a blue square",  # nothing said about places
        "a red circle at the left",  # one missing
        "a red circle at the left and a blue square at the right and a star",
        "two red circles at the left and a blue square at the right",
        "a red circle right of a blue square",
        "a red circle left the blue",
        "",
    ],
)
def test_wrong_instructions_do_not_meet_the_spec(text):
    spec = Spec((RED, BLUE), ((0, "left of", 1),))
    reading = grammar.read(text)
    assert reading is None or not grammar.meets(reading, spec)


def test_meets_takes_any_order_and_any_accepted_value():
    spec = Spec((Want("heart", ("brown", "orange")), Want("ring")))
    for text in ("a ring and a brown heart", "an orange heart and a blue ring"):
        assert grammar.meets(grammar.read(text), spec)
    assert not grammar.meets(grammar.read("a ring and a red heart"), spec)
    assert not grammar.meets(grammar.read("a ring and a heart"), spec)
    assert grammar.meets(
        grammar.read("a blue square at the bottom right and a red circle at the bottom left"),
        Spec((RED, BLUE), ((0, "left of", 1),)),
    )


def test_meets_counts_words_stripes_and_background():
    three = Spec((Want("star"),) * 3)
    assert grammar.meets(grammar.read("three red stars"), three)
    assert not grammar.meets(grammar.read("two red stars"), three)
    striped = Spec((Want("square", None, "hstripe"),))
    assert grammar.meets(grammar.read("a square with horizontal stripes"), striped)
    assert not grammar.meets(grammar.read("a square with vertical stripes"), striped)
    assert not grammar.meets(grammar.read("a square"), striped)
    teal = Spec((RED,), bg="teal")
    assert not grammar.meets(grammar.read("a red circle"), teal)
    assert grammar.meets(grammar.read("a red circle"), Spec((RED,), bg="gray"))
    signs = Spec(signs=(("STOP", None), ("SALE", "red")))
    assert grammar.meets(grammar.read("two signs from top to bottom: 'STOP', red 'SALE'"), signs)
    other = "two signs from top to bottom: red 'SALE', 'STOP'"
    assert not grammar.meets(grammar.read(other), signs)


def test_comparison_and_absence_are_read():
    reading = grammar.read("a large circle bigger than a square on a navy background")
    assert reading.relations == ((0, "bigger than", 1),) and reading.bg == "navy"
    spec = Spec((Want("circle"), Want("square")), ((0, "bigger than", 1),))
    assert grammar.meets(grammar.read("a circle at the left and a small square at the right"), spec)
    assert not grammar.meets(grammar.read("a circle at the left and a square at the right"), spec)
    assert grammar.read("a red ring and no arrow pointing up") == grammar.read("a red ring")


def test_arrows_and_relations_can_be_told_apart():
    text = "a red arrow pointing left left of an arrow pointing up"
    reading = grammar.read(text)
    assert [n.want.shape for n in reading.objects] == ["arrow-left", "arrow-up"]
    assert reading.relations == ((0, "left of", 1),)


def test_references_are_unambiguous():
    a, b = Object("circle", "red", 16, 12.0, 12.0), Object("circle", "blue", 16, 52.0, 12.0)
    c, d = Object("circle", "blue", 16, 12.0, 52.0), Object("star", "blue", 16, 52.0, 52.0)
    scene = Scene("gray", (a, b, c, d))
    assert grammar.refer(scene, a) == "the red circle"
    assert grammar.refer(scene, a, full=False) == "the red circle"
    assert grammar.refer(scene, b) == "the blue circle at the top right"
    assert grammar.refer(scene, d, full=False) == "the star"


def test_description_reads_rows():
    a, b = Object("circle", "red", 16, 50.0, 12.0), Object("star", "blue", 16, 12.0, 52.0)
    text = "a red circle at the top right and a blue star at the bottom left on a teal background"
    assert grammar.describe(Scene("teal", (b, a))) == text
    assert grammar.describe(Scene(signs=(Sign("YES", "red", 20, 26),))) == (
        "a red sign with the word 'YES'"
    )


def test_held_out_frames_use_known_words():
    for frames in grammar.FRAMES.values():
        assert len(frames) >= 6 and len(set(frames)) == len(frames)
        known = set(re.findall(r"[a-z]+", " ".join(frames[: grammar.TRAIN_FRAMES])))
        new = set(re.findall(r"[a-z]+", " ".join(frames[grammar.TRAIN_FRAMES :]))) - known
        assert new <= {"of", "with"}


def test_spec_of_demands_everything_but_places():
    scene = Scene("teal", (Object("ring", "red", 12, 32.0, 32.0),), (Sign("YES", "red", 20, 26),))
    assert grammar.spec_of(scene) == Spec(
        (Want("ring", "red", "solid", "small"),), (), (("YES", "red"),), "teal"
    )
