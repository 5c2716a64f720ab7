# SPDX-License-Identifier: Apache-2.0
"""Scoring in threads: order, errors, and the share of time that nobody waited for."""

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from thinkgen_jax import scoring
from thinkgen_jax.rewards import Rated, Scorer, pool
from thinkgen_jax.structs import Request, Sample

NAME = f"{__name__}:brightness"
PIXELS = np.zeros((1, 1, 3), np.uint8)


def brightness(samples):
    time.sleep(0.2)
    return np.array([float(s.request.prompt) for s in samples])


def samples(*values):
    return [Sample(Request(str(v)), "", PIXELS, True) for v in values]


@pytest.fixture
def threads():
    return pool.Pool(Scorer({NAME: 1.0}), 1)


def test_batches_come_back_in_order(threads):
    threads.submit(lambda: (time.sleep(0.1), samples(0.1, 0.2))[1])
    threads.submit(lambda: samples(0.3))
    scored = threads.collect()
    np.testing.assert_allclose(scored.rated.parts[NAME], [0.1, 0.2, 0.3], rtol=1e-6)
    assert [s.request.prompt for s in scored.samples] == ["0.1", "0.2", "0.3"]


def test_time_is_hidden_while_nobody_waits(threads):
    threads.submit(lambda: samples(0.5))
    time.sleep(0.4)
    assert threads.collect().hidden > 0.9
    threads.submit(lambda: samples(0.5))
    assert threads.collect().hidden < 0.3


def test_two_batches_that_are_scored_at_once_take_their_time_once(threads):
    """Fully waited for nothing of them is hidden; neither is the wait for a picture scoring."""
    threads.submit(lambda: samples(0.5))
    threads.submit(lambda: samples(0.6))
    scored = threads.collect()
    assert 0.2 <= scored.seconds < 0.38 and scored.hidden < 0.3
    threads.submit(lambda: samples(0.5))
    time.sleep(0.25)
    threads.submit(lambda: (time.sleep(0.3), samples(0.6))[1])
    scored = threads.collect()
    assert 0.4 <= scored.seconds < 0.6 and 0.3 < scored.hidden < 0.7
    assert pool._union([(4.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.0, 2.0)]) == [(0, 3), (4, 6)]


def test_errors_of_rewards_are_errors_once(threads):
    threads.submit(lambda: samples(7.0))
    with pytest.raises(ValueError, match="gave 7.0, declared are"):
        threads.collect()
    threads.submit(lambda: samples(0.25))
    np.testing.assert_allclose(threads.collect().rated.parts[NAME], [0.25])


def test_an_invalid_response_gains_nothing_by_a_penalty():
    """Under a negative weight the floor of a reward is its best end; invalid ones get the other."""
    weights = {NAME: -1.0}
    rows = [*samples(0.25, 0.5), replace(samples(0.0)[0], valid=False)]
    rated = Rated({NAME: np.array([0.25, 0.5, 0.0], np.float32)}, np.zeros(3, bool), ())
    scored = pool.Scored(rows, rated, 0.0, 1.0)
    for combine in pool.COMBINE:
        got = pool.settle(scored, weights, {}, group=3, combine=combine).learnt[0]
        assert got.argmin() == 2 and got.argmax() == 0, combine
    assert got.mean() == pytest.approx(0, abs=1e-6) and got.std(ddof=1) == pytest.approx(
        1, abs=1e-4
    )


def two_scenarios(*failed):
    """Three groups of two: one of no scenario's own weights, two of texts, the last half invalid.

    Scores: form 1 0 | 1 0 | 1, brightness (of texts alone) 0.25 0.5 | 0.75.
    """
    kinds = [("composition", True)] * 2 + [("text", True)] * 3 + [("text", False)]
    rows = [
        Sample(Request("p", meta={"item": SimpleNamespace(scenario=kind)}), "", PIXELS, valid)
        for kind, valid in kinds
    ]
    form, bright = np.array([[1, 0, 1, 0, 1, 0], [0, 0, 0.25, 0.5, 0.75, 0]], np.float32)
    rated = Rated({"form": form, NAME: bright}, np.repeat(np.isin(range(3), failed), 2), ())
    return pool.Scored(rows, rated, 1.0, 1.0)


def settled(scored, combine="sum"):
    table = {"text": {NAME: 2.0, "form": -1.0}}
    return pool.settle(scored, {"form": 1.0}, {}, scenarios=table, group=2, combine=combine)


def test_each_scenario_is_rewarded_by_its_own_weights():
    """Texts by 2 · brightness - form, of which the least is -1: what an invalid response gets."""
    got = settled(two_scenarios())
    np.testing.assert_allclose(got.table, [[1, 0], [-0.5, 1], [0.5, -1]], rtol=1e-6)
    assert got.usable.all() and got.means == {"form": 0.5, NAME: pytest.approx(0.375)}
    unit = np.sqrt(0.5)
    each = scoring.advantages(got, scope="group", ddof=1, eps=1e-9)
    np.testing.assert_allclose(each, unit * np.array([1, -1, -1, 1, 1, -1]), rtol=1e-6)
    spread = np.sqrt(3.5 / 6 - (1 / 6) ** 2)  # of 1, 0, -1/2, 1, 1/2, -1
    together = scoring.advantages(got, scope="batch", ddof=0, eps=1e-9)
    want = np.array([0.5, -0.5, -0.75, 0.75, 0.75, -0.75]) / spread
    np.testing.assert_allclose(together, want, rtol=1e-6)


def test_rewards_of_a_scenario_are_decoupled_among_themselves():
    """Texts: 2 of brightness, 1 of the penalty, under which both rows of the last group are -1."""
    got = settled(two_scenarios(), "gdpo").learnt / np.sqrt(0.5)
    np.testing.assert_allclose(got, [[1, -1], [-3, 3], [2, -2]], rtol=1e-5)


def test_a_reward_is_averaged_over_what_it_judged():
    scored = two_scenarios(1)
    told = pool.reward_metrics(settled(scored), scored)
    assert told[f"reward_{NAME}"] == pytest.approx(0.375) and told["reward_form"] == 0.5
    assert told["failed_groups"] == pytest.approx(1 / 3)
    assert told["reward"] == pytest.approx(np.mean([1, 0, 0.5, -1]))
    scored = two_scenarios(1, 2)  # no text is left
    told = pool.reward_metrics(settled(scored), scored)
    assert told["reward_form"] == 0.5 and f"reward_{NAME}" not in told


def hosts_of(mine, other):
    """Two hosts: this one, and one that says `other`; returns what `collect` makes of it."""
    threads = pool.Pool(Scorer({NAME: 1.0}), 2)
    threads.submit(lambda: mine)
    return threads.collect(lambda told: [told, other])


def test_rewards_of_other_hosts_are_put_in_their_rows_and_fail_whole_groups():
    rows = [*samples(0.1, 0.2), replace(samples(9.0)[0], image=None, here=False), *samples(0.4)]
    other = {
        "rated": {"rows": [2], "parts": {NAME: [0.3]}, "failed": [2], "causes": ["silent"]},
        "seconds": 5.0,
        "hidden": 0.25,
    }
    scored = hosts_of(rows, other)
    np.testing.assert_allclose(scored.rated.parts[NAME], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    assert scored.rated.failed.tolist() == [False, False, True, True]
    assert (scored.rated.causes, scored.seconds) == (("silent",), 5.0) and scored.hidden <= 0.25


def test_what_fails_on_another_host_fails_here():
    with pytest.raises(ValueError, match="host 1: KeyError: 'x'"):
        hosts_of(samples(0.1, 0.2), {"error": "KeyError: 'x'"})


def test_a_mistake_in_a_reward_is_an_error_of_one_kind_on_all_hosts(threads):
    """With its traceback in the log, for the line that a run ends in has none."""

    def fetch():
        raise KeyError("x")

    told = []
    threads.submit(fetch)
    with pytest.raises(ValueError, match="^rewards: KeyError: 'x'$"):
        threads.collect(lambda message: told.append(message) or [message])
    assert told == [{"error": "KeyError: 'x'"}]


def test_a_row_that_no_host_scored_is_an_error():
    rows = [samples(0.1)[0], replace(samples(0.2)[0], image=None, here=False)]
    other = {"rated": {"rows": [], "parts": {NAME: []}, "failed": [], "causes": []}}
    with pytest.raises(ValueError, match="2 hosts scored 1 rows of 2, not each once"):
        hosts_of(rows, {**other, "seconds": 0.0, "hidden": 1.0})


def test_a_closed_pool_keeps_nobody(threads):
    threads.close()
    with pytest.raises(RuntimeError):
        threads.submit(lambda: samples(0.5))


def test_each_reward_counts_by_its_weight_whatever_its_scale():
    """Two rewards, one a hundred times the other: [-1, 1] / sqrt(2) each, before the weights."""
    small, large = np.array([[0.0, 1.0], [3.0, 3.0]]), np.array([[100.0, 0.0], [0.0, 500.0]])
    unit = np.sqrt(0.5)
    got = pool.decoupled(np.stack([small, large]), [1.0, 0.5], eps=1e-9)
    np.testing.assert_allclose(got, unit * np.array([[-0.5, 0.5], [-0.5, 0.5]]), rtol=1e-6)
