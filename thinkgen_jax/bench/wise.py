# SPDX-License-Identifier: Apache-2.0
"""WISE (legacy): does the picture know what the prompt only hints at; 1000 prompts, one each.

The user's copy is the folder with the three prompt files of the legacy protocol and the judge's
words, `judge_system.txt` and `judge_prompt.txt` with {PROMPT} and {EXPLANATION} in it.
`scores.jsonl` is what the official Calculate.py reads.

* Tables before 2026-04 use this protocol; the verified one has other prompts and a binary score.

Source: WISE@eb51174, WISE_legacy.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from thinkgen_jax import logs
from thinkgen_jax.bench import official, published
from thinkgen_jax.bench.official import Benchmark, Score, Task, Tools
from thinkgen_jax.data import images

FILES = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
NAMES = ("consistency", "realism", "aesthetic_quality")
WEIGHTS = (0.7, 0.2, 0.1)
# Category: its first id behind the one before, and its share of the overall score.
CATEGORIES = {
    "culture": (400, 0.4),
    "time": (567, 0.167),
    "space": (700, 0.133),
    "biology": (800, 0.1),
    "physics": (900, 0.1),
    "chemistry": (1000, 0.1),
}
TOKENS = 2000
LINE = re.compile(
    r"\*{0,2}(Consistency|Realism|Aesthetic Quality)\*{0,2}\s*:?\*{0,2}\s*(\d)", re.IGNORECASE
)
VERIFIED = re.compile(r"\bScore\*{0,2}\s*:\*{0,2}\s*([01])\b", re.IGNORECASE)


def read(path: Path) -> list[Task]:
    """Tasks of the three prompt files.

    Raises:
      ValueError: for a file that is missing or of another form.
    """
    tasks = []
    for name in FILES:
        file = path / f"{name}.json"
        for item in official.load(file, list):
            number = official.field_of(item, "prompt_id", file)
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 1000:
                raise ValueError(f"--prompts: {file}: prompt_id {number!r} is not one of 1 to 1000")
            prompt = official.field_of(item, "Prompt", file)
            official.field_of(item, "Explanation", f"{file}, prompt_id {number}")
            tasks.append(Task(str(number), prompt, (f"images/{number}.png",), item))
    return tasks


def parse(answer: str) -> dict[str, float]:
    """The three scores of a legacy answer, by name; empty where they cannot be read.

    Named lines in any order, or three bare lines; each from 0 to 2.
    """
    named = {name.lower().replace(" ", "_"): float(x) for name, x in LINE.findall(answer)}
    if set(named) == set(NAMES):
        return {name: named[name] for name in NAMES}
    bare = [line.strip() for line in answer.strip().splitlines()]
    if len(bare) == 3 and all(re.fullmatch("[0-2]", line) for line in bare):
        return dict(zip(NAMES, map(float, bare), strict=True))
    return {}


def parse_verified(answer: str) -> float | None:
    """The binary score of an answer under the verified protocol, None where it says none.

    A line "Score: 0" or "Score: 1", bold or not, or the digit alone; what was thought is no answer.
    """
    said = re.sub(r"<think>.*?</think>", "", answer, flags=re.DOTALL).strip()
    found = VERIFIED.search(said) or re.fullmatch("([01])", said)
    return float(found[1]) if found else None


def wiscore(consistency: float, realism: float, aesthetic: float) -> float:
    """The weighted score of a picture, in [0, 1]."""
    return float(np.dot(WEIGHTS, (consistency, realism, aesthetic)) / 2)


def category(number: int) -> str:
    """Category of a prompt by its id, 1 to 1000."""
    for name, (last, _) in CATEGORIES.items():
        if number <= last:
            return name
    raise ValueError(f"prompt_id {number} is not one of 1 to 1000")


def aggregate(rows: Sequence[dict]) -> tuple[float | None, dict[str, float]]:
    """Overall score, None where a category has no row, and each category's mean."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(category(row["prompt_id"]), []).append(wiscore(*(row[n] for n in NAMES)))
    parts = {name: float(np.mean(found[name])) for name in CATEGORIES if name in found}
    if len(parts) < len(CATEGORIES):
        return None, parts
    return sum(CATEGORIES[name][1] * mean for name, mean in parts.items()), parts


def words_of(prompts: Path, tasks: Sequence[Task]) -> tuple[str, str]:
    """What the judge is told and asked, from `judge_system.txt` and `judge_prompt.txt`.

    Raises:
      ValueError: when one is missing, or the question has no place for prompt or explanation.
    """
    system, form = (official.text(prompts / f"judge_{x}.txt") for x in ("system", "prompt"))
    for place in ("{PROMPT}", "{EXPLANATION}"):
        if place not in form:
            raise ValueError(f"--prompts: {prompts / 'judge_prompt.txt'} has no {place}")
    return system, form


def score(folder: Path, tasks: Sequence[Task], prompts: Path, tools: Tools) -> Score:
    """Asks the judge once a picture and writes `scores.jsonl`."""
    client, (system, form) = tools.judge, words_of(prompts, tasks)

    def said(answer: str) -> str:
        found = parse(answer)
        if len(found) != 3 or max(found.values()) > 2:
            raise ValueError(f"the judge gave no three scores from 0 to 2: {answer[:80]!r}")
        return answer

    def ask(task: Task) -> str:
        words = form.replace("{PROMPT}", task.prompt)
        words = words.replace("{EXPLANATION}", str(task.meta["Explanation"]))
        shown = [images.open_picture(folder / task.paths[0]).image]
        return client.chat(words, shown, said, system=system, temperature=0, max_tokens=TOKENS)

    asks = {task.key: (lambda t=task: ask(t)) for task in tasks}
    answers, about = official.collect(folder, client, asks)
    rows = [
        {"prompt_id": int(task.key), "Subcategory": task.meta.get("Subcategory", "")}
        | parse(answers[task.key])
        for task in tasks
    ]
    logs.write_text(folder / "scores.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    overall, parts = aggregate(rows)
    about = {"judge": about["by"], "dates": about["dates"], "images": len(rows)}
    return Score(overall if len(rows) == BENCHMARK.total else None, parts, about)


BENCHMARK = Benchmark(
    title="WISE (legacy)",
    read=read,
    score=score,
    needs="judge",
    total=1000,
    protocol="Published rows: judge gpt-4o-2024-05-13; other judges give other numbers.",
    published=published.WISE,
    ready=words_of,
)
