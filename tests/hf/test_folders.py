# SPDX-License-Identifier: Apache-2.0
"""Released folders, read: what they are, their sizes, their weights, and what is refused."""

import json
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest

from tests.hf import released
from tests.hf.reference import to_jax
from tests.hf.released import EMBED, HEAD, assert_trees_equal
from tests.toy import SYSTEM as TINY
from thinkgen_jax import parts
from thinkgen_jax.hf import folders, streams
from thinkgen_jax.hf.adapters import Adapter, AdapterSettings
from thinkgen_jax.hf.assets import TABLES
from thinkgen_jax.hf.rules import flatten
from thinkgen_jax.models import presets

PARTS = {"mllm": "mllm", "dit": "transformer", "vae": "vae"}
SHAPES = {name: parts.shapes(TINY, name) for name in PARTS}
CAPTION = "time_caption_embed.caption_embedder"


def expected(name):
    tensors = released.weights(PARTS[name])
    tensors.pop("prepad_mask", None)
    return to_jax(tensors, TABLES[name](getattr(TINY, name)), SHAPES[name])


def networks(system):
    return system.mllm, system.dit, system.vae


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# --- kinds and sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
def test_a_pipeline_folder_is_read(tmp_path, shards):
    released.thinkgen(tmp_path, shards=shards)
    assert folders.kind(tmp_path) == "thinkgen"
    system = folders.read_system(tmp_path)
    assert networks(system) == networks(TINY)
    assert system.dit.num_prepad == 5  # of the weights: the config does not say
    assert (system.system_prompt, system.shift) == (presets.RELEASED_SYSTEM, None)
    assert (folders.words_folder(tmp_path) / "tokenizer.json").is_file()
    for name in PARTS:
        got = folders.read_tree(tmp_path, system, name, shapes=SHAPES[name])
        assert_trees_equal(got, expected(name))


def test_a_qwen_folder_is_read(tmp_path):
    released.qwen(tmp_path, shards=2)
    assert folders.kind(tmp_path) == "qwen3vl"
    system = folders.read_system(tmp_path)
    assert system.mllm == TINY.mllm and system.dit.condition_dim == 128
    assert system.dit.hidden_size == 2520 and folders.words_folder(tmp_path) == tmp_path
    got = folders.read_tree(tmp_path, system, "mllm", shapes=SHAPES["mllm"])
    assert_trees_equal(got, expected("mllm"))
    with pytest.raises(ValueError, match="transformer: no such folder"):
        folders.read_tree(tmp_path, system, "dit", shapes=SHAPES["dit"])
    with pytest.raises(ValueError, match="'clip' is no tree"):
        folders.read_tree(tmp_path, system, "clip", shapes={})


def newer(text):
    text = dict(text)
    ropes = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}
    return {**text, "rope_parameters": ropes}


@pytest.mark.parametrize("spelling", [dict, newer])
def test_both_spellings_of_the_rotary_base(tmp_path, spelling):
    text = {**released.config("mllm")["text_config"], "rope_theta": 1e4}
    released.put(
        tmp_path / "config.json", {**released.config("mllm"), "text_config": spelling(text)}
    )
    mllm = folders.read_system(tmp_path).mllm
    assert mllm == replace(TINY.mllm, rope_theta=1e4)


def test_what_the_newer_library_writes_is_read(tmp_path):
    from transformers import Qwen3VLConfig

    text = {**released.config("mllm")["text_config"], "hidden_size": 96}
    vision = released.config("mllm")["vision_config"]
    Qwen3VLConfig(text_config=text, vision_config=vision).save_pretrained(tmp_path)
    mllm = folders.read_system(tmp_path).mllm
    assert mllm.vision == TINY.mllm.vision and mllm.hidden_size == 96
    assert (mllm.rope_theta, mllm.mrope_section) == (5e6, (4, 2, 2))


def test_absent_class_names_are_judged_by_the_weights(tmp_path):
    released.thinkgen(tmp_path / "new")
    released.omnigen2(tmp_path / "old")
    for folder, kind in (("new", "thinkgen"), ("old", "omnigen2")):
        file = tmp_path / folder / "transformer" / "config.json"
        edit(file, lambda c: c.pop("_class_name"))
        assert folders.kind(tmp_path / folder) == kind
    edit(file, lambda c: c.update(_class_name="FluxTransformer2DModel"))
    assert folders.kind(tmp_path / "old") is None


def test_a_plain_time_grid_is_read(tmp_path):
    released.thinkgen(tmp_path)
    released.put(tmp_path / "scheduler" / "scheduler_config.json", {"dynamic_time_shift": False})
    assert folders.read_system(tmp_path).shift == 1.0


# --- the released sizes ---------------------------------------------------------------------------


def test_released_names_and_shapes_without_allocating():
    system, found = presets.get("thinkgen"), {}
    for name in PARTS:
        table = TABLES[name](getattr(system, name))
        entries = streams.released(parts.shapes(system, name), table, dtype="bfloat16")
        entries |= {k: streams.entry_of(x) for k, x in folders.buffers_of(system, name).items()}
        found[name] = entries
    assert {name: len(entries) for name, entries in found.items()} == {
        "mllm": 750,
        "dit": 584,
        "vae": 244,
    }
    assert {n: sum(int(np.prod(e.shape)) for e in x.values()) for n, x in found.items()} == {
        "mllm": 8_767_123_696,
        "dit": 3_982_838_840 + 23,
        "vae": 83_819_683,
    }
    dit, mllm, vae = found["dit"], found["mllm"], found["vae"]
    assert dit["prepad_embed"].shape == (1, 23, 8192) and dit["prepad_mask"].shape == (1, 23)
    assert dit["prepad_mask"].dtype == np.int64
    assert dit["layers.31.attn.to_k.weight"].shape == (840, 2520)
    assert dit["layers.0.norm1.linear.weight"].shape == (10080, 1024)
    assert dit["context_refiner.1.feed_forward.linear_2.weight"].shape == (2520, 10240)
    assert dit[f"{CAPTION}.1.weight"].shape == (2520, 8192)
    assert dit["norm_out.linear_2.weight"].shape == (64, 2520)
    assert mllm[HEAD].shape == mllm[EMBED].shape == (151936, 4096)
    assert mllm["model.visual.patch_embed.proj.weight"].shape == (1152, 3, 2, 16, 16)
    assert mllm["model.visual.blocks.26.attn.qkv.weight"].shape == (3456, 1152)
    assert mllm["model.visual.deepstack_merger_list.2.norm.weight"].shape == (4608,)
    assert mllm["model.language_model.layers.35.self_attn.k_proj.weight"].shape == (1024, 4096)
    assert vae["encoder.conv_out.weight"].shape == (32, 512, 3, 3)
    assert vae["decoder.mid_block.attentions.0.to_q.weight"].shape == (512, 512)


# --- tied embeddings ------------------------------------------------------------------------------


def test_tied_embeddings_need_no_head(tmp_path):
    released.qwen(tmp_path, tensors=released.tied_weights(), changes=released.TIED)
    system = folders.read_system(tmp_path)
    assert system.mllm.tie_word_embeddings
    shapes = parts.shapes(system, "mllm")
    assert "lm_head" not in shapes
    got = folders.read_tree(tmp_path, system, "mllm", shapes=shapes)
    np.testing.assert_array_equal(got["embed_tokens"]["embedding"], released.weights("mllm")[EMBED])


def test_a_tied_head_must_repeat_the_embedding(tmp_path):
    tensors = released.weights("mllm")
    released.qwen(
        tmp_path / "same", tensors={**tensors, HEAD: tensors[EMBED]}, changes=released.TIED
    )
    released.qwen(tmp_path / "other", tensors=tensors, changes=released.TIED)
    system = folders.read_system(tmp_path / "same")
    shapes = parts.shapes(system, "mllm")
    folders.read_tree(tmp_path / "same", system, "mllm", shapes=shapes)
    with pytest.raises(ValueError, match="lm_head.weight is tied to .*embed_tokens.weight"):
        folders.read_tree(tmp_path / "other", system, "mllm", shapes=shapes)


# --- a start from OmniGen2 ------------------------------------------------------------------------


def fresh(paths):
    return {path: np.full(flatten(SHAPES["dit"])[path].shape, 7, np.float32) for path in paths}


def test_a_start_takes_what_fits_and_says_what_is_fresh(tmp_path):
    released.omnigen2(tmp_path)
    assert folders.kind(tmp_path) == "omnigen2"
    system = folders.read_system(tmp_path, base=TINY)
    assert networks(system) == networks(TINY)
    tree, new = folders.read_start(tmp_path, system, shapes=SHAPES["dit"], fresh=fresh)
    assert set(new) == {"prepad_embed", "caption_embedder/norm", "caption_embedder/linear/kernel"}
    got, want = flatten(tree), flatten(expected("dit"))
    assert got.keys() == want.keys()
    for path, x in want.items():
        np.testing.assert_array_equal(got[path], np.full_like(x, 7) if path in new else x)
    vae = folders.read_tree(tmp_path, system, "vae", shapes=SHAPES["vae"])
    assert_trees_equal(vae, expected("vae"))


def test_a_start_is_placed_and_cast(tmp_path):
    released.omnigen2(tmp_path)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    tree, _ = folders.read_start(
        tmp_path, TINY, shapes=SHAPES["dit"], fresh=fresh, dtype="bfloat16", place=where
    )
    for path, leaf in flatten(tree).items():
        assert leaf.dtype == ml_dtypes.bfloat16 and leaf.sharding == where, path


def test_a_start_from_the_system_itself_has_nothing_fresh(tmp_path):
    released.thinkgen(tmp_path)
    tree, new = folders.read_start(tmp_path, TINY, shapes=SHAPES["dit"], fresh=fresh)
    assert new == ()
    assert_trees_equal(tree, expected("dit"))


def test_only_the_connector_may_be_fresh(tmp_path):
    released.omnigen2(tmp_path)
    tensors = released.weights("transformer")
    del tensors["layers.2.norm2.weight"]
    tensors["x_embedder.bias"] = np.zeros(3, np.float32)
    released.put_weights(tmp_path / "transformer", "diffusion_pytorch_model", tensors)
    with pytest.raises(ValueError, match="transformer: 2 tensors do not fit") as error:
        folders.read_start(tmp_path, TINY, shapes=SHAPES["dit"], fresh=fresh)
    assert "missing layers.2.norm2.weight" in str(error.value)
    assert "x_embedder.bias of shape (3,)" in str(error.value)


def test_another_mllm_is_not_read(tmp_path):
    released.omnigen2(tmp_path)
    with pytest.raises(ValueError, match="mllm: no dense Qwen3-VL"):
        folders.read_tree(tmp_path, TINY, "mllm", shapes=SHAPES["mllm"])
    with pytest.raises(ValueError, match="missing prepad_embed"):
        folders.read_tree(tmp_path, TINY, "dit", shapes=SHAPES["dit"])


# --- refusals -------------------------------------------------------------------------------------


def read_dit(folder):
    return folders.read_tree(folder, TINY, "dit", shapes=SHAPES["dit"])


def test_every_misfit_is_listed_at_once(tmp_path):
    tensors = released.weights("transformer")
    tensors["extra.weight"] = tensors.pop("norm_out.linear_1.bias")
    tensors["layers.1.attn.to_q.weight"] = np.zeros((48, 47), np.float32)
    tensors["layers.2.attn.to_q.weight"] = np.zeros(48, np.float32)
    tensors["x_embedder.bias"] = np.zeros(48, np.int8)
    released.put_part(tmp_path / "transformer", "transformer", tensors=tensors, shards=3)
    home = tmp_path / "transformer"
    first, second, third = sorted(home.glob("*.safetensors"))
    index = home / "diffusion_pytorch_model.safetensors.index.json"
    held = streams.scan(first)[0]
    twice, moved = sorted(held)[:2]
    content = {k: v for k, v in streams.Lazy(streams.scan(second)[0]).items()}
    released.save_file({**content, twice: held[twice].read()}, second)
    edit(index, lambda c: c["weight_map"].update({moved: third.name, "promised": third.name}))
    with pytest.raises(ValueError, match="transformer: 8 tensors do not fit") as error:
        read_dit(tmp_path)
    for words in (
        "unmapped extra.weight",
        "missing norm_out.linear_1.bias",
        "missing promised",
        f"doubled {twice}: in {first.name} and {second.name}",
        f"misplaced {moved}: in {first.name}, {third.name} by the index",
        "layers.1.attn.to_q.weight of shape (48, 47) does not give layers/attn/to_q/kernel of",
        "layers.2.attn.to_q.weight of shape (48,)",
        "x_embedder.bias is int8, not a floating-point tensor",
    ):
        assert words in str(error.value)


def test_a_buffer_of_other_content_is_refused(tmp_path):
    tensors = released.weights("transformer")
    tensors["prepad_mask"] = 0 * tensors["prepad_mask"]
    released.put_part(tmp_path / "transformer", "transformer", tensors=tensors)
    with pytest.raises(ValueError, match="buffer prepad_mask is not the one"):
        read_dit(tmp_path)


def test_pickles_and_missing_files_are_refused(tmp_path):
    released.thinkgen(tmp_path)
    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"only pickles .*convert to .safetensors"):
        read_dit(tmp_path)
    file.with_suffix(".bin").unlink()
    with pytest.raises(ValueError, match="transformer: no .safetensors file"):
        read_dit(tmp_path)
    (tmp_path / "transformer" / "config.json").unlink()
    (tmp_path / "transformer").rmdir()
    with pytest.raises(ValueError, match="transformer: no such folder"):
        read_dit(tmp_path)


def test_truncated_files_and_kinds_of_number_are_refused(tmp_path):
    released.thinkgen(tmp_path, shards=3)
    file = sorted((tmp_path / "transformer").glob("*.safetensors"))[1]
    content = file.read_bytes()
    for damaged in (content[:-1], content[:50], b""):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{file.name}: damaged"):
            read_dit(tmp_path)
    head = b'{"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}'
    head += b" " * (-len(head) % 8)
    file.write_bytes(len(head).to_bytes(8, "little") + head + bytes(8))
    with pytest.raises(ValueError, match=f"{file.name}: tensor 'a' is F8_E4M3"):
        read_dit(tmp_path)


def test_folders_of_no_known_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        folders.read_system(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither a ThinkGen or OmniGen2 pipeline"):
        folders.read_system(tmp_path)
    released.qwen(tmp_path, changes={"model_type": "qwen3_vl_moe"})
    with pytest.raises(ValueError, match="dense Qwen3-VL"):
        folders.read_system(tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("transformer", {"text_feat_dim": 32}, r"width 64 \(text_feat_dim\), the MLLM's are 128"),
        ("transformer", {"out_channels": 8}, "transformer: config.json: out_channels=8"),
        ("transformer", {"axes_lens": None}, "transformer: config.json: "),
        ("vae", {"latent_channels": 8}, "in_channels=4, the autoencoder latent_channels=8"),
        ("vae", {"act_fn": "relu"}, "vae: config.json: autoencoder config: act_fn"),
        ("mllm", {"model_type": "qwen2_5_vl"}, "mllm: model_type='qwen2_5_vl'"),
        ("mllm", {"text_config": {}}, "mllm: config.json lacks 'vocab_size'"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, part, change, message):
    released.thinkgen(tmp_path)
    edit(tmp_path / part / "config.json", lambda c: c.update(change))
    with pytest.raises(ValueError, match=message):
        folders.read_system(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type='yarn'"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"num_experts": 128}, "num_experts=128"),
    ],
)
def test_other_decoders_are_refused(tmp_path, change, message):
    content = released.config("mllm")
    text = {**content["text_config"], **change}
    released.put(tmp_path / "config.json", {**content, "text_config": text})
    with pytest.raises(ValueError, match=message):
        folders.read_system(tmp_path)


# --- adapters -------------------------------------------------------------------------------------


def test_an_adapter_is_merged_while_reading(tmp_path):
    released.thinkgen(tmp_path, shards=2)
    name = "layers.1.attn.to_q.weight"
    a, b = np.ones((2, 48), np.float32), np.full((48, 2), 0.5, np.float32)
    adapter = Adapter(AdapterSettings(r=2, lora_alpha=4), {name: (a, b)})
    got = folders.read_tree(tmp_path, TINY, "dit", shapes=SHAPES["dit"], adapter=adapter)
    want = expected("dit")
    want["layers"]["attn"]["to_q"]["kernel"][1] += 2.0  # 4 / 2 · (0.5 + 0.5)
    assert_trees_equal(got, want)
    other = Adapter(adapter.settings, {"layers.9.attn.to_q.weight": (a, b)})
    with pytest.raises(ValueError, match="transformer: the adapter does not fit: layers.9"):
        folders.read_tree(tmp_path, TINY, "dit", shapes=SHAPES["dit"], adapter=other)
