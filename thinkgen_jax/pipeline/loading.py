# SPDX-License-Identifier: Apache-2.0
"""Where a system comes from: the shipped weights, a folder like them, a released one, or a run."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from thinkgen_jax import learned
from thinkgen_jax import parts as putting
from thinkgen_jax.data.text import Text, check_marker
from thinkgen_jax.hf import assets, folders
from thinkgen_jax.models import presets
from thinkgen_jax.models.presets import System
from thinkgen_jax.parts import Parts
from thinkgen_jax.structs import Params, Tree

DTYPES = ("float32", "bfloat16")
LOG = logging.getLogger(__name__)


def load(
    path: str | Path | None = None,
    *,
    dtype: str = "float32",
    parity: bool = False,
    marker: str | None = None,
    start: Sequence[str] = (),
) -> tuple[Parts, Params]:
    """Builds a system and reads its parameters.

    Args:
      path: None takes the shipped weights; else a folder like theirs, a released pipeline, or a
        run, its `checkpoints` folder or one commit. A run's running averages win over its
        parameters, and trees that did not learn come from where the run took them; the shipped
        one stands for a tree that was random there, if it is of that preset, and a warning tells.
      dtype: of parameters and activations, see `presets.in_dtype`.
      marker: token behind which the instruction stands; None takes the system's own.
      parity: do as the release does where it does otherwise, see `presets.as_released`.
      start: trees taken as they were at the start of the run, so that what another tree learned
        shows alone.

    Raises:
      ValueError: when it is missing, damaged, foreign, or of other dimensions, or lacks a tree that
        was random; for a tree of `start` that does not exist, or a folder that is no run.
    """
    if path == "":
        raise ValueError("--checkpoint is empty: name a run or folder, or leave it out")
    unknown = sorted(set(start) - set(putting.TREES))
    if unknown:
        raise ValueError(f"--start: {unknown} are none of {putting.TREES}")
    folder = Path(putting.ASSETS if path is None else path)
    if path is None and not assets.is_assets(folder):
        raise ValueError("this copy has no shipped weights; name a folder or run: --checkpoint=...")
    released = folders.kind(folder)
    if start and (released or assets.is_assets(folder)):
        raise ValueError(f"--start={','.join(start)} needs the --checkpoint of a run")
    if dtype not in DTYPES:
        raise ValueError(f"--dtype={dtype} is not one of {', '.join(DTYPES)}")
    if marker is not None:
        check_marker(marker)
    if released:
        system, text, trees = _released(folder, released, dtype)
    elif assets.is_assets(folder):
        system = assets.load_system(folder)
        text = assets.load_text(folder, system)
        trees = {name: learned.read(folder, system, name, dtype=dtype) for name in putting.TREES}
    else:
        system, text, trees = _from_run(folder, dtype, start)
    if marker is not None:
        system = replace(system, marker=marker)
        text = Text(text.tokenizer, system=text.system, marker=marker)
    system = presets.in_dtype(system, dtype)
    system = presets.as_released(system) if parity else system
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
    trees = {name: learned.read(folder, system, name, dtype=dtype) for name in putting.TREES}
    return system, text, trees


def _from_run(path: Path, dtype: str, start: Sequence[str]) -> tuple[System, Text, dict[str, Tree]]:
    """A run's trees, and those it was trained with; one that was random there is not kept."""
    from thinkgen_jax import checkpoint  # slow to import, and rarely needed

    meta = checkpoint.meta_of(path)
    system = assets.system_from(meta.get("system", {}), f"--checkpoint={path}: its system")
    sources, trees = checkpoint.sources(path, start=start), {}
    for name in putting.TREES:
        if name not in sources and meta.get("start", {}).get(name) == "random":
            if system.name != assets.load_system(putting.ASSETS).name:
                raise ValueError(f"--checkpoint={path}: its {name} was random and is not in it")
            LOG.warning(
                "--checkpoint=%s: its %s began random; the shipped one is taken", path, name
            )
        source = Path(sources.get(name, "assets"))
        source = putting.ASSETS if source == Path("assets") else source
        if not source.is_dir():
            raise ValueError(f"--checkpoint={path}: its {name} came from {source}, which is gone")
        trees[name] = learned.read(source, system, name, dtype=dtype)
    return system, assets.load_text(learned.words_folder(path), system), trees
