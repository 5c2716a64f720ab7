# SPDX-License-Identifier: Apache-2.0
"""Edits change what they say and nothing else; repairs lead back; puzzles have their one answer."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from thinkgen_jax.world import edits, flaws, grammar, layout, puzzles
from thinkgen_jax.world.scenes import Object, Scene, Sign, Spec, Want

RED = Object("circle", "red", 16, 12.0, 12.0)
BLUE = Object("square", "blue", 18, 52.0, 52.0)
ARROW = Object("arrow-up", "pink", 16, 52.0, 12.0)
SCENE = Scene("teal", (RED, BLUE))


@pytest.mark.parametrize(
    ("step", "target", "sentence"),
    [
        (
            edits.add(SCENE, ARROW),
            Scene("teal", (RED, BLUE, ARROW)),
            "add a pink arrow pointing up at the top right",
        ),
        (edits.remove(SCENE, RED), Scene("teal", (BLUE,)), "remove the red circle"),
        (
            edits.replaced(SCENE, RED, "star", "green"),
            Scene("teal", (Object("star", "green", 16, 12.0, 12.0), BLUE)),
            "replace the red circle with a green star",
        ),
        (
            edits.recolor(SCENE, RED, "black"),
            Scene("teal", (replace(RED, color="black"), BLUE)),
            "change the color of the red circle to black",
        ),
        (
            edits.resize(SCENE, BLUE, "small", 12),
            Scene("teal", (RED, replace(BLUE, d=12))),
            "make the blue square small",
        ),
        (
            edits.texture(SCENE, BLUE, "vstripe"),
            Scene("teal", (RED, replace(BLUE, tex="vstripe"))),
            "give the blue square vertical stripes",
        ),
        (
            edits.style(SCENE, "pink"),
            Scene("teal", (replace(RED, color="pink"), replace(BLUE, color="pink"))),
            "make every object pink",
        ),
        (
            edits.background(SCENE, "navy"),
            replace(SCENE, bg="navy"),
            "change the background to navy",
        ),
        (
            edits.extract(SCENE, BLUE),
            Scene("white", (BLUE,)),
            "keep only the blue square on a white background",
        ),
        (
            edits.move(SCENE, RED, 2),
            Scene("teal", (replace(RED, x=52.0, y=12.0), BLUE)),
            "move the red circle to the top right",
        ),
        (
            edits.turn(Scene("gray", (ARROW,)), ARROW, "left"),
            Scene("gray", (replace(ARROW, shape="arrow-left"),)),
            "turn the pink arrow to point left",
        ),
        (
            edits.swap(SCENE, RED, BLUE),
            Scene("teal", (replace(RED, x=52.0, y=52.0), replace(BLUE, x=12.0, y=12.0))),
            "swap the red circle with the blue square",
        ),
    ],
)
def test_operations_by_hand(step, target, sentence):
    assert step.target == target
    assert edits.instruct(step) == sentence
    assert len({edits.ask(step, t) for t in range(6)}) == 6
    assert edits.outcome(step)


def test_white_objects_are_extracted_on_black():
    white = replace(RED, color="white")
    assert edits.extract(Scene("gray", (white,)), white).target.bg == "black"


def test_a_word_can_be_corrected():
    sign = Sign("STOB", "red", 20, 26)
    step = edits.reword(Scene(signs=(sign,)), sign, "STOP")
    assert edits.instruct(step) == "change the word 'STOB' to 'STOP'"
    assert step.target == Scene(signs=(replace(sign, word="STOP"),))


def test_short_requests_leave_colours_out_where_they_can():
    step = edits.recolor(SCENE, RED, "black")
    assert edits.ask(step, 1, short=True) == "make the circle black"
    assert edits.ask(step, 4) == "please make the red circle black"


def test_every_operation_has_three_ways_and_known_words():
    for op, forms in edits.ASKS.items():
        assert len(set(forms)) == 3 and op in edits.OUTCOMES
    for op in (*edits.OPS, "swap", "reword"):
        assert op in edits.ASKS


@pytest.mark.parametrize("op", [*edits.OPS, "compose"])
def test_random_edits_are_possible_and_keep_the_rest(op):
    rng = random.Random(op)
    made = [edits.random_edit(rng, op, legal=True) for _ in range(30)]
    made = [m for m in made if m is not None]
    assert len(made) >= 6
    for change in made:
        assert change.source != change.target
        assert layout.is_clear(change.target.objects)
        kept = set(change.source.objects) & set(change.target.objects)
        gone = len(change.source.objects) - len(kept)
        most = {"style": 3, "extract": 2, "background": 0, "add": 0, "compose": 2}.get(op, 1)
        assert gone <= most
        # Two steps of a composite edit never touch the same object.
        assert len(change.instruction.split(" and ")) == (2 if op == "compose" else 1)


def test_pairs_of_operations_are_split():
    assert not {frozenset(p) for p in edits.COMPOSED} & {frozenset(p) for p in edits.HELD_COMPOSED}
    assert ("add", "background") in edits.HELD_COMPOSED
    rng = random.Random(2)
    for _ in range(60):
        change = edits.random_edit(rng, "compose", legal=True, held=True)
        if change:
            assert tuple(s.op for s in change.steps) in edits.HELD_COMPOSED


CAPTION = Spec((Want("circle", "red"), Want("square", "blue")), ((0, "left of", 1),))
GOOD = Scene(
    "gray", (Object("circle", "red", 16, 12.0, 32.0), Object("square", "blue", 16, 52.0, 32.0))
)


@pytest.mark.parametrize(
    "kinds", [("color",), ("shape",), ("missing",), ("swap",), ("shape", "swap")]
)
def test_repairs_lead_back(kinds):
    rng = random.Random(str(kinds))
    for _ in range(20):
        change = flaws.damage(rng, GOOD, CAPTION, kinds, legal=False)
        assert layout.canonical(change.source) != layout.canonical(GOOD)
        assert layout.canonical(change.target) == layout.canonical(GOOD)
        assert len(change.steps) == len(kinds)


def test_what_the_caption_leaves_open_is_no_flaw():
    free = Spec((Want("circle"), Want("square")))
    rng = random.Random(0)
    assert flaws.damage(rng, GOOD, free, ("color",), legal=False) is None
    assert flaws.damage(rng, GOOD, free, ("missing",), legal=False) is None
    assert flaws.damage(rng, GOOD, free, ("swap",), legal=False) is None
    assert flaws.damage(rng, GOOD, free, ("size",), legal=False) is None


def test_unflawed_pictures_need_no_change():
    change = flaws.damage(random.Random(0), GOOD, CAPTION, (), legal=True)
    assert change.source == change.target == GOOD
    assert change.instruction == "no change is needed"


def test_open_repairs_have_alternatives():
    spec = Spec((Want("circle", "red"),) * 2)
    two = Scene("gray", (replace(RED, y=12.0), replace(RED, y=52.0)))
    change = flaws.damage(random.Random(1), two, spec, ("missing",), legal=False)
    others = flaws.repairs(change, spec)
    assert others and all(o.startswith("add a red circle at the ") for o in others)
    assert change.instruction not in others


def test_misspelt_differs_in_one_character():
    rng = random.Random(0)
    for word in ("STOP", "1234", "A1B2"):
        for _ in range(20):
            bad = flaws.misspelt(rng, word)
            assert sum(a != b for a, b in zip(word, bad, strict=True)) == 1
            assert [c.isdigit() for c in bad] == [c.isdigit() for c in word]


def test_inventory_counts_alike_objects():
    scene = Scene("gray", (RED, replace(RED, x=52.0), Object("star", "blue", 16, 32.0, 52.0)))
    assert flaws.inventory(scene) == "two red circles and a blue star"
    assert flaws.inventory(Scene()) == "nothing"


@pytest.mark.parametrize("kind", puzzles.KINDS)
def test_puzzles_are_solved_by_their_steps(kind):
    rng = random.Random(kind)
    names = Counter()
    for _ in range(150):
        made = puzzles.puzzle(rng, kind, rng.randrange(6), legal=True)
        if made is None:
            continue
        names[made.name] += 1
        target = made.steps[-1].target
        assert target != made.source and layout.is_clear(target.objects)
        assert all(steps[-1].target != target for _, steps in made.wrong)
    assert sum(names.values()) > 30
    assert len(names) >= 2


def _solved(name, kind):
    rng = random.Random(name)
    for _ in range(300):
        made = puzzles.puzzle(rng, kind, 0, legal=False)
        if made is not None and made.name == name:
            yield made


def test_patterns_are_completed_by_rule():
    """In a 2 x 2 pattern diagonal neighbours are alike; in two rows of three, columns are."""
    for made in _solved("pattern", "logical"):
        by_cell = {layout.cell(o): o.color for o in made.steps[-1].target.objects}
        if len(by_cell) == 4:
            assert by_cell[0] == by_cell[8] and by_cell[2] == by_cell[6]
        else:
            assert all(by_cell[c] == by_cell[c + 6] for c in range(3))
            assert by_cell[0] == by_cell[2] != by_cell[1]


def test_the_odd_one_goes():
    for made in _solved("odd", "logical"):
        left = made.steps[-1].target.objects
        assert len({(o.shape, o.color) for o in left}) == 1
        assert len(left) == len(made.source.objects) - 1 >= 2


def test_paints_mix():
    mixed = {
        frozenset(("blue", "yellow")): "green",
        frozenset(("red", "yellow")): "orange",
        frozenset(("red", "blue")): "purple",
        frozenset(("red", "white")): "pink",
    }
    for made in _solved("mix", "causal"):
        a, b = made.source.objects
        assert made.steps[-1].target.objects == (
            a,
            replace(b, color=mixed[frozenset((a.color, b.color))]),
        )


def test_quarter_turns_are_clockwise():
    clockwise = ["up", "right", "down", "left"]
    for made in _solved("turn", "temporal"):
        turns = grammar.NUMBERS.index(made.prompt.split(" makes ")[1].split()[0])
        start = made.source.objects[0].shape[6:]
        end = made.steps[-1].target.objects[0].shape[6:]
        assert clockwise.index(end) == (clockwise.index(start) + turns) % 4
