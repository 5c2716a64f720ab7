# SPDX-License-Identifier: Apache-2.0
"""Names, layouts and config of the released autoencoder (diffusers' `AutoencoderKL`).

Our path follows the released name: numbers are joined with `_`, convolutions and linear maps say
`kernel`, norms `scale`. Only `attentions.0.to_out.0` loses its last number.
"""

from collections.abc import Iterator, Mapping

from thinkgen_jax.hf.rules import Rule, conv, keep, linear
from thinkgen_jax.models.vae import VaeConfig

# Fields of the released config that this model has only one way of: (name, value when absent).
FIXED = {
    "act_fn": "silu",
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
# Names on both sides that differ from ours in nothing.
SHARED = (
    "in_channels",
    "out_channels",
    "latent_channels",
    "layers_per_block",
    "norm_num_groups",
    "scaling_factor",
    "shift_factor",
    "mid_block_add_attention",
)


def rules(cfg: VaeConfig) -> tuple[Rule, ...]:
    """The table of an autoencoder of these dimensions, every tensor once."""
    return (*_half(cfg, "encoder"), *_half(cfg, "decoder"))


def _half(cfg: VaeConfig, half: str) -> Iterator[Rule]:
    is_encoder = half == "encoder"
    widths = cfg.block_out_channels if is_encoder else cfg.block_out_channels[::-1]
    side, sampler = ("down", "downsamplers_0") if is_encoder else ("up", "upsamplers_0")
    count = cfg.layers_per_block + (0 if is_encoder else 1)

    yield from _layer(conv, f"{half}/conv_in")
    before = widths[0]
    for i, width in enumerate(widths):
        block = f"{half}/{side}_blocks_{i}"
        for j in range(count):
            yield from _resnet(f"{block}/resnets_{j}", is_wider=before != width)
            before = width
        if i < len(widths) - 1:
            yield from _layer(conv, f"{block}/{sampler}", inner="/conv")
    yield from _middle(cfg, f"{half}/mid_block")
    yield from _norm(f"{half}/conv_norm_out")
    yield from _layer(conv, f"{half}/conv_out")


def _middle(cfg: VaeConfig, path: str) -> Iterator[Rule]:
    if cfg.mid_block_add_attention:
        yield from _norm(f"{path}/attentions_0/group_norm")
        for name in ("to_q", "to_k", "to_v"):
            yield from _layer(linear, f"{path}/attentions_0/{name}")
        yield from _layer(linear, f"{path}/attentions_0/to_out", inner="/0")
    yield from _resnet(f"{path}/resnets_0", is_wider=False)
    yield from _resnet(f"{path}/resnets_1", is_wider=False)


def _resnet(path: str, *, is_wider: bool) -> Iterator[Rule]:
    yield from _norm(f"{path}/norm1")
    yield from _layer(conv, f"{path}/conv1")
    yield from _norm(f"{path}/norm2")
    yield from _layer(conv, f"{path}/conv2")
    if is_wider:
        yield from _layer(conv, f"{path}/conv_shortcut")


def _norm(path: str) -> Iterator[Rule]:
    yield keep(f"{path}/scale", f"{_theirs(path)}.weight")
    yield keep(f"{path}/bias", f"{_theirs(path)}.bias")


def _layer(kind, path: str, *, inner: str = "") -> Iterator[Rule]:
    """Kernel and bias; `inner` is a step of the released name that ours leaves out."""
    yield kind(f"{path}/kernel", f"{_theirs(path + inner)}.weight")
    yield keep(f"{path}/bias", f"{_theirs(path + inner)}.bias")


def _theirs(path: str) -> str:
    """`encoder/down_blocks_0/resnets_1/conv1` to `encoder.down_blocks.0.resnets.1.conv1`."""
    steps = []
    for step in path.split("/"):
        head, _, number = step.rpartition("_")
        steps += [head, number] if head and number.isdigit() else [step]
    return ".".join(steps)


def config_from_hf(config: Mapping) -> VaeConfig:
    """Reads the released `config.json`.

    Raises:
      ValueError: naming a missing field, or one that asks for what this model does not have.
    """
    missing = [name for name in ("block_out_channels", *SHARED[:4]) if name not in config]
    if missing:
        raise ValueError(f"autoencoder config: missing {', '.join(missing)}")
    for name, only in FIXED.items():
        if config.get(name, only) != only:
            raise ValueError(f"autoencoder config: {name}={config[name]!r}, only {only!r} is known")
    count = len(config["block_out_channels"])
    for name, kind in _block_types(count).items():
        if list(config.get(name, kind)) != kind:
            raise ValueError(f"autoencoder config: {name}={config[name]}, only {kind} is known")
    for name, neutral in (("scaling_factor", 1.0), ("shift_factor", 0.0)):
        if config.get(name, neutral) is None:
            config = {**config, name: neutral}
    shared = {name: config[name] for name in SHARED if name in config}
    return VaeConfig(block_out_channels=tuple(config["block_out_channels"]), **shared)


def config_to_hf(cfg: VaeConfig, *, sample_size: int = 1024) -> dict:
    """Writes what `AutoencoderKL.from_pretrained` reads; inverse of `config_from_hf`.

    Args:
      sample_size: side in pixels of the pictures it was trained on; informative.
    """
    return {
        "_class_name": "AutoencoderKL",
        **{name: getattr(cfg, name) for name in SHARED},
        **FIXED,
        **_block_types(len(cfg.block_out_channels)),
        "block_out_channels": list(cfg.block_out_channels),
        "force_upcast": True,
        "sample_size": sample_size,
    }


def _block_types(count: int) -> dict[str, list[str]]:
    return {
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
    }
