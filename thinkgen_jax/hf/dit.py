# SPDX-License-Identifier: Apache-2.0
"""The DiT's table: 584 released names (for the released sizes) and config.json, both ways."""

import numpy as np

from thinkgen_jax.hf.rules import Rule, heads_in, heads_out, keep, linear
from thinkgen_jax.models.dit import DitConfig

# What the released class has built in; its config does not know these fields.
BUILT_IN = {"rope_theta": 10000.0, "n_prepad": 23}


def rules(cfg: DitConfig) -> tuple[Rule, ...]:
    """The table for one configuration."""
    out = [
        keep("image_index_embedding", "image_index_embedding"),
        *_affine("x_embedder", "x_embedder"),
        *_affine("ref_image_patch_embedder", "ref_image_patch_embedder"),
        *_affine("timestep_embedder/linear_1", "time_caption_embed.timestep_embedder.linear_1"),
        *_affine("timestep_embedder/linear_2", "time_caption_embed.timestep_embedder.linear_2"),
        keep("caption_embedder/norm", "time_caption_embed.caption_embedder.0.weight"),
        *_affine("caption_embedder/linear", "time_caption_embed.caption_embedder.1"),
        *_affine("norm_out/linear_1", "norm_out.linear_1"),
        *_affine("norm_out/linear_2", "norm_out.linear_2"),
        *_block(cfg, "context_refiner", modulated=False),
        *_block(cfg, "noise_refiner", modulated=True),
        *_block(cfg, "ref_image_refiner", modulated=True),
        *_block(cfg, "layers", modulated=True),
    ]
    if cfg.num_prepad:
        out.append(Rule("prepad_embed", "prepad_embed", lambda x: x[0], lambda x: x[None]))
    return tuple(out)


def buffers(cfg: DitConfig) -> dict[str, np.ndarray]:
    """Released entries that are no parameters: the mask of the prepadding states, all ones."""
    if not cfg.num_prepad:
        return {}
    return {"prepad_mask": np.ones((1, cfg.num_prepad), np.int64)}


def config_from_hf(config: dict, *, num_prepad: int = BUILT_IN["n_prepad"]) -> DitConfig:
    """Reads `transformer/config.json`; the condition is two text features wide.

    Args:
      num_prepad: prepadding states where the config does not say.

    Raises:
      ValueError: when the network's input and output differ in channels.
    """
    if config.get("out_channels") not in (None, config["in_channels"]):
        raise ValueError(f"out_channels={config['out_channels']}, must be in_channels or null")
    return DitConfig(
        patch_size=config["patch_size"],
        in_channels=config["in_channels"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_layers"],
        num_refiner_layers=config["num_refiner_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_kv_heads"],
        multiple_of=config["multiple_of"],
        ffn_dim_multiplier=config["ffn_dim_multiplier"],
        norm_eps=config["norm_eps"],
        axes_dim_rope=tuple(config["axes_dim_rope"]),
        axes_lens=tuple(config["axes_lens"]),
        rope_theta=float(config.get("rope_theta", BUILT_IN["rope_theta"])),
        condition_dim=2 * config["text_feat_dim"],
        num_prepad=config.get("n_prepad", num_prepad),
        timestep_scale=config["timestep_scale"],
    )


def config_to_hf(cfg: DitConfig) -> dict:
    """Writes what `config_from_hf` reads, under the release's names."""
    ours = {"rope_theta": cfg.rope_theta, "n_prepad": cfg.num_prepad}
    return {
        "_class_name": "ThinkGenTransformer2DModel",
        "patch_size": cfg.patch_size,
        "in_channels": cfg.in_channels,
        "out_channels": None,
        "hidden_size": cfg.hidden_size,
        "num_layers": cfg.num_layers,
        "num_refiner_layers": cfg.num_refiner_layers,
        "num_attention_heads": cfg.num_heads,
        "num_kv_heads": cfg.num_kv_heads,
        "multiple_of": cfg.multiple_of,
        "ffn_dim_multiplier": cfg.ffn_dim_multiplier,
        "norm_eps": cfg.norm_eps,
        "axes_dim_rope": list(cfg.axes_dim_rope),
        "axes_lens": list(cfg.axes_lens),
        "text_feat_dim": cfg.condition_dim // 2,
        "timestep_scale": cfg.timestep_scale,
        **{name: value for name, value in ours.items() if value != BUILT_IN[name]},
    }


def _affine(ours: str, theirs: str) -> list[Rule]:
    return [linear(f"{ours}/kernel", f"{theirs}.weight"), keep(f"{ours}/bias", f"{theirs}.bias")]


def _block(cfg: DitConfig, stack: str, *, modulated: bool) -> list[Rule]:
    ours, theirs = stack, stack + ".{i}"
    norm1 = "norm1.norm.weight" if modulated else "norm1.weight"
    out = [
        heads_in(f"{ours}/attn/to_q/kernel", f"{theirs}.attn.to_q.weight", heads=cfg.num_heads),
        heads_in(f"{ours}/attn/to_k/kernel", f"{theirs}.attn.to_k.weight", heads=cfg.num_kv_heads),
        heads_in(f"{ours}/attn/to_v/kernel", f"{theirs}.attn.to_v.weight", heads=cfg.num_kv_heads),
        heads_out(
            f"{ours}/attn/to_out/kernel", f"{theirs}.attn.to_out.0.weight", heads=cfg.num_heads
        ),
        keep(f"{ours}/attn/norm_q/scale", f"{theirs}.attn.norm_q.weight"),
        keep(f"{ours}/attn/norm_k/scale", f"{theirs}.attn.norm_k.weight"),
        linear(f"{ours}/feed_forward/gate/kernel", f"{theirs}.feed_forward.linear_1.weight"),
        linear(f"{ours}/feed_forward/down/kernel", f"{theirs}.feed_forward.linear_2.weight"),
        linear(f"{ours}/feed_forward/up/kernel", f"{theirs}.feed_forward.linear_3.weight"),
        keep(f"{ours}/norm1/scale", f"{theirs}.{norm1}"),
        keep(f"{ours}/norm2/scale", f"{theirs}.norm2.weight"),
        keep(f"{ours}/ffn_norm1/scale", f"{theirs}.ffn_norm1.weight"),
        keep(f"{ours}/ffn_norm2/scale", f"{theirs}.ffn_norm2.weight"),
    ]
    return out + (_affine(f"{ours}/modulation", f"{theirs}.norm1.linear") if modulated else [])
