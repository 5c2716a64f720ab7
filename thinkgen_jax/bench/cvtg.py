# SPDX-License-Identifier: Apache-2.0
"""CVTG-2K: are the quoted words there, letter for letter; 2000 prompts of 2 to 5 words or lines.

The user's copy is the folder with `CVTG/` and `CVTG-Style/`, each with 2.json to 5.json. Pictures
lie where the official evaluator looks, `images/<half>/<regions>/<index>.png`; `result.json` has its
form.

* Words are read by RapidOCR, the official numbers by PaddleOCR 2: stated beside every result.
* F1 is ours: the official word accuracy lets a picture full of words pass.

Source: TextCrafter evaluation, unified_metrics_eval.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from thinkgen_jax import logs
from thinkgen_jax.bench import official, published
from thinkgen_jax.bench.official import Benchmark, Score, Task, Tools
from thinkgen_jax.data import images
from thinkgen_jax.rewards import words

HALVES = ("CVTG", "CVTG-Style")
AREAS = (2, 3, 4, 5)


def read(path: Path) -> list[Task]:
    """Tasks of the eight prompt files.

    Raises:
      ValueError: for a file that is missing or of another form.
    """
    tasks = []
    for half in HALVES:
        for area in AREAS:
            file = path / half / f"{area}.json"
            for item in official.field_of(official.load(file, dict), "data_list", file):
                index = official.field_of(item, "index", file)
                key = f"{half}/{area}/{index}"
                prompt = official.field_of(item, "prompt", file)
                tasks.append(Task(key, prompt, (f"images/{key}.png",), item))
    return tasks


def score(folder: Path, tasks: Sequence[Task], prompts: Path, tools: Tools) -> Score:
    """Reads every picture and writes `result.json`; what was read is kept as it comes."""
    path = folder / official.ANSWERS
    reader = words.reader()
    kept = {line["key"]: line["answer"] for line in official.records(path) if line["by"] == reader}
    for task in tasks:
        if task.key not in kept:
            kept[task.key] = words.read(images.open_picture(folder / task.paths[0]).image)
            line = {"key": task.key, "answer": kept[task.key], "by": reader}
            official.append(path, [json.dumps(line, ensure_ascii=False)])
    found = {task.key: kept[task.key] for task in tasks}
    result = aggregate({task.key: task.prompt for task in tasks}, found)
    logs.write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
    whole = result["overall_results"]
    parts = {"NED": whole["ned"], "F1": whole["word_f1"]}
    for area in AREAS:
        of_area = [r for r in result["area_results"] if r["area"] == area]
        if of_area:
            right, total = (sum(r[k] for r in of_area) for k in ("correct_words", "total_words"))
            parts[f"{area} regions"] = right / total
    about = {"reader": reader, "images": len(tasks), "words": whole["total_words"]}
    overall = whole["word_accuracy"]
    return Score(overall if len(tasks) == BENCHMARK.total else None, parts, about)


def aggregate(prompts: dict[str, str], found: dict[str, list[str]]) -> dict:
    """The official result from the prompts and the lines that were read, by "half/area/index".

    Word accuracy and NED are means over words, not over pictures.

    Raises:
      ValueError: when no prompt has a word.
    """
    areas: dict[tuple[str, int], list[tuple[words.Match, float]]] = {}
    for key, prompt in prompts.items():
        half, area, _ = key.split("/")
        wanted = words.wanted(prompt)
        pair = words.match(wanted, found[key]), words.f1(wanted, found[key])
        areas.setdefault((half, int(area)), []).append(pair)
    every = [pair for pairs in areas.values() for pair in pairs]
    rows = [
        {"area": area, "benchmark_type": half, **_counts(pairs), "ned_word_data": _similar(pairs)}
        for (half, area), pairs in areas.items()
    ]
    return {"overall_results": _counts(every), "area_results": rows}


def _counts(pairs: Sequence[tuple[words.Match, float]]) -> dict:
    matches = [match for match, _ in pairs]
    total = sum(match.total for match in matches)
    if not total:
        raise ValueError("CVTG-2K: the prompts have no word between single quotes")
    return {
        "word_accuracy": sum(match.correct for match in matches) / total,
        "ned": float(np.mean(_similar(pairs))),
        "word_f1": float(np.mean([f1 for _, f1 in pairs])),
        "total_images": len(pairs),
        "total_words": total,
        "correct_words": sum(match.correct for match in matches),
    }


def _similar(pairs: Sequence[tuple[words.Match, float]]) -> list[float]:
    """Each word's similarity: what the official file keeps, and its mean over all areas is of."""
    return [float(s) for match, _ in pairs for s in match.similarities]


def ready(prompts: Path, tasks: Sequence[Task]) -> None:
    """Refuses to begin where words cannot be read."""
    words.reader()


BENCHMARK = Benchmark(
    title="CVTG-2K (RapidOCR)",
    read=read,
    score=score,
    needs="reader",
    total=2000,
    protocol="Overall is word accuracy over all words; published rows were read by PaddleOCR 2.",
    published=published.CVTG,
    ready=ready,
)
