# SPDX-License-Identifier: Apache-2.0
"""Where a system comes from: the shipped weights, a folder like them, a released one, or a run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from thinkgen_jax import parts as putting
from thinkgen_jax.data.text import Text
from thinkgen_jax.hf import assets, folders
from thinkgen_jax.models import presets
from thinkgen_jax.models.presets import System
from thinkgen_jax.parts import Parts
from thinkgen_jax.structs import Params, Tree


def load(
    path: str | Path | None = None, *, dtype: str = "float32", start: Sequence[str] = ()
) -> tuple[Parts, Params]:
    """Builds a system and reads its parameters.

    Args:
      path: None takes the shipped weights; else a folder like theirs, a released pipeline, or a
        run, its `checkpoints` folder or one commit. A run's running averages win over its
        parameters, and trees that did not learn come from where the run took them.
      dtype: of the parameters.
      start: trees taken as they were at the start of the run, so that what another tree learned
        shows alone.

    Raises:
      ValueError: when it is missing, damaged, foreign, or of other dimensions; for a tree of
        `start` that does not exist, or a folder that is no run.
    """
    unknown = sorted(set(start) - set(putting.TREES))
    if unknown:
        raise ValueError(f"--start: {unknown} are none of {putting.TREES}")
    folder = Path(putting.ASSETS if path is None else path)
    if path is None and not assets.is_assets(folder):
        raise ValueError("this copy has no shipped weights; name a folder or run: --checkpoint=...")
    released = folders.kind(folder) if folder.is_dir() else None
    if start and (released or assets.is_assets(folder)):
        raise ValueError(f"--start={','.join(start)} needs the --checkpoint of a run")
    if released:
        system, text, trees = _released(folder, released, dtype)
    elif assets.is_assets(folder):
        system = assets.load_system(folder)
        text = assets.load_text(folder, system)
        trees = {name: _shipped(folder, system, name, dtype) for name in putting.TREES}
    else:
        system, trees = _from_run(folder, dtype, start)
        text = assets.load_text(putting.ASSETS, system)
    placed = {name: jax.tree.map(jnp.asarray, tree) for name, tree in trees.items()}
    return putting.build(system, text), Params(**placed)


def _released(folder: Path, kind: str, dtype: str) -> tuple[System, Text, dict[str, Tree]]:
    if kind != "thinkgen":
        raise ValueError(
            f"--checkpoint={folder}: a {kind} folder has not all that draws; start a run from it "
            "(config.start), or make a pipeline of it with thinkgen_jax.convert"
        )
    system = folders.read_system(folder)
    text = assets.load_text(folders.words_folder(folder), system)
    trees = {
        name: folders.read_tree(
            folder, system, name, shapes=putting.shapes(system, name), dtype=dtype
        )
        for name in putting.TREES
    }
    return system, text, trees


def _shipped(folder: Path, system: System, name: str, dtype: str) -> Tree:
    shapes = putting.shapes(system, name)
    return assets.load_tree(folder, system, name, shapes=shapes, dtype=dtype)


def _from_run(path: Path, dtype: str, start: Sequence[str]) -> tuple[System, dict[str, Tree]]:
    """A run's trees, and those it was trained with."""
    from thinkgen_jax import checkpoint  # slow to import, and rarely needed

    meta = checkpoint.read_meta(checkpoint.find(path))
    system = presets.get(meta.get("preset", ""))
    prepad = meta.get("config", {}).get("prepad")
    if prepad is not None:
        system = replace(system, dit=replace(system.dit, num_prepad=prepad))
    sources, trees = checkpoint.sources(path, start=start), {}
    for name in putting.TREES:
        source = sources.get(name, "assets")
        if source == "assets":
            trees[name] = _shipped(putting.ASSETS, system, name, dtype)
            continue
        if not Path(source).is_dir():
            raise ValueError(f"--checkpoint={path}: its {name} came from {source}, which is gone")
        shapes = putting.shapes(system, name)
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), shapes)
        trees[name] = checkpoint.restore_learned(source, name, wanted)
    return system, trees
