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


def test_classes_are_told_apart_by_number():
    """Names that the model has are no matter, unless they say that its order is another."""
    scorer = reward_server.load("geneval")
    names = dict(enumerate(scorer.CLASSES))
    assert len(names) == len(set(names.values())) == 80
    assert [names[n] for n in (0, 16, 64, 65, 66, 79)] == [
        *("person", "dog", "computer mouse", "tv remote", "computer keyboard", "toothbrush"),
    ]
    scorer.check(names)
    scorer.check({n: f"LABEL_{n}" for n in range(80)})
    scorer.check({**names, 3: "motorbike", 64: "mouse", 62: "tvmonitor"})
    for count in (91, 133, 2):  # COCO's ids with their gaps, panoptic, somebody's own
        with pytest.raises(ValueError, match=f"the model has {count} classes, want COCO's 80"):
            scorer.check({n: f"LABEL_{n}" for n in range(count)})
    with pytest.raises(ValueError, match="{16: 'cat'} are not where COCO's order has them"):
        scorer.check({**names, 16: "cat"})


def test_a_class_that_the_detector_does_not_know_is_an_error():
    """The benchmark says "computer mouse"; "mouse" would be found nowhere, and count as absent."""
    scorer, image = reward_server.load("geneval"), np.zeros((4, 4, 3), np.uint8)
    for kind in ("include", "exclude"):
        meta = {kind: [{"class": "mouse", "count": 1}]}
        with pytest.raises(ValueError, match=r"asks for classes \['mouse'\], none of COCO's 80"):
            scorer._one({}, image, meta)


def test_detections_of_a_model_without_names(tmp_path, monkeypatch):
    """A tiny random Mask2Former, its own names LABEL_n: what it sees has the benchmark's names."""
    torch = pytest.importorskip("torch", reason="torch is not installed (.ci/requirements.txt)")
    transformers = pytest.importorskip("transformers")
    scorer = reward_server.load("geneval")
    swin = dict(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2)
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(
            image_size=32, patch_size=2, out_features=[f"stage{n}" for n in (1, 2, 3, 4)], **swin
        ),
        **dict(feature_size=32, mask_feature_size=32, hidden_dim=32),
        **dict(encoder_layers=1, decoder_layers=2, num_attention_heads=1, dim_feedforward=8),
        **dict(encoder_feedforward_dim=8),
        **dict(num_queries=3, num_labels=80),
    )
    torch.manual_seed(0)
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    assert model.config.id2label[16] == "LABEL_16"
    scorer.check(model.config.id2label)
    with torch.no_grad():
        model.class_predictor.bias[16] = 30.0  # all it sees are dogs
    looks = transformers.Mask2FormerImageProcessor(size=dict(height=64, width=64))
    monkeypatch.setattr(scorer, "LEAST", 0.0)
    state = {"torch": torch, "device": "cpu", "detector": model, "processor": looks}
    image = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)
    asked = [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}]
    ((_, found),) = scorer.score(state, [{"image": image, "meta": {"include": asked}}])
    assert found["dog"] and max(one[4] for one in found["dog"]) > 0.3
    assert all(one[4] < 0.1 for one in found.get("cat", ()))


def test_colours_are_those_of_the_rules():
    assert reward_server.load("geneval").COLORS == rules.COLORS


def test_siglip2_modes_need_what_they_look_at():
    chosen = reward_server.load("siglip2").chosen
    assert [
        chosen("auto", has) for has in ((), ("target",), ("source",), ("target", "source"))
    ] == [
        *("txt", "img", "txt", "gain"),
    ]
    assert chosen("img", ("target", "source")) == "img" and chosen("txt", ("target",)) == "txt"
    with pytest.raises(ValueError, match="--mode=dir: a sample has no target and no source"):
        chosen("dir", ())
    with pytest.raises(ValueError, match="--mode=gain: a sample has no source picture"):
        chosen("gain", ("target",))


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
    # Other modes, each with its own version.
    asked["references"], asked["meta"] = [image], {"target": image[::-1].copy()}
    got = {}
    for mode in ("img", "dir", "txt", "gain"):
        state = scorer.load([f"--model={tmp_path}", f"--mode={mode}"])
        same, right = scorer.score(state, [asked, {**asked, "image": asked["meta"]["target"]}])
        got[mode] = same[0], right[0]
        assert scorer.ABOUT["version"] == f"1 {mode}"
    assert got["img"] == (pytest.approx(found[0][1]["cos"], abs=1e-6), pytest.approx(1))
    assert got["dir"] == (0, pytest.approx(1)) and got["gain"][0] == 0
    assert got["txt"][0] == pytest.approx(float(want), abs=1e-5)
