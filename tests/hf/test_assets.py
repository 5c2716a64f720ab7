# SPDX-License-Identifier: Apache-2.0
"""A whole system in a folder: what was saved comes back, what does not fit is refused."""

import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.toy import SYSTEM as TINY
from tests.toy import tiny, toy_text
from thinkgen_jax import parts
from thinkgen_jax.hf import assets
from thinkgen_jax.models import presets


@pytest.fixture(scope="module")
def trees():
    return tiny()[1]._asdict()


@pytest.fixture
def folder(tmp_path, trees):
    assets.save(tmp_path, TINY, trees, toy_text(TINY))
    return tmp_path


def test_a_system_comes_back(folder, trees):
    assert assets.is_assets(folder) and not assets.is_assets(folder / "nothing")
    assert assets.load_system(folder) == TINY
    text, want = assets.load_text(folder, TINY), toy_text(TINY)
    assert text.think("a red cat") == want.think("a red cat")
    for name, params in trees.items():
        got = assets.load_tree(folder, TINY, name, shapes=parts.shapes(TINY, name))
        rounded = jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16), np.float32), params)
        jax.tree.map(np.testing.assert_array_equal, got, rounded)


def test_weights_are_under_released_names_in_bfloat16(folder):
    tensors = load_file(folder / "dit.safetensors")
    assert tensors["time_caption_embed.caption_embedder.1.weight"].shape == (48, 128)
    assert {x.dtype for x in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_every_preset_survives_json(name):
    system = presets.get(name)
    content = json.loads(json.dumps(asdict(system)))
    assert assets._build(presets.System, content, "system") == system


def test_trees_land_one_by_one(tmp_path, trees):
    assets.save(tmp_path, TINY, {"vae": trees["vae"]})
    assets.save(tmp_path, TINY, {}, toy_text(TINY))
    shapes = parts.shapes(TINY, "vae")
    assert jax.tree.leaves(assets.load_tree(tmp_path, TINY, "vae", shapes=shapes))
    with pytest.raises(ValueError, match="dit.safetensors: no such file"):
        assets.load_tree(tmp_path, TINY, "dit", shapes=parts.shapes(TINY, "dit"))


def test_what_does_not_fit_is_refused(folder, trees):
    other = replace(TINY, dit=replace(TINY.dit, num_layers=2))
    with pytest.raises(ValueError, match="layers"):
        assets.load_tree(folder, other, "dit", shapes=parts.shapes(other, "dit"))
    with pytest.raises(ValueError, match="no trees"):
        assets.save(folder, TINY, {"clip": {}})
    with pytest.raises(ValueError, match="no such folder"):
        assets.load_system(folder / "nowhere")
    config = json.loads((folder / "config.json").read_text())
    config["system"]["vae"]["colour"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"system.vae.*colour"):
        assets.load_system(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not of the format"):
        assets.load_system(folder)
