# SPDX-License-Identifier: Apache-2.0
"""The schedule, noise windows, streams, and how invalid responses are settled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rewards.peers import peer
from tests.toy import toy_text
from thinkgen_jax import parts, phases, rollout
from thinkgen_jax.data.batches import Stream
from thinkgen_jax.models import presets
from thinkgen_jax.phases import RlPlan, SftPlan
from thinkgen_jax.rewards import Scorer
from thinkgen_jax.rewards.remote import Service
from thinkgen_jax.rollout import Draw, Thinking
from thinkgen_jax.structs import Condition, Decoded, Params, Request
from thinkgen_jax.world import tasks

STREAMS = (
    Stream(0.5, {"composition": 1.0, "text": 1.0}),
    Stream(0.5, {"edit": 1.0}, pictures=1),
)


def plan(**changes):
    return RlPlan(
        **{"prompts": 2, "group": 4, "streams": STREAMS, "draw": Draw(steps=10)} | changes
    )


def test_schedule_walks_round():
    schedule = (("a", 2), ("b", 1))
    assert [phases.at(i, schedule) for i in range(7)] == list("aabaaba")


def test_noise_without_a_window_leaves_the_last_step_out():
    noise, steps = phases.noise_levels(plan())
    assert noise.tolist() == [np.float32(0.7)] * 10
    assert steps.tolist() == list(range(9))


def test_noise_window():
    noise, steps = phases.noise_levels(plan(window=(2, 5)))
    assert np.flatnonzero(noise).tolist() == [2, 3, 4] == steps.tolist()
    with pytest.raises(ValueError, match=r"window \(5, 12\)"):
        phases.noise_levels(plan(window=(5, 12)))


def test_group_of_one_is_refused():
    with pytest.raises(ValueError, match="group = 1"):
        plan(group=1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(batch=0), "batch = 0: must be at least 1"),
        (dict(pool=0), "pool = 0: must be at least 1"),
        (dict(workers=2, pool=4), "workers = 2, pool = 4: .* pool must be 1"),
        (dict(draws=-1), "draws = -1: must be at least 1"),
        (dict(drop=1.5), r"drop = 1.5, silent = 0.2: must lie in \[0, 1\]"),
        (dict(shift=0.0), "shift = 0.0: must be above 0"),
    ],
)
def test_supervised_plans_out_of_range_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        SftPlan(**{"batch": 2, "streams": STREAMS} | bad)


def test_dropped_groups_do_not_widen_the_spread():
    """Two of three groups count: deviations ±0.5 and 0, so the batch's spread is sqrt(1/8)."""
    table = np.array([[0.0, 1.0], [9.0, -9.0], [0.5, 0.5]], np.float32)
    usable = np.array([True, False, True])
    got = phases._advantages(table, usable, scope="batch", ddof=0, eps=0.0)
    np.testing.assert_allclose(got, [-(2**0.5), 2**0.5, 0, 0, 0, 0], rtol=1e-6)
    got = phases._advantages(table, np.zeros(3, bool), scope="batch", ddof=0, eps=0.0)
    assert not np.asarray(got).any()


def test_one_thought_of_each_of_the_last_requests_is_shared():
    """The first request speaks for itself, the two others wrote something; groups of two."""
    system = presets.get("nano")
    built = parts.build(system, toy_text(system))
    written = built.text.response("two", "a red ring"), built.text.encode("on and on")
    ids, segments = np.zeros((2, 2, 99), np.int32)
    for row, tokens in enumerate(written):
        ids[row, : len(tokens)], segments[row, : len(tokens)] = tokens, 1
    decoded = Decoded(ids, segments, np.ones(2, bool))
    thinking = Thinking(None, None, np.array([True, False]), None, decoded)
    requests = [Request(name) for name in ("a cross", "x", "y")]
    images = np.zeros((6, 1, 1, 3), np.uint8)
    out = rollout.samples(built, requests, 2, slice(0, 6), images, thinking)
    assert [s.request.prompt for s in out] == ["a cross", "a cross", "x", "x", "y", "y"]
    assert [s.instruction for s in out] == ["a cross"] * 2 + ["a red ring"] * 2 + [""] * 2
    assert [s.valid for s in out] == [True] * 4 + [False] * 2


def test_stream_is_found_by_scenario():
    item = tasks.item("edit", 0, "train")
    assert phases.stream_of([Request("x", meta={"item": item})], STREAMS) is STREAMS[1]
    tagged = (Stream(0.5, {"text/text1": 1.0}), Stream(0.5, {"text/text4": 1.0}))
    item = tasks.item("text", 0, "train", "text4")
    assert phases.stream_of([Request("x", meta={"item": item})], tagged) is tagged[1]
    other = tasks.item("understand", 0, "train")
    with pytest.raises(ValueError, match="understand"):
        phases.stream_of([Request("x", meta={"item": other})], STREAMS)


def test_invalid_responses_get_the_floor_and_hopeless_groups_are_dropped():
    rewards, valid = np.array([0.4, 0.9, 0.0, 0.0]), np.array([True, True, False, False])
    table, usable = rollout.settle(rewards, valid, group=2, floor=0.0)
    assert usable.tolist() == [True, False]
    np.testing.assert_allclose(table, [[0.4, 0.9], [0, 0]], rtol=1e-6)
    table, usable = rollout.settle(
        np.array([0.4, 0.8, 0.6]), np.array([True, False, True]), group=3, floor=0.1
    )
    assert usable.all()
    np.testing.assert_allclose(table, [[0.4, 0.1, 0.6]], rtol=1e-6)


def brightness(samples):
    """A reward of this file: mean of the picture, 0 to 1."""
    return [float(s.image.mean()) / 255 for s in samples]


def sent(answer, **changes):
    """Four pictures of two groups, sent in two pieces to a reward here and one at a server."""
    system = presets.get("nano")
    built = parts.build(system, toy_text(system))
    with peer(answer) as there:
        far = Service((there.url,), tries=1, ceiling=10.0)
        weights = {f"{__name__}:brightness": 1.0, "far": 0.1}
        made = plan(group=2, rewards=weights, servers={"far": far}, drop_limit=1.0, **changes)
        setup = phases.Setup(built, {}, {}, {}, 0)
        with Scorer(made.rewards, made.servers, drop_limit=1.0) as scorer:
            out = phases._Sent(made, setup, scorer, [Request("a"), Request("b")])
            images = np.array([0, 51, 102, 255], np.uint8)[:, None, None, None] * np.ones(
                (1, 2, 2, 3), np.uint8
            )
            for rows in rollout.pieces(4, 2, 2):
                out.see(rows, images[rows], None)
            return out.settle()


def test_rewards_here_and_at_a_server_add_up():
    def answer(path, body, n):
        return 200, {"scores": [10.0 if s["prompt"] == "a" else 0.0 for s in body["samples"]]}

    got = sent(answer)
    np.testing.assert_allclose(got.table, [[1.0, 1.2], [0.4, 1.0]], rtol=1e-5)
    assert got.usable.all() and not got.failed.any()
    metrics = phases._reward_metrics(got)
    assert metrics["reward"] == pytest.approx(0.9) and metrics["reward_far"] == 5.0
    assert (metrics["failed_groups"], metrics["dropped_groups"]) == (0.0, 0.0)
    np.testing.assert_array_equal(got.learnt, got.table)
    # The server says the same all over a group: only brightness tells, and by its spread alone.
    by_each = sent(answer, combine="gdpo").learnt
    np.testing.assert_allclose(by_each, np.array([[-1, 1], [-1, 1]]) / 2**0.5, rtol=1e-4)


def test_a_group_without_an_answer_is_no_number():
    def answer(path, body, n):
        prompt = body["samples"][0]["prompt"]
        return (500, {}) if prompt == "a" else (200, {"scores": [0.0, 0.0]})

    got = sent(answer)
    assert got.usable.tolist() == [False, True] and got.failed.tolist() == [True, False]
    metrics = phases._reward_metrics(got)
    assert metrics["reward"] == pytest.approx(0.7) and metrics["failed_groups"] == 0.5
    captions = phases._gallery(got, 2).captions
    assert "reward" not in captions[0] and "reward 0.40" in captions[2]
    got = sent(lambda *_: (500, {}))
    assert got.failed.all() and np.isnan(phases._reward_metrics(got)["reward"])


def test_pictures_are_seen_while_others_are_drawn(monkeypatch):
    """Two groups of two in two pieces; a group starts from one noise, another from another."""
    system = presets.get("nano")
    built = parts.build(system, toy_text(system))
    condition = Condition(jnp.arange(4.0)[:, None, None], jnp.ones((4, 1), jnp.int32))
    thinking = Thinking(None, None, np.ones(4, bool), condition, None)
    order = []

    def draw(parts, params, condition, references, noise, how):
        order.append(("drawn", condition.states.ravel().tolist(), noise.ravel().tolist()))
        return np.full((len(noise), 1, 1, 3), len(order), np.uint8)

    monkeypatch.setattr(rollout, "think_prompt", lambda *_: None)
    monkeypatch.setattr(rollout, "think", lambda *_, **__: thinking)
    monkeypatch.setattr(rollout, "reference_tokens", lambda *_: None)
    monkeypatch.setattr(rollout, "initial_noise", lambda *_: jnp.array([7.0, 9.0])[:, None])
    monkeypatch.setattr(rollout, "draw", draw)
    drawn = rollout.think_group(
        built,
        Params({}, {}, {}),
        [Request("a"), Request("b")],
        STREAMS[0],
        jax.random.key(0),
        group=2,
        how=Draw(pieces=2),
        seen=lambda rows, images, thinking: order.append(("seen", rows, images.max())),
    )
    assert order == [
        ("drawn", [0, 1], [7, 7]),
        ("seen", slice(0, 2), 1),
        ("drawn", [2, 3], [9, 9]),
        ("seen", slice(2, 4), 3),
    ]
    assert drawn.images.ravel().tolist() == [1] * 6 + [3] * 6


def test_pieces_are_whole_groups():
    assert rollout.pieces(8, 2, 2) == [slice(0, 4), slice(4, 8)]
    with pytest.raises(ValueError, match="draw.pieces = 3 does not divide the 4 groups"):
        rollout.pieces(8, 2, 3)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(combine="max"), "combine = 'max' is not one of"),
        (dict(drop_limit=1.5), "drop_limit = 1.5"),
        (dict(rewards={"hpsv3": 1.0}), "'hpsv3' needs an address in servers"),
    ],
)
def test_reinforcement_plans_out_of_range_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        plan(**bad)
