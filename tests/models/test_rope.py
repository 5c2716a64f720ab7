# SPDX-License-Identifier: Apache-2.0
"""Rotary positions against the official ids and angles, and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import qwen
from thinkgen_jax.models import rope

CASES = ("text_left", "text_right", "image", "two_images", "image_token_no_pixels")


@pytest.mark.parametrize("name", CASES)
def test_next_position_equals_official(name):
    """The release counts on from the padded length, decoding here from the row's own positions."""
    mask = qwen.ARRAYS[f"{name}.attention_mask"]
    positions = qwen.ARRAYS[f"{name}.position_ids"]
    following = rope.next_position(jnp.asarray(positions), jnp.asarray(mask))
    deltas = qwen.ARRAYS[f"{name}.rope_deltas"][:, 0]
    np.testing.assert_array_equal(following - mask.shape[1], deltas)


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
