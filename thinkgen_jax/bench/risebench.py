# SPDX-License-Identifier: Apache-2.0
"""RISEBench: edits that take reasoning; 360 in four categories, right only if right in everything.

The user's copy is the data file (or its folder) with the pictures in `data/` beside it. Pictures
lie where the official script looks, `outputs/<model>/images/<category>/<index>.png`, and the
judge's words where it resumes from, `outputs/<model>/<model>.pkl`: started on that folder it asks
nobody and writes its own table.

* The official judge words have no licence; the rubric below is ours. Numbers made with it are
  labelled so: those of another judge prompt are not comparable to the point.
* Accuracy follows the script since 2026-04 (an edit whose appearance is free needs no consistency),
  "accuracy, old" the one before, which numbers up to then, ThinkGen's too, were made with.
* The answers file must be a pickle, for the official script reads one; here it is only written.

Source: RISEBench@5f22651 gpt_eval.py.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from thinkgen_jax.bench import official, published
from thinkgen_jax.bench.official import Benchmark, Score, Task, Tools
from thinkgen_jax.data import images

DATA, DATA_FOLDER = "datav2_total_w_subtask.json", "data"
MODEL = "thinkgen_jax"
LOGICAL = "logical_reasoning"
CATEGORIES = ("temporal_reasoning", "causal_reasoning", "spatial_reasoning", LOGICAL)
FORM = "End with one line of exactly this form: **Final Score:** **n**"
TOKENS = 4096
LONGEST = 768  # pixels of a side that the judge is shown
SCORE = re.compile(r"\*{0,2}Final Scores?\*{0,2}:?\s*([\d*\s,]*)", re.IGNORECASE)

CONSISTENCY = """The first picture was to be edited: "{instruction}". The second is the result.
Judge only whether everything that the instruction does not ask to change stayed the same: objects,
style, layout, background. 5: all identical. 4: one minor slip. 3: one major slip. 2: two or more.
1: nearly everything changed."""
REASONING = """A picture was to be edited: "{instruction}". The last picture shown is the
result{before}. The right outcome: {reference}. Judge only whether the result shows that outcome. 5:
it matches in every detail. 4: a small detail is off. 3: it is half right. 2: barely. 1: unrelated
or unchanged."""
PLAUSIBILITY = """Judge only the quality of this picture. 5: sharp and physically plausible
throughout. 4: a slight flaw. 3: visible flaws. 2: broken in places. 1: incoherent."""
SOLUTION = """A puzzle was to be solved by editing a picture: "{instruction}". The last picture
shown is the answer. The right solution: {reference}. Give 1 if the answer shows the same solution
and nothing extra, else 0."""
KEPT = """A puzzle was to be solved by editing the first picture: "{instruction}". The second is the
answer. Give 1 if all of the puzzle that was not to be changed is still the same, else 0."""


def read(path: Path) -> list[Task]:
    """Tasks of the data file.

    Raises:
      ValueError: for a file of another form or a source picture that is missing.
    """
    file, tasks = path / DATA if path.is_dir() else path, []
    for item in official.load(file, list):
        index, category = (official.field_of(item, name, file) for name in ("index", "category"))
        where = f"{file}, {index}"
        root = file.parent / DATA_FOLDER
        source = official.source(root, official.field_of(item, "image", where), where)
        if category not in CATEGORIES:
            raise ValueError(f"--prompts: {where}: {category!r} is not one of {CATEGORIES}")
        if is_set(item.get("reference_img")):
            official.source(root, item["reference_img"], where)
        elif told_of(item) is None:
            raise ValueError(f"--prompts: {where} has neither a reference in words nor a picture")
        paths = (f"outputs/{MODEL}/images/{category}/{index}.png",)
        prompt = official.field_of(item, "instruction", where)
        tasks.append(Task(index, prompt, paths, item, (source,)))
    return tasks


def extract(answer: str) -> list[int] | None:
    """Whole numbers behind the first "Final Score", None without any."""
    for found in SCORE.findall(answer):
        numbers = re.findall(r"\d+", found)
        if numbers:
            return [int(number) for number in numbers]
    return None


def read_score(answer: str, low: int, high: int) -> int:
    """The one final score of an answer, in [low, high].

    An answer with several is none: the official script puts the numbers of all aspects in one row,
    takes them for more aspects, and falls over.

    Raises:
      ValueError: for an answer without a score, with several, or with one out of range.
    """
    found = extract(answer)
    if not found or len(found) != 1 or not low <= found[0] <= high:
        raise ValueError(
            f"the judge gave the final scores {found}, want one from {low} to {high}: "
            f"{answer[-120:]!r}"
        )
    return found[0]


def rate(
    category: str, scores: Sequence[int | None], *, has_column: bool = False, free: bool = False
) -> tuple[float, int]:
    """The official score of an edit in [1, 5], and whether it is right in everything.

    Args:
      scores: consistency, reasoning, plausibility from 1 to 5; None where one does not apply.
      has_column: the data file knows `consistency_free`. The script then leaves consistency out of
        every score that is not logical, whatever the column says.
      free: this edit's appearance is free.
    """
    consistency, reasoning, plausibility = scores
    if category == LOGICAL:
        total, needed = 0.3 * consistency + 0.7 * reasoning, (consistency, reasoning)
    else:
        total = 0.2 * plausibility + 0.8 * reasoning
        if not has_column:
            total = 0.3 * consistency + 0.5 * reasoning + 0.2 * plausibility
        needed = (reasoning, plausibility) if free else scores
    if reasoning == 1:
        total = max(total * 0.5, 1.0)
    return total, int(all(one == 5 for one in needed))


def bounds_of(category: str) -> tuple[int, int]:
    """Least and greatest score that a judge may give in a category."""
    return (0, 1) if category == LOGICAL else (1, 5)


def is_set(value: object) -> bool:
    """Whether a cell of the data file says something: not missing, None or NaN."""
    return value is not None and value == value


def told_of(item: Mapping) -> object:
    """The right outcome in words, None where the data file has none."""
    said = (item.get(name) for name in ("reference_txt", "reference"))
    return next((words for words in said if is_set(words)), None)


def is_free(item: Mapping) -> bool:
    """Whether nobody asks what of the picture stayed the same; of a puzzle it is always asked."""
    return item["category"] != LOGICAL and is_set(item.get("consistency_free"))


def judged(item: Mapping, answers: Mapping[str, str]) -> list[int | None]:
    """Consistency, reasoning, plausibility of an edit from the judge's answers, 1 to 5."""
    low, high = bounds_of(item["category"])
    found = [
        read_score(answers[n], low, high) if n in answers else None
        for n in ("judge1", "judge2", "judge3")
    ]
    if item["category"] == LOGICAL:
        found = [None if x is None else 4 * min(x, 1) + 1 for x in found]
    return found


def questions(task: Task, folder: Path) -> dict[str, tuple[str, list[Path]]]:
    """What the judge is asked of an edit and shown for it, by the official names of the answers."""
    item, source, drawn = task.meta, task.sources[0], folder / task.paths[0]
    logical, told = item["category"] == LOGICAL, {"instruction": task.prompt}
    shown, before, reference = [drawn], "", told_of(item)
    # The official script, too, shows a puzzle's picture only where it has no words.
    if is_set(item.get("reference_img")) and not (logical and is_set(item.get("reference_txt"))):
        shown = [source.parents[len(Path(item["image"]).parts) - 1] / item["reference_img"], drawn]
        before, reference = ", the first the reference", "as in the reference picture"
    elif is_set(item.get("reasoning_img")):
        shown, before = [source, drawn], ", the first is what it was"
    words = (SOLUTION if logical else REASONING).format(reference=reference, before=before, **told)
    asked = {"judge1": ((KEPT if logical else CONSISTENCY).format(**told), [source, drawn])}
    asked["judge2"] = (words, shown)
    if not logical:
        asked["judge3"] = (PLAUSIBILITY, [drawn])
    if is_free(item):
        del asked["judge1"]
    return asked


def score(folder: Path, tasks: Sequence[Task], prompts: Path, tools: Tools) -> Score:
    """Asks the judge once an aspect and writes the answers where the official script resumes."""
    client = tools.judge

    def ask(task: Task, words: str, paths: Sequence[Path]) -> str:
        low, high = bounds_of(task.meta["category"])

        def said(answer: str) -> str:
            read_score(answer, low, high)
            return answer

        shown = [_shrunk(path) for path in paths]
        return client.chat(f"{words}\n{FORM}", shown, said, temperature=0, max_tokens=TOKENS)

    asks = {
        f"{task.key}/{name}": (lambda t=task, w=words, p=paths: ask(t, w, p))
        for task in tasks
        for name, (words, paths) in questions(task, folder).items()
    }
    answers, about = official.collect(folder, client, asks)
    said: dict[str, dict[str, str]] = {task.key: {} for task in tasks}
    for key, answer in answers.items():
        index, _, name = key.rpartition("/")
        said[index][name] = answer
    overall, parts = aggregate(tasks, said)  # refuses what the official script falls over
    write_answers(folder, tasks, said)
    about = {"judge": about["by"], "dates": about["dates"], "rubric": "ours", "edits": len(tasks)}
    return Score(overall if len(tasks) == BENCHMARK.total else None, parts, about)


def _shrunk(path: Path) -> np.ndarray:
    image = images.open_picture(path).image
    return images.fit_reference(image, max_pixels=LONGEST**2, max_side=LONGEST, multiple=1)


def write_answers(
    folder: Path, tasks: Sequence[Task], said: Mapping[str, Mapping[str, str]]
) -> None:
    """Writes the answers as the official script leaves them behind: plain dicts of str and None."""
    # The script wants judge1 to be there, None where it was not asked.
    kept = {task.key: {"judge1": None, **said[task.key]} for task in tasks}
    path = folder / "outputs" / MODEL / f"{MODEL}.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(pickle.dumps(kept))
    temporary.replace(path)


def aggregate(
    tasks: Sequence[Task], said: Mapping[str, Mapping[str, str]]
) -> tuple[float, dict[str, float]]:
    """Accuracy, that of each category, the old script's, and the mean score; all in percent."""
    has_column = any("consistency_free" in task.meta for task in tasks)
    new: dict[str, list[int]] = {}
    old, totals = [], []
    for task in tasks:
        scores, category = judged(task.meta, said[task.key]), task.meta["category"]
        free = is_free(task.meta)
        total, right = rate(category, scores, has_column=has_column, free=free)
        new.setdefault(category, []).append(right)
        old.append(0 if free else right)
        totals.append(25 * (total - 1))
    parts = {
        name.removesuffix("_reasoning"): 100 * float(np.mean(new[name]))
        for name in CATEGORIES
        if name in new
    }
    parts |= {"accuracy, old": 100 * float(np.mean(old)), "score": float(np.mean(totals))}
    return 100 * float(np.mean([x for rights in new.values() for x in rights])), parts


BENCHMARK = Benchmark(
    title="RISEBench (own rubric)",
    read=read,
    score=score,
    needs="judge",
    total=360,
    protocol="Accuracy in percent; published rows: judge gpt-4.1-2025-04-14, the official rubric.",
    published=published.RISE,
)
