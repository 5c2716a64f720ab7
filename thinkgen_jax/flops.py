# SPDX-License-Identifier: Apache-2.0
"""How much arithmetic the networks take, from their configs: the model behind every MFU.

Counted are matrix products and convolutions, a multiply-add as two operations; norms, activations,
rotations and softmax are not (under 1 % at the released sizes). Every count is of one forward pass
over one row; a training step takes `TRAIN` times as much, and remat one forward pass more.

* Attention takes 4 · T · S · N · H, for padding too: kernels compute it. Causal attention takes
  half, as a blocked kernel does.
* Looking up embeddings takes nothing; the output head counts where logits are computed.
"""

from thinkgen_jax.models.dit import TIME_FREQUENCIES, DitConfig
from thinkgen_jax.models.mllm import MllmConfig
from thinkgen_jax.models.vae import VaeConfig
from thinkgen_jax.models.vision import VisionConfig

TRAIN = 3.0  # a forward pass, and two products for each of its own on the way back


def attention(queries: int, keys: int, heads: int, width: int, *, causal: bool = False) -> float:
    """Scores and weighted sum."""
    return 4.0 * queries * keys * heads * width * (0.5 if causal else 1.0)


def mllm(cfg: MllmConfig, tokens: int, *, logits: bool, patches: int = 0) -> float:
    """The decoder over `tokens` at once, and the vision tower over `patches` of pictures."""
    total = 2.0 * tokens * mllm_weights(cfg)
    total += cfg.num_hidden_layers * attention(
        tokens, tokens, cfg.num_heads, cfg.head_dim, causal=True
    )
    if logits:
        total += 2.0 * tokens * cfg.hidden_size * cfg.vocab_size
    return total + (vision(cfg.vision, patches) if patches else 0.0)


def mllm_weights(cfg: MllmConfig) -> int:
    """Entries of the decoder's matrices that every token meets, without the head."""
    own = cfg.num_heads * cfg.head_dim
    shared = cfg.num_kv_heads * cfg.head_dim
    layer = cfg.hidden_size * (2 * own + 2 * shared + 3 * cfg.intermediate_size)
    return cfg.num_hidden_layers * layer


def writing(cfg: MllmConfig, prompt: int, tokens: int) -> float:
    """Writing `tokens` one by one behind a prompt that is in the cache."""
    seen = tokens * prompt + tokens * (tokens + 1) / 2
    products = 2.0 * tokens * (mllm_weights(cfg) + cfg.hidden_size * cfg.vocab_size)
    return products + cfg.num_hidden_layers * attention(1, 1, cfg.num_heads, cfg.head_dim) * seen


def vision(cfg: VisionConfig, patches: int) -> float:
    """The tower over patches that all belong to one picture."""
    width, merged = cfg.hidden_size, cfg.hidden_size * cfg.spatial_merge_size**2
    layer = 4 * width * width + 2 * width * cfg.intermediate_size
    total = 2.0 * patches * (cfg.patch_dim * width + cfg.depth * layer)
    total += cfg.depth * attention(patches, patches, cfg.num_heads, cfg.head_dim)
    mergers = 1 + len(cfg.deepstack_visual_indexes)
    tokens = patches / cfg.spatial_merge_size**2
    return total + 2.0 * tokens * mergers * merged * (merged + cfg.out_hidden_size)


def dit_block_weights(cfg: DitConfig) -> int:
    """Entries of one block's matrices that every token meets."""
    keys = cfg.num_kv_heads * cfg.head_dim
    return cfg.hidden_size * (2 * cfg.hidden_size + 2 * keys + 3 * cfg.ffn_dim)


def dit_context(cfg: DitConfig, words: int) -> float:
    """Connector and context refiner over the condition and the prepadding states."""
    tokens = words + cfg.num_prepad
    total = 2.0 * tokens * cfg.condition_dim * cfg.hidden_size
    return total + cfg.num_refiner_layers * _block(cfg, tokens)


def dit(cfg: DitConfig, words: int, target: int, references: int = 0) -> float:
    """One velocity under a refined context: what a denoising step takes.

    Args:
      words: condition tokens, prepadding states not counted.
      target, references: tokens of the drawn and of the shown pictures.
    """
    width, pictures = cfg.hidden_size, target + references
    whole = words + cfg.num_prepad + pictures
    modulated = cfg.num_layers + cfg.num_refiner_layers * (2 if references else 1)
    total = 2.0 * cfg.time_dim * (TIME_FREQUENCIES + cfg.time_dim + width)
    total += 2.0 * modulated * cfg.time_dim * 4 * width
    total += 2.0 * (pictures + target) * cfg.token_dim * width  # embedders and head
    total += cfg.num_refiner_layers * _block(cfg, target)
    total += cfg.num_refiner_layers * _block(cfg, references)
    return total + cfg.num_layers * _block(cfg, whole)


def _block(cfg: DitConfig, tokens: int) -> float:
    products = 2.0 * tokens * dit_block_weights(cfg)
    return products + attention(tokens, tokens, cfg.num_heads, cfg.head_dim)


def vae_decode(cfg: VaeConfig, height: int, width: int) -> float:
    """Latents to a picture of height x width pixels."""
    widths, cells = cfg.block_out_channels[::-1], height * width // cfg.factor**2
    total = cells * _conv(cfg.latent_channels, widths[0]) + _middle(cfg, cells)
    before = widths[0]
    for i, channels in enumerate(widths):
        total += cells * _resnets(before, channels, cfg.layers_per_block + 1)
        before = channels
        if i < len(widths) - 1:
            cells *= 4
            total += cells * _conv(channels, channels)
    return total + cells * _conv(before, cfg.out_channels)


def vae_encode(cfg: VaeConfig, height: int, width: int) -> float:
    """A picture of height x width pixels to mean and log-variance."""
    widths, cells = cfg.block_out_channels, height * width
    total, before = cells * _conv(cfg.in_channels, widths[0]), widths[0]
    for i, channels in enumerate(widths):
        total += cells * _resnets(before, channels, cfg.layers_per_block)
        before = channels
        if i < len(widths) - 1:
            cells //= 4
            total += cells * _conv(channels, channels)
    return total + _middle(cfg, cells) + cells * _conv(before, 2 * cfg.latent_channels)


def _conv(inputs: int, outputs: int, size: int = 3) -> float:
    return 2.0 * size * size * inputs * outputs


def _resnets(inputs: int, outputs: int, count: int) -> float:
    """So many residual blocks, of one cell; the first changes the width."""
    first = _conv(inputs, outputs) + _conv(outputs, outputs)
    first += _conv(inputs, outputs, 1) if inputs != outputs else 0.0
    return first + (count - 1) * 2 * _conv(outputs, outputs)


def _middle(cfg: VaeConfig, cells: int) -> float:
    channels = cfg.block_out_channels[-1]
    total = cells * 2 * _resnets(channels, channels, 1)
    if cfg.mid_block_add_attention:
        total += 8.0 * cells * channels * channels + attention(cells, cells, 1, channels)
    return total
