# SPDX-License-Identifier: Apache-2.0
"""The MLLM's table: 750 released names (for the released sizes) and config.json, both ways."""

from thinkgen_jax.hf.rules import Rule, flat, heads_in, heads_out, keep, linear
from thinkgen_jax.models.mllm import MllmConfig
from thinkgen_jax.models.vision import VisionConfig

TEXT = "model.language_model"
VISION = "model.visual"
# Fields of the released config that this model has only one way of, with the value when absent.
FIXED = {"hidden_act": "silu", "attention_bias": False, "num_experts": None}
FIXED_VISION = {"hidden_act": "gelu_pytorch_tanh"}


def rules(cfg: MllmConfig) -> tuple[Rule, ...]:
    """The table for one configuration."""
    layer = f"{TEXT}.layers.{{i}}"
    attention = f"{layer}.self_attn"
    out = [
        keep("embed_tokens/embedding", f"{TEXT}.embed_tokens.weight"),
        keep("norm/scale", f"{TEXT}.norm.weight"),
        heads_out(
            "decoder/self_attn/o_proj/kernel", f"{attention}.o_proj.weight", heads=cfg.num_heads
        ),
    ]
    for name, heads in (("q", cfg.num_heads), ("k", cfg.num_kv_heads), ("v", cfg.num_kv_heads)):
        ours, theirs = f"decoder/self_attn/{name}_proj/kernel", f"{attention}.{name}_proj.weight"
        out.append(heads_in(ours, theirs, heads=heads))
    for name in ("self_attn/q_norm", "self_attn/k_norm", "input_layernorm"):
        out.append(_scale(f"decoder/{name}", f"{layer}.{name.replace('/', '.')}"))
    out.append(_scale("decoder/post_attention_layernorm", f"{layer}.post_attention_layernorm"))
    for name in ("gate_proj", "up_proj", "down_proj"):
        out.append(linear(f"decoder/mlp/{name}/kernel", f"{layer}.mlp.{name}.weight"))
    if not cfg.tie_word_embeddings:
        out.append(linear("lm_head/kernel", "lm_head.weight"))
    return (*out, *(_vision(cfg.vision) if cfg.vision else ()))


def aliases(cfg: MllmConfig) -> dict[str, str]:
    """Released names that may stand beside another whose tensor they repeat."""
    return {"lm_head.weight": f"{TEXT}.embed_tokens.weight"} if cfg.tie_word_embeddings else {}


def config_from_hf(config: dict) -> MllmConfig:
    """Reads a Qwen3-VL `config.json`, in the spelling of transformers 4 or 5.

    Raises:
      ValueError: for a field that asks for what this model does not have.
    """
    text = config.get("text_config", config)
    ropes = text.get("rope_parameters") or text.get("rope_scaling") or {}
    _refuse_others(text, FIXED, "text_config")
    _refuse_others(config.get("vision_config") or {}, FIXED_VISION, "vision_config")
    _refuse_others(ropes, {"rope_type": "default"}, "text_config rope")
    theta = ropes.get("rope_theta", text.get("rope_theta"))
    tie = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    default = MllmConfig()
    tokens = ("image_token_id", "vision_start_token_id", "vision_end_token_id")
    return MllmConfig(
        vocab_size=text["vocab_size"],
        hidden_size=text["hidden_size"],
        intermediate_size=text["intermediate_size"],
        num_hidden_layers=text["num_hidden_layers"],
        num_heads=text["num_attention_heads"],
        num_kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        rope_theta=float(default.rope_theta if theta is None else theta),
        mrope_section=tuple(ropes.get("mrope_section", default.mrope_section)),
        rms_norm_eps=text["rms_norm_eps"],
        tie_word_embeddings=tie,
        max_position_embeddings=text.get(
            "max_position_embeddings", default.max_position_embeddings
        ),
        initializer_range=text.get("initializer_range", default.initializer_range),
        vision=_vision_from_hf(config["vision_config"]) if config.get("vision_config") else None,
        **{name: config.get(name, getattr(default, name)) for name in tokens},
    )


def config_to_hf(cfg: MllmConfig) -> dict:
    """Writes a `config.json` that transformers 4 and 5 and `config_from_hf` read."""
    ropes = {
        "mrope_interleaved": True,
        "mrope_section": list(cfg.mrope_section),
        "rope_type": "default",
    }
    text = {
        "model_type": "qwen3_vl_text",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.intermediate_size,
        "num_hidden_layers": cfg.num_hidden_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": cfg.max_position_embeddings,
        "initializer_range": cfg.initializer_range,
        "rms_norm_eps": cfg.rms_norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": ropes,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": cfg.tie_word_embeddings,
    }
    out = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": text,
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "image_token_id": cfg.image_token_id,
        "vision_start_token_id": cfg.vision_start_token_id,
        "vision_end_token_id": cfg.vision_end_token_id,
    }
    if cfg.vision is not None:
        out["vision_config"] = _vision_to_hf(cfg.vision)
    return out


def _refuse_others(config: dict, fixed: dict, where: str) -> None:
    for name, only in fixed.items():
        if config.get(name, only) != only:
            raise ValueError(f"{where}: {name}={config[name]!r}, only {only!r} is known")


VISION_FIELDS = (
    "depth",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "in_channels",
    "patch_size",
    "temporal_patch_size",
    "spatial_merge_size",
    "out_hidden_size",
    "num_position_embeddings",
)


def _vision_from_hf(config: dict) -> VisionConfig:
    sizes = {name: config[name] for name in VISION_FIELDS}
    return VisionConfig(deepstack_visual_indexes=tuple(config["deepstack_visual_indexes"]), **sizes)


def _vision_to_hf(cfg: VisionConfig) -> dict:
    return {
        "model_type": "qwen3_vl",
        "hidden_act": "gelu_pytorch_tanh",
        "deepstack_visual_indexes": list(cfg.deepstack_visual_indexes),
        **{name: getattr(cfg, name) for name in VISION_FIELDS},
    }


def _vision(cfg: VisionConfig) -> list[Rule]:
    block = f"{VISION}.blocks.{{i}}"
    frame = (cfg.in_channels, cfg.temporal_patch_size, cfg.patch_size, cfg.patch_size)
    patch = f"{VISION}.patch_embed.proj"
    out = [
        flat("visual/patch_embed/kernel", f"{patch}.weight", shape=frame),
        keep("visual/patch_embed/bias", f"{patch}.bias"),
        keep("visual/pos_embed/embedding", f"{VISION}.pos_embed.weight"),
        *_norm("visual/blocks/norm1", f"{block}.norm1"),
        *_norm("visual/blocks/norm2", f"{block}.norm2"),
        _qkv("visual/blocks/attn/qkv/kernel", f"{block}.attn.qkv.weight", heads=cfg.num_heads),
        keep("visual/blocks/attn/qkv/bias", f"{block}.attn.qkv.bias"),
        *_affine("visual/blocks/attn/proj", f"{block}.attn.proj"),
        *_affine("visual/blocks/mlp/linear_fc1", f"{block}.mlp.linear_fc1"),
        *_affine("visual/blocks/mlp/linear_fc2", f"{block}.mlp.linear_fc2"),
        *_merger("visual/merger", f"{VISION}.merger"),
    ]
    if cfg.deepstack_visual_indexes:
        out += _merger("visual/deepstack_mergers", f"{VISION}.deepstack_merger_list.{{i}}")
    return out


def _qkv(ours: str, theirs: str, *, heads: int) -> Rule:
    """[3 · heads · H, in] there, [in, 3, heads, H] here."""
    return Rule(
        ours,
        theirs,
        lambda x: x.T.reshape(x.shape[1], 3, heads, -1),
        lambda x: x.reshape(x.shape[0], -1).T,
    )


def _scale(ours: str, theirs: str) -> Rule:
    return keep(f"{ours}/scale", f"{theirs}.weight")


def _norm(ours: str, theirs: str) -> list[Rule]:
    return [_scale(ours, theirs), keep(f"{ours}/bias", f"{theirs}.bias")]


def _affine(ours: str, theirs: str) -> list[Rule]:
    return [linear(f"{ours}/kernel", f"{theirs}.weight"), keep(f"{ours}/bias", f"{theirs}.bias")]


def _merger(ours: str, theirs: str) -> list[Rule]:
    return [
        *_norm(f"{ours}/norm", f"{theirs}.norm"),
        *_affine(f"{ours}/linear_fc1", f"{theirs}.linear_fc1"),
        *_affine(f"{ours}/linear_fc2", f"{theirs}.linear_fc2"),
    ]
