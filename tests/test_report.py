# SPDX-License-Identifier: Apache-2.0
"""Intervals cover what they should; tables and pages are what markdown wants."""

import math

import numpy as np
import pytest
from PIL import Image

from thinkgen_jax import report


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(0.4, 0.2, 1000)
    boot, normal = report.mean_interval(values), report.normal_interval(values)
    half = 1.959964 * values.std(ddof=1) / math.sqrt(1000)
    assert boot.mean == normal.mean == values.mean()
    np.testing.assert_allclose((normal.low, normal.high), values.mean() + np.array([-half, half]))
    np.testing.assert_allclose(boot, normal, atol=0.1 * half)
    assert report.mean_interval(values) == boot  # the same numbers give the same report


def test_interval_covers_the_truth_in_about_95_of_100():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        interval = report.mean_interval(rng.exponential(1.0, 64))
        hits += interval.low <= 1.0 <= interval.high
    assert 175 <= hits <= 199


def test_pairs_cancel_what_they_share():
    rng = np.random.default_rng(3)
    easy = rng.uniform(0, 1, 256)  # how easy a prompt is: far wider than the effect
    before, after = easy, easy + 0.02 + rng.normal(0, 0.02, 256)
    interval = report.paired_interval(before, after)
    assert interval.low > 0 and abs(interval.mean - 0.02) < 0.004
    assert report.mean_interval(after).low < report.mean_interval(before).high  # unpaired: overlap
    exact = report.paired_interval(np.zeros(5), np.full(5, 0.25))
    assert exact == (0.25, 0.25, 0.25)


def test_clusters_widen_the_interval():
    """100 copies of 10 samples know no more than the 10."""
    ten = np.random.default_rng(4).normal(size=10)
    copies, clusters = np.repeat(ten, 100), np.repeat(np.arange(10), 100)
    assert report.mean_interval(copies, clusters) == pytest.approx(report.mean_interval(ten))
    naive = report.mean_interval(copies)
    assert naive.high - naive.low < 0.2 * (
        report.mean_interval(ten).high - report.mean_interval(ten).low
    )


def test_words_may_name_clusters_of_unequal_size():
    values = np.asarray([1.0, 1.0, 1.0, 0.0])
    interval = report.mean_interval(values, np.asarray(["cat", "cat", "cat", "dog"]))
    assert interval == (0.75, 0.0, 1.0)  # both ends: one word drawn twice


def test_too_few_or_broken_samples():
    assert report.mean_interval(np.ones(1)) == (1.0, -math.inf, math.inf)
    for bad in (np.zeros(0), np.asarray([1.0, np.nan])):
        with pytest.raises(ValueError, match="samples, finite"):
            report.mean_interval(bad)
    with pytest.raises(ValueError, match="3 scores before, 2 after"):
        report.paired_interval(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="1 clusters for 2"):
        report.mean_interval(np.zeros(2), np.zeros(1))


def test_table_is_markdown():
    text = report.table(("a", "b"), [("x|y", 0.12345), ("two\nlines", 3)])
    assert text.splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        "| x\\|y | 0.123 |",
        "| two lines | 3 |",
    ]
    with pytest.raises(ValueError, match="1 cells, the head 2"):
        report.table(("a", "b"), [("x",)])


def test_before_and_after():
    before = {"count": np.asarray([0, 0, 1, 1] * 16), "text": np.asarray([0.5, 0.7] * 32)}
    after = {"count": np.asarray([0, 1, 1, 1] * 16), "text": np.asarray([0.7, 0.5] * 32)}
    lines = report.before_after(before, after).splitlines()
    assert lines[0] == "|  | n | before | after | difference [95 %] | clear of zero |"
    assert lines[2].startswith("| count | 64 | 0.500 | 0.750 | +0.250 [+0.1")
    assert lines[2].endswith("| yes |") and lines[3].endswith("| no |")
    with pytest.raises(ValueError, match=r"before for \['count', 'text'\], after for \['text'\]"):
        report.before_after(before, {"text": after["text"]})


def test_smooth_is_a_mean_over_the_last_values():
    got = report.smooth(np.asarray([1.0, 3.0, np.nan, 5.0, 9.0]), 2)
    np.testing.assert_allclose(got, [1, 2, 3, 5, 7])


def test_page_with_curves(tmp_path):
    rows = [{"step": n, "loss": 1 / n, "kl": None if n < 3 else 0.1} for n in range(1, 40)]
    config = {"seed": 0, "optim": {"dit": {"lr": 1e-4}, "mllm": {}}}
    path = report.write(
        tmp_path,
        title="sepgrpo",
        config=config,
        rows=rows,
        names=("loss", "kl", "absent"),
        tables=[("Before and after", "| x |")],
        pictures=[("Held-out prompts", "pictures/held_out/0000039.png")],
    )
    text = path.read_text()
    assert text.startswith("# sepgrpo\n\n## Before and after\n\n| x |\n\n## Curves\n\n![curves](")
    assert "| `optim.dit.lr` | `0.0001` |" in text and "| `optim.mllm` | `{}` |" in text
    assert "![Held-out prompts](pictures/held_out/0000039.png)" in text
    picture = Image.open(tmp_path / "curves.png")
    assert picture.size == (960, 312)  # two panels of 4 × 2.6 inches at 120 dots
    assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_page_without_numbers(tmp_path):
    text = report.write(tmp_path, title="t", config={}, rows=[], names=("loss",)).read_text()
    assert text == "# t\n" and not (tmp_path / "curves.png").exists()
