# SPDX-License-Identifier: Apache-2.0
"""Pictures smaller than every shape: good ones, left out and counted apart from broken ones."""

import json
from dataclasses import replace

import grain
import numpy as np
import pytest

from tests.data import real
from thinkgen_jax.data import corpus, feeding
from thinkgen_jax.data.corpus import Corpus, Source

HOW = dict(multiple=16, batch=2)


def source_of(folder, small, good=12):
    """A JSONL source of some good records, with small ones behind them."""
    path = real.write_jsonl(folder, real.items(good))
    (folder / "pictures" / "tiny.png").write_bytes(real.picture(0, size=(16, 30)))
    with open(path, "a") as file:
        line = json.dumps({"instruction": "x", "output_image": "pictures/tiny.png"})
        file.write(f"{line}\n" * small)
    return Source("jsonl", path)


def made_of(*sources, **more):
    return Corpus(sources, **{"pixels": 64 * 64, "length": 96, "scales": (0.75, 0.5)} | more)


def test_small_pictures_are_no_broken_ones(tmp_path):
    """Three of fifteen: far more than may be broken, and nothing stops."""
    made = made_of(source_of(tmp_path / "a", 3), broken=0.0)
    opened = corpus.open_corpus(made, **HOW)
    assert not opened.broken and opened.small.tolist() == [12, 13, 14]
    assert sorted(np.concatenate([g.rows for g in opened.groups])) == list(range(12))
    names = ", ".join(f"records.jsonl:{line}" for line in (24, 25, 26))
    told = f"left out 3 of 15 records with a picture smaller than the smallest shape: {names}"
    assert corpus.left_out(opened) == [told]
    feed = feeding.Feed(iter(grain.MapDataset.range(1).to_iter_dataset()), opened, made.broken)
    assert feed.about == [corpus.describe(opened), told] and not feed.news() and not feed.broken


def test_where_none_is_small_no_line_is_told(tmp_path):
    opened = corpus.open_corpus(made_of(source_of(tmp_path / "a", 0)), **HOW)
    assert corpus.left_out(opened) == [] and not len(opened.small)


def test_many_small_pictures_are_told_by_their_number(tmp_path):
    """In the second of two sources, where numbers of records are not those inside it."""
    made = made_of(source_of(tmp_path / "a", 0), source_of(tmp_path / "b", 12, good=3))
    (told,) = corpus.left_out(corpus.open_corpus(made, **HOW))
    assert told.startswith("left out 12 of 27 records") and told.endswith(" and 2 more")
    assert "shape: records.jsonl:6, records.jsonl:7," in told


def test_too_many_small_pictures_are_refused(tmp_path):
    """Above a share of their own, or where nothing of a source is left."""
    made = made_of(source_of(tmp_path / "a", 13))
    with pytest.raises(ValueError, match=r"13 of 25 records .* corpus.pixels = 4096 .* = 0.5"):
        corpus.open_corpus(made, **HOW)
    opened = corpus.open_corpus(replace(made, small=0.6), **HOW)
    assert len(opened.small) == 13
    alone = made_of(source_of(tmp_path / "b", 2, good=0), *made.sources, small=1.0)
    with pytest.raises(ValueError, match=r"all 2 records of .*b/records.jsonl .* corpus.scales ="):
        corpus.open_corpus(alone, **HOW)
    with pytest.raises(ValueError, match="small = 1.5"):
        replace(made, small=1.5)
