# SPDX-License-Identifier: Apache-2.0
"""Rewards computed in threads while the device goes on, and how much of their time that hid.

Pictures are handed over as a function that fetches them, so that the thread, not the training
loop, waits for the device.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from thinkgen_jax.rewards import Rated, Scorer
from thinkgen_jax.structs import Sample

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


class Pool:
    """Scores batches of whole groups one behind the other; holds the threads."""

    def __init__(self, scorer: Scorer, group: int):
        self.scorer, self.group = scorer, group
        self.threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="rewards")
        self.waiting: list[Future] = []

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
