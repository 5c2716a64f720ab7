# SPDX-License-Identifier: Apache-2.0
"""The tiny system as the fixtures have it: official weights and a tokenizer of 512 tokens."""

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.golden import cases, golden_dir
from tests.hf.reference import to_jax
from thinkgen_jax import parts
from thinkgen_jax.data.text import END, Text
from thinkgen_jax.hf import mllm as table
from thinkgen_jax.hf.assets import TABLES
from thinkgen_jax.models import presets
from thinkgen_jax.models.presets import System
from thinkgen_jax.structs import Params, Tree

# The fixtures' dimensions, whatever the preset's tokenizer needs.
SYSTEM = replace(
    presets.get("tiny"), mllm=table.config_from_hf(cases("qwen3vl_tiny.cases")[1]["config"])
)
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
    tensors = load_file(golden_dir() / f"{FILES[name]}.weights.safetensors")
    tensors.pop("prepad_mask", None)
    table = TABLES[name](getattr(SYSTEM, name))
    return jax.tree.map(jnp.asarray, to_jax(tensors, table, parts.shapes(SYSTEM, name)))


@lru_cache(maxsize=1)
def tiny() -> tuple[parts.Parts, Params]:
    """The tiny system and its weights."""
    return parts.build(SYSTEM, toy_text(SYSTEM)), Params(*map(golden_tree, parts.TREES))


class Counter:
    """A data stream whose position is one number."""

    def __init__(self):
        self.place = 0

    def __next__(self):
        self.place += 1
        return self.place

    def get_state(self):
        return {"next_index": self.place}

    def set_state(self, state):
        self.place = state["next_index"]
