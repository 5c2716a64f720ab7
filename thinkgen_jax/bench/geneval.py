# SPDX-License-Identifier: Apache-2.0
"""GenEval: are the objects there, as many, in the right colours and places; 553 prompts, 4 each.

The prompt file is the official `evaluation_metadata.jsonl`. The folder `images/` is what the
official `evaluate_images.py` reads, `results.jsonl` what `summary_scores.py` reads.

* The official detector needs mmdet 2; our server has another one (transformers): numbers made with
  it are "GenEval (HF detector)" and to be compared among themselves.

Source: geneval@af4902f.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from thinkgen_jax import logs
from thinkgen_jax.bench import official, published
from thinkgen_jax.bench.official import Benchmark, Score, Task, Tools
from thinkgen_jax.data import images
from thinkgen_jax.rewards import geneval as rules
from thinkgen_jax.structs import Request, Sample

COPIES = 4
PROMPTS = "evaluation_metadata.jsonl"
RESULTS = "results.jsonl"
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def read(path: Path) -> list[Task]:
    """Tasks of the official prompt file, or of the folder it lies in.

    Raises:
      ValueError: for a file or line that cannot be read.
    """
    file = path / PROMPTS if path.is_dir() else path
    tasks = []
    for number, meta in enumerate(official.objects(file)):
        where = f"{file}, line {number + 1}"
        prompt = official.field_of(meta, "prompt", where)
        official.field_of(meta, "tag", where)
        official.field_of(meta, "include", where)
        paths = tuple(f"images/{number:05d}/samples/{n:05d}.png" for n in range(COPIES))
        tasks.append(Task(f"{number:05d}", prompt, paths, meta))
    return tasks


def prepare(folder: Path, tasks: Sequence[Task]) -> None:
    """Writes each prompt's metadata beside its pictures."""
    for task in tasks:
        path = folder / "images" / task.key / "metadata.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        logs.write_text(path, json.dumps(task.meta) + "\n")


def score(folder: Path, tasks: Sequence[Task], prompts: Path, tools: Tools) -> Score:
    """Applies the rules to what the detector sees, and writes the official results file."""
    client = tools.detector

    def ask(task: Task, path: str):
        image = images.open_picture(folder / path).image
        sample = Sample(Request(task.prompt, meta=task.meta), task.prompt, image)
        return {
            name: [[*one.box, one.score, one.color] for one in found]
            for name, found in rules.detect(client, [sample])[0].items()
        }

    asks = {p: (lambda t=t, p=p: ask(t, p)) for t in tasks for p in t.paths}
    answers, about = official.collect(folder, client, asks)
    lines, rows, prompts_right = [], [], []
    for task in tasks:
        found = [rules.read(answers[p], tag=task.meta["tag"]) for p in task.paths]
        verdicts = [rules.judge(task.meta, one) for one in found]
        rows += [(task.meta["tag"], v.correct) for v in verdicts]
        prompts_right.append(any(v.correct for v in verdicts))
        lines += [
            result_line(task, path, verdict, answers[path])
            for path, verdict in zip(task.paths, verdicts, strict=True)
        ]
    logs.write_text(folder / RESULTS, "".join(line + "\n" for line in lines))
    overall, parts = rules.overall(rows)
    about |= {"detector": about.pop("by"), "images": len(rows)}
    about["prompts right"] = sum(prompts_right) / len(prompts_right)
    whole = len(tasks) == BENCHMARK.total and set(parts) == set(TAGS)
    return Score(overall if whole else None, parts, about)


def result_line(task: Task, path: str, verdict: rules.Verdict, details: object) -> str:
    """One line of the official results file."""
    return json.dumps(
        {
            "filename": path,
            "tag": task.meta["tag"],
            "prompt": task.prompt,
            "correct": verdict.correct,
            "reason": verdict.reason,
            "metadata": json.dumps(task.meta),
            "details": json.dumps(details),
        }
    )


BENCHMARK = Benchmark(
    title="GenEval (HF detector)",
    read=read,
    score=score,
    needs="detector",
    total=553,
    protocol="Mean over six tags; published rows used the official mmdet detector.",
    published=published.GENEVAL,
    prepare=prepare,
)
