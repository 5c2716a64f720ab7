# SPDX-License-Identifier: Apache-2.0
"""The door of the benchmarks: one table, one JSON, one line for what is wrong."""

import json

import pytest
from absl.testing import flagsaver

from tests.bench.test_miniature import MODEL, careless
from thinkgen_jax import cli, evaluate, pipeline


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
        (["--think=maybe"], "--think=maybe"),
        (["--benchmark=geneval"], "geneval"),
        (["--steps=0"], "--steps=0"),
        (["--out=."], "cannot be written"),
        (["--nonsense"], "nonsense"),
        (["stray"], "stray"),
    ],
)
def test_one_line_for_what_is_wrong(door, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        door(*words)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.startswith("error: ") and message in told
    assert told.count("\n") == 1
