# SPDX-License-Identifier: Apache-2.0
"""The tiny system as the fixtures have it: official weights and a tokenizer of 512 tokens."""

from functools import lru_cache

import jax
import jax.numpy as jnp
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.golden import golden_dir
from thinkgen_jax import parts
from thinkgen_jax.data.text import END, Text
from thinkgen_jax.hf.assets import TABLES
from thinkgen_jax.hf.rules import to_jax
from thinkgen_jax.models import presets
from thinkgen_jax.models.presets import System
from thinkgen_jax.structs import Params, Tree

FILES = {"mllm": "qwen3vl_tiny", "dit": "dit_tiny", "vae": "vae_tiny"}


def toy_text(system: System) -> Text:
    """The fixtures' tokenizer with a system's templates."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(golden_dir() / "toy_tokenizer.json")),
        eos_token=END,
    )
    return Text(tokenizer, system=system.system_prompt, marker=system.marker)


def golden_tree(name: str) -> Tree:
    """Official weights of one tree of the tiny system."""
    system = presets.get("tiny")
    tensors = load_file(golden_dir() / f"{FILES[name]}.weights.safetensors")
    tensors.pop("prepad_mask", None)
    table = TABLES[name](getattr(system, name))
    return jax.tree.map(jnp.asarray, to_jax(tensors, table, parts.shapes(system, name)))


@lru_cache(maxsize=1)
def tiny() -> tuple[parts.Parts, Params]:
    """The tiny system and its weights."""
    system = presets.get("tiny")
    return parts.build(system, toy_text(system)), Params(*map(golden_tree, parts.TREES))
