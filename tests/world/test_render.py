# SPDX-License-Identifier: Apache-2.0
"""The renderer against pixels worked out by hand."""

import numpy as np
import pytest

from thinkgen_jax.world.glyphs import FONT, glyph, sign_ink, sign_width
from thinkgen_jax.world.render import boxes, coverage, render
from thinkgen_jax.world.scenes import COLORS, SHAPES, Object, Scene, Sign

GRAY = (150, 150, 150)


def test_empty_scene_is_background():
    image = render(Scene(bg="navy"))
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert (image == (25, 40, 95)).all()


def test_square_on_whole_pixels_is_exact():
    image = render(Scene(objects=(Object("square", "red", 12, 20.0, 30.0),)))
    want = np.full((64, 64, 3), GRAY, np.uint8)
    want[24:36, 14:26] = COLORS["red"]
    assert (image == want).all()


def test_half_pixel_edge_is_half_blend():
    # the box is [14.5, 26.5): columns 14 and 26 are half covered; gray 150 and blue 20 give 85
    image = render(Scene(objects=(Object("square", "blue", 12, 20.5, 30.0),)))
    assert image[30, 14, 0] == image[30, 26, 0] == 85
    assert image[30, 15, 0] == image[30, 25, 0] == 20
    assert image[30, 13, 0] == image[30, 27, 0] == 150


@pytest.mark.parametrize(
    ("shape", "area"),
    # share of the box that is covered: pi/4, 1, 1/2, 1/2, 1 - .66^2, pi/4 (1 - .52^2),
    # shaft 1.1 x .7 and head .9 x 2 / 2 over 4
    [
        ("circle", 0.7854),
        ("square", 1.0),
        ("triangle", 0.5),
        ("diamond", 0.5),
        ("cross", 0.5644),
        ("ring", 0.5730),
        ("arrow-left", 0.4175),
    ],
)
def test_areas(shape, area):
    assert coverage(shape, 22).mean() == pytest.approx(area, abs=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_their_box(shape):
    mask = coverage(shape, 22)
    assert mask.shape == (22, 22)
    for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
        assert edge.max() > 0


def test_arrows_are_quarter_turns():
    right = coverage("arrow-right", 18)
    assert right[9, 17] > 0.4 and right[0, 17] == 0  # the tip is in the middle of the right edge
    for turns, name in ((-1, "arrow-down"), (-2, "arrow-left"), (-3, "arrow-up")):
        np.testing.assert_allclose(coverage(name, 18), np.rot90(right, turns), atol=0.04)


def test_triangle_points_up_and_heart_down():
    for shape, top in (("triangle", True), ("heart", False)):
        mask = coverage(shape, 22)
        assert (mask[:4].sum() < mask[-4:].sum()) == top


@pytest.mark.parametrize("x", [30.0, 30.5])
def test_stripes_lie_on_whole_rows(x):
    image = render(Scene(objects=(Object("square", "black", 18, 32.0, x, "hstripe"),)))
    column = (image[:, 32, 0] == 20).astype(int)
    runs = "".join(map(str, column)).strip("0").split("00")
    if x == 30.0:  # 3 bars of ink, 2 of gap, from the top of the box at row 21
        assert image[21, 32, 0] == 20 and runs == ["111"] * 4
    else:  # the first row is half covered
        assert image[21, 32, 0] == 85 and runs == ["11", "111", "111", "111"]
    vertical = render(Scene(objects=(Object("square", "black", 18, x, 32.0, "vstripe"),)))
    assert (vertical == image.swapaxes(0, 1)).all()


def test_sign_is_on_the_grid():
    sign = Sign("HI7", "red", 10, 20)
    image = render(Scene(signs=(sign,)))
    assert sign_width("HI7") == 21
    assert (image[20:31, 10] == COLORS["red"]).all() and (image[20, 10:31] == COLORS["red"]).all()
    ink = (image == COLORS["white"]).all(-1)
    h, i = ink[22:29, 12:17], ink[22:29, 18:23]
    assert h[:, 0].all() and h[:, 4].all() and h[3].all() and h.sum() == 17
    assert i[:, 2].all() and i[0, 1:4].all() and i[6, 1:4].all() and i.sum() == 11
    assert (render(Scene(signs=(Sign("ABC", "pink", 3, 4),)))[6:13, 5:10] == 20).any()


def test_glyphs_are_distinct_and_sized():
    assert len(FONT) == 36 and len({glyph(c).tobytes() for c in FONT}) == 36
    assert all(glyph(c).shape == (7, 5) and glyph(c).any() for c in FONT)
    assert sign_ink("ABCD").shape == (11, 27)


def test_boxes_and_clipping():
    scene = Scene(
        objects=(Object("circle", "red", 13, 20.0, 30.5),), signs=(Sign("BOX", "blue", 3, 4),)
    )
    assert boxes(scene) == [(13, 24, 27, 37), (3, 4, 24, 15)]
    assert render(Scene(objects=(Object("circle", "red", 22, 0.0, 70.0),)))[63, 0, 0] > 150


@pytest.mark.parametrize(
    "scene",
    [
        Scene(bg="pink"),
        Scene(objects=(Object("blob", "red", 12, 20.0, 20.0),)),
        Scene(objects=(Object("circle", "mauve", 12, 20.0, 20.0),)),
        Scene(objects=(Object("circle", "red", 12, 20.0, 20.0, "dots"),)),
        Scene(signs=(Sign("a-b", "red", 2, 2),)),
    ],
)
def test_unknown_names_are_refused(scene):
    with pytest.raises(ValueError):
        render(scene)
