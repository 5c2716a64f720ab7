# SPDX-License-Identifier: Apache-2.0
"""One table of all stages: `python -m launch.stages runs/stages/*.json`.

Every file is an evaluation (`python -m thinkgen_jax.evaluate --out=...`) named after its stage,
`pretrain.json`, or after stage and seed, `mllm_grpo.1.json`. Seeds of a stage are pooled; samples
of one exercise, or of one word, stay together in the intervals. Stages stand in the order of the
files.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from thinkgen_jax import report


def read(paths: Sequence[Path]) -> dict[str, list[dict]]:
    """Evaluations by stage.

    Raises:
      ValueError: for a file that is no evaluation, or evaluations made in different ways.
    """
    stages: dict[str, list[dict]] = {}
    about = set()
    for path in paths:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "rows" not in found or "reader" not in found:
            raise ValueError(f"{path} is no evaluation")
        how = json.dumps(found["settings"], sort_keys=True)
        about.add((found["benchmark"], found["split"], found["reader"], how))
        stages.setdefault(path.name.split(".")[0], []).append(found)
    if len(about) > 1:
        raise ValueError(f"these evaluations cannot stand in one table: {sorted(about)}")
    return stages


def pooled(runs: Sequence[dict], scenario: str, think: bool, column: str) -> str:
    """Mean and interval of one cell over all seeds; "" where nothing was measured."""
    values, clusters = [], []
    for run in runs:
        for row in run["rows"]:
            samples = row["samples"][column]
            if (row["scenario"], row["think"]) == (scenario, think) and samples:
                values += samples
                clusters += row["clusters"] or list(map(str, range(len(samples))))
    if not values:
        return ""
    found = report.mean_interval(np.asarray(values, np.float64), np.asarray(clusters))
    return f"{report.show(found)} n={len(values)}"


def table(stages: dict[str, list[dict]], column: str) -> str:
    """Scenarios and ways of asking down, stages across."""
    runs = [run for found in stages.values() for run in found]
    kinds = dict.fromkeys((row["scenario"], row["think"]) for run in runs for row in run["rows"])
    lines = []
    for scenario, think in kinds:
        cells = [pooled(found, scenario, think, column) for found in stages.values()]
        lines.append((scenario, "yes" if think else "no", *cells))
    return report.table(("scenario", "think", *stages), lines)


def main(paths: Sequence[str]) -> None:
    """Prints rewards and strict acceptance.

    Raises:
      SystemExit: without a file, or for files that do not belong together.
    """
    if not paths:
        raise SystemExit("error: name the evaluations: python -m launch.stages FILE.json ...")
    try:
        stages = read([Path(path) for path in paths])
    except (OSError, ValueError) as err:
        raise SystemExit(f"error: {err}") from None
    for column in ("reward", "strict"):
        print(f"**{column}**\n\n{table(stages, column)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
