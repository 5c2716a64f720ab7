# SPDX-License-Identifier: Apache-2.0
"""Released folders in miniature: official tiny weights under the names and configs of a release."""

import json
from copy import deepcopy

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.golden import cases, golden_dir
from thinkgen_jax.hf.rules import flatten

STEMS = {
    "mllm": ("mllm", "model", "qwen3vl_tiny"),
    "transformer": ("dit", "diffusion_pytorch_model", "dit_tiny"),
    "vae": ("vae", "diffusion_pytorch_model", "vae_tiny"),
}
EMBED, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
INDEX = {
    "_class_name": "ThinkGenCoTPipeline",
    "mllm": ["transformers", "Qwen3VLForConditionalGeneration"],
    "scheduler": ["its_own_file", "FlowMatchEulerDiscreteScheduler"],
}


def weights(part):
    """A complete state dict."""
    return load_file(golden_dir() / f"{STEMS[part][2]}.weights.safetensors")


def config(part):
    """The fixture's config as a release writes it."""
    content = deepcopy(cases(f"{STEMS[part][2]}.cases")[1]["config"])
    if part == "transformer":
        for name in ("caption_width", "n_prepad", "rope_theta"):
            del content[name]
        content["_class_name"] = "ThinkGenTransformer2DModel"
    elif part == "vae":
        content |= {"_class_name": "AutoencoderKL", "latents_mean": None}
    else:
        del content["special_token_ids"]
        content |= {"model_type": "qwen3_vl", "auto_map": {"AutoModel": "evil.Model"}}
    return content


def put(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def put_weights(folder, stem, tensors, *, shards=1):
    """Deals tensors round robin, in no order that a library would choose."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        return save_file(tensors, folder / f"{stem}.safetensors", {"format": "pt"})
    files = [f"{stem}-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    placed = {name: files[i % shards] for i, name in enumerate(sorted(tensors))}
    for file in files:
        part = {name: x for name, x in tensors.items() if placed[name] == file}
        save_file(part, folder / file, {"format": "pt", "shard": file})
    total = sum(x.nbytes for x in tensors.values())
    meta = {"total_size": total, "total_parameters": 7}
    put(folder / f"{stem}.safetensors.index.json", {"metadata": meta, "weight_map": placed})


def put_part(folder, part, *, shards=1, tensors=None, changes=()):
    put(folder / "config.json", {**config(part), **dict(changes)})
    put_weights(folder, STEMS[part][1], tensors or weights(part), shards=shards)


def put_words(folder):
    put(folder / "tokenizer.json", (golden_dir() / "toy_tokenizer.json").read_text())
    put(folder / "chat_template.jinja", cases("pipeline_tiny")[1]["config"]["chat_template"])
    put(folder / "preprocessor_config.json", {"patch_size": 16})


def thinkgen(folder, *, shards=1):
    """A whole pipeline folder."""
    for part in STEMS:
        put_part(folder / part, part, shards=shards if part != "vae" else 1)
    put(folder / "mllm" / "generation_config.json", {"eos_token_id": 505})
    put(folder / "model_index.json", INDEX)
    put(folder / "scheduler" / "scheduler_config.json", {"dynamic_time_shift": True, "more": 1})
    put(folder / "scheduler" / "its_own_file.py", "raise SystemExit('this must not be run')")
    put_words(folder / "processor")
    return folder


def qwen(folder, *, shards=1, tensors=None, changes=()):
    """A Qwen3-VL folder."""
    put_part(folder, "mllm", shards=shards, tensors=tensors, changes=changes)
    put(folder / "generation_config.json", {"eos_token_id": 505})
    put(folder / "README.md", "not for a pipeline")
    put_words(folder)
    return folder


def omnigen2(folder):
    """A pipeline before ThinkGen: a narrower connector, no prepadding states, another MLLM."""
    tensors = weights("transformer")
    del tensors["prepad_embed"], tensors["prepad_mask"]
    rng = np.random.default_rng(0)
    for name, shape in (("0.weight", (40,)), ("1.weight", (48, 40))):
        values = rng.normal(size=shape).astype(np.float32)
        tensors[f"time_caption_embed.caption_embedder.{name}"] = values
    changes = {"_class_name": "OmniGen2Transformer2DModel", "text_feat_dim": 40}
    put_part(folder / "transformer", "transformer", tensors=tensors, changes=changes)
    put_part(folder / "vae", "vae")
    put(folder / "mllm" / "config.json", {"model_type": "qwen2_5_vl"})
    put(folder / "scheduler" / "scheduler_config.json", {"num_train_timesteps": 1000})
    put(folder / "processor" / "tokenizer.json", "{}")
    put(folder / "model_index.json", {"_class_name": "OmniGen2Pipeline"})
    return folder


def tied_weights():
    tensors = weights("mllm")
    del tensors[HEAD]
    return tensors


TIED = {
    "tie_word_embeddings": True,
    "text_config": {**config("mllm")["text_config"], "tie_word_embeddings": True},
}


def all_tensors(folder):
    """Every tensor below a folder by file and name."""
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        for name, x in load_file(file).items():
            found[f"{file.relative_to(folder)}:{name}"] = x
    return found


def assert_same_tensors(got, want):
    assert got.keys() == want.keys()
    for name, x in want.items():
        assert got[name].dtype == x.dtype and got[name].shape == x.shape, name
        assert got[name].tobytes() == x.tobytes(), name


def assert_trees_equal(got, want):
    """The same parameters by path, dtype and value."""
    got, want = flatten(got), flatten(want)
    assert got.keys() == want.keys()
    for path, x in want.items():
        assert got[path].dtype == x.dtype, path
        np.testing.assert_array_equal(np.asarray(got[path]), x, err_msg=path)
