# SPDX-License-Identifier: Apache-2.0
"""The golden tiny Qwen3-VL: its configuration, parameters and cases as our records."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from tests.golden import cases, golden_dir
from tests.hf.reference import to_jax
from thinkgen_jax.data import prompts
from thinkgen_jax.hf import mllm as table
from thinkgen_jax.models.mllm import MllmConfig, init_params
from thinkgen_jax.structs import Patches, Prompt

STEM = "qwen3vl_tiny.cases"
ARRAYS, META = cases(STEM)
CFG = table.config_from_hf(META["config"])


def tolerance(key):
    return META["arrays"][key]["suggested_atol"]


def abstract(cfg: MllmConfig):
    """Shapes of the parameters, without allocating them."""
    return jax.eval_shape(lambda key: init_params(cfg, key), jax.random.key(0))


def random_params(cfg: MllmConfig, scale=0.2):
    """Parameters of a working size, without compiling an initialiser."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = scale * rng.normal(size=leaf.shape)
        gain = path[-1].key == "scale"
        return jnp.asarray(noise + gain, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract(cfg))


@lru_cache(maxsize=1)
def params():
    tensors = load_file(golden_dir() / "qwen3vl_tiny.weights.safetensors")
    return jax.tree.map(jnp.asarray, to_jax(tensors, table.rules(CFG), abstract(CFG)))


def roll_right(x, mask):
    """Moves the valid part of each row to its front; junk is kept behind it."""
    shifts = [int(np.argmax(row)) for row in mask]
    return np.stack([np.roll(row, -shift, axis=0) for row, shift in zip(x, shifts, strict=True)])


def row_grids(name):
    """Per row its pictures' grids in patches, None without pixels."""
    if f"{name}.image_grid_thw" not in ARRAYS:
        return None
    left = [(int(h), int(w)) for _, h, w in ARRAYS[f"{name}.image_grid_thw"]]
    merge = CFG.vision.spatial_merge_size
    out = []
    for ids in ARRAYS[f"{name}.input_ids"]:
        count, grids = int((ids == CFG.image_token_id).sum()), []
        while count:
            grids.append(left.pop(0))
            count -= grids[-1][0] * grids[-1][1] // merge**2
        out.append(tuple(grids))
    return out


def patches(name, ids, grids) -> Patches:
    """The case's patches as padded rows; padding is junk on purpose."""
    merge = CFG.vision.spatial_merge_size
    counts = [sum(h * w for h, w in row) for row in grids]
    rows, most = len(grids), max(counts) + merge**2
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(rows, most, CFG.vision.patch_dim)).astype(np.float32)
    positions, sizes = np.zeros((2, rows, most, 2), np.int32)
    segments = np.zeros((rows, most), np.int32)
    slots = np.full((rows, most // merge**2), ids.shape[1], np.int32)
    source = 0
    for b, row in enumerate(grids):
        pixels[b, : counts[b]] = ARRAYS[f"{name}.pixel_values"][source : source + counts[b]]
        source, place = source + counts[b], 0
        for number, (h, w) in enumerate(row, start=1):
            span = slice(place, place + h * w)
            positions[b, span] = prompts.patch_positions(h, w, merge=merge)
            sizes[b, span] = (h, w)
            segments[b, span] = number
            place += h * w
        found = np.flatnonzero(ids[b] == CFG.image_token_id)
        slots[b, : len(found)] = found
    return Patches(*map(jnp.asarray, (pixels, positions, sizes, segments, slots)))


def prompt(name) -> Prompt:
    """A case's input, right-padded."""
    mask = ARRAYS[f"{name}.attention_mask"]
    ids = roll_right(ARRAYS[f"{name}.input_ids"], mask).astype(np.int32)
    segments = roll_right(mask, mask).astype(np.int32)
    grids = row_grids(name)
    where = prompts.position_ids(ids, segments, grids, image_token_id=CFG.image_token_id)
    cut = patches(name, ids, grids) if grids else None
    return Prompt(jnp.asarray(ids), jnp.asarray(segments), jnp.asarray(where), cut)


def assert_valid(key, got, segments):
    """Compares valid tokens with an output array [B, T, ...] within its own tolerance."""
    name = key.split(".")[0]
    want = roll_right(ARRAYS[key], ARRAYS[f"{name}.attention_mask"])
    keep = np.asarray(segments) > 0
    got = np.asarray(got)
    np.testing.assert_allclose(got[keep], want[keep], rtol=0, atol=tolerance(key), err_msg=key)
