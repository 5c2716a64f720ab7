# SPDX-License-Identifier: Apache-2.0
"""Prompts: positions against official ids and by hand, patches in their places, limits."""

import numpy as np
import pytest

from tests.golden import cases
from thinkgen_jax.data import prompts
from thinkgen_jax.data.images import VisionSpec

ARRAYS, META = cases("qwen3vl_tiny.cases")
IMAGE = 9
SPEC = VisionSpec(patch=4, temporal=2, merge=2, min_pixels=1, max_pixels=4096)


def picture(height, width, value=0):
    return np.full((height, width, 3), value, np.uint8)


def test_rows_are_padded_right():
    got = prompts.assemble([[7, 8], [5, 6, 4]], length=4)
    assert got.ids.tolist() == [[7, 8, 0, 0], [5, 6, 4, 0]]
    assert got.segments.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert got.positions[:, 1].tolist() == [[0, 1, 2, 1]] * 3
    assert got.patches is None


def test_positions_by_hand():
    """Two text tokens, a picture of 1 x 3 merged tokens, one text token, one token of padding."""
    ids = np.array([[1, 2, IMAGE, IMAGE, IMAGE, 3, 0]])
    segments = np.array([[1, 1, 1, 1, 1, 1, 0]])
    got = prompts.position_ids(ids, segments, [[(2, 6)]], image_token_id=IMAGE)
    want = [[0, 1, 2, 2, 2, 5, 1], [0, 1, 2, 2, 2, 5, 1], [0, 1, 2, 3, 4, 5, 1]]
    np.testing.assert_array_equal(got[:, 0], want)
    plain = prompts.position_ids(ids, segments, None, image_token_id=IMAGE)
    np.testing.assert_array_equal(plain[:, 0], [[0, 1, 2, 3, 4, 5, 1]] * 3)


def row_grids(name):
    """Per row its pictures' grids in patches, None without pixels."""
    if f"{name}.image_grid_thw" not in ARRAYS:
        return None
    left = [(int(h), int(w)) for _, h, w in ARRAYS[f"{name}.image_grid_thw"]]
    out = []
    for ids in ARRAYS[f"{name}.input_ids"]:
        count, grids = int((ids == META["config"]["image_token_id"]).sum()), []
        while count:
            grids.append(left.pop(0))
            count -= grids[-1][0] * grids[-1][1] // 4
        out.append(tuple(grids))
    return out


CASES = ("text_left", "text_right", "image", "two_images", "image_token_no_pixels")


@pytest.mark.parametrize("name", CASES)
def test_positions_equal_official(name):
    ids, mask = ARRAYS[f"{name}.input_ids"], ARRAYS[f"{name}.attention_mask"]
    token = META["config"]["image_token_id"]
    got = prompts.position_ids(ids, mask, row_grids(name), image_token_id=token)
    np.testing.assert_array_equal(got, ARRAYS[f"{name}.position_ids"])


@pytest.mark.parametrize("ids", [[1, IMAGE, IMAGE], [IMAGE, 1, IMAGE, IMAGE]])
def test_wrong_image_tokens_are_refused(ids):
    row = np.array([ids])
    with pytest.raises(ValueError, match="image tokens"):
        prompts.position_ids(row, np.ones_like(row), [[(2, 6)]], image_token_id=IMAGE)


def test_patches_come_in_blocks():
    got = prompts.patch_positions(2, 4, merge=2).tolist()
    assert got == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]


def test_pictures_stand_in_their_places():
    """One row with pictures of 8 x 8 and 8 x 16 pixels (1 and 2 merged tokens), one without."""
    rows = [[1, IMAGE, 2, IMAGE, IMAGE, 3], [IMAGE, 4]]
    pictures = [[picture(8, 8, 255), picture(8, 16)], []]
    got = prompts.assemble(
        rows, length=8, image_id=IMAGE, pictures=pictures, vision=SPEC, patches=16
    )
    cut = got.patches
    assert cut.slots.tolist() == [[1, 3, 4, 8], [8, 8, 8, 8]]
    assert cut.segments[0].tolist() == [1] * 4 + [2] * 8 + [0] * 4
    assert not cut.segments[1].any()
    assert cut.grids[0, [0, 4, 12]].tolist() == [[2, 2], [2, 4], [2, 2]]
    assert cut.positions[0, 8:12].tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert (cut.pixels[0, :4] == 1).all() and (cut.pixels[0, 4:12] == -1).all()
    # The image token of the second row is an ordinary token; the first row's pictures are blocks.
    assert got.positions[:, 1, :2].tolist() == [[0, 1]] * 3
    assert got.positions[2, 0, :6].tolist() == [0, 1, 2, 3, 4, 5]
    assert got.positions[0, 0, :6].tolist() == [0, 1, 2, 3, 3, 5]


def test_patches_are_there_when_their_number_is_given():
    given = dict(length=2, image_id=IMAGE, pictures=[[]], vision=SPEC)
    assert prompts.assemble([[1]], patches=8, **given).patches.pixels.shape == (1, 8, 96)
    assert prompts.assemble([[1]], **given).patches is None


def test_limits():
    assemble = prompts.assemble
    with pytest.raises(ValueError, match="3 tokens does not fit 2"):
        assemble([[1, 2, 3]], length=2)
    assert assemble([[1, 2, 3]], length=2, cut=True).ids.tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="without tokens"):
        assemble([[]], length=2)
    one = dict(image_id=IMAGE, pictures=[[picture(8, 16)]])
    with pytest.raises(ValueError, match="vision tower"):
        assemble([[IMAGE] * 2], length=4, **one)
    with pytest.raises(ValueError, match="8 patches a row do not fit 4"):
        assemble([[IMAGE] * 2], length=4, vision=SPEC, patches=4, **one)
    with pytest.raises(ValueError, match="1 image tokens"):  # a picture is never cut in half
        assemble([[IMAGE] * 2], length=1, vision=SPEC, cut=True, **one)
