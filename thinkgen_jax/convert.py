# SPDX-License-Identifier: Apache-2.0
"""Gathers trees from runs into one folder under released names, small enough to ship.

    python -m thinkgen_jax.convert --mllm=runs/nano_mllm-nano --dit=runs/finetune-nano \\
        --vae=runs/nano_vae-nano --out=thinkgen_jax/assets/nano

A tree that is not named stays as it is in the folder. With `--tokenizer` the nano tokenizer is
learnt anew from the miniature world's sentences, which invalidates every MLLM trained before.
"""

import sys
from pathlib import Path

import jax
from absl import app, flags

from thinkgen_jax import checkpoint, parts
from thinkgen_jax.data import text
from thinkgen_jax.hf import assets
from thinkgen_jax.models import presets
from thinkgen_jax.world import tasks

TREES = {
    tree: flags.DEFINE_string(tree, None, f"Run whose {tree} is taken; its average if it has one.")
    for tree in parts.TREES
}
OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
PRESET = flags.DEFINE_string("preset", "nano", "Dimensions of the system.")
TOKENIZER = flags.DEFINE_bool("tokenizer", False, "Learn the nano tokenizer anew.")


def main(argv: list[str]) -> None:
    """Command line."""
    del argv
    try:
        run()
    except ValueError as err:
        print(f"error: {err}", file=sys.stderr)
        raise SystemExit(2) from None


def run() -> None:
    """Writes the folder.

    Raises:
      ValueError: for an unknown preset, a missing run, or a tree of other dimensions.
    """
    system, trees = presets.get(PRESET.value), {}
    for tree, flag in TREES.items():
        if flag.value is None:
            continue
        names = checkpoint.describe(flag.value)
        kind = "ema" if any(n.startswith(f"{tree}/ema/") for n in names) else "params"
        name = f"{tree}/{kind}"
        shapes = {name: parts.shapes(system, tree)}
        found = checkpoint.restore_subtree(flag.value, [name], shapes)
        trees[tree] = jax.device_get(found[name])
        print(f"{tree}: {flag.value} ({kind})")
    words = None
    if TOKENIZER.value:
        tokenizer = text.train(tasks.corpus(), vocab_size=system.mllm.vocab_size)
        words = text.Text(tokenizer, system=system.system_prompt, marker=system.marker)
    assets.save(OUT.value, system, trees, words)
    total = sum(f.stat().st_size for f in Path(OUT.value).iterdir())
    print(f"{OUT.value}: {total / 2**20:.1f} MiB")


if __name__ == "__main__":
    app.run(main)
