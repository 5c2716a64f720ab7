# SPDX-License-Identifier: Apache-2.0
"""What reinforcement did in several runs: `python -m launch.effects runs/sepgrpo-nano-*`.

Every run measured itself on the same held-out prompts before, and again each time one more tree
had what it learned (`before.json`, `after_mllm.json`, ...). Differences are taken pair by pair; in
the last column all runs stand together, pairs of one prompt kept together in the interval.
"""

import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from thinkgen_jax import recipe, report


class Effect(NamedTuple):
    """Scores around what one tree learned, by way of asking; clusters say which share a prompt."""

    before: dict[str, list[float]]
    after: dict[str, list[float]]
    clusters: dict[str, list[str]]


def read(run: Path) -> dict[str, Effect]:
    """Effects of one run, by tree, in the order in which they got what they learned.

    Raises:
      ValueError: for a folder that is no finished run of reinforcement.
    """
    if not (run / report.PAGE).is_file() or not (run / "before.json").is_file():
        raise ValueError(f"{run} is no finished run that measured itself")
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    learned = recipe.trained_trees(ConfigDict(config))
    names = ["before", *(f"after_{tree}" for tree in learned)]
    found = [json.loads((run / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    return {
        tree: Effect(before, after, clusters)
        for tree, ((before, clusters), (after, _)) in zip(learned, pairwise(found), strict=True)
    }


def table(names: Sequence[str], effects: Sequence[Effect]) -> str:
    """Ways of asking down; runs and all of them together across.

    Raises:
      ValueError: for runs that were asked different things.
    """
    asked = effects[0].clusters
    if any(effect.clusters != asked for effect in effects):
        raise ValueError(f"{', '.join(names)} were not measured on the same prompts")
    rows = []
    for way, clusters in asked.items():
        pairs = [(effect.before[way], effect.after[way]) for effect in effects]
        before, after = (np.concatenate(side) for side in zip(*pairs, strict=True))
        cells = [
            report.paired_interval(*map(np.asarray, pair), np.asarray(clusters)) for pair in pairs
        ]
        cells.append(report.paired_interval(before, after, np.tile(clusters, len(pairs))))
        means = [float(before.mean()), float(after.mean())]
        rows.append((way, len(before), *means, *(report.show(cell, sign=True) for cell in cells)))
    return report.table(("", "n", "before", "after", *names, "together"), rows)


def main(paths: Sequence[str]) -> None:
    """Prints a table for each tree that learned.

    Raises:
      SystemExit: without a run, or for runs that do not belong together.
    """
    if not paths:
        raise SystemExit("error: name the runs: python -m launch.effects runs/sepgrpo-nano-* ...")
    try:
        runs = {path: read(Path(path)) for path in paths}
        if len({tuple(run) for run in runs.values()}) > 1:
            raise ValueError(f"different trees learned: { {k: [*v] for k, v in runs.items()} }")
        for tree in next(iter(runs.values())):
            print(f"**{tree}**\n\n{table([*runs], [run[tree] for run in runs.values()])}\n")
    except (OSError, ValueError) as err:
        raise SystemExit(f"error: {err}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
