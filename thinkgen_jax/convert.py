# SPDX-License-Identifier: Apache-2.0
"""Gathers trees into one folder under released names: one of ours to ship, or a released one.

    python -m thinkgen_jax.convert --mllm=runs/nano_mllm-nano --dit=runs/finetune-nano \\
        --vae=runs/nano_vae-nano --out=thinkgen_jax/assets/nano
    python -m thinkgen_jax.convert --format=thinkgen --source=ThinkGen \\
        --mllm=runs/sepgrpo-thinkgen --dit=runs/sepgrpo-thinkgen --out=ThinkGen-tuned

A tree comes from a run or from a released folder. One that is not named stays as it is in the
folder; a released format takes it, its configs and its tokenizer from `--source`. LoRA adapters in
PEFT's files are merged on the way (`--adapter`).

With `--tokenizer` the nano tokenizer is learnt anew from the miniature world's sentences, which
invalidates every MLLM trained before. Of an autoencoder the shift and scale of its latents are
measured and told: they belong into the preset before anything is trained on them.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags

from thinkgen_jax import checkpoint, cli, learned, parts
from thinkgen_jax.data import batches, sources, text
from thinkgen_jax.hf import adapters, assets, export, folders, streams
from thinkgen_jax.hf.adapters import Adapter
from thinkgen_jax.models import presets
from thinkgen_jax.models.presets import System
from thinkgen_jax.models.vae import Vae
from thinkgen_jax.steps import vae_sft
from thinkgen_jax.structs import Tree
from thinkgen_jax.world import tasks

FLAGS = cli.values()
TREES = {
    tree: flags.DEFINE_string(
        tree,
        None,
        f"Run (its average if it has one) or released folder whose {tree} is taken.",
        flag_values=FLAGS,
    )
    for tree in parts.TREES
}
OUT = flags.DEFINE_string("out", None, "Folder to write.", flag_values=FLAGS)
FORMAT = flags.DEFINE_enum(
    "format",
    "assets",
    ("assets", "thinkgen", "qwen3vl"),
    "One of ours; a released pipeline; an MLLM alone.",
    flag_values=FLAGS,
)
SOURCE = flags.DEFINE_multi_string(
    "source", [], "Released folder to keep to; may be repeated.", flag_values=FLAGS
)
ADAPTER = flags.DEFINE_multi_string(
    "adapter",
    [],
    "PEFT folder of a LoRA adapter, merged into the released weights it names; may be repeated.",
    flag_values=FLAGS,
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ("bfloat16", "float16", "float32"),
    "Of the weights; default bfloat16 for ours, else that of --source or of the trees.",
    flag_values=FLAGS,
)
PRESET = flags.DEFINE_string(
    "preset", "nano", "Dimensions, where no --source says them.", flag_values=FLAGS
)
TOKENIZER = flags.DEFINE_bool(
    "tokenizer", False, "Learn the nano tokenizer anew.", flag_values=FLAGS
)


def run() -> None:
    """Writes the folder.

    Raises:
      ValueError: for an unknown preset, a missing run or folder, a tree of other dimensions, or
        nothing to write.
    """
    if not OUT.value:
        raise ValueError("--out is needed: the folder to write")
    system = _system()
    adapted = _adapters(system)
    if FORMAT.value == "assets":
        _check_ours(system, adapted)
    trees = _trees(system, adapted)
    if FORMAT.value != "assets":
        _fill(trees, system, adapted)
    unused = sorted(adapted.keys() - trees.keys())
    if unused:
        raise ValueError(f"--adapter is one of the {unused[0]}, and no {unused[0]} is written")
    (_ours if FORMAT.value == "assets" else _theirs)(system, trees)
    total = sum(f.stat().st_size for f in Path(OUT.value).rglob("*") if f.is_file())
    print(f"{OUT.value}: {total / 2**20:.1f} MiB")


def _system() -> System:
    """Of the sources, an MLLM's folder first decides the width that the others fit."""
    system = presets.get(PRESET.value)
    for folder in SOURCE.value:
        if folders.kind(folder) is None:
            raise ValueError(f"--source={folder}: no released folder")
    for folder in sorted(SOURCE.value, key=lambda path: folders.kind(path) != "qwen3vl"):
        system = folders.read_system(folder, system if PRESET.present else None)
    return replace(system, marker=_marker(system.marker))


def _marker(default: str) -> str:
    """The token that the named runs put before instructions; a released folder knows one alone."""
    runs = [flag.value for flag in TREES.values() if flag.value and not folders.kind(flag.value)]
    metas = [checkpoint.meta_of(run) for run in runs]
    found = {meta.get("system", {}).get("marker", default) for meta in metas} or {default}
    if len(found) > 1 or (FORMAT.value != "assets" and found != {default}):
        raise ValueError(
            f"the runs' markers {sorted(found)} cannot stand in a folder of --format={FORMAT.value}"
        )
    return found.pop()


def _adapters(system: System) -> dict[str, Adapter]:
    """The given adapters by the tree whose weights they name."""
    if not ADAPTER.value:
        return {}
    tables = {tree: folders.TABLES[tree].rules(getattr(system, tree)) for tree in parts.TREES}
    names = {
        tree: streams.released(parts.shapes(system, tree), table).keys()
        for tree, table in tables.items()
    }
    found = {}
    for folder in ADAPTER.value:
        adapter = adapters.read_adapter(folder)
        fits = [tree for tree in parts.TREES if adapter.weights.keys() <= names[tree]]
        if not fits:
            raise ValueError(f"--adapter={folder}: {min(adapter.weights)} is in no tree")
        if fits[0] in found:
            raise ValueError(f"--adapter={folder}: the {fits[0]} has an adapter already")
        found[fits[0]] = adapter
    return found


def _trees(system: System, adapted: dict[str, Adapter]) -> dict[str, Tree]:
    """The named trees, on the host."""
    trees = {}
    for tree, flag in TREES.items():
        if flag.value is None:
            continue
        if folders.kind(flag.value):
            trees[tree] = _released(flag.value, system, tree, adapted)
        elif tree in adapted:
            raise ValueError(f"--adapter: merged into released folders, --{tree} is a run")
        else:
            trees[tree] = jax.device_get(learned.read(flag.value, system, tree))
        print(f"{tree}: {flag.value}")
    return trees


def _fill(trees: dict[str, Tree], system: System, adapted: dict[str, Adapter]) -> None:
    """Takes trees that are not named from the sources."""
    wanted = ("mllm",) if FORMAT.value == "qwen3vl" else parts.TREES
    for tree in wanted:
        for folder in SOURCE.value:
            if tree not in trees and folders.has_tree(folder, tree):
                trees[tree] = _released(folder, system, tree, adapted)
                print(f"{tree}: {folder}")
    missing = sorted(set(wanted) - set(trees))
    if missing:
        raise ValueError(f"--format={FORMAT.value} needs --{missing[0]} or a --source that has it")


def _released(folder: str, system: System, tree: str, adapted: dict[str, Adapter]) -> Tree:
    how = dict(shapes=parts.shapes(system, tree), adapter=adapted.get(tree))
    return folders.read_tree(folder, system, tree, **how)


def _check_ours(system: System, adapted: dict[str, Adapter]) -> None:
    """Refuses to write nothing, or beside trees that would no longer fit what config.json says."""
    named = [tree for tree in parts.TREES if TREES[tree].value is not None]
    if not (named or adapted or TOKENIZER.value):
        options = ", ".join(f"--{tree}" for tree in parts.TREES)
        raise ValueError(f"--out={OUT.value}: nothing to write; name {options} or --tokenizer")
    kept = {tree: parts.shapes(system, tree) for tree in parts.TREES if tree not in named}
    try:
        assets.check_kept(OUT.value, system, kept)
    except ValueError as error:
        raise ValueError(f"--out={OUT.value} {error}; name another folder") from error


def _ours(system: System, trees: dict[str, Tree]) -> None:
    if "vae" in trees:
        shift, scale = measure(system, trees["vae"])
        print(
            f"latents: shift {shift:.4f}, scale {scale:.4f}; preset {system.name} has "
            f"{system.vae.shift_factor:.4f}, {system.vae.scaling_factor:.4f}"
        )
    words = None
    if TOKENIZER.value:
        tokenizer = text.train(tasks.corpus(), vocab_size=system.mllm.vocab_size)
        words = text.Text(tokenizer, system=system.system_prompt, marker=system.marker)
    assets.save(OUT.value, system, trees, words, dtype=DTYPE.value or "bfloat16")


def _theirs(system: System, trees: dict[str, Tree]) -> None:
    alone, given = FORMAT.value == "qwen3vl", SOURCE.value or None
    dtype = DTYPE.value or ("source" if given else None)
    export.write_folder(OUT.value, system, trees, given, dtype=dtype, plain=alone)


def measure(system: System, params: Tree, *, count: int = 512, batch: int = 16):
    """(shift, scale) that give the latents of `count` training pictures mean 0 and deviation 1."""
    weights = {"composition": 0.6, "text": 0.2, "edit": 0.2}
    example = partial(sources.picture, seed=0, split="train", weights=weights, crop=0)
    data = batches.batched(example, batch, np.stack)
    pictures = (data[i] for i in range(count // batch))
    return vae_sft.latent_statistics(Vae(system.vae), params, pictures)


if __name__ == "__main__":
    cli.start(FLAGS, run)
