# SPDX-License-Identifier: Apache-2.0
"""The autoencoder's table against the official tiny checkpoint, and its config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.golden import cases, golden_dir
from tests.hf.reference import read, to_hf, to_jax
from thinkgen_jax.hf import vae as table
from thinkgen_jax.hf.rules import flatten
from thinkgen_jax.models.vae import Vae, VaeConfig

CONFIG = cases("vae_tiny.cases")[1]["config"]
CFG = table.config_from_hf(CONFIG)


def abstract(cfg):
    pixels = jnp.zeros((1, 16, 16, 3))
    return jax.eval_shape(Vae(cfg).init, jax.random.key(0), pixels)["params"]


@pytest.fixture(scope="module")
def released():
    return load_file(golden_dir() / "vae_tiny.weights.safetensors")


def test_round_trip_is_bit_equal_and_complete(released):
    params = to_jax(released, table.rules(CFG), abstract(CFG))
    back = to_hf(params, table.rules(CFG))
    assert back.keys() == released.keys() and len(back) == 120
    for name, array in released.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_layouts(released):
    params = to_jax(released, table.rules(CFG), abstract(CFG))
    theirs = released["encoder.down_blocks.1.resnets.0.conv1.weight"]  # [out, in, row, column]
    ours = params["encoder"]["down_blocks_1"]["resnets_0"]["conv1"]["kernel"]
    assert ours[0, 2, 5, 7] == theirs[7, 5, 0, 2]
    out = released["decoder.mid_block.attentions.0.to_out.0.weight"]
    kernel = params["decoder"]["mid_block"]["attentions_0"]["to_out"]["kernel"]
    assert kernel[3, 4] == out[4, 3]


@pytest.mark.parametrize(
    "cfg",
    [
        VaeConfig(),
        VaeConfig(block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8),
        VaeConfig(block_out_channels=(8, 8), norm_num_groups=4, mid_block_add_attention=False),
    ],
)
def test_every_parameter_has_one_rule(cfg):
    table_ours = [rule.ours for rule in table.rules(cfg)]
    assert len(set(table_ours)) == len(table_ours)
    assert set(table_ours) == set(flatten(abstract(cfg)))


def test_released_table_has_244_names():
    names = {rule.theirs for rule in table.rules(VaeConfig())}
    assert len(names) == 244
    assert {
        "encoder.down_blocks.2.downsamplers.0.conv.bias",
        "decoder.up_blocks.3.resnets.2.norm2.weight",
        "decoder.up_blocks.2.resnets.0.conv_shortcut.weight",
        "encoder.mid_block.attentions.0.to_q.weight",
    } <= names
    assert not any("up_blocks.1.resnets.0.conv_shortcut" in name for name in names)  # 512 to 512


def test_missing_unmapped_and_misshaped_are_listed_together(released):
    broken = dict(released)
    del broken["encoder.conv_in.bias"]
    broken["quant_conv.weight"] = np.zeros((8, 8, 1, 1), np.float32)
    broken["decoder.conv_out.weight"] = np.zeros((3, 16, 1, 1), np.float32)
    with pytest.raises(ValueError, match="3 tensors do not fit") as error:
        read(broken, table.rules(CFG), abstract(CFG))
    assert "missing encoder.conv_in.bias" in str(error.value)
    assert "unmapped quant_conv.weight" in str(error.value)
    assert "decoder.conv_out.weight of shape (3, 16, 1, 1) does not give" in str(error.value)


def test_config_round_trip():
    assert CFG == VaeConfig(
        latent_channels=4, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8
    )
    theirs = table.config_to_hf(CFG, sample_size=64)
    assert {name: theirs[name] for name in CONFIG} == CONFIG
    assert table.config_from_hf(theirs) == CFG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_quant_conv": True}, "use_quant_conv=True"),
        ({"act_fn": "relu"}, "act_fn='relu'"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "down_block_types"),
    ],
)
def test_other_networks_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        table.config_from_hf({**CONFIG, **change})


def test_missing_fields_are_named():
    with pytest.raises(ValueError, match="missing block_out_channels, latent_channels"):
        table.config_from_hf({"in_channels": 3, "out_channels": 3, "layers_per_block": 1})


def test_null_shift_means_none():
    cfg = table.config_from_hf({**CONFIG, "shift_factor": None})
    assert cfg.shift_factor == 0.0 and cfg.scaling_factor == 0.3611
