# SPDX-License-Identifier: Apache-2.0
"""Rewards computed in threads while the device goes on, and what becomes of them.

Pictures are handed over as a function that fetches them, so that the thread, not the training
loop, waits for the device.

* Each host scores the rows whose pictures it has; what all of them found is then put together, the
  same on every host, and so is an error that one of them met.
* An invalid response (no marker, or nothing behind it) gets the least valid reward of its group, or
  the reward's floor if that is less; a group without a valid response, or without an answer from a
  server, is dropped and counted.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from thinkgen_jax import rewards
from thinkgen_jax.rewards import Rated, Scenarios, Scorer, Weights, facts
from thinkgen_jax.rewards.remote import Service
from thinkgen_jax.structs import Sample

COMBINE = ("sum", "gdpo")
LOG = logging.getLogger(__name__)
WORKERS = 2  # batches that are scored at the same time

Span = tuple[float, float]  # begin and end of some work, in seconds of the monotonic clock
Share = Callable[[Any], list[Any]]  # gives what every host says to every host, see hosts.exchange


def alone(message: Any) -> list[Any]:
    """The `Share` of one host."""
    return [message]


class Scored(NamedTuple):
    """What came back for all batches, in the order they were handed over.

    Attributes:
      samples: what was drawn and written; see `Sample.here`.
      rated: their rewards, and which groups have none, of all hosts.
      seconds: time in which at least one batch was being scored.
      hidden: share of it in which nobody waited for it, in [0, 1].
    """

    samples: list[Sample]
    rated: Rated
    seconds: float
    hidden: float


class Settled(NamedTuple):
    """Rewards of an iteration, invalid responses and failed servers settled."""

    table: np.ndarray  # [B, G], weighted sums
    usable: np.ndarray  # bool [B], groups that are learnt from
    failed: np.ndarray  # bool [B], groups that a server gave no usable answer for
    learnt: np.ndarray  # [B, G], what advantages are made of
    means: dict[str, float]  # of each reward over what it judged, failed groups left out


class Pool:
    """Scores batches of whole groups one behind the other; holds the threads."""

    def __init__(self, scorer: Scorer, group: int):
        self.scorer, self.group = scorer, group
        self.threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="rewards")
        self.waiting: list[Future] = []

    def close(self) -> None:
        """Forgets what waits and closes the connections: nobody wants the rewards any more."""
        self.scorer.close()
        self.threads.shutdown(wait=False, cancel_futures=True)

    def submit(self, fetch: Callable[[], list[Sample]]) -> None:
        """Hands a batch over; `fetch` may wait for the device."""
        self.waiting.append(self.threads.submit(self._score, fetch))

    def collect(self, share: Share = alone) -> Scored:
        """Waits for everything handed over.

        To be called when the device has nothing left to do without the rewards: scoring that goes
        on while this waits counts as not hidden.

        Args:
          share: between several hosts; each has handed over the same rows, and scores its own.

        Raises:
          ValueError: for any error of a reward, also on another host, so that all hosts do the same
            about it; what else was handed over is forgotten.
          Unavailable: when servers failed too often, see `Scorer.count`; on all hosts.
        """
        begun, waiting, self.waiting = time.monotonic(), self.waiting, []
        try:
            found = [future.result() for future in waiting]
        except Exception as err:
            cause = f"{type(err).__name__}: {err}"
            share({"error": cause})
            if isinstance(err, ValueError):
                raise
            LOG.error("a reward failed", exc_info=err)  # a mistake in it: where, says this alone
            raise ValueError(f"rewards: {cause}") from err
        busy = _union([span for _, _, span in found])
        seconds = sum(end - start for start, end in busy)
        # The device may still be drawing while somebody waits in here: that is not scoring.
        waited = sum(max(end - max(start, begun), 0.0) for start, end in busy)
        hidden = 1.0 - waited / seconds if seconds else 1.0
        samples = [sample for part, _, _ in found for sample in part]
        mine = _join([part for _, part, _ in found])
        told = share({"rated": _told(mine, samples), "seconds": seconds, "hidden": hidden})
        for index, one in enumerate(told):
            if "error" in one:
                raise ValueError(f"rewards on host {index}: {one['error']}")
        rated = _put_together(mine, [one["rated"] for one in told], self.group)
        self.scorer.count(rated)
        seconds = max(one["seconds"] for one in told)
        return Scored(samples, rated, seconds, min(one["hidden"] for one in told))

    def _score(self, fetch: Callable[[], list[Sample]]) -> tuple[list[Sample], Rated, Span]:
        samples = fetch()
        begun = time.monotonic()
        rated = self.scorer.rate(samples, self.group)
        return samples, rated, (begun, time.monotonic())


def _union(spans: Sequence[Span]) -> list[Span]:
    """Spans of time that do not overlap and cover the same."""
    out: list[Span] = []
    for begun, ended in sorted(spans):
        if out and begun <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], ended))
        else:
            out.append((begun, ended))
    return out


def _join(rated: list[Rated]) -> Rated:
    parts = {n: np.concatenate([one.parts[n] for one in rated]) for n in rated[0].parts}
    causes = dict.fromkeys(cause for one in rated for cause in one.causes)
    return Rated(parts, np.concatenate([one.failed for one in rated]), tuple(causes))


def _told(rated: Rated, samples: Sequence[Sample]) -> dict:
    """JSON-able: what a host found out about the rows that are its own."""
    rows = [i for i, sample in enumerate(samples) if sample.here]
    return {
        "rows": rows,
        "parts": {name: part[rows].tolist() for name, part in rated.parts.items()},
        "failed": np.flatnonzero(rated.failed).tolist(),
        "causes": list(rated.causes),
    }


def _put_together(mine: Rated, told: Sequence[Mapping], group: int) -> Rated:
    """The rewards of all rows; a group fails as a whole when it failed on any host.

    Raises:
      ValueError: when the hosts together did not score every row once.
    """
    count, failed = len(mine.failed), np.zeros(len(mine.failed), bool)
    rows = np.concatenate([np.asarray(one["rows"], int) for one in told])
    if not np.array_equal(np.sort(rows), np.arange(count)):
        raise ValueError(f"{len(told)} hosts scored {len(rows)} rows of {count}, not each once")
    parts = {name: np.zeros(count, np.float32) for name in mine.parts}
    for one in told:
        for name, part in parts.items():
            part[one["rows"]] = one["parts"][name]
        failed[one["failed"]] = True
    failed = np.repeat(failed.reshape(-1, group).any(axis=1), group)
    return Rated(parts, failed, tuple(dict.fromkeys(c for one in told for c in one["causes"])))


def settle(
    scored: Scored,
    weights: Weights,
    servers: Mapping[str, Service],
    *,
    scenarios: Scenarios | None = None,
    group: int,
    combine: str,
) -> Settled:
    """Settles invalid responses and drops groups without an answer, by each scenario's weights.

    Args:
      combine: "sum" for advantages of weighted sums, "gdpo" brings each reward to mean 0 and spread
        1 inside its group first.
    """
    rated, count = scored.rated, len(scored.samples) // group
    own = [  # of a group, which is of one request
        facts.scenario(s.request) if scenarios else "" for s in scored.samples[::group]
    ]
    table, learnt = np.zeros((2, count, group), np.float32)
    usable, failed = np.zeros((2, count), bool)
    judged = {name: np.full((count, group), np.nan, np.float32) for name in rated.parts}
    for scenario in dict.fromkeys(own):
        groups = np.flatnonzero([one == scenario for one in own])
        rows = (groups[:, None] * group + np.arange(group)).reshape(-1)
        counts = rewards.weights_of(scored.samples[rows[0]].request, weights, scenarios)
        some = Rated({n: rated.parts[n][rows] for n in counts}, rated.failed[rows], ())
        part = scored._replace(samples=[scored.samples[row] for row in rows], rated=some)
        one, parts = _settle(part, counts, servers, group=group, combine=combine)
        table[groups], learnt[groups] = one.table, one.learnt
        usable[groups], failed[groups] = one.usable, one.failed
        for name, values in parts.items():
            judged[name][groups] = values
    means = {}
    for name, values in judged.items():
        here = values[~failed & ~np.isnan(values).any(axis=1)]
        means |= {name: float(here.mean())} if here.size else {}
    return Settled(table, usable, failed, learnt, means)


def _settle(
    scored: Scored,
    weights: Weights,
    servers: Mapping[str, Service],
    *,
    group: int,
    combine: str,
) -> tuple[Settled, dict[str, np.ndarray]]:
    """Settles groups that all have the same weights; also each reward's numbers [B, G]."""
    rated, valid = scored.rated, np.asarray([s.valid for s in scored.samples])
    failed = rated.failed.reshape(-1, group).any(axis=1)

    def tables(values: np.ndarray, weights: Weights):
        floor, _ = rewards.bounds(weights, servers)
        return fill(values, valid, group=group, floor=floor)

    table, usable = tables(rewards.total(scored.samples, rated.parts, weights, servers), weights)
    parts = {name: tables(part, {name: 1.0})[0] for name, part in rated.parts.items()}
    learnt = table
    if combine == "gdpo":
        # With the sign inside, an invalid response gets the worse end of a penalty, too.
        signs = {name: -1.0 if weights[name] < 0 else 1.0 for name in parts}
        signed = [tables(s * rated.parts[name], {name: s})[0] for name, s in signs.items()]
        learnt = decoupled(np.stack(signed), [abs(weights[name]) for name in signs])
    return Settled(table, usable & ~failed, failed, learnt, {}), parts


def fill(
    rewards: np.ndarray, valid: np.ndarray, *, group: int, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards [B, G] with invalid responses settled, and which groups can be learnt from.

    Args:
      rewards: [B · G].
      valid: bool [B · G], False for a response without an instruction.
      floor: least value the reward can take.
    """
    table, ok = rewards.reshape(-1, group).astype(np.float64), valid.reshape(-1, group)
    usable = ok.any(axis=1)
    least = np.where(ok, table, np.inf).min(axis=1, keepdims=True)
    least = np.minimum(least, floor)
    settled = np.where(ok, table, least)
    return np.where(usable[:, None], settled, floor).astype(np.float32), usable


def decoupled(parts: np.ndarray, weights: Sequence[float], *, eps: float = 1e-6) -> np.ndarray:
    """Weighted sum [B, G] of rewards that are each brought to mean 0 and spread 1 in their group.

    To be normalised over the batch afterwards. A reward that is the same all over a group says
    nothing there.

    Args:
      parts: [R, B, G].

    Source: GDPO (group reward-decoupled normalisation), as DeepGen-RL and Flow-Factory use it.
    """
    wide = parts.astype(np.float64)
    each = wide - wide.mean(axis=2, keepdims=True)
    each /= wide.std(axis=2, ddof=1, keepdims=True) + eps
    return np.einsum("r,rbg->bg", np.asarray(weights, np.float64), each).astype(np.float32)


def reward_metrics(settled: Settled, scored: Scored) -> dict[str, float]:
    """Numbers of an iteration; groups without an answer are counted, not averaged."""
    counts = {
        "failed_groups": float(settled.failed.mean()),
        "dropped_groups": float(1 - settled.usable.mean()),
        "reward_seconds": scored.seconds,
        "reward_hidden": scored.hidden,
    }
    if settled.failed.all():
        return {"reward": float("nan"), **counts}
    table = settled.table[~settled.failed]
    each = {f"reward_{name}": mean for name, mean in settled.means.items()}
    return {
        "reward": float(table.mean()),
        "reward_best": float(table.max(axis=1).mean()),
        "flat_groups": float((table.std(axis=1) < 1e-6).mean()),
        **(each if len(scored.rated.parts) > 1 else {}),
        **counts,
    }
