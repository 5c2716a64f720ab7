# SPDX-License-Identifier: Apache-2.0
"""The door of the benchmarks: one table, one JSON, one line for what is wrong."""

import json

import pytest
from absl.testing import flagsaver

from tests.bench.test_miniature import MODEL, careless
from thinkgen_jax import cli, evaluate, pipeline
from thinkgen_jax.pipeline import loading


@pytest.fixture
def door(monkeypatch, tmp_path):
    """Runs the door with given arguments on a painter that needs no weights."""
    monkeypatch.setattr(pipeline, "generate", careless)
    monkeypatch.setattr(evaluate.cache, "enable", lambda: None)
    monkeypatch.setattr(evaluate.ThinkGen, "from_pretrained", lambda path, start: MODEL)
    monkeypatch.chdir(tmp_path)
    saved = flagsaver.save_flag_values(evaluate.FLAGS)
    yield lambda *words: cli.start(evaluate.FLAGS, evaluate.run, ["evaluate", *words])
    flagsaver.restore_flag_values(saved, evaluate.FLAGS)


def test_one_table_and_one_file(door, tmp_path, capsys):
    door("--count=4", "--scenarios=composition,text", "--out=a/b.json", "--pictures=sheet.png")
    shown = capsys.readouterr().out
    assert shown.count("\n| composition |") == 2 and "a/b.json" in shown
    found = json.loads((tmp_path / "a/b.json").read_text())
    assert found["benchmark"] == "miniature" and found["reader"] == "glyphs"
    assert [(r["scenario"], r["think"]) for r in found["rows"]] == [
        ("composition", False),
        ("composition", True),
        ("text", False),
        ("text", True),
    ]
    assert found["rows"][1]["strict"]["mean"] == 0.5 and found["settings"]["batch"] == 32
    assert (tmp_path / "sheet.png").exists()


def test_ways_of_thinking(door, tmp_path):
    for think, want in (("yes", [True]), ("no", [False])):
        door("--count=1", "--scenarios=composition", f"--think={think}")
        rows = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
        assert [r["think"] for r in rows] == want


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--count=0"], "--count=0"),
        (["--scenarios=cooking"], "cooking"),
        (["--scenarios=composition,cooking"], "--scenarios: 'cooking' is not one of"),
        (["--scenarios="], "--scenarios is empty"),
        (["--count=4", "--seed=4295"], "--seed=4295: must lie in [0, 4294] with --count=4"),
        (["--seed=-1"], "--seed=-1: must lie in"),
        (["--pictures=."], "--pictures=. cannot be written"),
        (["--checkpoint="], "--checkpoint is empty"),
        (["--think=maybe"], "--think=maybe"),
        (["--benchmark=geneval"], "geneval"),
        (["--steps=0"], "--steps=0"),
        (["--out=."], "cannot be written"),
        (["--nonsense"], "nonsense"),
        (["stray"], "stray"),
    ],
)
def test_one_line_for_what_is_wrong(door, monkeypatch, tmp_path, capsys, words, message):
    drawn = []
    monkeypatch.setattr(pipeline, "generate", lambda *given: drawn.append(given))
    if "--checkpoint=" in words:
        monkeypatch.setattr(evaluate.ThinkGen, "from_pretrained", loading.load)
    with pytest.raises(SystemExit) as stop:
        door(*words)
    assert not drawn and not list(tmp_path.iterdir())
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.startswith("error: ") and message in told
    assert told.count("\n") == 1


def test_an_interruption_is_one_line(door, monkeypatch, capsys):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "generate", interrupted)
    with pytest.raises(SystemExit) as stop:
        door("--count=1")
    assert stop.value.code == 130 and capsys.readouterr().err.startswith("interrupted")
