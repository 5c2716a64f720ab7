# SPDX-License-Identifier: Apache-2.0
"""The vision tower against the official network's numbers, and its invariants."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import qwen
from thinkgen_jax.models.layers import Linear
from thinkgen_jax.models.vision import PositionTable, VisionConfig, VisionTower

CASES = ("image", "two_images")
MERGE2 = qwen.CFG.vision.spatial_merge_size**2


def tower(patches, cfg=qwen.CFG.tower, params=None):
    return run(cfg, qwen.params()["visual"] if params is None else params, patches)


@partial(jax.jit, static_argnums=0)
def run(cfg, params, patches):
    return VisionTower(cfg).apply({"params": params}, patches)


def flat(x, patches, ratio=1):
    """Valid entries of all rows in order of appearance, as the fixture has them."""
    return np.asarray(x)[np.asarray(patches.segments)[:, ::ratio] > 0]


@pytest.mark.parametrize("name", CASES)
def test_features_equal_official(name):
    patches = qwen.prompt(name).patches
    merged, deepstack = tower(patches)
    for key, got in (
        ("image_embeds", flat(merged, patches, MERGE2)),
        ("deepstack", np.stack([flat(x, patches, MERGE2) for x in deepstack])),
    ):
        key = f"{name}.{key}"
        np.testing.assert_allclose(got, qwen.ARRAYS[key], rtol=0, atol=qwen.tolerance(key))


@pytest.mark.parametrize("name", CASES)
def test_parts_equal_official(name):
    patches, params, cfg = qwen.prompt(name).patches, qwen.params()["visual"], qwen.CFG.tower
    embed = Linear((cfg.hidden_size,)).apply({"params": params["patch_embed"]}, patches.pixels)
    table = PositionTable(cfg).apply(
        {"params": params["pos_embed"]}, patches.positions, patches.grids
    )
    for key, got in (("patch_embed", embed), ("pos_embed", table)):
        key = f"{name}.{key}"
        np.testing.assert_allclose(
            flat(got, patches), qwen.ARRAYS[key], rtol=0, atol=qwen.tolerance(key)
        )


def test_position_table_is_read_by_hand():
    """A 3 x 3 table whose entry (r, c) is 10 r + c, on grids that hit and split its rows."""
    cfg = VisionConfig(hidden_size=1, num_position_embeddings=9)
    table = np.array([[10 * r + c] for r in range(3) for c in range(3)], np.float32)
    positions = jnp.asarray([[[0, 0], [4, 4], [1, 2], [2, 3], [0, 1], [0, 0]]])
    grids = jnp.asarray([[[5, 5], [5, 5], [5, 5], [5, 5], [1, 2], [1, 1]]])
    # Row r of 5 lies at r / 2; a side of one lies at 0.
    want = [0, 22, 5 + 1, 10 + 1.5, 2, 0]
    got = PositionTable(cfg).apply({"params": {"embedding": table}}, positions, grids)
    np.testing.assert_allclose(got[0, :, 0], want, atol=1e-6)


def test_pictures_do_not_see_each_other():
    patches = qwen.prompt("two_images").patches
    other = patches.pixels + (patches.segments == 2)[..., None]
    merged, deepstack = tower(patches)
    changed, stacked = tower(patches._replace(pixels=other))
    first = np.asarray(patches.segments)[:, ::MERGE2] == 1
    np.testing.assert_array_equal(np.asarray(merged)[first], np.asarray(changed)[first])
    np.testing.assert_array_equal(np.asarray(deepstack)[:, first], np.asarray(stacked)[:, first])
    assert float(jnp.abs(merged - changed)[0].max()) > 1e-2


def test_tower_without_deepstack_has_no_features():
    cfg = replace(qwen.CFG.tower, deepstack_visual_indexes=())
    params = {k: v for k, v in qwen.params()["visual"].items() if k != "deepstack_mergers"}
    patches = qwen.prompt("image").patches
    merged, deepstack = tower(patches, cfg, params)
    assert deepstack.shape == (0, *merged.shape)
    np.testing.assert_allclose(merged, tower(patches)[0], atol=1e-6)
