# SPDX-License-Identifier: Apache-2.0
"""Perfect answers earn everything, spoilt ones what the rules say."""

from dataclasses import replace

import numpy as np
import pytest

from thinkgen_jax.rewards import miniature
from thinkgen_jax.structs import Request, Sample
from thinkgen_jax.world import edits, tasks
from thinkgen_jax.world.render import render
from thinkgen_jax.world.verify import similarity

PICTURED = ("composition", "reasoning", "text", "in_context", "edit", "reasoning_edit")


def perfect(item) -> Sample:
    image = None if item.target is None else render(item.target)
    return Sample(Request(item.prompt, meta={"item": item}), item.instruction, image)


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("scenario", tasks.SCENARIOS)
def test_perfect_answers_earn_all(scenario, robust):
    for index in range(3):
        verdict = miniature.judge(perfect(tasks.item(scenario, index, "heldout")), robust=robust)
        assert verdict.strict == 1 and verdict.reward > 0.95, (index, verdict)


@pytest.mark.parametrize("scenario", PICTURED)
def test_an_empty_canvas_earns_little(scenario):
    sample = perfect(tasks.item(scenario, 1, "heldout"))
    verdict = miniature.judge(replace(sample, image=np.full((64, 64, 3), 150, np.uint8)))
    assert verdict.strict == 0 and verdict.reward < 0.3


def find(scenario, accept):
    return next(i for n in range(500) if accept(i := tasks.item(scenario, n, "train")))


def test_reflection_is_half_words_half_picture():
    item = find("reflection", lambda i: i.target != i.references[0] and "two" != i.tag)
    sample = perfect(item)
    assert miniature.judge(sample).reward == 1
    silent = replace(sample, instruction="")
    assert miniature.judge(silent).reward == 0.5
    flawed = replace(sample, image=render(item.references[0]))
    verdict = miniature.judge(flawed)
    assert verdict.strict == 0 and 0.5 <= verdict.reward < 1
    assert verdict.reward == pytest.approx(0.5 + 0.5 * (0.5 * verdict.soft), abs=1e-6) or (
        item.tag == "letter"
    )
    one_off = item.instruction[:-1]
    want = 1 - 1 / len(item.instruction)
    assert miniature.nearness(one_off, item) == pytest.approx(want)
    assert miniature.nearness(f"  {item.instruction.upper()}. ", item) == 1


def test_any_accepted_repair_is_as_right():
    item = find("reflection", lambda i: bool(i.accepts))
    assert miniature.nearness(item.accepts[0], item) == 1
    assert similarity(item.accepts[0], item.instruction) < 1


def test_a_sound_picture_must_be_left_alone():
    item = find("reflection", lambda i: i.target == i.references[0])
    assert item.instruction == edits.NO_CHANGE
    sample = perfect(item)
    assert miniature.judge(sample).reward == 1
    spoilt = miniature.judge(replace(sample, image=np.full((64, 64, 3), 150, np.uint8)))
    assert spoilt.strict == 0 and spoilt.reward < 0.9


def test_answers_count_exactly():
    sample = perfect(tasks.item("understand", 0, "heldout"))
    right = sample.instruction
    assert miniature.judge(replace(sample, instruction=f" {right.upper()}.\n")).reward == 1
    assert miniature.judge(replace(sample, instruction=f"{right} {right}")).reward == 0
    assert miniature.judge(replace(sample, instruction="")).reward == 0


def test_arrays_and_refusals():
    samples = [perfect(tasks.item("composition", n, "heldout")) for n in range(2)]
    for rule in (miniature.rate, miniature.rate_robust):
        got = rule(samples)
        assert got.dtype == np.float32 and got.tolist() == [1, 1]
    with pytest.raises(ValueError, match="no picture"):
        miniature.judge(replace(samples[0], image=None))
    with pytest.raises(ValueError, match=r"meta\['item'\]"):
        miniature.judge(Sample(Request("a cat"), "a cat", samples[0].image))
