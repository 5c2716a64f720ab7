# SPDX-License-Identifier: Apache-2.0
"""Shapes at a budget, and which record goes where."""

import numpy as np
import pytest

from thinkgen_jax.data import buckets

SQUARE = 512 * 512


def test_shapes_keep_the_budget_and_the_multiple():
    """At 512 x 512: the square itself, and others below it by less than a row and a column."""
    largest, *_ = table = buckets.shapes(SQUARE, multiple=16)
    assert (512, 512) in largest and (432, 576) in largest and (576, 432) in largest
    for scale, sizes in zip(buckets.SCALES, table, strict=True):
        for h, w in sizes:
            assert h % 16 == w % 16 == 0
            assert h * w <= SQUARE * scale**2 < (h + 16) * (w + 16)
    assert len(largest) == len(buckets.ASPECTS)
    # A square budget is met exactly, whatever the root's rounding.
    for side in (48, 112, 400, 768, 1024):
        assert (side, side) in buckets.shapes(side * side, multiple=16)[0]


@pytest.mark.parametrize("bad", [dict(pixels=255), dict(scales=()), dict(scales=(1.5,))])
def test_impossible_shapes_are_refused(bad):
    with pytest.raises(ValueError, match="want at least 256 pixels and scales in"):
        buckets.shapes(**{"pixels": SQUARE, "multiple": 16} | bad)


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((512, 512), (512, 512)),
        ((4000, 4000), (512, 512)),
        ((3000, 4000), (432, 576)),
        ((4000, 3000), (576, 432)),
        ((511, 580), (384, 384)),  # not one row is added
        ((384, 512), (320, 432)),  # 432 x 576 is not filled: three quarters of its sides
        ((170, 900), (-1, -1)),
        ((300, 900), (256, 528)),
    ],
)
def test_pictures_are_never_enlarged(size, shape):
    got = buckets.choose(np.asarray([size]), buckets.shapes(SQUARE, multiple=16))
    assert tuple(got[0]) == shape


def sized(*rows):
    """[N, 6, 2] of (target, references ...) a record."""
    out = np.zeros((len(rows), 6, 2), np.int32)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return out


def test_references_have_budgets_by_their_number():
    """2048 x 2048 all: 1024², 1024², 768², 512², 512² for 1 to 5 references."""
    big = (2048, 2048)
    rows = [(big, *[big] * count) for count in range(6)]
    groups, small = buckets.group(sized(*rows), pixels=1024**2, multiple=16)
    found = {g.pictures: (g.target, g.reference) for g in groups}
    sides = {1: 1024, 2: 1024, 3: 768, 4: 512, 5: 512}
    assert found == {0: ((1024, 1024), None)} | {n: ((1024,) * 2, (s, s)) for n, s in sides.items()}
    assert not small.size
    # The budget of a stage holds for references as well.
    groups, _ = buckets.group(sized(*rows), pixels=SQUARE, multiple=16)
    assert {g.reference for g in groups} == {None, (512, 512)}


def test_references_of_a_record_share_a_shape_that_all_of_them_fill():
    rows = sized(((600, 600), (2000, 1000), (500, 1000)))
    (group,), _ = buckets.group(rows, pixels=SQUARE, multiple=16, references=(SQUARE,))
    height, width = group.reference
    assert height <= 500 and width <= 1000 and group.pictures == 2


def test_too_small_pictures_are_told_and_the_rest_is_a_partition():
    rows = sized(((600, 600),), ((100, 900),), ((600, 600), (20, 20)), ((600, 800),), ((600, 600),))
    groups, small = buckets.group(rows, pixels=SQUARE, multiple=16)
    assert small.tolist() == [1, 2]
    found = {g.target: g.rows.tolist() for g in groups}
    assert found == {(512, 512): [0, 4], (432, 576): [3]}


def test_rare_shapes_join_the_nearest_common_one():
    """Of 41 records, one of 3:2 joins the thirty of 4:3; one that fills no common shape stays."""
    rows = [((600, 800),)] * 30 + [((600, 600),)] * 10 + [((600, 900),), ((300, 300),)]
    groups, small = buckets.group(sized(*rows), pixels=SQUARE, multiple=16, batch=8)
    found = {g.target: g.rows.tolist() for g in groups}
    assert found == {
        (432, 576): [*range(30), 40],
        (512, 512): list(range(30, 40)),
        (256, 256): [41],
    }
    assert not small.size


def test_a_handful_of_pictures_needs_no_full_batch():
    """Ten records are no batch of 16: what has a quarter of them is common, the rest joins it."""
    rows = [((600, 600),)] * 4 + [((600, 800),)] * 5 + [((600, 1200),)]
    groups, _ = buckets.group(sized(*rows), pixels=SQUARE, multiple=16, batch=16)
    assert {g.target: len(g.rows) for g in groups} == {(512, 512): 4, (432, 576): 6}
