# SPDX-License-Identifier: Apache-2.0
"""The table of several runs: pairs, seeds together, and what cannot stand in it."""

import json

import pytest

from launch import effects


def write(folder, *scores, clusters="0123", trees=("mllm", "dit")):
    """A finished run that measured itself with one tree more each time."""
    folder.mkdir()
    trees = trees[: len(scores) - 1]
    for name, values in zip(["before", *(f"after_{t}" for t in trees)], scores, strict=True):
        both = [{"greedy": values}, {"greedy": list(clusters)}]
        (folder / f"{name}.json").write_text(json.dumps(both))
    phases = [[f"{tree}_grpo", 2] for tree in trees]
    (folder / "config.json").write_text(json.dumps({"phases": phases}))
    (folder / "report.md").write_text("")
    return folder


def test_each_tree_stands_against_the_one_before_it(tmp_path):
    """Seed a: +1/4 by the MLLM, nothing by the DiT; seed b: +3/4 and -1/4."""
    a = write(tmp_path / "a", [0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0])
    b = write(tmp_path / "b", [0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0])
    runs = [effects.read(path) for path in (a, b)]
    head, _, mllm = effects.table("ab", [run["mllm"] for run in runs]).splitlines()
    assert head == "|  | n | before | after | a | b | together |"
    assert mllm.startswith("| greedy | 8 | 0.000 | 0.500 | +0.250 [")
    assert "| +0.750 [" in mllm and "| +0.500 [" in mllm
    dit = effects.table("ab", [run["dit"] for run in runs]).splitlines()[-1]
    assert "| 8 | 0.500 | 0.375 | +0.000 [+0.000, +0.000] | -0.250 [" in dit


def test_pairs_of_one_prompt_stay_together(tmp_path):
    """Two prompts of which one gains in all runs: of four resamples of prompts one has no gain.

    Of six pairs, or of six clusters, that were told apart one in 64 would have none.
    """
    one = [0] * 6, [1, 1, 1, 0, 0, 0]
    runs = [write(tmp_path / name, *one, clusters="000111") for name in "abc"]
    text = effects.table("abc", [effects.read(run)["mllm"] for run in runs])
    assert text.count("+0.500 [+0.000, +1.000]") == 4


def test_trees_stand_in_the_order_of_the_schedule(tmp_path):
    scores = [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]
    found = effects.read(write(tmp_path / "a", *scores, trees=("dit", "mllm")))
    assert list(found) == ["dit", "mllm"]
    assert (found["dit"].after, found["mllm"].before) == ({"greedy": scores[1]},) * 2


def test_what_does_not_belong_together_is_refused(tmp_path, capsys):
    a = write(tmp_path / "a", [0, 0, 0, 0], [1, 0, 0, 0])
    other = write(tmp_path / "b", [0, 0, 0, 0], [1, 0, 0, 0], clusters="4567")
    more = write(tmp_path / "c", [0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0])
    none = write(tmp_path / "d", [0, 0, 0, 0], [1, 0, 0, 0])
    (none / "report.md").unlink()
    for paths, words in (
        ([], "name the runs"),
        ([a, none], "d is no finished run"),
        ([a, other], "b were not measured on the same prompts"),
        ([a, more], "different trees learned"),
    ):
        with pytest.raises(SystemExit, match=words):
            effects.main(list(map(str, paths)))
    effects.main([str(more)])
    assert capsys.readouterr().out.count("**") == 4
