# SPDX-License-Identifier: Apache-2.0
"""Parsers and aggregations of the benchmarks, against the original functions and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from thinkgen_jax import bench
from thinkgen_jax.bench import cvtg, dpg, imgedit, risebench, text_rules, wise

FOLDER = Path(__file__).parent / "vectors"
VECTORS = json.loads((FOLDER / "judge_parsing.json").read_text())
TEXT = json.loads((FOLDER / "oneig_tiif_text.json").read_text())


@pytest.mark.parametrize("case", VECTORS["rise_extract"], ids=lambda case: case["answer"])
def test_rise_scores_are_found_as_by_the_original(case):
    assert risebench.extract(case["answer"]) == case["extract"]


@pytest.mark.parametrize("case", VECTORS["rise_scores"])
def test_rise_scores_as_the_original(case):
    scores = [case[k] for k in ("ApprConsistency", "Reasoning", "VisualPlausibility")]
    got = risebench.rate(
        case["category"],
        scores,
        has_column=case["consistency_free_column"],
        free=bool(case["consistency_free"]),
    )
    assert got == (pytest.approx(case["score"]), case["complete"])


@pytest.mark.parametrize("case", VECTORS["wise_parse"], ids=lambda case: case["text"])
def test_wise_answers_as_the_original(case):
    assert wise.parse(case["text"]) == case["legacy"]
    assert wise.parse_verified(case["text"]) == case["verified"].get("score")


def test_wise_thoughts_are_no_verified_answer():
    assert wise.parse_verified("<think>Score: 1\nno</think>\n**Score:** 0") == 0
    assert wise.parse_verified("Score: 2") is None and wise.parse_verified("Score: 10") is None


@pytest.mark.parametrize("said", ["Final Score: 4\n3", "Final Score: 4, 5", "Final Score: 0", "4"])
def test_rise_takes_exactly_one_score(said):
    with pytest.raises(ValueError, match="the judge gave the final scores"):
        risebench.read_score(said, 1, 5)
    assert risebench.read_score("**Final Score:** **4**\nfor 3 objects", 1, 5) == 4


def test_wiscores_as_the_original():
    for case in VECTORS["wiscore"]:
        got = wise.wiscore(*(float(case[k]) for k in "cra"))
        assert got == pytest.approx(case["wiscore"])


@pytest.mark.parametrize("case", VECTORS["imgedit_parse"], ids=lambda case: case["text"])
def test_imgedit_answers_as_the_original(case):
    assert imgedit.average(case["text"]) == case["avg"]


def test_wise_categories_and_weights():
    """All pictures perfect but culture's: the rest weighs 0.167 + 0.133 + 3 · 0.1."""
    perfect = {"consistency": 2.0, "realism": 2.0, "aesthetic_quality": 2.0}
    nothing = dict.fromkeys(perfect, 0.0)
    ids = range(1, 1001)
    rows = [{"prompt_id": n, **(nothing if n <= 400 else perfect)} for n in ids]
    overall, parts = wise.aggregate(rows)
    assert (
        overall == pytest.approx(0.6)
        and parts["culture"] == 0
        and parts["chemistry"] == pytest.approx(1)
    )
    edges = {1: "culture", 401: "time", 568: "space", 701: "biology", 801: "physics"}
    assert {n: wise.category(n) for n in edges} == edges
    assert wise.aggregate(rows[:500])[0] is None
    with pytest.raises(ValueError, match="1001 is not one of"):
        wise.category(1001)


def test_imgedit_is_the_mean_of_types_each_rounded():
    types = {f"{kind}{n}": kind for kind in imgedit.TYPES for n in range(3)}
    averages = dict.fromkeys(types, 3.0)
    averages |= {"add0": 4.33, "add1": 4.0, "add2": 3.0}
    overall, parts = imgedit.aggregate(averages, types)
    assert parts["add"] == 3.78 and overall == pytest.approx((3.78 + 8 * 3) / 9)
    assert imgedit.aggregate({"add0": 4.0}, types)[0] is None


def test_cvtg_is_a_mean_over_words():
    """Three words, two right: two thirds of the words, though one of two pictures is all right."""
    prompts = {"CVTG/2/0": "'go on'", "CVTG-Style/3/0": "'stop'"}
    got = cvtg.aggregate(prompts, {"CVTG/2/0": ["GO"], "CVTG-Style/3/0": ["stop"]})
    whole = got["overall_results"]
    assert whole["word_accuracy"] == pytest.approx(2 / 3)
    assert (whole["total_images"], whole["total_words"], whole["correct_words"]) == (2, 3, 2)
    assert whole["word_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert [(r["benchmark_type"], r["area"]) for r in got["area_results"]] == [
        ("CVTG", 2),
        ("CVTG-Style", 3),
    ]


QUESTIONS = """item_id,proposition_id,dependency,tuple,question_natural_language
0,9,0,entity - whole (left out),Is this line left out?
0,1,0,entity - whole (dog),Is there a dog?
0,2,1,attribute - color (dog),Is it red?
0,3,2,relation - spatial (dog),Is the red dog left of it?
0,4,0,global - (photo),Is it a photo?
"""


def test_dpg_a_no_travels_down_and_the_first_line_is_left_out():
    asked = dpg.questions(QUESTIONS)["0"]
    assert [q.number for q in asked] == [1, 2, 3, 4]
    assert [q.category for q in asked] == ["entity", "attribute", "relation", "global"]
    assert dpg.rate(asked, {1: True, 2: True, 3: True, 4: False}) == 0.75
    assert dpg.rate(asked, {1: False, 2: True, 3: True, 4: True}) == 0.25
    assert dpg.is_yes(" Yes.") and not dpg.is_yes("no")
    with pytest.raises(ValueError, match="neither yes nor no"):
        dpg.is_yes("maybe yes")
    with pytest.raises(ValueError, match=r"dpg_bench.csv: .* cannot be read"):
        dpg.questions(QUESTIONS.replace("proposition_id", "id"))


def test_rise_accuracy_of_the_new_and_the_old_script():
    """One edit whose appearance is free, all else perfect: right now, never right before."""
    item = {"category": "spatial_reasoning", "consistency_free": 1.0}
    puzzle = {"category": "logical_reasoning", "consistency_free": float("nan")}
    tasks = [bench.official.Task(k, "", (), m) for k, m in (("a", item), ("b", puzzle))]
    five, one = "**Final Score:** **5**", "Final Score: 1"
    said = {"a": {"judge2": five, "judge3": five}, "b": {"judge1": one, "judge2": "Final Score: 0"}}
    overall, parts = risebench.aggregate(tasks, said)
    assert overall == 50 and parts["accuracy, old"] == 0
    assert parts["spatial"] == 100 and parts["logical"] == 0
    # Logical: consistency 1 -> 5, reasoning 0 -> 1: (0.3 · 5 + 0.7) / 2 = 1.1.
    assert parts["score"] == pytest.approx(25 * np.mean([4.0, 0.1]))


def test_rise_puzzles_are_asked_what_stayed_the_same_whatever_the_flag():
    item = {"category": "logical_reasoning", "consistency_free": 1.0, "image": "a.png"}
    item |= {"reference_txt": "nine", "reference_img": "r.png"}
    task = bench.official.Task("a", "solve", ("o.png",), item, (Path("data/a.png"),))
    asked = risebench.questions(task, Path("out"))
    assert set(asked) == {"judge1", "judge2"} and not risebench.is_free(item)
    words, shown = asked["judge2"]
    assert "nine" in words and shown == [Path("out/o.png")]
    del item["reference_txt"]
    assert risebench.questions(task, Path("out"))["judge2"][1][0] == Path("data/r.png")
    assert risebench.told_of({"reference_txt": float("nan"), "reference": "ten"}) == "ten"
    assert risebench.told_of({"reference": None}) is None


def test_published_rows_name_their_source():
    for name, one in bench.OFFICIAL.items():
        assert one.published and all(row.source for row in one.published), name
        ours = [row.think for row in one.published if row.name == "ThinkGen"]
        assert sorted(ours) == [False, True], name


@pytest.mark.parametrize("case", TEXT["oneig_text"], ids=lambda case: case["ocr"])
def test_oneig_text_as_the_original(case):
    assert text_rules.plain(case["gt"]) == case["gt_pre"]
    read = text_rules.plain(text_rules.without_hallucinations(case["ocr"]))
    assert read == case["ocr_pre"]
    got, (matched, share, wanted) = text_rules.oneig(case["gt"], case["ocr"]), case["match"]
    assert got == (case["ED"], matched, wanted) and got.matched / got.wanted == share


def test_oneig_score_by_hand():
    """Distances 0 and 50, half complete, 3 of 4 words: 1 - 25 * 0.5 * 0.25 / 100."""
    pictures = [text_rules.Text(0, 2, 2), text_rules.Text(50, 1, 2)]
    assert text_rules.oneig_score(pictures) == pytest.approx(1 - 25 * 0.5 * 0.25 / 100)
    assert text_rules.oneig_score(pictures[:1]) == 1
    with pytest.raises(ValueError, match="0 pictures want no word"):
        text_rules.oneig_score([])


@pytest.mark.parametrize("case", TEXT["tiif"], ids=lambda case: " ".join(case["ocr"]))
def test_tiif_text_as_the_original(case):
    got = text_rules.tiif(case["gt"], case["ocr"])
    assert got == (pytest.approx(case["gned"], abs=1e-12), case["recall"])
    with pytest.raises(ValueError, match="no word is wanted"):
        text_rules.tiif([], case["ocr"])
