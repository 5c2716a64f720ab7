# SPDX-License-Identifier: Apache-2.0
"""Rewards computed in threads while the device goes on, and what becomes of them.

Pictures are handed over as a function that fetches them, so that the thread, not the training
loop, waits for the device.

* An invalid response (no marker, or nothing behind it) gets the least valid reward of its group, or
  the reward's floor if that is less; a group without a valid response, or without an answer from a
  server, is dropped and counted.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from thinkgen_jax import rewards
from thinkgen_jax.rewards import Rated, Scorer
from thinkgen_jax.rewards.remote import Service
from thinkgen_jax.structs import Sample

COMBINE = ("sum", "gdpo")
WORKERS = 2  # batches that are scored at the same time


class Scored(NamedTuple):
    """What came back for all batches, in the order they were handed over.

    Attributes:
      samples: what was drawn and written.
      rated: their rewards, and which groups have none.
      seconds: time that scoring took.
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
    means: dict[str, float]  # of each reward, failed groups left out


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

    def collect(self) -> Scored:
        """Waits for everything handed over.

        To be called when the device has nothing left to do without the rewards: the time that
        passes in here counts as not hidden.

        Raises:
          ValueError: as `Scorer.finish`; what else was handed over is forgotten.
          Unavailable: when servers failed too often, see `Scorer.count`.
        """
        begun, waiting, self.waiting = time.monotonic(), self.waiting, []
        found = [future.result() for future in waiting]
        waited = time.monotonic() - begun
        seconds = sum(spent for _, _, spent in found)
        hidden = 1.0 - min(waited / seconds, 1.0) if seconds else 1.0
        samples = [sample for part, _, _ in found for sample in part]
        rated = _join([part for _, part, _ in found])
        self.scorer.count(rated)
        return Scored(samples, rated, seconds, hidden)

    def _score(self, fetch: Callable[[], list[Sample]]) -> tuple[list[Sample], Rated, float]:
        samples = fetch()
        begun = time.monotonic()
        rated = self.scorer.rate(samples, self.group)
        return samples, rated, time.monotonic() - begun


def _join(rated: list[Rated]) -> Rated:
    parts = {n: np.concatenate([one.parts[n] for one in rated]) for n in rated[0].parts}
    causes = dict.fromkeys(cause for one in rated for cause in one.causes)
    return Rated(parts, np.concatenate([one.failed for one in rated]), tuple(causes))


def settle(
    scored: Scored,
    weights: Mapping[str, float],
    servers: Mapping[str, Service],
    *,
    group: int,
    combine: str,
) -> Settled:
    """Settles invalid responses and drops groups without an answer.

    Args:
      combine: "sum" for advantages of weighted sums, "gdpo" brings each reward to mean 0 and spread
        1 inside its group first.
    """
    rated, valid = scored.rated, np.asarray([s.valid for s in scored.samples])
    failed = rated.failed.reshape(-1, group).any(axis=1)

    def tables(values: np.ndarray, weights: Mapping[str, float]):
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
    means = {} if failed.all() else {n: float(p[~failed].mean()) for n, p in parts.items()}
    return Settled(table, usable & ~failed, failed, learnt, means)


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
        **(each if len(each) > 1 else {}),
        **counts,
    }
