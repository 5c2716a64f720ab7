# SPDX-License-Identifier: Apache-2.0
"""One system put together: its networks, its words, and where its parameters come from.

`Parts` is what every road (inference, rollout, training phases) starts from. Parameters travel
beside it, never in it.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from thinkgen_jax.data.images import VisionSpec
from thinkgen_jax.data.text import Text
from thinkgen_jax.models.dit import Dit, DitConfig
from thinkgen_jax.models.mllm import Mllm, init_params
from thinkgen_jax.models.packing import pack
from thinkgen_jax.models.presets import System
from thinkgen_jax.models.vae import Vae
from thinkgen_jax.steps.encode import Encoder
from thinkgen_jax.structs import Condition, Key, Tree

ASSETS = Path(__file__).parent / "assets" / "nano"
TREES = ("mllm", "dit", "vae")


class Parts(NamedTuple):
    """Networks and words of one system."""

    system: System
    mllm: Mllm
    dit: Dit
    vae: Vae
    text: Text

    @property
    def encoder(self) -> Encoder:
        """The frozen side of drawing."""
        return Encoder(
            self.mllm,
            self.vae,
            patch=self.system.dit.patch_size,
            close_id=self.text.close_id,
            max_len=self.system.instruction_tokens,
        )

    @property
    def vision(self) -> VisionSpec:
        """How the MLLM wants its pictures."""
        tower = self.system.mllm.vision
        low, high = self.system.vision_pixels
        return VisionSpec(
            tower.patch_size, tower.temporal_patch_size, tower.spatial_merge_size, low, high
        )

    def grid(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Latent (h, w) of a picture of (height, width) pixels, or of the default size."""
        height, width = size or self.system.image_size
        return height // self.system.vae.factor, width // self.system.vae.factor


def build(system: System, text: Text) -> Parts:
    """Puts one system together.

    Raises:
      ValueError: when an added marker has no row in the MLLM's embedding.
    """
    if text.close_id >= system.mllm.vocab_size:
        raise ValueError(
            f"marker {text.marker!r} (--marker, config.marker) is token {text.close_id}, the "
            f"MLLM's embedding has {system.mllm.vocab_size} rows"
        )
    return Parts(system, Mllm(system.mllm), Dit(system.dit), Vae(system.vae), text)


def random_params(system: System, tree: str, key: Key) -> Tree:
    """Fresh parameters of one tree."""
    return jax.jit(lambda key: random_tree(system, tree, key))(key)


def shapes(system: System, tree: str) -> Tree:
    """Abstract parameters of one tree."""
    return jax.eval_shape(lambda: random_tree(system, tree, jax.random.key(0)))


def random_tree(system: System, tree: str, key: Key) -> Tree:
    """Fresh parameters of one tree, to be called inside a jitted function."""
    if tree == "mllm":
        return init_params(system.mllm, key)
    if tree == "dit":
        return init_dit(system.dit, key)
    side = 2 * system.vae.factor
    return Vae(system.vae).init(key, jnp.zeros((1, side, side, system.vae.in_channels)))["params"]


def init_dit(cfg: DitConfig, key: Key) -> Tree:
    """Makes fresh DiT parameters, reference branch included."""
    side = 2 * cfg.patch_size
    target = pack(jnp.zeros((1, side, side, cfg.in_channels)), patch=cfg.patch_size)
    condition = Condition(jnp.zeros((1, 1, cfg.condition_dim)), jnp.ones((1, 1), jnp.int32))
    return Dit(cfg).init(key, target, jnp.zeros(1), condition, target)["params"]


def kept(tree: str, params: Tree, *, dtype: str) -> Tree:
    """Parameters of a tree that does not learn; the autoencoder is small and stays float32."""
    if tree == "vae":
        return params
    return jax.tree.map(lambda x: x.astype(dtype), params)


def copied(params: Tree, *, dtype: str) -> Tree:
    """A copy to keep where the arrays themselves are donated; one program, not one a shape."""
    copy = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.copy(x).astype(dtype), tree))
    return copy(params)
