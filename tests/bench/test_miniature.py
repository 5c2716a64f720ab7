# SPDX-License-Identifier: Apache-2.0
"""The benchmark around a painter that is perfect, careless or mute: rows, intervals, pairing."""

from dataclasses import replace

import numpy as np
import pytest

from tests.toy import toy_text
from thinkgen_jax import bench, parts, pipeline
from thinkgen_jax.bench import miniature
from thinkgen_jax.models import presets
from thinkgen_jax.structs import Params, Result
from thinkgen_jax.world import tasks
from thinkgen_jax.world.render import render

SYSTEM = presets.get("nano")
NOTHING = Params({}, {}, {})  # the painters here need no networks
MODEL = pipeline.ThinkGen(parts.build(SYSTEM, toy_text(SYSTEM)), NOTHING)
BLANK = np.full((64, 64, 3), 150, np.uint8)


def perfect(built, params, asked, settings=None):
    """Draws what was wanted; a thinker also writes the right instruction."""
    out = []
    for request in asked:
        item = request.meta["item"]
        image = None if item.target is None else render(item.target)
        said = item.instruction if request.think or image is None else request.prompt
        out.append(Result(image, "", said))
    return out


def careless(built, params, asked, settings=None):
    """Right in every second picture, blank and told in the others."""
    right = perfect(built, params, asked)
    return [r if n % 2 else Result(BLANK, "", "", "", "blank") for n, r in enumerate(right)]


def test_a_perfect_painter_gets_all(monkeypatch):
    monkeypatch.setattr(pipeline, "generate", perfect)
    outcome = miniature.run(MODEL, count=2)
    asked = [(row.scenario, row.think) for row in outcome.rows]
    drawn = [s for s in tasks.SCENARIOS if s != "understand"]
    assert asked == [(s, t) for s in drawn for t in (False, True)] + [("understand", False)]
    for row in outcome.rows:
        assert (row.scores["strict"] == 1).all(), row
        if row.think:
            assert row.scores["reward"].min() > 0.95 and (row.scores["follows"] == 1).all()
        else:
            assert np.isnan(row.scores["follows"]).all()
    assert outcome.pictures and outcome.pictures[0][0].shape == (64, 64, 3)


def test_a_careless_painter_gets_half(monkeypatch):
    monkeypatch.setattr(pipeline, "generate", careless)
    outcome = miniature.run(MODEL, count=8, think=(True,), scenarios=("composition", "text"))
    composition, text = outcome.rows
    assert composition.scores["strict"].mean() == 0.5 and composition.warned == 4
    assert composition.clusters is None
    assert [len(word) >= 3 for word in text.clusters] == [True] * 8
    (first, second) = outcome.summary()
    assert first["strict"]["mean"] == 0.5 and first["strict"]["low"] < 0.5
    assert first["samples"]["strict"] == [0, 1] * 4 and first["follows"]["mean"] == 0.5
    assert first["clusters"] is None and second["clusters"] == text.clusters.tolist()
    table = outcome.table().splitlines()
    assert len(table) == 4 and table[2].startswith("| composition | yes | 8 |")
    assert table[2].count("0.500 [") == 4


def test_a_thought_without_an_end_earns_nothing(monkeypatch):
    """Training gives it the floor, whatever was drawn; so does the benchmark."""

    def endless(*given):
        return [replace(r, valid=n % 2 > 0) for n, r in enumerate(perfect(*given))]

    monkeypatch.setattr(pipeline, "generate", endless)
    outcome = miniature.run(MODEL, count=2, think=(True,), scenarios=("composition",))
    for name in ("reward", "strict", "soft"):
        first, second = outcome.rows[0].scores[name]
        assert first == 0 and second > 0.95


def test_exercises_do_not_depend_on_the_seed(monkeypatch):
    a, b = (miniature.requests("reasoning", range(3), think=True, seed=s) for s in (0, 1))
    assert [r.prompt for r in a] == [r.prompt for r in b]
    assert len({r.seed for r in (*a, *b)}) == 6
    assert all(r.meta["item"].held_out for r in a)


def test_before_and_after_are_pairs(monkeypatch, tmp_path):
    seen, seen_text = [], []

    def painter(built, params, asked, settings):
        if not seen:
            seen_text.extend(r for r in asked if r.meta["item"].scenario == "text")
        seen.append((asked[0].think, settings.temperature, [r.prompt for r in asked]))
        return careless(built, params, asked)

    monkeypatch.setattr(pipeline, "generate", painter)
    given = dict(scenarios=("composition", "text"), count=5, workdir=tmp_path, when="before")
    out, clusters = miniature.sampled(MODEL.parts, NOTHING, **given)
    assert seen[0][:2] == (True, 1.0) and seen[1][:2] == (True, 0.0) and seen[2][:2] == (False, 0.0)
    assert seen[0][2][:1] == seen[1][2] and seen[0][2][:2] == seen[2][2]
    first = "thinking, temperature 1"
    assert [len(out[k]) for k in (first, f"{first}: composition", f"{first}: text")] == [5, 3, 2]
    assert clusters.keys() == out.keys()
    assert len(set(clusters[f"{first}: composition"])) == 3
    words = [r.meta["item"].spec.signs[0][0] for r in seen_text]
    assert clusters[f"{first}: text"].tolist() == words
    assert (tmp_path / "before.png").stat().st_size > 1000


def test_a_mode_without_guidance_draws_without(monkeypatch):
    scales = []

    def painter(built, params, asked, settings):
        scales.append((settings.text_guidance, settings.image_guidance))
        return careless(built, params, asked)

    monkeypatch.setattr(pipeline, "generate", painter)
    modes = {**miniature.MODES, **miniature.UNGUIDED}
    out, _ = miniature.sampled(
        MODEL.parts, NOTHING, scenarios=("composition",), count=2, modes=modes
    )
    usual = pipeline.default(MODEL.parts.system)
    assert scales == [(usual.text_guidance, usual.image_guidance)] * 3 + [(1.0, 1.0)]
    assert usual.text_guidance > 1 and list(out) == list(modes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(count=0), "--count=0"),
        (dict(scenarios=("composition", "cooking")), "'cooking' is not one of"),
        (dict(scenarios=()), "--scenarios is empty"),
        (dict(seed=4295), r"--seed=4295: must lie in \[0, 4294\]"),
        (dict(seed=-1), "--seed=-1"),
    ],
)
def test_refusals(monkeypatch, given, message):
    """All of them before anything is drawn."""
    monkeypatch.setattr(pipeline, "generate", None)
    with pytest.raises(ValueError, match=message):
        miniature.run(MODEL, **{"count": 1, **given})


def test_the_greatest_seed_still_draws(monkeypatch):
    seeds = []

    def painter(built, params, asked, settings):
        seeds.extend(request.seed for request in asked)
        return perfect(built, params, asked)

    monkeypatch.setattr(pipeline, "generate", painter)
    miniature.run(MODEL, count=2, think=(True,), scenarios=("composition",), seed=4294)
    assert len(seeds) == 2 and max(seeds) < 2**32


def test_table_of_benchmarks():
    assert set(bench.BENCHMARKS) == set(bench.ABOUT) == {"miniature"}
