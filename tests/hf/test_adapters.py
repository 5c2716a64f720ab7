# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters: sums by hand, files that PEFT writes, refusals."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from thinkgen_jax.hf import adapters, files, streams
from thinkgen_jax.hf.adapters import Adapter, AdapterSettings

NAME = "layers.0.attn.to_q.weight"
A = np.array([[1, 0, 2], [0, 1, -1]], np.float32)  # [r, in]
B = np.array([[1, 2], [0, 4]], np.float32)  # [out, r]
PRODUCT = np.array([[1, 2, 0], [0, 4, -4]], np.float32)
WEIGHT = np.array([[10, 20, 30], [40, 50, 60]], np.float32)
PAIR = {NAME: (A, B)}
# As peft 0.17 writes it, with fields that change nothing.
CONFIG = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": "some/model",
    "bias": "none",
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 2,
    "rank_pattern": {},
    "target_modules": ["to_q", "to_k"],
    "task_type": None,
    "use_dora": False,
    "use_rslora": False,
}


def put(folder, config=CONFIG, tensors=None):
    side = "base_model.model.layers.0.attn.to_q.lora_{}.weight"
    plain = {side.format("A"): A, side.format("B"): B}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(plain if tensors is None else tensors, folder / "adapter_model.safetensors")


def test_an_adapter_is_read(tmp_path):
    put(tmp_path)
    settings, weights = adapters.read_adapter(tmp_path)
    assert settings == AdapterSettings(2, 8, ("to_q", "to_k"), False, "some/model")
    assert settings.scale == 4
    assert list(weights) == [NAME]
    np.testing.assert_array_equal(weights[NAME][0], A)
    np.testing.assert_array_equal(weights[NAME][1], B)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        (AdapterSettings(r=2, lora_alpha=8), 4),
        (AdapterSettings(r=2, lora_alpha=1), 0.5),
        (AdapterSettings(r=2, lora_alpha=8, use_rslora=True), 8 / np.sqrt(2)),
    ],
)
def test_merged_weights_by_hand(settings, scale):
    others = {"layers.0.attn.to_k.weight": WEIGHT}
    merged = adapters.merge_adapter({NAME: WEIGHT, **others}, Adapter(settings, PAIR))
    assert set(merged) == {NAME, *others}
    np.testing.assert_allclose(merged[NAME], WEIGHT + scale * PRODUCT, rtol=1e-6)
    assert merged["layers.0.attn.to_k.weight"] is WEIGHT
    np.testing.assert_array_equal(WEIGHT[0], [10, 20, 30])


def test_the_sum_is_rounded_once():
    weight = np.full((2, 3), 256, ml_dtypes.bfloat16)  # its neighbours: 255 and 258
    settings = AdapterSettings(r=2, lora_alpha=2 * 0.75)
    merged = adapters.merge_adapter({NAME: weight}, Adapter(settings, PAIR))[NAME]
    assert merged.dtype == ml_dtypes.bfloat16
    want = [[256, 258, 256], [256, 260, 253]]  # of 256.75, 257.5, 256; 256, 259, 253
    np.testing.assert_array_equal(merged.astype(np.float32), want)


def test_tall_weights_are_merged_in_strips():
    rng = np.random.default_rng(0)
    weight, a = rng.normal(size=(1000, 4)).astype(np.float32), np.ones((1, 4), np.float32)
    b = np.arange(1000, dtype=np.float32)[:, None]
    adapter = Adapter(AdapterSettings(r=1, lora_alpha=1), {NAME: (a, b)})
    merged = adapters.merge_adapter({NAME: weight}, adapter)[NAME]
    np.testing.assert_allclose(merged, weight + b, rtol=1e-6)


def test_merging_reads_nothing_before_it_is_asked(tmp_path):
    save_file({NAME: WEIGHT, "b": WEIGHT}, tmp_path / "m.safetensors")
    entries, _ = streams.scan(tmp_path / "m.safetensors")
    reads = []
    for name, entry in entries.items():
        entries[name] = entry._replace(read=lambda e=entry, n=name: (reads.append(n), e.read())[1])
    adapter = Adapter(AdapterSettings(r=2, lora_alpha=2), PAIR)
    merged = adapters.merge_adapter(streams.Lazy(entries), adapter)
    assert reads == []
    np.testing.assert_array_equal(merged[NAME], WEIGHT + PRODUCT)
    assert reads == [NAME]


def test_round_trip(tmp_path):
    for settings in (
        AdapterSettings(2, 8, ("to_k", "to_q"), True, "some/model"),
        AdapterSettings(2, 3.5, r".*\.to_[qk]"),
    ):
        adapter = Adapter(settings, {NAME: (A.astype(ml_dtypes.bfloat16), B)})
        written = adapters.write_adapter(tmp_path, adapter)
        assert [file.name for file in written] == [
            "adapter_model.safetensors",
            "adapter_config.json",
        ]
        back = adapters.read_adapter(tmp_path)
        assert back.settings == settings
        assert back.weights[NAME][0].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(back.weights[NAME][1], B)
    assert set(load_file(written[0])) == {
        "base_model.model.layers.0.attn.to_q.lora_A.weight",
        "base_model.model.layers.0.attn.to_q.lora_B.weight",
    }
    config = files.read_config(written[1])
    assert (config["peft_type"], config["bias"], config["r"]) == ("LORA", "none", 2)
    assert config["rank_pattern"] == {} and config["init_lora_weights"] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora=True, only False"),
        ({"bias": "all"}, "bias='all', only 'none'"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"modules_to_save": ["x_embedder"]}, "modules_to_save"),
        ({"rank_pattern": {"to_q": 4}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"r": 0}, "r=0, must be above 0"),
        ({"lora_alpha": None}, "lora_alpha=None"),
        ({"r": 3}, r"A \(2, 3\) and B \(2, 2\) are not of rank r=3"),
    ],
)
def test_other_adapters_are_refused(tmp_path, change, message):
    put(tmp_path, {**CONFIG, **change})
    with pytest.raises(ValueError, match=message):
        adapters.read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"base_model.model.x.lora_A.weight": A}, "x.weight: no lora_B"),
        ({"transformer.x.lora_A.weight": A}, "transformer.x.lora_A.weight: no tensor of a LoRA"),
        ({"base_model.model.x.lora_magnitude_vector": A}, "lora_magnitude_vector: no tensor"),
        ({}, "no tensors"),
    ],
)
def test_other_tensors_are_refused(tmp_path, tensors, message):
    put(tmp_path, tensors=tensors)
    with pytest.raises(ValueError, match=message):
        adapters.read_adapter(tmp_path)


def test_pickles_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="adapter_config.json: no such file"):
        adapters.read_adapter(tmp_path)
    put(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match="only pickles"):
        adapters.read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other": WEIGHT}, f"{NAME} is not there"),
        ({NAME: WEIGHT.T}, r"has shape \(3, 2\), the adapter's is \(2, 3\)"),
        ({NAME: WEIGHT[..., None]}, r"has shape \(2, 3, 1\)"),
    ],
)
def test_adapters_of_another_model_are_refused(tensors, message):
    adapter = Adapter(AdapterSettings(r=2, lora_alpha=1), PAIR)
    with pytest.raises(ValueError, match=f"does not fit: .*{message}"):
        adapters.merge_adapter(tensors, adapter)


def test_adapters_that_are_none_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="not of rank r=4"):
        adapters.write_adapter(tmp_path, Adapter(AdapterSettings(r=4, lora_alpha=1), PAIR))
    with pytest.raises(ValueError, match="'embedding' is no weight"):
        adapters.write_adapter(
            tmp_path, Adapter(AdapterSettings(r=2, lora_alpha=1), {"embedding": (A, B)})
        )
