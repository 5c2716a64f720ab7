# SPDX-License-Identifier: Apache-2.0
"""Gathers trees from runs into one folder under released names, small enough to ship.

    python -m thinkgen_jax.convert --mllm=runs/nano_mllm-nano --dit=runs/finetune-nano \\
        --vae=runs/nano_vae-nano --out=thinkgen_jax/assets/nano

A tree that is not named stays as it is in the folder. With `--tokenizer` the nano tokenizer is
learnt anew from the miniature world's sentences, which invalidates every MLLM trained before.

Of an autoencoder the shift and scale of its latents are measured and told: they belong into the
preset before anything is trained on them.
"""

from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags

from thinkgen_jax import checkpoint, cli, parts
from thinkgen_jax.data import batches, sources, text
from thinkgen_jax.hf import assets
from thinkgen_jax.models import presets
from thinkgen_jax.models.presets import System
from thinkgen_jax.models.vae import Vae
from thinkgen_jax.steps import vae_sft
from thinkgen_jax.structs import Tree
from thinkgen_jax.world import tasks

FLAGS = cli.values()
TREES = {
    tree: flags.DEFINE_string(
        tree, None, f"Run whose {tree} is taken; its average if it has one.", flag_values=FLAGS
    )
    for tree in parts.TREES
}
OUT = flags.DEFINE_string("out", None, "Folder to write.", flag_values=FLAGS)
PRESET = flags.DEFINE_string("preset", "nano", "Dimensions of the system.", flag_values=FLAGS)
TOKENIZER = flags.DEFINE_bool(
    "tokenizer", False, "Learn the nano tokenizer anew.", flag_values=FLAGS
)


def run() -> None:
    """Writes the folder.

    Raises:
      ValueError: for an unknown preset, a missing run, or a tree of other dimensions.
    """
    if not OUT.value:
        raise ValueError("--out is needed: the folder to write")
    system, trees = presets.get(PRESET.value), {}
    for tree, flag in TREES.items():
        if flag.value is None:
            continue
        found = checkpoint.restore_learned(flag.value, tree, parts.shapes(system, tree))
        trees[tree] = jax.device_get(found)
        print(f"{tree}: {flag.value}")
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
    assets.save(OUT.value, system, trees, words)
    total = sum(f.stat().st_size for f in Path(OUT.value).iterdir())
    print(f"{OUT.value}: {total / 2**20:.1f} MiB")


def measure(system: System, params: Tree, *, count: int = 512, batch: int = 16):
    """(shift, scale) that give the latents of `count` training pictures mean 0 and deviation 1."""
    weights = {"composition": 0.6, "text": 0.2, "edit": 0.2}
    example = partial(sources.picture, seed=0, split="train", weights=weights, crop=0)
    data = batches.batched(example, batch, np.stack)
    pictures = (data[i] for i in range(count // batch))
    return vae_sft.latent_statistics(Vae(system.vae), params, pictures)


if __name__ == "__main__":
    cli.start(FLAGS, run)
