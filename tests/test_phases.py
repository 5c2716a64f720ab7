# SPDX-License-Identifier: Apache-2.0
"""The schedule, noise windows, streams, and how invalid responses are settled."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rewards.peers import peer
from tests.toy import toy_text
from thinkgen_jax import parts, phases, rollout, scoring
from thinkgen_jax.data.batches import Stream
from thinkgen_jax.data.prompt_sets import PromptItem, PromptSet, check_streams
from thinkgen_jax.models import presets
from thinkgen_jax.phases import RlPlan, SftPlan
from thinkgen_jax.rewards import Scorer, facts, pool
from thinkgen_jax.rewards.pool import Pool, Settled
from thinkgen_jax.rewards.remote import Service
from thinkgen_jax.rollout import Draw, Thinking
from thinkgen_jax.steps.dit_grpo import DitGrpoConfig
from thinkgen_jax.structs import Condition, Decoded, Request, Sample
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


def test_without_a_window_the_last_step_is_not_trained():
    span, trained = phases.span_of(plan(), jax.random.key(0))
    assert (span.begin, span.width, trained) == (0, 10, 9)


def test_window_is_stochastic_and_trained():
    span, trained = phases.span_of(plan(window=(2, 5), shared=True), jax.random.key(0))
    assert (span.begin, span.width, trained, span.shared) == (2, 3, 3, True)


def test_narrow_windows_lie_anywhere_inside():
    """Two of the steps 1, 2, 3, 4: the first one is 1, 2 or 3, each as often."""
    many = [phases.span_of(plan(window=(1, 5), width=2), jax.random.key(i)) for i in range(60)]
    assert {(span.width, trained) for span, trained in many} == {(2, 2)}
    found = np.bincount([int(span.begin) for span, _ in many], minlength=5)
    assert found[[0, 4]].sum() == 0 and found[1:4].min() > 8


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(window=(5, 12)), r"window \(5, 12\) does not lie inside 10 steps"),
        (dict(window=(2, 5), width=4), r"width = 4 does not fit the window \(2, 5\)"),
        (dict(width=11), "width = 11 does not fit"),
        (dict(chunks=3), "chunks = 3 does not divide prompts = 2"),
        (dict(prompts=0), "prompts = 0: must be at least 1"),
        (dict(inner=0), "inner = 0: must be at least 1"),
        (dict(streams=(Stream(0.0, {"text": 1.0}),)), "streams: one of their weights must be"),
        (dict(rewards={"miniature": math.inf}), "rewards.miniature = inf: must be finite"),
    ],
)
def test_plans_out_of_range_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        plan(**bad)


def test_kept_log_probabilities_are_watched():
    kept = phases.KeptOld(plan(keep_old=True, path=DitGrpoConfig(clip=1e-4)))
    kept.check()  # nothing has been seen
    kept.before = jnp.float32(9e-6)
    kept.check()
    kept.before = jnp.float32(2e-5)
    with pytest.raises(
        ValueError, match=r"differ by 2e-05, a tenth of the clip is 1e-05.*keep_old"
    ):
        kept.check()


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

    def advantages(usable):
        settled = Settled(table, usable, ~usable, table, {})
        return scoring.advantages(settled, scope="batch", ddof=0, eps=0.0)

    got = advantages(usable)
    np.testing.assert_allclose(got, [-(2**0.5), 2**0.5, 0, 0, 0, 0], rtol=1e-6)
    assert not np.asarray(advantages(np.zeros(3, bool))).any()


def test_one_thought_of_each_of_the_last_requests_is_shared():
    """The first request speaks for itself, the two others wrote something; groups of two."""
    system = presets.get("nano")
    built = parts.build(system, toy_text(system))
    written = built.text.response("two", "a red ring"), built.text.encode("on and on")
    ids, segments = np.zeros((2, 2, 99), np.int32)
    for row, tokens in enumerate(written):
        ids[row, : len(tokens)], segments[row, : len(tokens)] = tokens, 1
    decoded = Decoded(ids, segments, np.ones(2, bool))
    thinking = Thinking(None, decoded, np.array([True, False]), None)
    requests = [Request(name) for name in ("a cross", "x", "y")]
    images = jnp.zeros((6, 1, 1, 3), jnp.uint8)
    out = rollout.samples(built, requests, 2, images, thinking)
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
    table, usable = pool.fill(rewards, valid, group=2, floor=0.0)
    assert usable.tolist() == [True, False]
    np.testing.assert_allclose(table, [[0.4, 0.9], [0, 0]], rtol=1e-6)
    table, usable = pool.fill(
        np.array([0.4, 0.8, 0.6]), np.array([True, False, True]), group=3, floor=0.1
    )
    assert usable.all()
    np.testing.assert_allclose(table, [[0.4, 0.1, 0.6]], rtol=1e-6)


def brightness(samples):
    """A reward of this file: mean of the picture, 0 to 1."""
    return [float(s.image.mean()) / 255 for s in samples]


def sent(answer, **changes):
    """Four pictures of two groups, handed over in two parts: one reward here, one at a server."""
    values = np.array([0, 51, 102, 255], np.uint8)[:, None, None, None]
    images = values * np.ones((1, 2, 2, 3), np.uint8)
    rows = [Sample(Request(p), "", x) for p, x in zip("aabb", images, strict=True)]
    with peer(answer) as there:
        far = Service((there.url,), tries=1, ceiling=10.0)
        weights = {f"{__name__}:brightness": 1.0, "far": 0.1}
        made = plan(group=2, rewards=weights, servers={"far": far}, drop_limit=1.0, **changes)
        with Scorer(made.rewards, made.servers, drop_limit=1.0) as scorer:
            threads = Pool(scorer, 2)
            for part in (rows[:2], rows[2:]):
                threads.submit(lambda part=part: part)
            return scoring.collect(threads, made.combine)


def test_rewards_here_and_at_a_server_add_up():
    def answer(path, body, n):
        return 200, {"scores": [10.0 if s["prompt"] == "a" else 0.0 for s in body["samples"]]}

    scored, got = sent(answer)
    np.testing.assert_allclose(got.table, [[1.0, 1.2], [0.4, 1.0]], rtol=1e-5)
    assert got.usable.all() and not got.failed.any()
    metrics = pool.reward_metrics(got, scored)
    assert metrics["reward"] == pytest.approx(0.9) and metrics["reward_far"] == 5.0
    assert (metrics["failed_groups"], metrics["dropped_groups"]) == (0.0, 0.0)
    np.testing.assert_array_equal(got.learnt, got.table)
    # The server says the same all over a group: only brightness tells, and by its spread alone.
    by_each = sent(answer, combine="gdpo")[1].learnt
    np.testing.assert_allclose(by_each, np.array([[-1, 1], [-1, 1]]) / 2**0.5, rtol=1e-4)


def test_a_group_without_an_answer_is_no_number():
    def answer(path, body, n):
        prompt = body["samples"][0]["prompt"]
        return (500, {}) if prompt == "a" else (200, {"scores": [0.0, 0.0]})

    scored, got = sent(answer)
    assert got.usable.tolist() == [False, True] and got.failed.tolist() == [True, False]
    metrics = pool.reward_metrics(got, scored)
    assert metrics["reward"] == pytest.approx(0.7) and metrics["failed_groups"] == 0.5
    captions = scoring.gallery(scored.samples, got, 2).captions
    assert "reward" not in captions[0] and "reward 0.40" in captions[2]
    scored, got = sent(lambda *_: (500, {}))
    assert got.failed.all() and np.isnan(pool.reward_metrics(got, scored)["reward"])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(combine="max"), "combine = 'max' is not one of"),
        (dict(drop_limit=1.5), "drop_limit = 1.5"),
        (dict(rewards={"hpsv3": 1.0}), "'hpsv3' needs an address in servers"),
        (dict(against=("e.jsonl",)), r"against = \('e.jsonl',\): there are no sets"),
    ],
)
def test_reinforcement_plans_out_of_range_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        plan(**bad)


def test_requests_of_prompt_sets(tmp_path):
    """Two GenEval prompts: a batch of both, with what the reward wants to know; their stream."""
    path = tmp_path / "m.jsonl"
    rows = [{"tag": "colors", "include": [{"class": c, "count": 1}], "prompt": c} for c in "ab"]
    path.write_text("\n".join(map(json.dumps, rows)))
    streams = (Stream(1.0, {"composition": 1.0}, length=256),)
    sets = (PromptSet("geneval", str(path), "composition"),)
    made = plan(streams=streams, sets=sets, rewards={"form": 1.0})
    system = presets.get("nano")
    setup = phases.Setup(parts.build(system, toy_text(system)), {}, {}, {}, 0)
    asked = next(phases._requests("mllm_grpo", made, setup))
    assert sorted(r.prompt for r in asked) == ["a", "b"]
    assert phases.stream_of(asked, streams) is streams[0]
    known = facts.of(asked[0])
    assert known["tag"] == "colors" and known["include"][0]["class"] == asked[0].prompt


def test_what_evaluations_ask_is_not_trained_on(tmp_path, monkeypatch):
    """Of three prompts one is asked; the log tells which, and of sets that nobody compared."""
    rows = [{"tag": "colors", "include": [], "prompt": f"a {c} cup"} for c in ("red", "RED", "tan")]
    for name, some in (("m.jsonl", rows), ("e.jsonl", rows[1:2])):
        (tmp_path / name).write_text("\n".join(map(json.dumps, some)))
    told = []
    monkeypatch.setattr(phases.logs, "note", told.append)
    sets = (PromptSet("geneval", str(tmp_path / "m.jsonl"), "composition"),)
    asked = str(tmp_path / "e.jsonl")
    form = dict(prompts=1, sets=sets, rewards={"form": 1.0})
    made = plan(**form, streams=STREAMS, against=(asked,))
    system = presets.get("nano")
    setup = phases.Setup(parts.build(system, toy_text(system)), {}, {}, {}, 0)
    data = phases._requests("mllm_grpo", made, setup)
    assert {next(data)[0].prompt for _ in range(4)} == {"a tan cup"}
    assert told == [
        "prompt sets: 3 prompts read, 1 kept, 0 repeated",
        f"prompt sets: {asked} asks 1, 2 taken out; m.jsonl:1: a red cup; m.jsonl:2: a RED cup",
    ]
    phases._requests("mllm_grpo", plan(**form), setup)
    assert told[2] == "prompt sets: 3 prompts, compared with no evaluation"


@pytest.fixture
def asks(tmp_path):
    """Opens the requests of a plan on two posters, of which the second has no words."""
    rows = [{"scenario": "poster", "prompt": p} for p in ("a 'SALE' sign", "a sign")]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    system = presets.get("nano")
    setup = phases.Setup(parts.build(system, toy_text(system)), {}, {}, {}, 0)

    def ask(**changes):
        sets = dict(sets=(PromptSet("jsonl", str(tmp_path / "m.jsonl")),))
        posters = (Stream(1.0, {"poster": 1.0}),)
        return phases._requests(
            "dit_grpo", plan(**{"streams": posters, "rewards": {}} | sets | changes), setup
        )

    return ask


def test_scenarios_of_the_user_have_rewards_of_their_own(asks):
    found = next(asks(scenario_rewards={"poster": {"form": 1.0}}))
    assert {facts.scenario(request) for request in found} == {"poster"}


SERVED = {"geneval": Service(("http://x",))}
KEY = r"^config\.plans\.dit_grpo\."


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            dict(streams=STREAMS, rewards={"form": 1.0}),
            KEY + "streams: none has the scenario 'poster' of 2 prompts, first m.jsonl:1; they",
        ),
        (
            dict(rewards={"word_f1": 1.0}),
            KEY + "rewards: 'word_f1' cannot judge 1 of 2 prompts of scenario 'poster', first "
            "m.jsonl:2: no words between single quotes$",
        ),
        (
            dict(scenario_rewards={"poster": {"form": 1.0, "geneval": 1.0}}, servers=SERVED),
            KEY + r"scenario_rewards\.poster: 'geneval' cannot judge 2 of 2 .* first m.jsonl:1: "
            "geneval needs meta",
        ),
        (
            dict(scenario_rewards={"poster": {"reflection_ned": 1.0}}),
            KEY + r"scenario_rewards\.poster: 'reflection_ned' .* no meta\['repairs'\]",
        ),
        (
            dict(
                streams=(Stream(1.0, {"poster": 1.0, "edit": 1.0}),),
                scenario_rewards={"edit": {"form": 1.0}},
            ),
            KEY + "rewards is empty, .* no 'poster': nothing rewards 2 prompts, first m.jsonl:1",
        ),
        (
            dict(streams=STREAMS, rewards={"miniature": 1.0, "word_ned": 1.0}, sets=()),
            KEY + "rewards: 'word_ned' cannot judge 1 of 1 prompts of scenario 'composition'",
        ),
        (
            dict(sets=(PromptSet("jsonl", None),), rewards={"form": 1.0}),
            KEY + "sets: a prompt set of kind 'jsonl' has no path",
        ),
        (
            dict(rewards={"form": 1.0}, scenario_rewards={"postr": {"form": 1.0}}),
            r"scenario_rewards \['postr'\]: no stream has them, there are",
        ),
        (dict(scenario_rewards={"poster": {}}, rewards={"form": 1.0}), "poster is empty"),
    ],
)
def test_prompts_that_nothing_could_reward_are_refused_at_the_start(asks, bad, message):
    with pytest.raises(ValueError, match=message):
        asks(**bad)


def test_pictures_that_a_stream_has_no_place_for_are_refused(tmp_path):
    item = PromptItem("m:3", "edit", "x", (tmp_path / "a.png",))
    check_streams([item], STREAMS, "streams")
    with pytest.raises(
        ValueError, match="streams: .* pictures = 0, 1 prompts have more, first m:3"
    ):
        check_streams([item], (Stream(1.0, {"edit": 1.0}),), "streams")


def test_conditions_are_cut_where_every_row_fits_and_widened_to_each_other():
    """At most 3 of 6 places: half is kept; 4 of 6: all. Together all have the longer length."""
    places = np.arange(6)[None]

    def condition(*counts):
        segments = (places < np.array(counts)[:, None]).astype(np.int32)
        return Condition(jnp.asarray(segments[..., None] * 2.0), jnp.asarray(segments))

    short, long = rollout.fitted(condition(3, 1)), rollout.fitted(condition(0, 4))
    assert short.segments.tolist() == [[1, 1, 1], [1, 0, 0]] and short.states.shape == (2, 3, 1)
    assert long.segments.shape == (2, 6)
    both = rollout.stacked([short, long])
    np.testing.assert_array_equal(both.segments, condition(3, 1, 0, 4).segments)
    np.testing.assert_array_equal(both.states, condition(3, 1, 0, 4).states)
