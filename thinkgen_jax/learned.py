# SPDX-License-Identifier: Apache-2.0
"""One tree of a system, wherever it is kept: shipped, in a released folder, or in a run.

A run that learned adapters holds them alone; they are merged here into the tree that lay below
them, which is read from where the run took it.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from thinkgen_jax import parts
from thinkgen_jax.hf import assets, folders
from thinkgen_jax.models import lora
from thinkgen_jax.models.lora import LoraConfig
from thinkgen_jax.models.presets import System
from thinkgen_jax.structs import Tree

CHAIN = 100  # most runs that can stand one behind the other


def words_folder(source: str | Path) -> Path:
    """Where the tokenizer of an MLLM lies: with the released one that it came from, else shipped.

    Args:
      source: where the MLLM is from: "random", "assets", a folder, or a run, which is followed to
        where it began.

    Raises:
      ValueError: a run that is damaged.
    """
    for _ in range(CHAIN):
        if str(source) in ("random", "assets") or not Path(source).is_dir():
            break
        if folders.kind(source):
            return folders.words_folder(source)
        if assets.is_assets(Path(source)):
            break
        from thinkgen_jax import checkpoint  # slow to import, and rarely needed

        meta = checkpoint.meta_of(source)
        source = meta.get("start", {}).get("mllm", "assets")
    return parts.ASSETS


def read(
    source: str | Path,
    system: System,
    tree: str,
    *,
    dtype: str = "float32",
    place: Callable[[Tree], Tree] | None = None,
) -> Tree:
    """Reads one tree.

    Args:
      source: "assets", a released folder or one like the shipped weights', a run or one commit.
      tree: "mllm", "dit" or "vae".
      place: shardings of a tree by its abstract arrays; None leaves it on the host or the first
        device, which may be too small for it.

    Raises:
      ValueError: missing, foreign, damaged, of other dims, or below adapters and gone.
    """
    folder = parts.ASSETS if str(source) == "assets" else Path(source)
    shapes = parts.shapes(system, tree)
    where = None if place is None else place(shapes)
    if folders.kind(folder):
        return folders.read_tree(folder, system, tree, shapes=shapes, dtype=dtype, place=where)
    if assets.is_assets(folder):
        found = assets.load_tree(folder, system, tree, shapes=shapes, dtype=dtype)
        return found if where is None else jax.device_put(found, where)
    from thinkgen_jax import checkpoint  # slow to import, and rarely needed

    meta = checkpoint.meta_of(folder)
    adapted = meta.get("lora", {}).get(tree)
    if adapted is None:
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), shapes)
        return checkpoint.restore_learned(folder, tree, wanted, place=place)
    below = meta["start"][tree]
    if below != "assets" and not Path(below).is_dir():
        raise ValueError(
            f"--checkpoint={folder}: its {tree} are adapters of {below}, which is gone"
        )
    base = read(below, system, tree, place=place)
    adapters = checkpoint.restore_learned(folder, tree, place=place)
    merged = lora.merged(base, adapters, LoraConfig(**adapted))
    return jax.tree.map(lambda x: x.astype(dtype), merged)
