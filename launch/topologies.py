# SPDX-License-Identifier: Apache-2.0
"""Prints what `launch/topologies.sh` kept as tables, for launch/README.md.

python -m launch.topologies
"""

import json
from pathlib import Path

from thinkgen_jax.aot import slices
from thinkgen_jax.aot.programs import OPTIMIZER

FOLDER = Path(__file__).parent / "topologies"
SLICES = ("v5e-256", "v5p-64", "v5p-128", "v6e-64", "v6e-256", "tpu7x-32", "h100-8", "h200-8")
RECIPES = ("sepgrpo", "finetune")


def load(folder: Path = FOLDER) -> dict[str, list[dict]]:
    """What is known of each slice, a record per recipe."""
    paths = {name: [folder / f"{recipe}-{name}.json" for recipe in RECIPES] for name in SLICES}
    return {
        name: [json.loads(path.read_text(encoding="utf-8")) for path in found if path.exists()]
        for name, found in paths.items()
    }


def programs(known: dict[str, list[dict]]) -> str:
    """Memory in use while each program runs, and the verdict where it is not FITS."""
    known = {name: found for name, found in known.items() if found}
    every = [one for found in known.values() for record in found for one in record["programs"]]
    names = list(dict.fromkeys(one["program"] for one in every))
    head = ["GiB a device", *(f"{name} ({usable(found)})" for name, found in known.items())]
    rows = [["lives there all the time", *(_resident(found) for found in known.values())]]
    for name in names:
        rows.append([f"`{name}`", *(_cell(found, name) for found in known.values())])
    return table(head, rows)


def usable(found: list[dict]) -> str:
    """Memory that programs may use."""
    return f"{found[0]['usable']:g}"


def _resident(found: list[dict]) -> str:
    held = found[0]["residents"].items()
    return f"{sum(size for name, size in held if not name.startswith(OPTIMIZER)):.1f}"


def _cell(found: list[dict], name: str) -> str:
    for one in (p for record in found for p in record["programs"]):
        if one["program"] == name:
            size = "refused" if one["need"] is None else f"{one['need']:.1f}"
            told = "" if one["verdict"] == "FITS" else f" {one['verdict']}"
            return f"{size}{'' if one['quick'] else '*'}{told}"
    return "-"


def learning(known: dict[str, list[dict]]) -> str:
    """What full effort shows of the programs that learn."""
    waits = ["gathers: hidden", "in loops", "before them"]
    head = ["program", "slice", "compiled in", "at least", "of peak", *waits]
    rows = []
    for name, found in known.items():
        machine = slices.parse(name)
        for one in (p for record in found for p in record["programs"]):
            if one["program"].endswith("_step") and not one["quick"]:
                text = one["text"]
                moved = text["collectives"].get("all-gather", {})
                rows.append(
                    [
                        f"`{one['program']}`",
                        name,
                        f"{one['seconds']:.0f} s",
                        f"{one['bound']['total']:.3g} s",
                        f"{machine.share(one['flops'], one['bound']['total']):.0%}",
                        *(
                            str(moved.get(where, 0))
                            for where in ("hidden", "exposed_in_loops", "exposed_at_entry")
                        ),
                    ]
                )
    return table(head, rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    found = load()
    print(programs(found), "\n\n", learning(found), sep="")
