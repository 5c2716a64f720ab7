# SPDX-License-Identifier: Apache-2.0
"""Rotary positions against the official ids and angles, and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import qwen
from thinkgen_jax.models import rope

CASES = ("text_left", "text_right", "image", "two_images", "image_token_no_pixels")
IMAGE = 9


@pytest.mark.parametrize("name", CASES)
def test_ids_equal_official(name):
    ids, mask = qwen.ARRAYS[f"{name}.input_ids"], qwen.ARRAYS[f"{name}.attention_mask"]
    token = qwen.CFG.image_token_id
    got = rope.position_ids(ids, mask, qwen.row_grids(name), image_token_id=token)
    np.testing.assert_array_equal(got, qwen.ARRAYS[f"{name}.position_ids"])
    # The release counts from the padded length, decoding here from the row's own next position.
    following = rope.next_position(jnp.asarray(got), jnp.asarray(mask))
    deltas = qwen.ARRAYS[f"{name}.rope_deltas"][:, 0]
    np.testing.assert_array_equal(following - ids.shape[1], deltas)


def test_ids_by_hand():
    """Two text tokens, a picture of 1 x 3 merged tokens, one text token, one token of padding."""
    ids = np.array([[1, 2, IMAGE, IMAGE, IMAGE, 3, 0]])
    segments = np.array([[1, 1, 1, 1, 1, 1, 0]])
    got = rope.position_ids(ids, segments, [[(2, 6)]], image_token_id=IMAGE)
    want = [[0, 1, 2, 2, 2, 5, 1], [0, 1, 2, 2, 2, 5, 1], [0, 1, 2, 3, 4, 5, 1]]
    np.testing.assert_array_equal(got[:, 0], want)
    plain = rope.position_ids(ids, segments, None, image_token_id=IMAGE)
    np.testing.assert_array_equal(plain[:, 0], [[0, 1, 2, 3, 4, 5, 1]] * 3)


@pytest.mark.parametrize("ids", [[1, IMAGE, IMAGE], [IMAGE, 1, IMAGE, IMAGE]])
def test_wrong_image_tokens_are_refused(ids):
    row = np.array([ids])
    with pytest.raises(ValueError, match="image tokens"):
        rope.position_ids(row, np.ones_like(row), [[(2, 6)]], image_token_id=IMAGE)


@pytest.mark.parametrize("name", ["image", "two_images"])
def test_vision_angles_equal_official(name):
    patches = qwen.prompt(name).patches
    got = rope.vision_angles(patches.positions, head_dim=qwen.CFG.vision.head_dim)
    key = f"{name}.rot"
    got = np.asarray(got)[np.asarray(patches.segments) > 0]
    np.testing.assert_allclose(got, qwen.ARRAYS[key], rtol=0, atol=qwen.tolerance(key))


def test_released_frequencies_interleave():
    axes = rope.frequency_axes(64, (24, 20, 20))
    assert axes[:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert axes[57:].tolist() == [0, 1, 2, 0, 0, 0, 0]
    assert np.bincount(axes).tolist() == [24, 20, 20]
    with pytest.raises(ValueError, match="mrope_section"):
        rope.frequency_axes(64, (24, 20, 21))


def test_angles_and_rotation_by_hand():
    positions = jnp.asarray([3, 5, 7])[:, None, None]
    angles = rope.text_angles(positions, head_dim=8, theta=16.0, section=(2, 1, 1))
    # theta^(-2j/8) = 1, 1/2, 1/4, 1/8; axes time, row, column, time.
    np.testing.assert_allclose(angles[0, 0], [3, 2.5, 1.75, 0.375], rtol=1e-6)
    x = jnp.arange(1.0, 5.0).reshape(1, 1, 1, 4)
    quarter = jnp.asarray([[[jnp.pi / 2, 0.0]]])
    got = rope.rotate(x, jnp.cos(quarter), jnp.sin(quarter))
    # Pair (1, 3) turns by a quarter to (-3, 1); pair (2, 4) stays.
    np.testing.assert_allclose(got[0, 0, 0], [-3, 2, 1, 4], atol=1e-6)


def test_patches_come_in_blocks():
    got = rope.patch_positions(2, 4, merge=2).tolist()
    assert got == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
