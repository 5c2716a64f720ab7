# SPDX-License-Identifier: Apache-2.0
"""The MLLM's table of names: complete, exact and reversible."""

import math
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.golden import golden_dir
from tests.hf.reference import read, to_hf, to_jax
from tests.models import qwen
from thinkgen_jax.hf import mllm as table
from thinkgen_jax.hf.rules import flatten
from thinkgen_jax.models.mllm import MllmConfig


def released_names(cfg):
    """Every released name with how often it occurs, from the table and the abstract parameters."""
    shapes = flatten(qwen.abstract(cfg))
    out = []
    for rule in table.rules(cfg):
        layers = range(shapes[rule.ours].shape[0]) if "{i}" in rule.theirs else (0,)
        out += [rule.theirs.replace("{i}", str(i)) for i in layers]
    return out


def test_released_size_has_750_names_and_its_parameter_count():
    cfg = MllmConfig()
    shapes = flatten(qwen.abstract(cfg))
    assert sum(math.prod(x.shape) for x in shapes.values()) == 8_767_123_696
    visual = [math.prod(x.shape) for path, x in shapes.items() if path.startswith("visual/")]
    assert sum(visual) == 576_388_336
    names = released_names(cfg)
    assert len(names) == len(set(names)) == 750
    assert {rule.ours for rule in table.rules(cfg)} == set(shapes)
    for name in (
        "model.visual.deepstack_merger_list.2.linear_fc2.bias",
        "model.visual.blocks.26.attn.qkv.weight",
        "model.language_model.layers.35.self_attn.k_norm.weight",
        "lm_head.weight",
    ):
        assert name in names


def test_golden_weights_survive_the_round_trip():
    tensors = load_file(golden_dir() / "qwen3vl_tiny.weights.safetensors")
    params = to_jax(tensors, table.rules(qwen.CFG), qwen.abstract(qwen.CFG))
    back = to_hf(params, table.rules(qwen.CFG))
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_missing_and_unknown_tensors_are_refused():
    tensors = load_file(golden_dir() / "qwen3vl_tiny.weights.safetensors")
    tensors["model.visual.extra"] = tensors.pop("lm_head.weight")
    with pytest.raises(ValueError, match="(?s)missing lm_head.weight.*model.visual.extra"):
        read(tensors, table.rules(qwen.CFG), qwen.abstract(qwen.CFG))


def test_tied_and_blind_models_have_fewer_names():
    cfg = replace(qwen.CFG, tie_word_embeddings=True, vision=None)
    names = released_names(cfg)
    assert "lm_head.weight" not in names
    assert not [name for name in names if "visual" in name]
    assert {rule.ours for rule in table.rules(cfg)} == set(flatten(qwen.abstract(cfg)))


def test_config_survives_both_spellings():
    assert qwen.CFG.mrope_section == (4, 2, 2)
    assert (qwen.CFG.rope_theta, qwen.CFG.num_kv_heads, qwen.CFG.image_token_id) == (5e6, 2, 508)
    for cfg in (qwen.CFG, MllmConfig(), replace(qwen.CFG, vision=None, rope_theta=100.0)):
        old = table.config_to_hf(cfg)
        assert table.config_from_hf(old) == cfg
        text = dict(old["text_config"])
        ropes = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}
        assert (
            table.config_from_hf({**old, "text_config": {**text, "rope_parameters": ropes}}) == cfg
        )
