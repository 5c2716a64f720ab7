# SPDX-License-Identifier: Apache-2.0
"""What of the scorers can be told without weights: their arithmetic, and detections from logits."""

import math

import pytest

from launch import reward_server
from thinkgen_jax import rewards
from thinkgen_jax.rewards import geneval as rules


@pytest.mark.parametrize("name", ["geneval", "siglip2", "hpsv3"])
def test_scorers_state_the_bounds_of_the_table(name):
    about, known = reward_server.load(name).ABOUT, rewards.REWARDS[name]
    assert {"reward", "version", "floor", "ceiling", "sees"} == set(about)
    if known.asked is None:
        assert (about["floor"], about["ceiling"]) == (known.floor, known.ceiling)


def test_a_source_handed_back_earns_nothing():
    gain = reward_server.load("siglip2").gain
    assert gain(0.9, 0.9) == 0 and gain(1.0, 0.9) == pytest.approx(0.1 / 0.101)
    assert gain(0.95, 0.9) == pytest.approx(0.05 / 0.101) and gain(-1.0, 0.9) == -1
    assert gain(1.0, 1.0) == 0


def test_hpsv3_lies_within_its_bounds():
    scaled = reward_server.load("hpsv3").scaled
    assert [scaled(mu) for mu in (5.0, 10.0, -20.0, 40.0)] == [0.0, 0.5, -1.0, 1.0]


def test_detections_from_logits():
    """Two queries: one fills the left half surely, the other is unsure or empty."""
    torch = pytest.importorskip("torch", reason="torch is not installed (.ci/requirements.txt)")
    scorer = reward_server.load("geneval")
    classes = torch.log(torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]]))
    masks = torch.full((3, 4, 4), -5.0)
    masks[0, :, :2] = 5.0
    found = scorer.instances(torch, classes, masks, ["dog", "cat"], 4, 4)
    ((name, box, confidence, mask),) = found  # the third, a sure cat, is nowhere
    assert name == "dog" and box == [0, 0, 2, 4] and mask[:, :2].all() and not mask[:, 2:].any()
    assert confidence == pytest.approx(0.8 / (1 + math.exp(-5.0)), abs=1e-5)


def test_colours_are_those_of_the_rules():
    assert reward_server.load("geneval").COLORS == rules.COLORS
