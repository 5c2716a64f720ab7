# SPDX-License-Identifier: Apache-2.0
"""Mixes prompt sets for reinforcement into one JSONL file, without what evaluations ask.

    python -m launch.prompts --out=mixed.jsonl \
        --set composition geneval train_metadata.jsonl --set text flow_grpo ocr/train.txt \
        --against GenEval evaluation_metadata.jsonl

writes `mixed.jsonl` and, beside it, `mixed.report.json`: what was read, taken out and chosen.
"""

import argparse
import json
import sys
from pathlib import Path

from thinkgen_jax.data import prompt_sets
from thinkgen_jax.data.prompt_sets import MIX, PromptSet


def run(args: argparse.Namespace) -> dict:
    """Reads, separates, mixes and writes; returns the report.

    Raises:
      ValueError: for anything a user can put right.
    """
    out = Path(args.out)
    items = []
    for scenario, kind, path in args.set:
        own = PromptSet(kind, path, None if scenario == "-" else scenario)
        items += prompt_sets.read(own)
    evaluations: dict[str, list[str]] = {}
    for name, path in args.against:
        evaluations.setdefault(name, []).extend(prompt_sets.asked(path))
    kept, report = prompt_sets.separate(items, evaluations)
    counts = dict(args.count) if args.count else MIX
    here = {item.scenario for item in kept}
    wanted = {name: int(count) for name, count in counts.items() if args.count or name in here}
    chosen, taken = prompt_sets.mixed(kept, wanted, seed=args.seed)
    prompt_sets.write(out, chosen)
    report = {**report, "scenarios": taken, "written": len(chosen)}
    text = json.dumps(report, indent=1, ensure_ascii=False)
    out.with_suffix(".report.json").write_text(text + "\n", encoding="utf-8")
    return report


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = f"scenario, kind ({', '.join(prompt_sets.READERS)}) and file; - for a file that says it"
    parser.add_argument("--set", action="append", nargs=3, required=True, help=known)
    parser.add_argument(
        "--against", action="append", nargs=2, default=[], help="name and file of an evaluation"
    )
    parser.add_argument(
        "--count", action="append", nargs=2, help=f"scenario and number; default {MIX}"
    )
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    """Command line."""
    try:
        print(json.dumps(run(parser().parse_args()), indent=1, ensure_ascii=False))
    except (ValueError, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
