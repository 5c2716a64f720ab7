# SPDX-License-Identifier: Apache-2.0
"""Scoring in threads: order, errors, and the share of time that nobody waited for."""

import time
from dataclasses import replace

import numpy as np
import pytest

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
    assert 0.3 <= scored.seconds < 0.39  # from 0.0 to 0.2 and from 0.1 to 0.3


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
    assert 0.2 <= scored.seconds < 0.3 and scored.hidden < 0.1
    threads.submit(lambda: samples(0.5))
    time.sleep(0.25)
    threads.submit(lambda: (time.sleep(0.3), samples(0.6))[1])
    scored = threads.collect()
    assert 0.4 <= scored.seconds < 0.5 and 0.4 < scored.hidden < 0.6


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
