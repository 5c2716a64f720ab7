# SPDX-License-Identifier: Apache-2.0
"""Prompt sets: every format read, evaluations kept apart, scenarios mixed, requests made."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch import prompts
from tests.data import real
from thinkgen_jax.data import batches, prompt_sets
from thinkgen_jax.data.prompt_sets import PromptItem, PromptSet


def lines(path, *objects):
    path.write_text("\n".join(o if isinstance(o, str) else json.dumps(o) for o in objects) + "\n")
    return str(path)


GENEVAL = {
    "tag": "counting",
    "include": [{"class": "cup", "count": 3}],
    "exclude": [{"class": "cup", "count": 4}],
    "prompt": "a photo of three cups",
}


def test_geneval_metadata(tmp_path):
    path = lines(tmp_path / "a.jsonl", GENEVAL, "")
    (item,) = prompt_sets.read(PromptSet("geneval", path, "composition"))
    assert item == PromptItem(
        "a.jsonl:1",
        "composition",
        "a photo of three cups",
        reward={k: GENEVAL[k] for k in ("tag", "include", "exclude")},
        tag="counting",
    )


def test_flow_grpo_lines_and_objects(tmp_path):
    path = lines(tmp_path / "a.txt", 'a shop with "Open Late" and "No Dogs"', "", "a plain wall")
    first, second = prompt_sets.read(PromptSet("flow_grpo", path, "text"))
    assert (first.reward, second.reward) == ({"text": "Open Late"}, {})
    assert second.id == "a.txt:3"
    (tmp_path / "in.png").write_bytes(real.picture(1))
    edit = {"prompt": "make it blue", "image": "in.png", "requirement": "blue"}
    path = lines(tmp_path / "b.jsonl", edit, {"prompt": "a cup", "tag": "x"})
    first, second = prompt_sets.read(PromptSet("flow_grpo", path, "edit"))
    assert first.images == (tmp_path / "in.png",) and first.reward == {"requirement": "blue"}
    assert second.images == () and second.tag == "x"


def test_verl_and_easyr1_tables(tmp_path):
    verl = pa.table(
        {
            "data_source": ["mine"],
            "prompt": [[{"role": "system", "content": "s"}, {"role": "user", "content": "draw"}]],
            "reward_model": [{"style": "rule", "ground_truth": "7"}],
        }
    )
    pq.write_table(verl, tmp_path / "v.parquet")
    (item,) = prompt_sets.read(PromptSet("verl", str(tmp_path / "v.parquet"), "reasoning"))
    assert item.prompt == "draw" and item.images == ()
    wanted = {"style": "rule", "ground_truth": "7"}
    assert item.reward == {"data_source": "mine", "reward_model": wanted}
    easy = pa.table(
        {
            "problem": ["<image>make it red"],
            "answer": ["red"],
            "images": [[{"bytes": real.picture(0), "path": None}]],
        }
    )
    pq.write_table(easy, tmp_path / "e.parquet")
    (item,) = prompt_sets.read(PromptSet("verl", str(tmp_path / "e.parquet"), "edit"))
    assert item.prompt == "make it red" and item.reward == {"answer": "red"}
    assert item.images == (real.picture(0),)


def test_our_own_lines_come_back_as_they_were_written(tmp_path):
    (tmp_path / "in.png").write_bytes(real.picture(1))
    items = [
        PromptItem("one", "edit", "makes é", (tmp_path / "in.png",), {"text": "x", "n": 2}, "t"),
        PromptItem("right", "edit", "p", (), {"target": tmp_path / "in.png"}),
        PromptItem("two", "reasoning", "a\u2028riddle\x85" + "!"),
    ]
    prompt_sets.write(tmp_path / "own.jsonl", items)
    assert prompt_sets.read(PromptSet("jsonl", str(tmp_path / "own.jsonl"))) == items
    outside = [PromptItem("x", "edit", "p", (tmp_path.parent / "in.png",))]
    with pytest.raises(ValueError, match="x: .* is not below"):
        prompt_sets.write(tmp_path / "own.jsonl", outside)


@pytest.mark.parametrize(
    ("kind", "line", "words"),
    [
        ("jsonl", {"scenario": "edit", "prompt": " "}, "item 1: prompt is ' '"),
        ("jsonl", {"prompt": "x"}, "item 1: scenario is None"),
        ("jsonl", {"scenario": "edit", "prompt": "x", "reward": [1]}, "reward is"),
        ("jsonl", {"scenario": "edit", "prompt": "x", "images": "a.png"}, "images must be a list"),
        ("jsonl", "{", "line 1 is no JSON"),
        ("geneval", {"prompt": "x"}, "line 1 has no list `include`"),
    ],
)
def test_damaged_sets_are_one_error(tmp_path, kind, line, words):
    path = lines(tmp_path / "a.jsonl", line)
    scenario = "composition" if kind == "geneval" else None
    with pytest.raises(ValueError, match=words):
        prompt_sets.read(PromptSet(kind, path, scenario))


@pytest.mark.parametrize("name", ["../out.png", "/out.png"])
def test_a_target_does_not_lead_out_of_the_root(tmp_path, name):
    item = {"scenario": "edit", "prompt": "x", "reward": {"target": name}}
    with pytest.raises(PermissionError, match="item 1: path .* leads out of the data root"):
        prompt_sets.read(PromptSet("jsonl", lines(tmp_path / "a.jsonl", item)))
    item["reward"]["target"] = 7
    with pytest.raises(ValueError, match="a picture is int, want a path"):
        prompt_sets.read(PromptSet("jsonl", lines(tmp_path / "a.jsonl", item)))


def test_missing_empty_and_foreign_sets_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="a.jsonl is empty"):
        prompt_sets.read(PromptSet("jsonl", str(tmp_path / "a.jsonl")))
    with pytest.raises(ValueError, match="none.jsonl does not exist"):
        prompt_sets.read(PromptSet("jsonl", str(tmp_path / "none.jsonl")))
    with pytest.raises(ValueError, match="is no Parquet file"):
        prompt_sets.read(PromptSet("verl", str(tmp_path / "a.jsonl"), "text"))
    with pytest.raises(ValueError, match="kind = 'csv'"):
        PromptSet("csv", "a")
    with pytest.raises(ValueError, match="scenario of a is not set"):
        PromptSet("geneval", "a")
    line = {"scenario": "edit", "prompt": "x", "images": ["\ud800.png"]}
    with pytest.raises(ValueError, match="item 1: .* surrogates not allowed"):
        prompt_sets.read(PromptSet("jsonl", lines(tmp_path / "b.jsonl", line)))
    line = {"scenario": "edit", "prompt": "x", "images": ["../a.png"]}
    with pytest.raises(PermissionError, match="item 1: .* leads out of the data root"):
        prompt_sets.read(PromptSet("jsonl", lines(tmp_path / "b.jsonl", line)))


def test_prompts_of_evaluations_are_taken_out_and_reported():
    words = ["A photo of a CUP!", "ａ photo, of a dog", "a cat", "a  cat.", "a bird"]
    items = [PromptItem(f"i{n}", "composition", w) for n, w in enumerate(words)]
    edits = [PromptItem(f"e{n}", "edit", "make it red", (b"x",)) for n in range(2)]
    asked = {"one": ["a photo of a cup", "a photo of a dog"], "two": ["a photo of a dog", "x"]}
    kept, _ = prompt_sets.separate([*edits, PromptItem("t", "text", "make it red")], {})
    assert len(kept) == 3  # an edit is another prompt than its words alone
    signs = [PromptItem(sign, "text", sign) for sign in ("\U0001f408", "\U0001f415", "?!")]
    assert prompt_sets.separate(signs, {"one": ["!?"]})[0] == signs
    kept, report = prompt_sets.separate([*items, *edits], asked)
    assert [item.id for item in kept] == ["i2", "i4", "e0", "e1"]
    assert report == {
        "read": 7,
        "kept": 4,
        "repeated": 1,
        "evaluations": {
            "one": {"prompts": 2, "removed": 2, "first": ["i0: " + words[0], "i1: " + words[1]]},
            "two": {"prompts": 2, "removed": 1, "first": ["i1: " + words[1]]},
        },
    }


def test_prompts_of_evaluations_are_found_in_every_form(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert prompt_sets.asked(tmp_path / "a.txt") == ["one", "two"]
    assert prompt_sets.asked(lines(tmp_path / "a.jsonl", GENEVAL)) == ["a photo of three cups"]
    nested = {"data_list": [{"prompt": "p"}, {"Prompt": "q"}], "prompt": 7}
    assert prompt_sets.asked(lines(tmp_path / "a.json", nested)) == ["p", "q"]
    rise = [{"index": "temporal_1", "instruction": "make it older", "image": "a.png"}]
    path = tmp_path / "rise.json"
    path.write_text(json.dumps(rise))
    assert prompt_sets.asked(path) == ["make it older"]
    (tmp_path / "dpg/prompts").mkdir(parents=True)
    for name, words in (("1", "a dog,\nin rain\n"), ("2", "a cat"), ("3", "\n")):
        (tmp_path / "dpg/prompts" / f"{name}.txt").write_text(words)
    for folder in ("dpg", "dpg/prompts"):
        assert prompt_sets.asked(tmp_path / folder) == ["a dog, in rain", "a cat"]
    with pytest.raises(ValueError, match="empty: none found"):
        (tmp_path / "empty").mkdir()
        prompt_sets.asked(tmp_path / "empty")
    with pytest.raises(ValueError, match="none found"):
        prompt_sets.asked(lines(tmp_path / "b.json", {"words": ["p"]}))


def test_an_evaluation_that_asks_everything_leaves_nothing(tmp_path):
    items = [PromptItem("i", "text", "a cup")]
    with pytest.raises(ValueError, match="all 1 prompts are asked by"):
        prompt_sets.apart(items, [lines(tmp_path / "e.jsonl", {"prompt": "A cup!"})])
    with pytest.raises(ValueError, match="none.txt do not exist"):
        prompt_sets.apart(items, [str(tmp_path / "none.txt")])


def test_pictures_of_no_use_are_found_before_the_run(tmp_path):
    """Measured by their headers; what ends behind one is told when it is drawn."""
    good, small = real.picture(0, size=(80, 64)), real.picture(1, size=(64, 40))
    items = [PromptItem(f"p{n}", "edit", "x", (blob,)) for n, blob in enumerate((good, small, b""))]
    items.append(PromptItem("gone", "edit", "x", (tmp_path / "none.png",)))
    prompt_sets.check_pictures(items[:2])
    with pytest.raises(ValueError) as bad:
        prompt_sets.check_pictures(items, (48, 48))
    first, *rest = str(bad.value).splitlines()
    assert first == "prompt sets: 3 prompts have pictures of no use:"
    assert rest[0].startswith("  p1: a picture of (64, 40) is smaller than (48, 48)")
    assert rest[1].startswith("  p2: ") and "'none.png' does not exist" in rest[2]
    with pytest.raises(ValueError, match="p: a picture of .* is smaller"):
        prompt_sets.check_pictures([PromptItem("p", "edit", "x", (), {"target": small})], (48, 48))
    cut = PromptItem("cut", "edit", "x", (good[: len(good) // 2],))
    prompt_sets.check_pictures([cut])
    with pytest.raises(ValueError, match="prompt cut: "):
        prompt_sets.request(cut)


def test_the_mix_has_the_numbers_that_are_wanted():
    assert sum(prompt_sets.MIX.values()) == 24_000
    items = [PromptItem(f"{s}{n}", s, f"{n}") for s in ("a", "b") for n in range(9)]
    chosen, report = prompt_sets.mixed(items, {"a": 4, "b": 20}, seed=1)
    assert report == {
        "a": {"wanted": 4, "there": 9, "taken": 4},
        "b": {"wanted": 20, "there": 9, "taken": 9},
    }
    assert len({item.id for item in chosen}) == 13
    assert chosen == prompt_sets.mixed(items, {"a": 4, "b": 20}, seed=1)[0]
    assert chosen != prompt_sets.mixed(items, {"a": 4, "b": 20}, seed=2)[0]
    with pytest.raises(ValueError, match="no prompt of scenario 'c'"):
        prompt_sets.mixed(items, {"a": 4, "b": 4, "c": 1})
    with pytest.raises(ValueError, match="a0: scenario 'a' is not in"):
        prompt_sets.mixed(items, {"b": 4})


def test_streams_of_requests_are_shuffled_and_resume():
    texts = [PromptItem(f"t{n}", "text", f"word {n}", reward={"n": n}) for n in range(6)]
    edits = [PromptItem(f"e{n}", "edit", "x", (real.picture(n, size=(80, 64)),)) for n in range(2)]
    how = dict(size=2, seed=1, picture=(48, 48))
    data, weights = prompt_sets.streams([*texts, *edits], **how)
    assert weights == [2, 6]  # edit, text
    epoch = [r.meta["item"].id for n in range(3) for r in data[1][n]]
    assert sorted(epoch) == [f"t{n}" for n in range(6)] and epoch != sorted(epoch)
    (first, second) = data[0][0]
    assert first.images[0].shape == (48, 48, 3) and first.think and first.prompt == "x"
    assert not np.array_equal(first.images[0], second.images[0])
    iterator = batches.mixed(data, weights)
    for _ in range(3):
        next(iterator)
    place = batches.position(iterator)
    later = [r.meta["item"].id for r in next(iterator)]
    again = batches.mixed(*prompt_sets.streams([*texts, *edits], **how))
    again.set_state(place)
    assert [r.meta["item"].id for r in next(again)] == later


def test_the_door_mixes_and_reports(tmp_path, monkeypatch, capsys):
    a = lines(tmp_path / "a.jsonl", GENEVAL, {**GENEVAL, "prompt": "a photo of two cups"})
    b = lines(tmp_path / "b.txt", 'a wall with "Hi"')
    words = ["--set", "composition", "geneval", a, "--set", "text", "flow_grpo", b]
    words += ["--against", "GenEval", lines(tmp_path / "e.jsonl", GENEVAL)]
    out = tmp_path / "mixed.jsonl"
    monkeypatch.setattr("sys.argv", ["prompts", *words, "--out", str(out)])
    prompts.main()
    report = json.loads(capsys.readouterr().out)
    assert report["written"] == 2 and report["evaluations"]["GenEval"]["removed"] == 1
    assert report == json.loads((tmp_path / "mixed.report.json").read_text())
    found = prompt_sets.read(PromptSet("jsonl", str(out)))
    assert {i.scenario: i.prompt for i in found} == {
        "composition": "a photo of two cups",
        "text": 'a wall with "Hi"',
    }
    monkeypatch.setattr("sys.argv", ["prompts", *words, "--out", str(out), "--count", "edit", "3"])
    with pytest.raises(SystemExit):
        prompts.main()
    assert "scenario 'composition' is not in ['edit']" in capsys.readouterr().err
