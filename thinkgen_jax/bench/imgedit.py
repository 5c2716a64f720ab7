# SPDX-License-Identifier: Apache-2.0
"""ImgEdit-Bench (basic): is the edit done, seamless and sound; 737 edits of nine types.

The user's copy is the folder with `basic_edit.json`, `prompts.json` (the judge's words by type) and
the source pictures below it, or below `images/` in it. Written as the official steps want them:
`images/<key>.png`, `result.json` (answers), `average_score.json` (step 1), `typescore.json` (step
2).

* Only lines of the very form "name: n" count in the official step 1; answers without three of them
  are asked for again, for each line missing would silently change the mean.
* Overall is the mean over types, as in the published tables.

Source: ImgEdit@547185d Benchmark/Basic.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from thinkgen_jax import logs
from thinkgen_jax.bench import official, published
from thinkgen_jax.bench.official import Benchmark, Score, Task, Tools
from thinkgen_jax.data import images

RENAMED = {"alter": "adjust"}  # older copies of basic_edit.json
TYPES = (
    "add",
    "adjust",
    "extract",
    "replace",
    "remove",
    "background",
    "style",
    "compose",
    "action",
)
ASPECTS = 3
PLACE = "<edit_prompt>"


def read(path: Path) -> list[Task]:
    """Tasks of `basic_edit.json`.

    Raises:
      ValueError: for a file of another form or a source picture that is missing.
    """
    file, tasks = path / "basic_edit.json", []
    for key, item in official.load(file, dict).items():
        where = f"{file}, {key}"
        name, prompt = (official.field_of(item, field, where) for field in ("id", "prompt"))
        kind = official.field_of(item, "edit_type", where)
        root = path if (path / str(name)).exists() else path / "images"
        picture = official.source(root, name, where)
        meta = {**item, "edit_type": RENAMED.get(kind, kind)}
        tasks.append(Task(key, prompt, (f"images/{key}.png",), meta, (picture,)))
    return tasks


def parse(answer: str) -> list[int]:
    """Scores of the lines that are exactly "name: n"."""
    parts = [line.strip().split(": ") for line in answer.splitlines()]
    return [int(part[1]) for part in parts if len(part) == 2 and part[1].isdigit()]


def average(answer: str) -> float | None:
    """Mean of an answer's scores, rounded to 2 decimals; None without any."""
    found = parse(answer)
    return round(sum(found) / len(found), 2) if found else None


def aggregate(
    averages: Mapping[str, float], types: Mapping[str, str]
) -> tuple[float | None, dict[str, float]]:
    """Overall score, None where a type is missing, and each type's mean to 2 decimals."""
    found: dict[str, list[float]] = {}
    for key, value in averages.items():
        found.setdefault(types[key], []).append(value)
    parts = {t: round(sum(found[t]) / len(found[t]), 2) for t in TYPES if t in found}
    return (float(np.mean(list(parts.values()))) if len(parts) == len(TYPES) else None), parts


def words_of(prompts: Path, tasks: Sequence[Task]) -> dict[str, str]:
    """The judge's words by edit type, from `prompts.json`.

    Raises:
      ValueError: when the file is missing or has none for a type that is there.
    """
    forms = official.load(prompts / "prompts.json", dict)
    unknown = sorted({task.meta["edit_type"] for task in tasks} - set(forms))
    if unknown:
        raise ValueError(f"--prompts: {prompts / 'prompts.json'} has no words for {unknown}")
    return forms


def score(folder: Path, tasks: Sequence[Task], prompts: Path, tools: Tools) -> Score:
    """Asks the judge once an edit and writes what the official steps write."""
    client, forms = tools.judge, words_of(prompts, tasks)

    def said(answer: str) -> str:
        found = parse(answer)
        if len(found) != ASPECTS or not all(1 <= x <= 5 for x in found):
            raise ValueError(f"the judge gave no three lines 'name: 1..5': {answer[-120:]!r}")
        return answer

    def ask(task: Task) -> str:
        words = forms[task.meta["edit_type"]].replace(PLACE, task.prompt)
        paths = (task.sources[0], folder / task.paths[0])
        return client.chat(words, [images.open_picture(p).image for p in paths], said)

    asks = {task.key: (lambda t=task: ask(t)) for task in tasks}
    answers, about = official.collect(folder, client, asks)
    averages = {key: average(answer) for key, answer in answers.items()}
    overall, parts = aggregate(averages, {task.key: task.meta["edit_type"] for task in tasks})
    files = {"result": answers, "average_score": averages, "typescore": parts}
    for name, value in files.items():
        logs.write_text(folder / f"{name}.json", json.dumps(value, indent=2, ensure_ascii=False))
    about = {"judge": about["by"], "dates": about["dates"], "images": len(tasks)}
    return Score(overall if len(tasks) == BENCHMARK.total else None, parts, about)


BENCHMARK = Benchmark(
    title="ImgEdit-Bench (basic)",
    read=read,
    score=score,
    needs="judge",
    total=737,
    protocol="Mean over nine types, 1 to 5; the leaderboard's judge is gpt-4.1.",
    published=published.IMGEDIT,
    ready=words_of,
)
