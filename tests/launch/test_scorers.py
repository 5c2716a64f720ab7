# SPDX-License-Identifier: Apache-2.0
"""What of the scorers can be told without weights: their arithmetic, and detections from logits."""

import math

import numpy as np
import pytest

from launch import reward_server, tiny_siglip
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
    assert gain(1.0, 1.0) == 0 and gain(2.0, 0.9) == 1


def test_hpsv3_lies_within_its_bounds():
    scaled = reward_server.load("hpsv3").scaled
    assert [scaled(mu) for mu in (5.0, 10.0, -20.0, 40.0)] == [0.0, 0.5, -1.0, 1.0]


def test_what_is_no_number_is_not_cut_to_one():
    """`min(1.0, nan)` is 1.0: the best score for a model that broke."""
    nan = float("nan")
    assert math.isnan(reward_server.load("hpsv3").scaled(nan))
    siglip2 = reward_server.load("siglip2")
    assert math.isnan(siglip2.gain(nan, 0.9)) and math.isnan(siglip2.limited(nan))
    assert siglip2.limited(1.0000001) == 1.0


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


def test_siglip2_as_the_library_says_it(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (.ci/requirements.txt)")
    model, scorer = tiny_siglip.write(tmp_path), reward_server.load("siglip2")
    state = scorer.load([f"--model={tmp_path}"])
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    asked = {"prompt": "a red ring", "image": image, "references": [image], "meta": {}}
    found = scorer.score(
        state,
        [
            {**asked, "meta": {"target": image[::-1].copy()}},
            {**asked, "meta": {"target": image}, "references": []},
            asked,
        ],
    )
    assert found[0][0] == 0 and found[1][0] == pytest.approx(1)
    said = [2 + tiny_siglip.LETTERS.index(letter) for letter in "a red ring"]
    ids = torch.tensor([said + [0] * (tiny_siglip.LENGTH - len(said))])
    pixels = torch.tensor(image / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        want = model(input_ids=ids, pixel_values=pixels).logits_per_image.sigmoid()
    assert found[2][0] == pytest.approx(float(want), abs=1e-5)
