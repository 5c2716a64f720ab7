# SPDX-License-Identifier: Apache-2.0
"""The verifier against drawn truth, near misses and scores worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from thinkgen_jax.world import pixels
from thinkgen_jax.world.gates import (
    MAX_CLEAN_REJECTS,
    MAX_ENVELOPE_REJECTS,
    MAX_FALSE_ACCEPTS,
    MISS_NUISANCES,
    false_accepts,
    false_rejects,
)
from thinkgen_jax.world.parse import parse
from thinkgen_jax.world.probes import FAMILIES, near_miss, probe
from thinkgen_jax.world.render import render
from thinkgen_jax.world.scenes import COLORS, SHAPES, Object, Scene, Sign, Spec, Want
from thinkgen_jax.world.verify import (
    disturb,
    edit_distance,
    judge_text,
    score,
    score_edit,
    score_edit_robust,
    score_robust,
    similarity,
)

RED_CIRCLE = Object("circle", "red", 18, 16.0, 16.0)
BLUE_SQUARE = Object("square", "blue", 17, 46.5, 44.5)
TWO = Scene("gray", (RED_CIRCLE, BLUE_SQUARE))
TWO_SPEC = Spec((Want("circle", "red"), Want("square", "blue")))


def drawn(*objects, signs=(), bg="gray"):
    return render(Scene(bg, tuple(objects), tuple(signs)))


# --- parser ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [12, 17, 23])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_seen(shape, d):
    if shape == "star" and d == 12:
        pytest.skip("small stars are not legal")
    item = Object(shape, "green", d, 30.5, 33.0)
    parsed = parse(drawn(item, bg="navy"))
    (found,) = parsed.objects
    assert (found.shape, found.color, found.tex, found.size) == (shape, "green", "solid", item.size)
    assert np.hypot(found.center[0] - 30.5, found.center[1] - 33.0) < 1
    assert abs(found.d - d) < 1
    assert (parsed.bg, parsed.specks, parsed.off_palette, parsed.signs) == ("navy", 0, 0, ())


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("bg", ["gray", "cyan", "lavender", "teal", "navy"])
def test_every_color_on_every_background(color, bg):
    parsed = parse(drawn(Object("ring", color, 17, 30.0, 30.0), bg=bg))
    assert parsed.bg == bg
    assert [(f.shape, f.color) for f in parsed.objects] == [("ring", color)]


@pytest.mark.parametrize("tex", ["hstripe", "vstripe"])
@pytest.mark.parametrize("shape", ["circle", "square", "diamond", "cross"])
def test_stripes(shape, tex):
    (found,) = parse(drawn(Object(shape, "purple", 18, 31.0, 31.0, tex))).objects
    assert (found.shape, found.tex, found.size) == (shape, tex, "medium")


def test_extract_backgrounds():
    for color, bg in (("red", "white"), ("white", "black")):
        parsed = parse(drawn(Object("heart", color, 18, 30.0, 30.0), bg=bg))
        assert parsed.bg == bg and [(f.shape, f.color) for f in parsed.objects] == [
            ("heart", color)
        ]


def test_signs_are_read_in_order():
    signs = (Sign("LOW42", "yellow", 10, 40), Sign("TOP", "black", 20, 5))
    parsed = parse(drawn(signs=signs))
    assert [(s.word, s.color) for s in parsed.signs] == [("TOP", "black"), ("LOW42", "yellow")]
    assert parsed.signs[0].box == (20, 5, 41, 16) and not parsed.objects


def test_blank_and_noise_hold_nothing():
    blank = parse(np.full((64, 64, 3), 150, np.uint8))
    assert (blank.bg, blank.objects, blank.signs, blank.specks) == ("gray", (), (), 0)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert all(f.shape == "unknown" for f in parse(noise).objects)


def test_marks_edges_and_foreign_colors_are_noticed():
    image = drawn(RED_CIRCLE)
    image[50:54, 50:54] = COLORS["black"]
    assert parse(image).specks == 1
    assert parse(drawn(Object("circle", "red", 18, 5.0, 30.0))).clipped == 1
    pale = drawn(RED_CIRCLE)
    pale = (pale.astype(int) // 2 + 75).astype(np.uint8)  # half as strong against gray 150
    assert parse(pale).off_palette == 1.0


def test_bad_pictures_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        parse(np.zeros((64, 64, 3), np.float32))
    with pytest.raises(ValueError, match="64"):
        parse(np.zeros((32, 64, 3), np.uint8))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda image: image.__setitem__((slice(14, 18), slice(8, 26)), (250, 250, 250)),  # a line
        lambda image: image.__setitem__(
            (slice(7, 16), slice(7, 26)), (20, 120, 230)
        ),  # two colours
        lambda image: image.__setitem__((slice(13, 19), slice(24, 34)), (214, 39, 40)),  # a tail
        lambda image: image.__setitem__((slice(16, 26), slice(16, 26)), (150, 150, 150)),  # bitten
    ],
)
def test_spoiled_circles_are_unknown(spoil):
    image = drawn(RED_CIRCLE)
    assert score(image, Spec((Want("circle", "red"),))).strict
    spoil(image)
    assert not score(image, Spec((Want("circle", "red"),))).strict


# --- gates ----------------------------------------------------------------------------------------


def test_clean_pictures_are_accepted():
    rows = {family: false_rejects("clean", family, 8) for family in FAMILIES}
    assert np.mean([r.rate for r in rows.values()]) <= MAX_CLEAN_REJECTS
    assert rows["text"].bad == 0


@pytest.mark.parametrize("nuisance", pixels.ENVELOPE[1:])
def test_envelope_is_accepted(nuisance):
    rates = [false_rejects(nuisance, family, 5).rate for family in FAMILIES]
    assert np.mean(rates) <= MAX_ENVELOPE_REJECTS


def test_near_misses_are_rejected():
    rows = [false_accepts(n, family, 4) for n in MISS_NUISANCES for family in FAMILIES]
    assert sum(bad for bad, _ in rows) <= MAX_FALSE_ACCEPTS * sum(count for _, count in rows)


def test_near_miss_changes_the_specification():
    for family in FAMILIES:
        _, spec = probe(family, 3)
        assert near_miss(spec, 0) != spec


# --- scores by hand -------------------------------------------------------------------------------


def test_truth_is_strict():
    result = score(render(TWO), TWO_SPEC)
    assert result.strict and result.reward == result.soft == 1.0


@pytest.mark.parametrize(
    ("objects", "soft"),
    [
        # one of two
        ((RED_CIRCLE,), 1 / 2),
        # .5 for the shape of .8 asked, and a right one
        ((replace(RED_CIRCLE, color="green"), BLUE_SQUARE), (5 / 8 + 1) / 2),
        # a wrong shape earns a quarter of .3 / .8
        ((replace(RED_CIRCLE, shape="heart"), BLUE_SQUARE), (3 / 32 + 1) / 2),
        # one too many
        ((RED_CIRCLE, BLUE_SQUARE, replace(RED_CIRCLE, x=48.0)), 2 / 3),
        # a sign too many
        ((RED_CIRCLE, BLUE_SQUARE, "sign"), 2 / 3),
    ],
)
def test_partial_credit(objects, soft):
    signs = (Sign("BOX", "pink", 36, 4),) if "sign" in objects else ()
    image = drawn(*(o for o in objects if o != "sign"), signs=signs)
    result = score(image, TWO_SPEC)
    assert not result.strict
    assert result.soft == pytest.approx(soft) and result.reward == pytest.approx(soft / 2)


def test_free_and_multiple_attributes():
    image = drawn(RED_CIRCLE)
    assert score(image, Spec((Want(),))).strict
    assert score(image, Spec((Want(color=("orange", "red")),))).strict
    assert not score(image, Spec((Want(color=("orange", "brown")),))).strict
    assert score(image, Spec((Want("circle", size="medium"),))).strict
    # .5 of .7: the size is wrong
    assert score(image, Spec((Want("circle", size="large"),))).soft == pytest.approx(5 / 7)
    assert not score(image, Spec((Want("circle", tex="vstripe"),))).strict
    blob = drawn()
    blob[20:40, 20:29], blob[20:26, 29:40] = (214, 39, 40), (214, 39, 40)
    assert score(blob, Spec((Want(color="red"),))).soft < 0.25


def test_relations():
    wants = TWO_SPEC.objects
    for relation, holds in (("left of", True), ("above", True), ("right of", False)):
        result = score(render(TWO), Spec(wants, ((0, relation, 1),)))
        assert result.strict == holds and result.rel == float(holds)
        assert result.soft == pytest.approx(1.0 if holds else 0.7)
    # of two things that look alike either may be the one
    twins = (Object("star", "red", 18, 16.0, 50.0), Object("star", "red", 18, 16.0, 16.0))
    spec = Spec((Want("star"), Want("star"), Want("square")), ((0, "above", 1), (1, "below", 0)))
    assert score(drawn(*twins, Object("square", "blue", 12, 50.0, 30.0)), spec).strict


def test_bigger_is_a_bucket_and_two_pixels():
    wants = (Want("circle"), Want("square"))
    spec = Spec(wants, ((0, "bigger than", 1),))
    for first, second, holds in ((23, 17, True), (17, 13, True), (13, 17, False), (18, 16, False)):
        circle, square = (
            Object("circle", "red", first, 14.0, 14.0),
            Object("square", "blue", second, 46.0, 46.0),
        )
        result = score(render(Scene("gray", (circle, square))), spec)
        assert result.strict == holds and result.soft == pytest.approx(1.0 if holds else 0.7)


def test_background():
    assert score(render(TWO), replace(TWO_SPEC, bg="gray")).strict
    result = score(render(TWO), replace(TWO_SPEC, bg="teal"))
    assert not result.strict and result.soft == pytest.approx(0.7)
    assert score(drawn(), Spec(bg="gray")).strict
    assert not score(drawn(RED_CIRCLE), Spec()).strict


def test_dirt_halves():
    image = render(TWO)
    image[4:8, 50:54] = COLORS["yellow"]
    result = score(image, TWO_SPEC)
    assert not result.strict and result.soft == pytest.approx(0.5)


def test_edit_distance():
    assert edit_distance("KITTEN", "SITTING") == 3 and edit_distance("", "AB") == 2
    assert similarity("ABCD", "ABXD") == 0.75 and similarity("", "") == 1


@pytest.mark.parametrize(
    ("signs", "strict", "reward"),
    [
        ((("OPEN", "red"), ("BOX", "blue")), True, 1.0),
        # F1 2 * 1 / (2 + 2), similarities 1 and 3/4
        ((("OPAN", "red"), ("BOX", "blue")), False, 0.7 * 0.5 + 0.3 * 0.875),
        # F1 2 / 3, similarity 1 / 2
        ((("OPEN", "red"),), False, 0.7 * 2 / 3 + 0.3 * 0.5),
        # one carrier of two is wrong
        ((("OPEN", "green"), ("BOX", "blue")), False, 0.5),
        # the free colour may be anything
        ((("OPEN", "red"), ("BOX", "white")), True, 1.0),
        # wrong order costs 30 %
        ((("BOX", "blue"), ("OPEN", "red")), False, 0.7),
        # a third sign: F1 4 / 5
        ((("OPEN", "red"), ("BOX", "blue"), ("BOX", "blue")), False, 0.7 * 0.8 + 0.3),
    ],
)
def test_words(signs, strict, reward):
    spec = Spec(signs=(("OPEN", "red"), ("BOX", None)))
    image = drawn(signs=[Sign(w, c, 6, 4 + 18 * i) for i, (w, c) in enumerate(signs)])
    result = score(image, spec)
    assert result.strict == strict
    assert result.reward == result.soft == pytest.approx(reward)


def test_words_beside_an_object():
    spec = Spec((Want("circle", "red"),), signs=(("BOX", None),))
    sign = Sign("BOX", "blue", 30, 40)
    assert score(drawn(RED_CIRCLE, signs=[sign]), spec).strict
    result = score(drawn(signs=[sign]), spec)
    assert result.soft == pytest.approx(0.5) and result.reward == pytest.approx(0.25)
    # where only words are asked, an object is a false word: F1 2 / 3
    only = score(drawn(RED_CIRCLE, signs=[sign]), Spec(signs=(("BOX", None),)))
    assert only.reward == pytest.approx(0.7 * 2 / 3 + 0.3)
    assert only.details["reader"] == "glyphs"


def test_robust_is_the_lower_score():
    image = render(TWO)
    assert score_robust(image, TWO_SPEC, 7).strict
    assert (disturb(image, 7) == disturb(image, 7)).all() and (disturb(image, 7) != image).any()
    for seed in range(4):
        low = min(score(image, TWO_SPEC).reward, score(disturb(image, seed), TWO_SPEC).reward)
        assert score_robust(image, TWO_SPEC, seed).reward == low


# --- edits ----------------------------------------------------------------------------------------

HEART = Object("heart", "yellow", 16, 47.0, 15.0)
SOURCE = Scene("gray", (RED_CIRCLE, BLUE_SQUARE, HEART))
TARGETS = {
    "recolour": replace(SOURCE, objects=(replace(RED_CIRCLE, color="green"), BLUE_SQUARE, HEART)),
    "replace": replace(SOURCE, objects=(replace(RED_CIRCLE, shape="cross"), BLUE_SQUARE, HEART)),
    "resize": replace(SOURCE, objects=(replace(RED_CIRCLE, d=23), BLUE_SQUARE, HEART)),
    "remove": replace(SOURCE, objects=(BLUE_SQUARE, HEART)),
    "add": replace(SOURCE, objects=(*SOURCE.objects, Object("ring", "white", 17, 15.5, 46.5))),
    "move": replace(SOURCE, objects=(replace(RED_CIRCLE, y=46.0), BLUE_SQUARE, HEART)),
    "background": replace(SOURCE, bg="teal"),
    "extract": Scene("white", (RED_CIRCLE,)),
    "style": replace(SOURCE, objects=tuple(replace(o, color="pink") for o in SOURCE.objects)),
    "two": Scene("navy", (*SOURCE.objects[:2], replace(HEART, color="white"))),
}


@pytest.mark.parametrize("name", TARGETS)
def test_target_is_strict_and_copy_is_worthless(name):
    target = TARGETS[name]
    done = score_edit(render(target), SOURCE, target)
    assert done.strict and done.reward == pytest.approx(1.0) and done.ratings == (5, 5, 5)
    copy = score_edit(render(SOURCE), SOURCE, target)
    assert not copy.strict and copy.reward == pytest.approx(0)
    blank = score_edit(drawn(), SOURCE, target)
    assert not blank.strict and blank.reward < 0.1
    soft = score_edit(pixels.blur(render(target), 0.5), SOURCE, target)
    assert soft.strict and soft.reward > 0.95


def test_collateral_damage_costs():
    target = TARGETS["recolour"]
    # the square vanished too: compliance 1 * 1/2 kept
    hurt = score_edit(drawn(target.objects[0], HEART), SOURCE, target)
    assert hurt.compliance == pytest.approx(0.5) and not hurt.strict
    # the wrong object is recoloured: nothing asserted holds
    wrong = replace(SOURCE, objects=(RED_CIRCLE, replace(BLUE_SQUARE, color="green"), HEART))
    assert score_edit(render(wrong), SOURCE, target).compliance == 0
    # one object too many halves
    extra = replace(target, objects=(*target.objects, Object("ring", "white", 12, 15.0, 48.0)))
    assert score_edit(render(extra), SOURCE, target).compliance == pytest.approx(0.5)
    # one of two assertions: 1/2 * 1/4
    half = replace(TARGETS["two"], bg="gray")
    assert score_edit(render(half), SOURCE, TARGETS["two"]).compliance < 0.13


def test_tint_lowers_preservation():
    target = TARGETS["recolour"]
    tint = np.clip(render(target).astype(int) + (9, 9, 9), 0, 255).astype(np.uint8)
    result = score_edit(tint, SOURCE, target)
    # a difference of 9 leaves 1 - 7 / 14
    assert result.preservation == pytest.approx(0.5, abs=0.03) and not result.strict


def test_sign_edit():
    source = Scene(signs=(Sign("OPEN", "red", 10, 10), Sign("BOX", "blue", 10, 30)))
    target = Scene(signs=(Sign("SHUT", "red", 10, 10), Sign("BOX", "blue", 10, 30)))
    assert score_edit(render(target), source, target).strict
    assert score_edit(render(source), source, target).reward == 0


def test_edit_robust_and_judge_text():
    target = TARGETS["recolour"]
    result = score_edit_robust(render(target), SOURCE, target, 3)
    assert result.strict and result.reward > 0.9
    assert judge_text(score_edit(render(target), SOURCE, target)).splitlines()[0] == (
        "Prompt Compliance: 5"
    )
