# SPDX-License-Identifier: Apache-2.0
"""Layouts keep their distances; splits follow their rules and leave every atom in train."""

import random
from itertools import combinations

import numpy as np
import pytest

from thinkgen_jax.world import layout
from thinkgen_jax.world.layout import Look
from thinkgen_jax.world.scenes import COLORS, RELATIONS, SHAPES, Object, Scene, Sign

MEDIUM = Look("circle", "blue")


def test_numbers_of_held_out_combinations():
    assert len(layout.HELD_LOOKS) == 24
    assert len(layout.HELD_COUNTS) == 12
    assert len(layout.HELD_PAIRS) == 2 * 17  # both orders
    assert len(layout._TRIPLES) == 131
    assert set(layout._TRIPLES) <= layout.HELD_TRIPLES
    assert layout.HELD_WORDS == ("BOX", "BLUE", "PARK", "SALE", "EARTH", "GRASS", "MUSIC")
    assert len(layout.WORDS) == 76


def test_held_out_rules_by_hand():
    # Circle is shape 0, red colour 0: 0 + 2 * 0 = 0. Blue is colour 4: 0 + 8 = 8, 8 mod 5 = 3.
    assert ("circle", "red") in layout.HELD_LOOKS
    assert ("circle", "blue") not in layout.HELD_LOOKS
    # Square is shape 1: 1 + 4 = 5.
    assert ("square", 4) in layout.HELD_COUNTS and ("square", 3) not in layout.HELD_COUNTS
    assert layout.is_held_out_word("12345") and not layout.is_held_out_word("1234")


def test_both_ways_of_saying_a_relation_are_held_out():
    for a, rel, b in layout.HELD_TRIPLES:
        assert (b, layout.INVERSE[rel], a) in layout.HELD_TRIPLES


def test_every_atom_occurs_in_train():
    for shape in SHAPES:
        assert len(layout.LEGAL_COLORS[shape]) == 8
        for rel in RELATIONS:
            assert any(
                (shape, rel, other) not in layout.HELD_TRIPLES
                and (shape, other) not in layout.HELD_PAIRS
                for other in SHAPES
                if other != shape
            )
    for color in COLORS:
        assert sum(color in layout.LEGAL_COLORS[s] for s in SHAPES) >= 9
    for n in range(2, 7):
        assert sum((s, n) not in layout.HELD_COUNTS for s in SHAPES if s != "star") >= 8
    assert set("".join(layout.TRAIN_WORDS)) == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_held_out_names_what_a_picture_contains():
    scene = Scene(
        objects=(
            Object("circle", "red", 16, 12.0, 12.0),
            Object("circle", "blue", 16, 52.0, 12.0),
            Object("triangle", "red", 16, 12.0, 52.0),
        )
    )
    found = layout.held_out(scene)
    assert found[0] == "look:red circle"
    # Triangle is shape 2: 2 + 2 * 0 = 2, in train. Two circles: 0 + 2 = 2, in train.
    assert not any("triangle" in f and "look" in f or "count" in f for f in found)
    assert ("pair:circle+triangle" in found) == (("circle", "triangle") in layout.HELD_PAIRS)
    assert layout.held_out(Scene(signs=(Sign("SALE", "red", 4, 4),))) == ("word:SALE",)
    a, rel, b = layout._TRIPLES[0]
    pair = Scene(objects=(Object(a, "red", 16, 12.0, 12.0), Object(b, "red", 16, 52.0, 12.0)))
    assert f"position:{a} {rel} {b}" in layout.held_out(pair, ((0, rel, 1),))
    assert not any(f.startswith("position") for f in layout.held_out(pair))


@pytest.mark.parametrize(
    ("x", "y", "name"),
    [
        (12.0, 12.0, "top left"),
        (32.0, 30.0, "center"),
        (50.0, 52.0, "bottom right"),
        (33.0, 14.0, "top"),
    ],
)
def test_cell_names(x, y, name):
    assert layout.CELLS[layout.cell_of(x, y)] == name


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_patterns_are_clear_for_every_diameter(n):
    rng = random.Random(0)
    for cells in layout.PATTERNS[n]:
        assert len(set(cells)) == n
        for size in ("small",) if n > 4 else ("small", "medium"):
            for _ in range(20):
                looks = [Look("square", c, size) for c in list(COLORS)[:n]]
                scene = layout.arrange(rng, looks, cells, least=layout.EDIT_GAP)
                assert [layout.cell(o) for o in scene.objects] == list(cells)
                for o in scene.objects:
                    assert 2 <= o.x - o.d / 2 and o.x + o.d / 2 <= 62
                    assert 2 <= o.y - o.d / 2 and o.y + o.d / 2 <= 62
                    assert (2 * o.x).is_integer() and (2 * o.y).is_integer()
                for a, b in combinations(scene.objects, 2):
                    dx = abs(a.x - b.x) - (a.d + b.d) / 2
                    dy = abs(a.y - b.y) - (a.d + b.d) / 2
                    assert max(dx, dy) >= 6


@pytest.mark.parametrize("rel", RELATIONS)
def test_relations_hold_by_a_margin(rel):
    """The rule of GenEval on boxes, which asks for more than half of the unit offset."""
    rng = random.Random(1)
    for _ in range(60):
        looks = layout.draw_looks(rng, 2, legal=True)
        a, b = layout.arrange(rng, looks, rng.choice(layout.RELATED[rel])).objects
        dx, dy = b.x - a.x, b.y - a.y
        shrink = 0.1 * (a.d + b.d)
        dx = max(abs(dx) - shrink, 0) * (1 if dx > 0 else -1)
        dy = max(abs(dy) - shrink, 0) * (1 if dy > 0 else -1)
        unit = (dx**2 + dy**2) ** 0.5
        value = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[rel] / unit
        assert value > 0.9  # 0.5 would do
        assert min(abs(dx), abs(dy)) / unit < 0.4  # and no second relation holds


def test_alike_objects_share_their_diameter():
    scene = layout.arrange(random.Random(3), [MEDIUM] * 4)
    assert len({o.d for o in scene.objects}) == 1


def test_tidy_pictures_mostly_have_the_usual_cells():
    """The first pattern in the order of the looks: 0.7, and half of 2 in 10 of the rest."""
    looks = [Look("circle", "red", "medium"), Look("star", "blue", "medium")]
    found = [
        tuple(map(layout.cell, layout.arrange(random.Random(i), looks, tidy=True).objects))
        for i in range(600)
    ]
    share = sum(cells == (3, 5) for cells in found) / len(found)
    assert abs(share - (0.7 + 0.3 * 0.2 / 2)) < 0.06 and len(set(found)) > 5
    loose = [layout.arrange(random.Random(i), looks).objects for i in range(200)]
    assert sum(tuple(map(layout.cell, o)) == (3, 5) for o in loose) < 50


def test_stripes_begin_on_whole_pixels():
    rng = random.Random(5)
    for size in ("medium", "large"):
        look = layout.stripe(rng, Look("square", "red", size))
        for _ in range(20):
            (obj,) = layout.arrange(rng, [look]).objects
            assert obj.d == {"medium": 18, "large": 23}[size]
            assert (obj.x - obj.d / 2).is_integer() and (obj.y - obj.d / 2).is_integer()


def test_free_cells_by_hand():
    # A medium object in the middle is too near to every cell; one in a corner leaves those cells
    # that are two columns or two rows away.
    assert layout.free_cells([Object("circle", "red", 16, 32.0, 32.0)], 16) == []
    assert layout.free_cells([Object("circle", "red", 18, 12.0, 12.0)], 18) == [2, 5, 6, 7, 8]
    assert layout.free_cells([], 18) == list(range(9))


def test_reserved_pictures_are_a_tenth_and_can_be_asked_for():
    rng = random.Random(7)
    plain = [layout.arrange(rng, [MEDIUM]) for _ in range(2000)]
    assert 140 < sum(map(layout.is_reserved, plain)) < 260
    assert all(layout.is_reserved(layout.arrange(rng, [MEDIUM], reserved=True)) for _ in range(50))
    assert not any(
        layout.is_reserved(layout.arrange(rng, [MEDIUM], reserved=False)) for _ in range(50)
    )


def test_canonical_text_ignores_order_only():
    a, b = Object("circle", "red", 16, 12.0, 12.0), Object("square", "red", 16, 52.0, 12.0)
    assert layout.canonical(Scene("gray", (a, b))) == layout.canonical(Scene("gray", (b, a)))
    moved = Object("square", "red", 16, 52.0, 12.5)
    assert layout.canonical(Scene("gray", (a, b))) != layout.canonical(Scene("gray", (a, moved)))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_letters_of_tidy_signs_stand_where_their_number_says(n):
    """All begin in one column, in rows two of the nano DiT's patches apart."""
    words = ["CAT", "STORM", "AUTUMN123", "ZOO"][:n]
    signs = layout.stack([(word, "red") for word in words], tidy=True).signs
    assert {sign.x for sign in signs} == {3} and [sign.word for sign in signs] == words
    rows = [sign.y for sign in signs]
    assert np.diff(rows).tolist() == [16] * (n - 1) and 2 <= rows[0] and rows[-1] + 11 <= 62
    assert 3 + 6 * 9 + 3 <= 62


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_signs_are_stacked_with_gaps(n):
    scene = layout.stack([("AUTUMN123", "red")] * n)
    tops = [s.y for s in scene.signs]
    assert all(b - a >= 11 + 4 for a, b in zip(tops, tops[1:], strict=False))
    assert tops[0] >= 2 and tops[-1] + 11 <= 62
    assert all(s.x >= 2 and s.x + 6 * 9 + 3 <= 62 for s in scene.signs)


def test_impossible_layouts_are_refused():
    rng = random.Random(0)
    with pytest.raises(ValueError, match="too close"):
        layout.arrange(rng, [MEDIUM._replace(size="large")] * 2, (3, 4))
    with pytest.raises(ValueError, match="7 objects"):
        layout.arrange(rng, [MEDIUM] * 7)
    with pytest.raises(ValueError, match="1 to 4"):
        layout.stack([("STOP", "red")] * 5)
    with pytest.raises(ValueError, match="10 characters"):
        layout.stack([("ABCDEFGHIJ", "red")])
    with pytest.raises(ValueError, match="stripes"):
        layout.stripe(rng, Look("heart", "red"))
