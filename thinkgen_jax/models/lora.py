# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters: a few small parameters that learn in the place of frozen kernels.

An adapted kernel W is W + alpha / rank · A B; A leads from its inputs to `rank` values, B from
those to its outputs. Adapters are a tree of their own, with `lora_a` and `lora_b` where the network
has `kernel`: the networks know nothing of them, they are given `merge`d parameters.

* B begins at zero: a fresh adapter changes nothing, bit for bit.
* Kernels of the stacked blocks can be adapted (`INPUTS`), of attention and feed-forward.

Source: LoRA (arXiv 2106.09685); initial values as peft@0.17.0 tuners/lora.
"""

import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from thinkgen_jax import sharding
from thinkgen_jax.structs import Key, Tree

A, B = "lora_a", "lora_b"
# Number of input axes of a kernel, behind that of its stack; the axes after them are outputs.
INPUTS: tuple[tuple[str, int], ...] = (
    (r"decoder/self_attn/[qkv]_proj$", 1),  # [L, D, N, H]
    (r"decoder/self_attn/o_proj$", 2),  # [L, N, H, D]
    (r"decoder/mlp/(gate|up|down)_proj$", 1),  # [L, D, F], [L, F, D]
    (r"(layers|refiner)/attn/to_[qkv]$", 1),  # [L, W, N, H]
    (r"(layers|refiner)/attn/to_out$", 2),  # [L, N, H, W]
    (r"(layers|refiner)/feed_forward/(gate|up|down)$", 1),  # [L, W, F], [L, F, W]
)


@dataclass(frozen=True)
class LoraConfig:
    """Which kernels are adapted, and how.

    Attributes:
      rank: values between A and B, at least 1.
      alpha: numerator of the scale, above 0.
      targets: pattern of the `/`-joined paths of adapted modules, searched; of those of `INPUTS`.
    """

    rank: int
    alpha: float
    targets: str = "."

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"rank = {self.rank}, alpha = {self.alpha}: rank >= 1, alpha > 0")


def init(base: Tree, cfg: LoraConfig, key: Key) -> Tree:
    """Fresh adapters for parameters (or their shapes), in float32.

    Raises:
      ValueError: when no kernel is adapted.
    """
    found: dict = {}
    for number, (path, inputs, shape) in enumerate(_adapted(base, cfg)):
        stack, into, out = shape[:1], shape[1 : 1 + inputs], shape[1 + inputs :]
        fan = 1
        for size in into:
            fan *= size
        drawn = jax.random.uniform(
            jax.random.fold_in(key, number), (*stack, *into, cfg.rank), jnp.float32, -1.0, 1.0
        )
        node = found
        for part in path.split("/"):
            node = node.setdefault(part, {})
        node |= {A: drawn / fan**0.5, B: jnp.zeros((*stack, cfg.rank, *out))}
    if not found:
        raise ValueError(f"targets = {cfg.targets!r} matches no kernel that can be adapted")
    return found


def merge(base: Tree, adapters: Tree, cfg: LoraConfig) -> Tree:
    """The parameters with their adapters added; differentiable by the adapters.

    Raises:
      ValueError: when an adapter has no kernel here, or does not fit it.
    """
    return sharding.keep(_merge(base, adapters, cfg.alpha / cfg.rank, ""))


merged = jax.jit(merge, static_argnums=2)


def _merge(base: Tree, adapters: Tree, scale: float, path: str) -> Tree:
    if A in adapters:
        kernel = base.get("kernel")
        # Products over the rank alone, block by block: every axis stays where it lies.
        added = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(adapters[A], adapters[B])
        if kernel is None or kernel.shape != added.shape:
            raise ValueError(f"{path}: no kernel of shape {added.shape} to adapt")
        return {**base, "kernel": kernel + (scale * added).astype(kernel.dtype)}
    lost = sorted(set(adapters) - set(base))
    if lost:
        raise ValueError(f"{path or 'the tree'}: nothing is called {lost[0]!r}")
    return {
        name: _merge(leaf, adapters[name], scale, f"{path}/{name}".strip("/"))
        if name in adapters
        else leaf
        for name, leaf in base.items()
    }


def _adapted(base: Tree, cfg: LoraConfig) -> list[tuple[str, int, tuple[int, ...]]]:
    """Path of every adapted module, its number of input axes, and its kernel's shape."""
    found = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(base):
        path = sharding.path_name(keys)
        module = path.removesuffix("/kernel")
        if module == path or not re.search(cfg.targets, module):
            continue
        inputs = next((n for pattern, n in INPUTS if re.search(pattern, module)), None)
        if inputs is not None:
            found.append((module, inputs, leaf.shape))
    return found
