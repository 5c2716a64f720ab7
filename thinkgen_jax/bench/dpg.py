# SPDX-License-Identifier: Apache-2.0
"""DPG-Bench: does the picture keep to a long description; 1065 prompts, 4 pictures each.

The user's copy is the folder with `prompts/*.txt` (or `prompts.jsonl`) and `dpg_bench.csv`, the
yes/no questions. `images/<item>.png` is the 2 x 2 grid that the official script cuts up again.

* The official answers come from mPLUG-large; ours from the judge of the command line: the numbers
  are "DPG (VLM judge)".
* As in the official script a question counts as no when one that it hangs on does, the first line
  of the question file is left out, and categories take the last picture's answers as they were
  given.

Source: ELLA@3c228f1 dpg_bench/compute_dpg_bench.py.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thinkgen_jax import logs
from thinkgen_jax.bench import official, published
from thinkgen_jax.bench.official import Benchmark, Score, Task, Tools
from thinkgen_jax.data import images

COPIES = 4
WORDS = "Answer only yes or no. {question}"


class Question(NamedTuple):
    """One line of the question file: its number, the numbers it hangs on (0 for none)."""

    number: int
    parents: tuple[int, ...]
    category: str
    words: str


def read(path: Path) -> list[Task]:
    """Tasks of the prompt files.

    Raises:
      ValueError: when there is no prompt, or a line is no JSON.
    """
    lines = path / "prompts.jsonl"
    found = {}
    for line in official.objects(lines) if lines.exists() else ():
        key = str(official.field_of(line, "item_id", lines))
        found[key] = official.field_of(line, "prompt", lines)
    for file in sorted((path / "prompts").glob("*.txt")):
        found[file.stem] = official.text(file).strip()
    if not found:
        raise ValueError(f"--prompts: {path} has neither prompts/*.txt nor prompts.jsonl")
    return [
        Task(key, prompt, tuple(f"single/{key}-{n}.png" for n in range(COPIES)), {"item_id": key})
        for key, prompt in found.items()
    ]


def finish(folder: Path, tasks: Sequence[Task]) -> None:
    """Lays the four pictures of each prompt into the grid that the official script reads."""
    for task in tasks:
        path = folder / "images" / f"{task.key}.png"
        if not path.exists():
            four = [images.open_picture(folder / p).image for p in task.paths]
            rows = [np.concatenate(four[n : n + 2], axis=1) for n in (0, 2)]
            logs.save_png(path, np.concatenate(rows))


def questions(text: str) -> dict[str, list[Question]]:
    """Questions by prompt, from the question file's text; its first line of data is left out.

    Raises:
      ValueError: for a column that is missing or a number that is none.
    """
    rows = list(csv.DictReader(io.StringIO(text)))[1:]
    out: dict[str, list[Question]] = {}
    for row in rows:
        try:
            parents = tuple(int(n) for n in row["dependency"].split(","))
            kind = row["tuple"].split("(")[0].split("-")[0].strip().lower()
            one = Question(
                int(row["proposition_id"]), parents, kind, row["question_natural_language"]
            )
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise ValueError(f"--prompts: dpg_bench.csv: {row} cannot be read: {err}") from err
        out.setdefault(str(row["item_id"]), []).append(one)
    return out


def rate(asked: Sequence[Question], answers: Mapping[int, bool]) -> float:
    """Share of a picture's questions that hold, one that hangs on a no being a no."""
    held = {one.number: float(answers[one.number]) for one in asked}
    for one in asked:  # in the file's order: a no travels down
        if any(parent and not held.get(parent, 1.0) for parent in one.parents):
            held[one.number] = 0.0
    return float(np.mean(list(held.values())))


def is_yes(answer: str) -> bool:
    """Reads yes or no; ValueError for anything else."""
    word = answer.strip().lower().strip(".!\"'* ")
    if word not in ("yes", "no"):
        raise ValueError(f"the judge said neither yes nor no: {answer[:80]!r}")
    return word == "yes"


def asked_of(prompts: Path, tasks: Sequence[Task]) -> dict[str, list[Question]]:
    """Questions by prompt, from `dpg_bench.csv`.

    Raises:
      ValueError: when the file is missing, cannot be read, or has no question for a task.
    """
    asked = questions(official.text(prompts / "dpg_bench.csv"))
    missing = [task.key for task in tasks if task.key not in asked]
    if missing:
        raise ValueError(f"--prompts: dpg_bench.csv has no question for {missing[:3]}")
    return asked


def score(folder: Path, tasks: Sequence[Task], prompts: Path, tools: Tools) -> Score:
    """Asks the judge every question of every picture."""
    client, asked = tools.judge, asked_of(prompts, tasks)

    def ask(path: str, question: Question) -> bool:
        shown = [images.open_picture(folder / path).image]
        words = WORDS.format(question=question.words)
        return client.chat(words, shown, is_yes, temperature=0, max_tokens=8)

    asks = {
        f"{path}/{one.number}": (lambda p=path, q=one: ask(p, q))
        for task in tasks
        for path in task.paths
        for one in asked[task.key]
    }
    answers, about = official.collect(folder, client, asks)
    means, kinds = [], {}
    for task in tasks:
        given = [
            {one.number: answers[f"{path}/{one.number}"] for one in asked[task.key]}
            for path in task.paths
        ]
        means.append(float(np.mean([rate(asked[task.key], one) for one in given])))
        for one in asked[task.key]:
            kinds.setdefault(one.category, []).append(given[-1][one.number])
    parts = {kind: 100 * float(np.mean(held)) for kind, held in sorted(kinds.items())}
    about = {"judge": about["by"], "dates": about["dates"], "questions": len(asks)}
    overall = 100 * float(np.mean(means))
    return Score(overall if len(tasks) == BENCHMARK.total else None, parts, about)


BENCHMARK = Benchmark(
    title="DPG-Bench (VLM judge)",
    read=read,
    score=score,
    needs="judge",
    total=1065,
    protocol="Mean in percent; published rows were answered by mPLUG-large.",
    published=published.DPG,
    finish=finish,
    ready=asked_of,
)
