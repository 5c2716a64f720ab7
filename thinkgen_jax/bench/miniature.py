# SPDX-License-Identifier: Apache-2.0
"""The miniature world's own benchmark: held-out exercises, one row per scenario and way of asking.

Columns of a row:
  reward    what training maximises, from the picture as it is
  strict    share of pictures that are right in everything
  soft      share of what was asked for
  follows   share of instructions that lead to the right picture (thinking only)

* Item n of a scenario is the same for every model and every run: two results can be paired.
* A response whose thought did not end, or ended the response, has 0 in all columns, as in training.
* Intervals are 95 %; samples that share a word (text) stay together when they are drawn again.
* Prompts are the user's own: without a thought, a riddle stays a riddle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thinkgen_jax import logs, pipeline, report
from thinkgen_jax.data import sources
from thinkgen_jax.parts import Parts
from thinkgen_jax.pipeline import ThinkGen
from thinkgen_jax.pipeline.settings import SEEDS, Settings
from thinkgen_jax.rewards import miniature as rules
from thinkgen_jax.structs import Params, Request, Result, Sample
from thinkgen_jax.world import tasks, verify

NAMES = ("reward", "strict", "soft", "follows")
ABOUT = {"split": "heldout", "reader": verify.READER, "intervals": "95 %"}
SHOWN = 16  # pictures of a sheet
BATCH = 32
APART = 1_000_003  # from the noise of one --seed to that of the next


class Mode(NamedTuple):
    """A way of asking: thinking or not, greedy or sampled, of which share of the items, guided."""

    think: bool
    temperature: float
    share: float
    guided: bool = True


# Rows of a report on training: first what is optimised, then, of fewer items, what users see.
MODES = {
    "thinking, temperature 1": Mode(True, 1.0, 1.0),
    "thinking, greedy": Mode(True, 0.0, 0.25),
    "no thinking": Mode(False, 0.0, 0.5),
}
# Beside them where a DiT is reinforced without guidance: its own way of drawing, at half the cost.
UNGUIDED = {"thinking, temperature 1, no guidance": Mode(True, 1.0, 1.0, guided=False)}


@dataclass(frozen=True)
class Row:
    """Scores of one scenario asked in one way; arrays [count], NaN where a column has no meaning.

    Attributes:
      warned: number of results that came with a warning.
      clusters: which samples belong together, None for each its own.
    """

    scenario: str
    think: bool
    scores: dict[str, np.ndarray]
    warned: int
    clusters: np.ndarray | None


@dataclass(frozen=True)
class Outcome:
    """What a benchmark found: rows, and some pictures with captions."""

    rows: tuple[Row, ...]
    pictures: tuple[tuple[np.ndarray, str], ...]

    def table(self) -> str:
        """The rows as markdown, means with their intervals."""
        head = ("scenario", "think", "n", *NAMES, "warned")
        lines = []
        for row in self.rows:
            cells = [_show(row.scores[name], row.clusters) for name in NAMES]
            think = "yes" if row.think else "no"
            count = len(row.scores["reward"])
            lines.append((row.scenario, think, count, *cells, row.warned))
        return report.table(head, lines)

    def summary(self) -> list[dict]:
        """The rows as JSON-able dicts, every sample's scores included."""
        return [
            {
                "scenario": row.scenario,
                "think": row.think,
                "count": len(row.scores["reward"]),
                "warned": row.warned,
                **{name: _interval(row.scores[name], row.clusters) for name in NAMES},
                "samples": {name: _plain(row.scores[name]) for name in NAMES},
                "clusters": None if row.clusters is None else row.clusters.tolist(),
            }
            for row in self.rows
        ]


def run(
    model: ThinkGen,
    *,
    count: int,
    think: Sequence[bool] = (False, True),
    scenarios: Sequence[str] = tasks.SCENARIOS,
    seed: int = 0,
    settings: Settings | None = None,
) -> Outcome:
    """Measures a system on `count` held-out exercises per scenario.

    Args:
      think: ways of asking; questions about pictures are asked once.
      seed: of the noise; exercises do not depend on it.

    Raises:
      ValueError: for no exercise, an unknown scenario or none, or a seed out of range.
    """
    _check(count, scenarios, seed)
    settings = settings or replace(model.settings, batch=BATCH)
    rows, pictures = [], []
    for scenario in scenarios:
        for thinks in think[:1] if scenario == "understand" else think:
            asked = requests(scenario, range(count), think=thinks, seed=seed)
            results = pipeline.generate(model.parts, model.params, asked, settings)
            rows.append(judge(scenario, thinks, asked, results))
            pictures += sheet(asked, results)[: SHOWN // len(think)]
    return Outcome(tuple(rows), tuple(pictures))


def _check(count: int, scenarios: Sequence[str], seed: int) -> None:
    """Refuses what could not be measured to the end, before anything is drawn."""
    if count < 1:
        raise ValueError(f"--count={count}: at least 1 exercise per scenario")
    if not scenarios:
        raise ValueError(f"--scenarios is empty: want some of {tasks.SCENARIOS}")
    for scenario in scenarios:
        if scenario not in tasks.SCENARIOS:
            raise ValueError(f"--scenarios: {scenario!r} is not one of {tasks.SCENARIOS}")
    most = (SEEDS - count) // APART
    if not 0 <= seed <= most:
        raise ValueError(f"--seed={seed}: must lie in [0, {most}] with --count={count}")


def requests(scenario: str, indices: Sequence[int], *, think: bool, seed: int = 0) -> list[Request]:
    """Held-out exercises as a user would ask them; noise differs from one to the next."""
    items = [tasks.item(scenario, index, "heldout") for index in indices]
    return [
        sources.from_item(item, think=think, seed=seed * APART + index)
        for item, index in zip(items, indices, strict=True)
    ]


def judge(scenario: str, think: bool, asked: Sequence[Request], results: Sequence[Result]) -> Row:
    """Scores the answers to one scenario."""
    verdicts = [rules.judge(_sample(a, r)) for a, r in zip(asked, results, strict=True)]
    scores = {name: np.asarray([getattr(v, name) for v in verdicts]) for name in NAMES[:3]}
    items = [a.meta["item"] for a in asked]
    right = [tasks.follows(i, r.instruction) for i, r in zip(items, results, strict=True)]
    said = think and scenario != "understand"
    scores["follows"] = np.asarray(right, np.float64) if said else np.full(len(right), np.nan)
    clusters = None
    if scenario == "text":
        clusters = np.asarray([_cluster(item, n) for n, item in enumerate(items)])
    return Row(scenario, think, scores, sum(bool(r.warning) for r in results), clusters)


def sampled(
    parts: Parts,
    params: Params,
    *,
    scenarios: Sequence[str],
    count: int,
    workdir: Path | None = None,
    when: str = "",
    modes: Mapping[str, Mode] = MODES,
    settings: Settings | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Rewards on the same held-out exercises before and after training.

    Args:
      count: exercises in all, dealt to the scenarios in turn; a mode takes its share of them.
      workdir: where a sheet of pictures goes, `<workdir>/<when>.png`; None for none.
      modes: ways of asking, by their names in the report.

    Returns:
      For each mode the rewards of its exercises, and of each scenario apart; under the same names
      which exercises belong together.
    """
    settings = settings or pipeline.default(parts.system, batch=BATCH)
    out, together, pictures = {}, {}, []
    for mode, (think, temperature, share, guided) in modes.items():
        asked = []
        for n in range(max(round(share * count), 1)):
            asked += requests(scenarios[n % len(scenarios)], [n // len(scenarios)], think=think)
        how = replace(settings, temperature=temperature)
        how = how if guided else replace(how, text_guidance=1.0, image_guidance=1.0)
        results = pipeline.generate(parts, params, asked, how)
        rewards = rules.rate([_sample(a, r) for a, r in zip(asked, results, strict=True)])
        names = np.asarray([a.meta["item"].scenario for a in asked])
        clusters = np.asarray([_cluster(a.meta["item"], n) for n, a in enumerate(asked)])
        out[mode], together[mode] = rewards, clusters
        for name in dict.fromkeys(names) if len(scenarios) > 1 else ():
            out[f"{mode}: {name}"] = rewards[names == name]
            together[f"{mode}: {name}"] = clusters[names == name]
        pictures = pictures or sheet(asked, results)[:SHOWN]
    if workdir is not None and pictures:
        logs.save_png(workdir / f"{when}.png", logs.grid(*zip(*pictures, strict=True)))
    return out, together


def sheet(asked: Sequence[Request], results: Sequence[Result]) -> list[tuple[np.ndarray, str]]:
    """Pictures with their captions, for `logs.grid`."""
    out = []
    for request, result in zip(asked, results, strict=True):
        if result.image is not None:
            reward = rules.judge(_sample(request, result)).reward
            out.append((result.image, logs.caption(request.prompt, result.instruction, reward)))
    return out


def _sample(request: Request, result: Result) -> Sample:
    return Sample(request, result.instruction, result.image, result.valid)


def _cluster(item: tasks.Item, number: int) -> str:
    """What an exercise shares with others: the word on its sign; any other stands alone."""
    return item.spec.signs[0][0] if item.scenario == "text" else str(number)


def _interval(values: np.ndarray, clusters: np.ndarray | None) -> dict[str, float] | None:
    if np.isnan(values).all():
        return None
    found = report.mean_interval(values, clusters)
    return {k: float(v) if np.isfinite(v) else None for k, v in found._asdict().items()}


def _show(values: np.ndarray, clusters: np.ndarray | None) -> str:
    return "" if np.isnan(values).all() else report.show(report.mean_interval(values, clusters))


def _plain(values: np.ndarray) -> list[float] | None:
    return None if np.isnan(values).all() else [round(float(v), 6) for v in values]
