# SPDX-License-Identifier: Apache-2.0
"""Rewards of an iteration over all hosts, and what they become: advantages, and a gallery.

* Each host scores the pictures that lie on its devices; rewards are exchanged, so that advantages
  are of whole groups and the same everywhere.
* What goes wrong on one host, a server that does not answer or a reward that cannot score, is told
  on all of them: they drop the same groups, or stop together.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thinkgen_jax import hosts, logs, rewards
from thinkgen_jax.rewards import Scenarios, Scorer, Weights, facts
from thinkgen_jax.rewards.pool import Pool, Scored, Settled, settle
from thinkgen_jax.rewards.remote import Failed, Service
from thinkgen_jax.steps import grpo
from thinkgen_jax.structs import Request, Sample

GROUPS, EACH = 3, 6  # of a gallery: groups, and most pictures of each


class Gallery(NamedTuple):
    """Pictures of a step for the log."""

    images: list[np.ndarray]
    captions: list[str]


def open_pool(
    name: str,
    weights: Weights,
    servers: Mapping[str, Service],
    *,
    scenarios: Scenarios,
    group: int,
    drop_limit: float,
) -> Pool:
    """Opens the rewards of phase `name` and tells what each is.

    Raises:
      ValueError: when a reward's server does not answer one of the hosts.
    """
    scorer = Scorer(weights, servers, scenarios=scenarios, drop_limit=drop_limit)
    try:
        with hosts.together():
            _introduce(name, scorer)
    except ValueError:
        scorer.close()
        raise
    return Pool(scorer, group)


def _introduce(name: str, scorer: Scorer) -> None:
    try:
        for line in scorer.describe():
            logs.note(f"{name}: {line}")
    except Failed as err:
        raise ValueError(f"config.plans.{name}.servers: {err}") from None


def check_requests(
    name: str,
    requests: Iterable[Request],
    weights: Weights,
    servers: Mapping[str, Service],
    scenarios: Scenarios,
) -> None:
    """Refuses requests of phase `name` that a reward weighed for them could not judge.

    Args:
      requests: what will be asked, or examples of it; their pictures are not looked at.

    Raises:
      ValueError: for a scenario without a reward, or where a reward misses what it needs; with the
        config key, the count and the first of them.
    """
    kinds: dict[str, list[Request]] = {}
    for request in requests:
        kinds.setdefault(facts.scenario(request), []).append(request)
    for scenario, some in kinds.items():
        own = rewards.weights_of(some[0], weights, scenarios)
        table = f"scenario_rewards.{scenario}" if scenario in scenarios else "rewards"
        key = f"config.plans.{name}.{table}"
        if not own:
            raise ValueError(
                f"{key} is empty, and config.plans.{name}.scenario_rewards has no {scenario!r}: "
                f"nothing rewards {len(some)} prompts, first {called(some[0])}"
            )
        for reward in own:
            lacks = rewards.find(reward, servers).lacks
            short = [(r, lack) for r in some if lacks is not None and (lack := lacks(r))]
            if short:
                first, lack = short[0]
                raise ValueError(
                    f"{key}: {reward!r} cannot judge {len(short)} of {len(some)} prompts of "
                    f"scenario {scenario!r}, first {called(first)}: {lack}"
                )


def called(request: Request) -> str:
    """How a message names a request: by its id in a prompt set, else by its words."""
    return str(getattr(request.meta.get("item"), "id", repr(request.prompt)))


def collect(pool: Pool, combine: str) -> tuple[Scored, Settled]:
    """Waits for the rewards of all hosts; settles invalid responses and failed servers.

    Raises:
      ValueError, Unavailable: see `Pool.collect`.
    """
    scored = pool.collect(hosts.exchange)
    for cause in scored.rated.causes:
        logs.note(f"groups dropped: {cause}")
    scorer = pool.scorer
    how = dict(scenarios=scorer.scenarios, group=pool.group, combine=combine)
    return scored, settle(scored, scorer.weights, scorer.servers, **how)


def advantages(settled: Settled, *, scope: str, ddof: int, eps: float) -> jax.Array:
    """Advantages [B · G]; groups that were dropped have none and are no part of any spread."""
    table, usable = settled.learnt, settled.usable
    out = np.zeros_like(table)
    if usable.any():
        out[usable] = grpo.advantages(table[usable], scope=scope, ddof=ddof, eps=eps)
    return jnp.asarray(out.reshape(-1))


def gallery(shown: Sequence[Sample], settled: Settled, group: int) -> Gallery:
    """The first three groups whose pictures this host has, at most six of each."""
    few, table = min(group, EACH), settled.table
    starts = [i for i in range(0, len(shown), group) if all(s.here for s in shown[i : i + few])]
    rows = [start + g for start in starts[:GROUPS] for g in range(few)]
    # No number stands under a picture that nobody scored.
    told = [None if settled.failed[i // group] else float(table.flat[i]) for i in rows]
    captions = [
        logs.caption(shown[i].request.prompt, shown[i].instruction, reward)
        for i, reward in zip(rows, told, strict=True)
    ]
    return Gallery([shown[i].image for i in rows], captions)
