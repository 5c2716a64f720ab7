# SPDX-License-Identifier: Apache-2.0
"""Word rules against the original functions; the reader on words whose text and size are known."""

import json
import random
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from thinkgen_jax.rewards import words
from thinkgen_jax.structs import Request, Sample

FOLDER = Path(__file__).parent / "vectors"
CVTG = json.loads((FOLDER / "cvtg.json").read_text())["cases"]
FLOW = json.loads((FOLDER / "flow_grpo_ocr.json").read_text())["cases"]
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")
SHOWN = ("COFFEE", "PIZZA", "GARDEN", "TAXI", "EXIT", "BOX", "LIBRARY", "HOSPITAL")
# (side of the picture, font size, share of words read) in pixels, measured once over 16 words: the
# ends of every range that is read whole, and where it is not.
READ = (
    *((64, 5, 0.5), (64, 6, 0.69), (64, 7, 1.0), (64, 8, 0.94), (64, 10, 1.0), (64, 14, 1.0)),
    *((128, 6, 0.75), (128, 8, 1.0), (128, 12, 1.0), (256, 8, 1.0), (256, 12, 1.0)),
    *((512, 8, 0.88), (512, 10, 1.0), (512, 48, 1.0)),
)


@pytest.mark.parametrize("case", CVTG, ids=lambda case: " ".join(case["ocr_lines"]))
def test_cvtg_as_the_original(case):
    asked = words.wanted(case["prompt"])
    assert asked == case["gt_words"]
    got = words.match(asked, case["ocr_lines"])
    assert (got.total, got.correct) == (case["total_words"], case["correct_words"])
    np.testing.assert_allclose(got.similarities, case["word_similarities"], atol=1e-6)


@pytest.mark.parametrize("case", FLOW, ids=lambda case: " ".join(case["recognised_lines"]))
def test_flow_grpo_as_the_original(case):
    got = words.nearness(words.quoted(case["prompt"]), case["recognised_lines"])
    assert got == pytest.approx(case["reward"], abs=1e-12)


def test_a_prompt_without_a_quote_has_no_reward():
    assert words.quoted('a "STOP') == "" == words.quoted("a stop")
    with pytest.raises(ValueError, match="no text between double quotes"):
        words.nearness(words.quoted('a sign ""'), ["x"])
    blank = Sample(Request("a sign"), "", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="'a sign' has no words"):
        words.rate_f1([blank])


def test_f1_counts_every_word_as_often_as_it_stands_there():
    """Two of three wanted were read, among four: precision 2/4, recall 2/3."""
    assert words.f1(["go", "go", "on"], ["GO stop", "on off"]) == pytest.approx(4 / 7)
    assert words.f1([], []) == 1 and words.f1(["a"], []) == 0 == words.f1([], ["a"])


def test_reflection_takes_the_nearest_right_repair():
    rights = {"repairs": ("Remove the  red ring", "remove the blue ring")}
    samples = [
        Sample(Request("p", meta=rights), said, None) for said in ("remove the red ring", "xyz")
    ]
    got = words.rate_reflection(samples)
    assert got[0] == 1 and got[1] == 0
    assert words.similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    with pytest.raises(ValueError, match="holds no right instruction"):
        words.nearest("x", ())


def test_reflection_of_what_the_picture_says(monkeypatch):
    monkeypatch.setattr(words, "read", lambda image: ["Hello wrld"])
    image = np.zeros((8, 8, 3), np.uint8)
    rows = [
        Sample(Request("repair it", meta={"words": ["hello", "World"]}), "i", image),
        Sample(Request("a sign 'hello'"), "i", image),
    ]
    got = words.rate_reflection_words(rows)
    np.testing.assert_allclose(got, [(1 + 1 - 1 / 5) / 2, 1], atol=1e-5)
    with pytest.raises(ValueError, match="'p' has no words"):
        words.rate_reflection_words([Sample(Request("p"), "i", image)])


# --- reading ---


@pytest.fixture(scope="module")
def rapid():
    pytest.importorskip("rapidocr", reason=f"RapidOCR is not installed ({words.EXTRA})")


def extent(text, size):
    """Left, top, right and bottom of a word drawn at the origin."""
    return ImageFont.truetype(str(FONT), size).getbbox(text)


def shown(text, canvas, size, seed, ink="black", ground="white"):
    """A word at a random place."""
    image = Image.new("RGB", (canvas, canvas), ground)
    draw, font = ImageDraw.Draw(image), ImageFont.truetype(str(FONT), size)
    left, top, right, bottom = extent(text, size)
    rng = random.Random(seed)
    x = rng.randint(2, canvas - (right - left) - 2) - left
    y = rng.randint(2, canvas - (bottom - top) - 2) - top
    draw.text((x, y), text, fill=ink, font=font)
    return np.asarray(image)


@pytest.mark.parametrize(("canvas", "size", "share"), READ)
def test_reads_words_of_all_sizes(rapid, canvas, size, share):
    """Words that fit: one may be misread where all were, three more where some were."""
    texts = [text for text in SHOWN if extent(text, size)[2] < canvas - 4]
    got = [words.read(shown(text, canvas, size, n)) for n, text in enumerate(texts)]
    right = sum(lines == [text] for lines, text in zip(got, texts, strict=True))
    allowed = 1 if share == 1 else 3
    assert right >= round(share * len(texts)) - allowed, got


def test_reads_large_pictures_and_colours_and_nothing_in_nothing(rapid):
    assert words.read(shown("BAKERY", 512, 48, 0)) == ["BAKERY"]
    assert words.read(shown("STOP", 64, 12, 0, "white", "red")) == ["STOP"]
    assert words.read(np.full((64, 64, 3), 127, np.uint8)) == []


def test_flags_of_an_earlier_call_do_not_stay(rapid):
    """RapidOCR remembers `use_det=False`, and would then read the whole picture as one line."""
    image = shown("COFFEE", 128, 12, 3)
    engine = words._engine(words.SIDES[1])
    engine(image, use_det=False, use_cls=False, use_rec=True)
    assert words.read(image) == ["COFFEE"]


def test_pictures_read_at_the_same_time_keep_their_order(rapid):
    texts = ["COFFEE", "STOP", "", "OPEN", "BAKERY"]
    images = [shown(text, 128, 12, n) for n, text in enumerate(texts)]
    assert words.read_all(images) == [[text] if text else [] for text in texts]


def test_rewards_of_real_pictures(rapid):
    image = shown("OPEN", 64, 12, 1)
    asked = Request("a sign with the word 'OPEN' and the word 'SALE', \"open\"")
    sample = Sample(asked, "", image)
    assert words.rate_accuracy([sample]).tolist() == [0.5]
    assert words.rate_f1([sample]) == pytest.approx([2 / 3])
    assert 0.5 < words.rate_ned([sample])[0] < 1
    assert words.rate_ocr([sample]).tolist() == [1.0]
    assert "rapidocr" in words.reader()
