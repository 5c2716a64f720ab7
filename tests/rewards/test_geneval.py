# SPDX-License-Identifier: Apache-2.0
"""GenEval's rules against what the original functions said of the same detections."""

import json
from pathlib import Path

import pytest

from thinkgen_jax.rewards import geneval
from thinkgen_jax.rewards.geneval import Detection, Verdict

VECTORS = json.loads((Path(__file__).parent / "vectors" / "geneval.json").read_text())


def detections(case):
    return {
        name: [Detection(tuple(one["box"][:4]), one["box"][4], one["clip_color"]) for one in found]
        for name, found in case["detections"].items()
    }


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_as_the_original(case):
    got = geneval.judge(case["metadata"], detections(case))
    wanted = ("geneval_correct", "geneval_reason", "strict_correct", "score", "strict_reason")
    assert got._replace(score=0.0) == Verdict(*(case[k] for k in wanted))._replace(score=0.0)
    assert got.score == pytest.approx(case["score"], abs=1e-12)


@pytest.mark.parametrize("case", VECTORS["relative_position"])
def test_relations_as_the_original(case):
    a, b = (tuple(map(float, case[name])) for name in "ab")
    assert geneval.relations(a, b) == set(case["relations_of_a_to_b"])
    assert geneval.iou(a, b) == pytest.approx(case["iou"], abs=1e-12)


def test_counting_wants_confidence_and_a_class_has_sixteen():
    found = [Detection((0, 0, 1, 1), score) for score in (0.2, 0.95, 0.5, 0.3)]
    assert [one.score for one in geneval.keep(found, tag="colors")] == [0.95, 0.5]
    assert [one.score for one in geneval.keep(found, tag="counting")] == [0.95]
    assert len(geneval.keep([Detection((0, 0, 1, 1), 0.8)] * 20, tag="colors")) == 16


def test_mixed_repairs_the_mirrored_relation_and_the_bottomless_score():
    mirrored = Verdict(False, "", False, 0.75, "")
    assert geneval.mixed(mirrored) == 0.375
    assert geneval.mixed(Verdict(True, "", True, 1.0, "")) == 1.0
    assert geneval.mixed(Verdict(True, "", False, -3.0, "")) == 0.0
    assert geneval.mixed(mirrored._replace(score=-3.0), strict_weight=0.0, is_clipped=False) == -3.0


def test_every_tag_counts_the_same():
    rows = [("counting", True)] * 3 + [("counting", False)] + [("colors", False)]
    assert geneval.overall(rows) == (0.375, {"counting": 0.75, "colors": 0.0})
    with pytest.raises(ValueError, match="no picture"):
        geneval.overall([])
