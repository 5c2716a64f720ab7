# SPDX-License-Identifier: Apache-2.0
"""Where a run begins: its system's sizes and each tree's parameters, from what `config.start` says.

random    fresh values
assets    the shipped nano weights
a run     its running average where it has one, else its parameters
a folder  a released one (`hf.folders`): a ThinkGen pipeline, a Qwen3-VL for the MLLM, or an
          OmniGen2 pipeline for DiT and autoencoder; its configs then decide the sizes, and the
          MLLM's folder the tokenizer
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from thinkgen_jax import checkpoint, learned, parts, sharding
from thinkgen_jax.data import files
from thinkgen_jax.hf import assets, folders
from thinkgen_jax.hf.rules import flatten, unflatten
from thinkgen_jax.models import lora, presets
from thinkgen_jax.models.lora import LoraConfig
from thinkgen_jax.models.presets import System
from thinkgen_jax.steps import flow_sft
from thinkgen_jax.structs import Tree

SHIPPED = "nano"  # preset of the shipped weights
WORDS = ("random", "assets")  # what `config.start` may say beside the name of a folder
PREPAD = "prepad_embed"  # the DiT's parameter that `config.prepad=0` leaves out


def system_of(config: ConfigDict) -> System:
    """The sizes of a run: the preset's, then those of released folders, then the config's changes.

    Raises:
      ValueError: for a number out of its range, or a released folder whose configs are damaged or
        do not fit.
    """
    for key, least in (("prepad", 0), ("thought_tokens", 1)):
        if config[key] is not None and config[key] < least:
            raise ValueError(f"config.{key} = {config[key]}: must be at least {least}")
    system = presets.get(config.model)
    for tree in parts.TREES:
        source = config.start[tree]
        if released(source):
            found = folders.read_system(source, system)
            system = replace(system, **{tree: getattr(found, tree)})
            if tree == "mllm":
                width = 2 * system.mllm.hidden_size
                system = replace(system, dit=replace(system.dit, condition_dim=width))
    if config.prepad is not None:
        system = replace(system, dit=replace(system.dit, num_prepad=config.prepad))
    if config.marker is not None:
        system = replace(system, marker=config.marker)
    if config.get("dit_condition"):
        dit = replace(system.dit, condition_dim=config.dit_condition, num_prepad=0)
        system = replace(system, dit=dit)
    if config.image_size is not None:
        side = config.image_size
        if side < 1 or side % system.multiple:
            raise ValueError(f"config.image_size = {side}: must be a multiple of {system.multiple}")
        system = replace(system, image_size=(side, side))
    if config.thought_tokens is not None:
        system = replace(system, thought_tokens=config.thought_tokens)
    return presets.running(system, dtype=config.dtype, remat=config.remat)


def released(source: str | Path) -> str | None:
    """The kind of a released folder; None for anything else."""
    return None if source in WORDS else folders.kind(source)


def of_checkpoint(path: str) -> dict[str, str]:
    """What `config.start` says for a whole system: a run's or a released folder's trees.

    Raises:
      ValueError: missing, foreign or damaged.
    """
    if not released(path):
        return checkpoint.sources(path)
    return {tree: path for tree in parts.TREES if folders.has_tree(path, tree)}


def words_folder(config: ConfigDict) -> Path:
    """Where the tokenizer lies: with the released MLLM that the run's came from, else shipped."""
    return learned.words_folder(config.start.mllm)


def sources(config: ConfigDict) -> dict[str, str]:
    """`config.start` with absolute paths, so that a run can be read from anywhere.

    Below adapters lies one commit: what the run learns later must not move them.
    """

    def place(tree: str, source: str) -> str:
        if source in WORDS:
            return source
        is_base = is_adapted(config, tree) and not released(source)
        kept = checkpoint.find(source) if is_base else Path(source)
        return str(kept.absolute())

    return {tree: place(tree, source) for tree, source in config.start.items()}


def is_adapted(config: ConfigDict, tree: str) -> bool:
    """Whether adapters learn in a tree's place."""
    return tree in config.lora and config.lora[tree].rank is not None


def check_base(config: ConfigDict, meta: dict) -> None:
    """Refuses to go on with adapters where the tree below them is no longer the same.

    Args:
      meta: of the run's own last commit.

    Raises:
      ValueError: naming the tree, where it was and where it would be.
    """
    now, before = sources(config), meta.get("start", {})
    for tree in meta.get("lora", {}):
        if now[tree] != before[tree]:
            raise ValueError(
                f"config.start.{tree}: the adapters learned on {before[tree]}, now there is "
                f"{now[tree]}; name the former, or start anew with --fresh"
            )


def fresh_adapters(config: ConfigDict, tree: str, params: Tree, cfg: LoraConfig) -> Tree:
    """New adapters of a tree, placed."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    adapters = jax.jit(lambda key: lora.init(shapes, cfg, key))(_key(config, tree))
    return jax.device_put(adapters, sharding.infer(adapters, _mesh()))


def prints(config: ConfigDict, trees: Sequence[str]) -> dict[str, str]:
    """Short names of trees' parameters, the same wherever their files lie.

    Raises:
      ValueError: for a source that is not there.
    """
    found = {}
    for tree in trees:
        source = config.start[tree]
        if source == "random":
            found[tree] = f"random, {config.model}, seed {config.seed}"
            continue
        if source == "assets":
            home, held = parts.ASSETS, [parts.ASSETS / f"{tree}.safetensors"]
        elif released(source):
            home = folders.home_of(source, tree)
            held = sorted(home.glob("*.safetensors"))
        else:
            home = checkpoint.find(source)
            held = sorted(path for path in home.rglob("*") if path.is_file())
        named = {str(path.relative_to(home)): path for path in held}
        _, found[tree] = files.names_of(tree, named)
    return found


def tree_params(config: ConfigDict, system: System, tree: str, log) -> Tree:
    """Parameters of one tree from where `config.start` says."""
    source = config.start[tree]
    key = _key(config, tree)
    if source == "random":
        params = parts.random_params(system, tree, key)
    elif released(source):
        params = _from_folder(config, system, tree, source, log)
    elif source == "assets":
        if system.name != SHIPPED:
            raise ValueError(
                f"config.start.{tree}=assets: the shipped weights are {SHIPPED}, not "
                f"{system.name}; name a run, or random"
            )
        shapes = parts.shapes(system, tree)
        params = assets.load_tree(parts.ASSETS, system, tree, shapes=shapes)
    else:
        params = _from_run(config, system, tree, source)
    if tree == "dit":
        params = _reinit(config, system, params, key)
        if config.get("dit_condition"):
            table = jax.random.normal(key, (system.mllm.vocab_size, config.dit_condition))
            params = {**params, flow_sft.EMBED: {"embedding": table}}
    log.info("%s: %s (%d parameters)", tree, source, _count(params))
    return jax.device_put(params, sharding.infer(params, _mesh()))


def _key(config: ConfigDict, tree: str) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), sum(tree.encode()))


def _mesh() -> jax.sharding.Mesh:
    return jax.sharding.get_mesh()


def _from_folder(config: ConfigDict, system: System, tree: str, source: str, log) -> Tree:
    """Reads a tree from a released folder, tensor by tensor, to where it shall lie."""
    shapes = parts.shapes(system, tree)
    how = dict(shapes=shapes, dtype="float32", place=sharding.infer(shapes, _mesh()))
    if tree == "dit" and released(source) == "omnigen2":
        fresh = partial(_fresh, system, _key(config, tree))
        params, made = folders.read_start(source, system, fresh=fresh, **how)
        log.info("%s: fresh %s", tree, ", ".join(made))
        return params
    return folders.read_tree(source, system, tree, **how)


def _from_run(config: ConfigDict, system: System, tree: str, source: str) -> Tree:
    """Reads a tree from a run: its running average if it has one."""
    path = Path(source)
    if not path.exists():
        raise ValueError(
            f"config.start.{tree}={source}: no such run; train it first, e.g. "
            f"python -m thinkgen_jax.train --config=configs/{path.name.split('-')[0]}.py"
        )
    meta = checkpoint.meta_of(path)
    marker = meta.get("system", {}).get("marker")
    if marker not in (None, system.marker):
        raise ValueError(
            f"config.start.{tree}={source} learned with the marker {marker!r}; say "
            f"--config.marker={marker!r}"
        )
    place = partial(sharding.infer, mesh=_mesh())
    if tree in meta.get("lora", {}):
        found = learned.read(path, system, tree, place=place)
    else:
        found = checkpoint.restore_learned(path, tree, place=place)
    found = {k: v for k, v in found.items() if k != flow_sft.EMBED}
    if tree == "dit" and config.reinit:
        return found
    _compare(found, parts.shapes(system, tree), f"config.start.{tree}={source}")
    return found


def _fresh(system: System, key: jax.Array, paths: Sequence[str]) -> dict[str, jax.Array]:
    """Initial values of these parameters of the DiT; no others are computed."""

    def chosen(key):
        made = flatten(parts.random_tree(system, "dit", key))
        return {path: made[path] for path in paths}

    return jax.jit(chosen)(key)


def _reinit(config: ConfigDict, system: System, params: Tree, key: jax.Array) -> Tree:
    """Fresh values for parameters that match `config.reinit`, or that the source does not have."""
    if not config.reinit:
        return params
    found, wanted = flatten(params), flatten(parts.shapes(system, "dit"))
    new = [name for name in wanted if any(re.search(p, name) for p in config.reinit)]
    if not new:
        raise ValueError(f"config.reinit={config.reinit} matches no parameter")
    kept = {name: leaf for name, leaf in wanted.items() if name not in new}
    for name, leaf in kept.items():
        if name not in found or found[name].shape != leaf.shape:
            raise ValueError(f"config.start.dit: {name} is missing or mis-shaped there")
    return unflatten({name: found[name] for name in kept} | _fresh(system, key, new))


def _compare(found: Tree, wanted: Tree, where: str) -> None:
    a, b = flatten(found), flatten(wanted)
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b or a[name].shape != b[name].shape:
            sizes = [str(getattr(t.get(name), "shape", "nothing")) for t in (a, b)]
            raise ValueError(f"{where}: {name} is {sizes[0]} there, {sizes[1]} here")


def _count(params: Tree) -> int:
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
