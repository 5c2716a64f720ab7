# SPDX-License-Identifier: Apache-2.0
"""Batches: random access, rows of like length together, positions that resume."""

import importlib
import multiprocessing
import os
import signal

import jax
import numpy as np
import pytest
from absl import flags

from thinkgen_jax import parts
from thinkgen_jax.data import batches, sources
from thinkgen_jax.data.batches import Shape, Stream
from thinkgen_jax.hf import assets
from thinkgen_jax.models import presets

STREAM = Stream(1.0, {"composition": 0.5, "reasoning": 0.5}, length=80)


def shape():
    return Shape(assets.load_text(parts.ASSETS, presets.get("nano")), None, seed=3)


@pytest.mark.parametrize("name", ["nano_dit", "align", "pretrain", "finetune"])
def test_rows_fit_their_streams(name):
    """A row too long would stop a run hours in; 600 pictures of every stream are looked at."""
    config = importlib.import_module(f"configs.{name}").get_config()
    plan, words = config.plans.flow_sft, shape()
    for stream in plan.streams.values():
        how = dict(weights=dict(stream.scenarios), tidy=stream.tidy, thinking=stream.thinking)
        for i in range(600):
            made = sources.drawing(i, seed=1, split="train", drop=0.1, **how)
            count = len(batches._words(made, words, plan.plain))
            assert count <= stream.length, (made.prompt, count)
            assert len(made.references) <= stream.pictures


def test_the_pseudo_form_says_everything_twice():
    """What follows the marker is half of a row without its frame: there flow_sft cuts."""
    text = shape().text
    frame = len(text.pseudo(""))
    for words, images in (("a red ring", 0), ("make it blue", 1), ("", 2), ("all of them", 3)):
        row = text.pseudo(words, images=images)
        behind = len(row) - row.index(text.close_id) - 1
        assert len(row) == frame + 2 * behind


def test_words_behind_a_thought():
    """A row is what the MLLM is asked and what it would write, up to where its end has no state."""
    how = dict(seed=1, split="train", weights={"reasoning": 1.0})
    made = sources.drawing(5, drop=0.0, thinking=True, **how)
    text, row = shape().text, batches._words(made, shape(), False)
    head = text.think(made.asked)
    assert row[: len(head)] == head
    assert text.split(row[len(head) :]) == (made.thought, made.prompt, True)
    assert text.stop_id not in row[len(head) :]
    bare = sources.drawing(5, drop=1.0, thinking=True, **how)
    assert batches._words(bare, shape(), False) == text.pseudo("", images=0)
    with pytest.raises(ValueError, match="thinking = True or pictures > 0"):
        Stream(1.0, {"edit": 1.0}, pictures=1, thinking=True)


def test_pools_are_sorted_and_lose_nothing():
    """Examples 0..11 in batches of 2, three of which form a pool."""
    data = batches.alike(lambda i: i * 7 % 12, 2, list, pool=3, key=lambda x: x)
    assert [data[i] for i in range(6)] == [[0, 2], [4, 7], [9, 11], [1, 3], [5, 6], [8, 10]]


def test_pooled_rows_are_the_plain_ones():
    plain = batches.flow_stream(STREAM, shape(), size=4, drop=0.1, plain=True)
    pooled = batches.flow_stream(STREAM, shape(), size=4, pool=4, drop=0.1, plain=True)

    def rows(data):
        found = []
        for batch in (data[i] for i in range(4)):
            words = [tuple(ids[: s.sum()]) for ids, s in zip(*batch.prompt[:2], strict=True)]
            found += zip(words, batch.pixels.sum((1, 2, 3)), strict=True)
        return found

    assert sorted(rows(plain)) == sorted(rows(pooled))
    lengths = [pooled[i].prompt.ids.shape[1] for i in range(4)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1] <= 80
    assert all(length % batches.ROOM == 0 for length in lengths)
    assert {plain[i].prompt.ids.shape[1] for i in range(4)} == {80}


def opened(workers=0):
    kinds = (STREAM, Stream(1.0, {"text": 1.0}, length=112))
    data = [batches.flow_stream(k, shape(), size=2, drop=0.0, plain=True) for k in kinds]
    return batches.mixed(data, [0.7, 0.3], workers=workers)


@pytest.fixture(autouse=True)
def flags_are_read():
    """What the door does before it trains; workers ask grain's flags."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def test_workers_make_the_same_batches_in_the_same_order():
    alone, several = opened(), opened(workers=2)
    for _ in range(5):
        for one, other in zip(
            jax.tree.leaves(next(alone)), jax.tree.leaves(next(several)), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_workers_survive_ctrl_c():
    """The terminal sends it to all of them; the run still needs batches until it has committed."""
    iterator = opened(workers=2)
    for _ in range(2):  # now both are up
        next(iterator)
    children = multiprocessing.active_children()
    assert len(children) >= 2
    for child in children:
        os.kill(child.pid, signal.SIGINT)
    for _ in range(8):
        next(iterator)


@pytest.mark.parametrize("workers", [0, 2])
def test_mixture_goes_on_where_it_stopped(workers):
    first = opened(workers)
    seen = [next(first).pixels for _ in range(3)]
    place = batches.position(first)
    later = next(first).pixels
    again = opened(workers)
    again.set_state(place)
    np.testing.assert_array_equal(next(again).pixels, later)
    assert not np.array_equal(seen[0], later)
