# SPDX-License-Identifier: Apache-2.0
"""Sizes by name: one `System` is everything that distinguishes a released model from a small one.

* `thinkgen`: the released dimensions (8.8 B MLLM, 4.0 B DiT, 84 M VAE).
* `nano`: the same code at 64 x 64 pixels, small enough to train on a laptop; weights are shipped.
* `mid`: between the two, for speed measurements; random weights.
* `tiny`: dimensions of the reference fixtures with the nano tokenizer, random weights, for tests.
"""

from dataclasses import dataclass, field, replace

from thinkgen_jax.models.dit import DitConfig
from thinkgen_jax.models.layers import remat_name
from thinkgen_jax.models.mllm import MllmConfig
from thinkgen_jax.models.vae import VaeConfig
from thinkgen_jax.models.vision import VisionConfig

# Verbatim, blank line and trailing newline included: the released weights depend on it.
# Source: ThinkGen@7388ad5 (system prompt of both entry points).
RELEASED_SYSTEM = (
    "You are a helpful, general-purpose AI assistant with the ability to generate images and "
    "understand images.\n\nYour primary goal is to assist the user effectively. When "
    "generating/edit an image, provide a clear, one-sentence caption or edit instruction that "
    "accurately describes the requested image.\n"
)
# Source: ThinkGen@7388ad5 (default negative prompt of both entry points).
RELEASED_NEGATIVE = (
    "(((deformed))), blurry, over saturation, bad anatomy, disfigured, poorly drawn face, "
    "mutation, mutated, (extra_limb), (ugly), (poorly drawn hands), fused fingers, messy drawing, "
    "broken legs censor, censored, censor_bar"
)
DTYPES = ("float32", "bfloat16")  # of activations
RELEASED_VISION_PIXELS = 16_777_216  # most pixels of the released processor's own settings


@dataclass(frozen=True)
class System:
    """Everything about one size of the system.

    Attributes:
      system_prompt: what stands before every request for a picture.
      negative_prompt: what guidance points away from by default.
      image_size: default (height, width) of a drawn picture, pixels.
      max_pixels: area limit of drawn and reference pictures.
      vision_pixels: (least, most) area of a picture shown to the MLLM.
      shift: constant time shift of sampler and training; None takes the released formulas.
      steps: default number of denoising steps.
      text_guidance, image_guidance: default scales.
      prompt_tokens, thought_tokens, instruction_tokens: limits of the three parts; static shapes.
      sample_references: references are encoded by a sample of the posterior instead of its mode.
    """

    name: str
    mllm: MllmConfig = field(default_factory=MllmConfig)
    dit: DitConfig = field(default_factory=DitConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    system_prompt: str = RELEASED_SYSTEM
    negative_prompt: str = RELEASED_NEGATIVE
    marker: str = "</think>"
    image_size: tuple[int, int] = (1024, 1024)
    max_pixels: int = 1024 * 1024
    vision_pixels: tuple[int, int] = (65_536, 262_144)
    shift: float | None = None
    steps: int = 50
    text_guidance: float = 4.0
    image_guidance: float = 2.0
    prompt_tokens: int = 1024
    thought_tokens: int = 4096
    instruction_tokens: int = 512
    sample_references: bool = False

    @property
    def multiple(self) -> int:
        """Sides of drawn pictures are multiples of this many pixels."""
        return self.vae.factor * self.dit.patch_size


# The nano tokenizer puts these first; see data/text.py.
NANO_IDS = dict(image_token_id=5, vision_start_token_id=3, vision_end_token_id=4)

NANO_VISION = VisionConfig(
    depth=3,
    hidden_size=96,
    intermediate_size=192,
    num_heads=3,
    patch_size=4,
    temporal_patch_size=2,
    spatial_merge_size=2,
    out_hidden_size=192,
    num_position_embeddings=256,
    deepstack_visual_indexes=(1,),
)
NANO_MLLM = MllmConfig(
    vocab_size=1280,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=5,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    rope_theta=10_000.0,
    mrope_section=(6, 5, 5),
    max_position_embeddings=1024,
    tie_word_embeddings=True,
    vision=NANO_VISION,
    scan_unroll=8,
    **NANO_IDS,
)
NANO_DIT = DitConfig(
    in_channels=8,
    hidden_size=192,
    num_layers=4,
    num_refiner_layers=1,
    num_heads=6,
    num_kv_heads=2,
    multiple_of=64,
    ffn_dim_multiplier=0.5,
    axes_dim_rope=(8, 12, 12),
    axes_lens=(512, 512, 512),
    rope_theta=100.0,
    condition_dim=384,
    num_prepad=23,
    scan_unroll=8,
)
NANO_VAE = VaeConfig(
    latent_channels=8,
    block_out_channels=(16, 32, 64),
    layers_per_block=1,
    norm_num_groups=8,
    scaling_factor=1.9169,  # measured by convert.py: latents have mean 0, deviation 1
    shift_factor=0.0079,
)
NANO = System(
    name="nano",
    mllm=NANO_MLLM,
    dit=NANO_DIT,
    vae=NANO_VAE,
    system_prompt="you draw.",
    negative_prompt="",
    image_size=(64, 64),
    max_pixels=64 * 64,
    vision_pixels=(64 * 64, 64 * 64),
    shift=2.0,
    steps=20,
    text_guidance=3.0,
    image_guidance=1.5,
    prompt_tokens=64,
    thought_tokens=112,
    instruction_tokens=48,
)

TINY = System(
    name="tiny",
    mllm=MllmConfig(
        vocab_size=1280,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        mrope_section=(4, 2, 2),
        max_position_embeddings=8192,
        **NANO_IDS,
        vision=VisionConfig(
            depth=4,
            hidden_size=32,
            intermediate_size=64,
            num_heads=4,
            out_hidden_size=64,
            num_position_embeddings=36,
            deepstack_visual_indexes=(1, 2),
        ),
    ),
    dit=DitConfig(
        in_channels=4,
        hidden_size=48,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(1024, 512, 512),
        condition_dim=128,
        num_prepad=5,
    ),
    vae=VaeConfig(
        latent_channels=4, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8
    ),
    system_prompt="you draw.",
    negative_prompt="",
    image_size=(64, 64),
    max_pixels=64 * 64,
    vision_pixels=(64 * 64, 64 * 64),
    steps=4,
    prompt_tokens=96,
    thought_tokens=24,
    instruction_tokens=64,
)

# About 0.2 B parameters in all, 256 pixels: arithmetic dominates, yet two cores can run it.
MID = System(
    name="mid",
    mllm=replace(
        NANO_MLLM,
        vocab_size=8192,
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=12,
        num_heads=12,
        num_kv_heads=4,
        head_dim=64,
        scan_unroll=12,
        mrope_section=(12, 10, 10),
        max_position_embeddings=4096,
        vision=replace(
            NANO_VISION,
            depth=6,
            hidden_size=384,
            intermediate_size=1024,
            num_heads=6,
            patch_size=8,
            out_hidden_size=768,
        ),
    ),
    dit=replace(
        NANO_DIT,
        in_channels=16,
        hidden_size=768,
        num_layers=10,
        num_refiner_layers=2,
        num_heads=12,
        num_kv_heads=4,
        multiple_of=256,
        axes_dim_rope=(16, 24, 24),
        axes_lens=(2048, 2048, 2048),
        condition_dim=1536,
        rope_theta=10_000.0,
    ),
    vae=VaeConfig(block_out_channels=(32, 64, 128, 128), layers_per_block=1, norm_num_groups=16),
    image_size=(256, 256),
    max_pixels=256 * 256,
    vision_pixels=(128 * 128, 256 * 256),
    shift=2.0,
    steps=20,
    system_prompt="you draw.",
    negative_prompt="",
    prompt_tokens=128,
    thought_tokens=128,
    instruction_tokens=64,
)

PRESETS = {s.name: s for s in (System(name="thinkgen"), NANO, MID, TINY)}


def get(name: str) -> System:
    """Looks a preset up.

    Raises:
      ValueError: for an unknown name, listing the known ones.
    """
    if name not in PRESETS:
        raise ValueError(f"config.model {name!r} is not one of {sorted(PRESETS)}")
    return PRESETS[name]


def in_dtype(system: System, dtype: str) -> System:
    """The system with activations of all three networks in `dtype`.

    Softmax, norm statistics, rotations, logits, the autoencoder's group norms, the sinusoid of t
    and what samplers keep between steps stay float32; see `as_released`.
    """
    vision = system.mllm.vision and replace(system.mllm.vision, dtype=dtype)
    return replace(
        system,
        mllm=replace(system.mllm, dtype=dtype, vision=vision),
        dit=replace(system.dit, dtype=dtype),
        vae=replace(system.vae, dtype=dtype),
    )


def running(
    system: System, *, dtype: str, remat: str | bool, attention: str | None = None
) -> System:
    """The system with activations in `dtype` and blocks rematerialised as `remat` names.

    Args:
      attention: implementation of the MLLM's and the DiT's; None keeps theirs.

    Raises:
      ValueError: for an unknown dtype or policy.
    """
    if dtype not in DTYPES:
        raise ValueError(f"config.dtype {dtype!r} is not one of {DTYPES}")
    how = dict(remat=remat_name(remat))
    if attention is not None:
        how["attention"] = attention
    system = in_dtype(system, dtype)
    return replace(system, mllm=replace(system.mllm, **how), dit=replace(system.dit, **how))


def as_released(system: System) -> System:
    """The system with the details in which the release does otherwise than we think right.

    Each can be switched alone, by the field named here; the first two show in bfloat16 only:
      dit.round_time      t is rounded to the DiT's dtype before its sinusoid: in bfloat16 the
                          argument 1000 t moves by up to 2 near t = 1
      dit.round_latents   noise and latents are kept in the DiT's dtype between steps
      sample_references   references are encoded by a sample of the posterior
      vision_pixels       the cap of 262,144 pixels on pictures shown to the MLLM does not act, its
                          processor's own 16,777,216 does

    Source: ThinkGen@7388ad5; transformers 4.57.1 (fast Qwen2-VL image processor).
    """
    dit = replace(system.dit, round_time=True, round_latents=True)
    pixels = (system.vision_pixels[0], RELEASED_VISION_PIXELS)
    return replace(system, dit=dit, sample_references=True, vision_pixels=pixels)
