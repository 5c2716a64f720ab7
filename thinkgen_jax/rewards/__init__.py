# SPDX-License-Identifier: Apache-2.0
"""Rewards by name: what was drawn and written becomes one number a sample.

A reward is a function of a list of samples to float32 [N]; its declared floor and ceiling bound it
and give invalid responses their place. A name "module:function" takes a reward from the user's own
code, which declares its bounds as attributes `floor` and `ceiling` (0 and 1 where absent), and
likewise `sees`, `version` and `lacks`.

A name that `servers` has is scored there (`remote.Service`): one of the table, or any other, which
then gets the bounds of its service. Rewards whose `function` is None live behind servers alone.

* Scenarios may have weights of their own, which then stand in the place of all others: a reward is
  asked about those samples alone whose scenario weighs it.
* A server must state the name that the config gives its reward, so that swapped addresses are
  noticed; a rule of this package (`--scorer=ours:NAME`) its version, too. A detector, and a reward
  that the user named freely, may state anything, but must go on stating it.
* An error inside a reward is an error: it never becomes a low score. Where a server gives no usable
  answer, the whole group is dropped and counted; past a share of drops the run stops.
"""

import importlib
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from thinkgen_jax.rewards import facts, form, geneval, judge, miniature, words
from thinkgen_jax.rewards.remote import TOLERANCE, Client, Failed, Service, Unavailable
from thinkgen_jax.structs import Request, Sample

DROP_LIMIT = 0.5  # share of recent groups that may be dropped before a run stops
RECENT = 10  # steps that are recent

Scores = Callable[[Sequence[Sample]], np.ndarray]
Weights = Mapping[str, float]  # by reward
Scenarios = Mapping[str, Weights]  # by scenario


@dataclass(frozen=True)
class Reward:
    """A rule and the bounds of its scores.

    Attributes:
      function: samples to scores; None where only a server can tell.
      sees: which words of a sample it reads; "" for none.
      version: changes when scores do; a function where it depends on what is installed, which
        refuses what is not.
      asked: how a server is asked, (client, samples) -> scores; None sends samples and takes the
        server's numbers as they are.
      lacks: what a request misses that the rule needs, "" for nothing; None needs nothing.
    """

    function: Scores | None
    floor: float = 0.0
    ceiling: float = 1.0
    sees: str = ""
    version: str | Callable[[], str] = "1"
    asked: Callable[[Client, Sequence[Sample]], np.ndarray] | None = None
    lacks: Callable[[Request], str] | None = None


QUOTED = dict(sees="the prompt's words in '...'", version=words.reader, lacks=words.lacks_words)
ASKED = dict(sees="meta['include'] and meta['tag']", lacks=geneval.lacks)
DESCRIBED = "meta['description'], else the prompt"

REWARDS = {
    "form": Reward(form.rate, sees="the instruction"),
    "miniature": Reward(
        miniature.rate,
        sees="meta['item'] and, in reflection, the instruction",
        lacks=miniature.lacks,
    ),
    "miniature_robust": Reward(miniature.rate_robust, sees="as miniature", lacks=miniature.lacks),
    "word_accuracy": Reward(words.rate_accuracy, **QUOTED),
    "word_f1": Reward(words.rate_f1, **QUOTED),
    "word_ned": Reward(words.rate_ned, **QUOTED),
    "ocr": Reward(
        words.rate_ocr,
        sees='the prompt\'s text in "..."',
        version=words.reader,
        lacks=words.lacks_text,
    ),
    "reflection_ned": Reward(
        words.rate_reflection,
        sees="the instruction and meta['repairs']",
        lacks=words.lacks_repairs,
    ),
    "reflection_ned_ocr": Reward(
        words.rate_reflection_words,
        sees="meta['words'], else the prompt's words in '...'",
        version=words.reader,
        lacks=words.lacks_repaired_words,
    ),
    "geneval": Reward(None, **ASKED, asked=geneval.rate),  # half score, half strict
    "geneval_score": Reward(None, **ASKED, asked=partial(geneval.rate, strict_weight=0.0)),
    "geneval_strict": Reward(None, **ASKED, asked=partial(geneval.rate, strict_weight=1.0)),
    # Flow-GRPO's own: not cut off at 0, so that every object too many costs.
    "geneval_flow": Reward(
        None,
        floor=geneval.LEAST_SCORE,
        **ASKED,
        asked=partial(geneval.rate, strict_weight=0.0, is_clipped=False),
    ),
    # (mu - 5) / 10, cut to [-1, 1]: the model's own scale has no bounds.
    "hpsv3": Reward(None, -1.0, 1.0, sees=DESCRIBED),
    # Gain over the picture that was to be edited; see launch/scorers/siglip2.py.
    "siglip2": Reward(None, -1.0, 1.0, sees=DESCRIBED + " where meta has no 'target' picture"),
    "judge": Reward(None, sees=DESCRIBED, asked=judge.rate),
}


class Rated(NamedTuple):
    """Scores of a batch: each reward's [N], which samples' groups failed, and why."""

    parts: dict[str, np.ndarray]  # where `failed`, the reward's floor stands for nothing
    failed: np.ndarray  # bool [N], whole groups
    causes: tuple[str, ...]


def find(name: str, servers: Mapping[str, Service] | None = None) -> Reward:
    """Looks a reward up, or imports it for a name "module:function".

    Raises:
      ValueError: for an unknown name, a module or function that is not there, wrong bounds, or a
        reward that needs a server and has none.
    """
    served = name in (servers or {})
    if name in REWARDS:
        if REWARDS[name].function is None and not served and servers is not None:
            raise ValueError(f"rewards: {name!r} needs an address in servers")
        if served and REWARDS[name].asked is judge.rate and not servers[name].model:
            raise ValueError(f"servers: {name!r} needs the judge's model")
        return REWARDS[name]
    if served:
        return Reward(None, servers[name].floor, servers[name].ceiling, sees="what its server says")
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"rewards: {name!r} is not one of {sorted(REWARDS)} nor 'module:function'")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as err:
        raise ValueError(f"rewards: {name!r} cannot be imported: {err}") from err
    floor, ceiling = getattr(found, "floor", 0.0), getattr(found, "ceiling", 1.0)
    if not callable(found) or not floor < ceiling:
        raise ValueError(f"rewards: {name!r} is no function with floor < ceiling")
    words_ = {key: str(getattr(found, key)) for key in ("sees", "version") if hasattr(found, key)}
    lacks = getattr(found, "lacks", None)
    return Reward(found, float(floor), float(ceiling), **words_, lacks=lacks)


def version_of(reward: Reward) -> str:
    """A reward's version.

    Raises:
      ValueError: where it needs what is not installed.
    """
    return reward.version() if callable(reward.version) else reward.version


def names(weights: Weights, scenarios: Scenarios | None = None) -> list[str]:
    """Every reward that has a weight somewhere, each once."""
    tables = (weights, *(scenarios or {}).values())
    return list(dict.fromkeys(name for table in tables for name in table))


def weights_of(request: Request, weights: Weights, scenarios: Scenarios | None = None) -> Weights:
    """What counts for a request: the weights of its scenario, else the usual ones."""
    return (scenarios or {}).get(facts.scenario(request), weights)


def check(
    weights: Weights,
    servers: Mapping[str, Service] | None = None,
    scenarios: Scenarios | None = None,
) -> None:
    """Refuses what `score` and `Scorer` could not use.

    Raises:
      ValueError: for no reward at all, a weight that is not finite, a server without one, or as
        `find`.
    """
    servers, every = servers or {}, names(weights, scenarios)
    if not every:
        raise ValueError("rewards is empty: at least one reward is needed")
    for scenario, own in (scenarios or {}).items():
        if not own:
            raise ValueError(f"scenario_rewards.{scenario} is empty: at least one is needed")
    tables = {"rewards": weights}
    tables |= {f"scenario_rewards.{name}": own for name, own in (scenarios or {}).items()}
    for table, own in tables.items():
        for name, weight in own.items():
            if not math.isfinite(weight):
                raise ValueError(f"{table}.{name} = {weight}: must be finite")
    for name in every:
        find(name, servers)
    idle = sorted(set(servers) - set(every))
    if idle:
        raise ValueError(f"servers {idle} have no weight in rewards")


def bounds(
    weights: Mapping[str, float], servers: Mapping[str, Service] | None = None
) -> tuple[float, float]:
    """Floor and ceiling of the weighted sum."""
    found = {name: find(name, servers) for name in weights}
    ends = [(w * found[n].floor, w * found[n].ceiling) for n, w in weights.items()]
    return sum(map(min, ends)), sum(map(max, ends))


def parts(samples: Sequence[Sample], weights: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Scores float32 [N] under every reward of `weights`; invalid samples get the floor.

    Raises:
      ValueError: when a reward returns another number of scores, one that is not finite, or one
        beyond its bounds.
    """
    return {name: _score(samples, name, find(name, {})) for name in weights}


def score(samples: Sequence[Sample], weights: Mapping[str, float]) -> np.ndarray:
    """The weighted sum of local rewards, float32 [N].

    Args:
      samples: what was written and drawn; those with `valid` False are not shown to any reward and
        get every floor (the smaller end under a negative weight).
      weights: reward name to weight, at least one.

    Raises:
      ValueError: as `parts`, and for no reward at all.
    """
    check(weights)
    return total(samples, parts(samples, weights), weights)


def total(
    samples: Sequence[Sample],
    found: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
    servers: Mapping[str, Service] | None = None,
) -> np.ndarray:
    """The weighted sum of rewards, float32 [N]; invalid samples get its floor."""
    out = np.zeros(len(samples), np.float32)
    for name, weight in weights.items():
        out += np.float32(weight) * found[name]
    valid = np.asarray([s.valid for s in samples], bool)
    return np.where(valid, out, np.float32(bounds(weights, servers)[0]))


class Scorer:
    """Rewards with their connections open, and the count of what was dropped lately."""

    def __init__(
        self,
        weights: Weights,
        servers: Mapping[str, Service] | None = None,
        *,
        scenarios: Scenarios | None = None,
        drop_limit: float = DROP_LIMIT,
    ):
        check(weights, servers, scenarios)
        self.weights, self.servers = dict(weights), dict(servers or {})
        self.scenarios = dict(scenarios or {})
        self.rewards = {name: find(name, self.servers) for name in names(weights, scenarios)}
        self.drop_limit = drop_limit
        self._clients = {name: Client(name, one) for name, one in self.servers.items()}
        self._recent: deque[float] = deque(maxlen=RECENT)

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections."""
        for client in self._clients.values():
            client.close()

    def describe(self) -> list[str]:
        """One line per reward: range, what it reads, version, where it is scored.

        Raises:
          Failed: when a reward server does not answer or serves something else.
        """
        lines = []
        for name, reward in self.rewards.items():
            version, where = version_of(reward), "here"
            if name in self._clients:
                where, version = self._ask(name, reward)
            sees = reward.sees or "no words"
            span = f"[{reward.floor:g}, {reward.ceiling:g}]"
            line = f"reward {name} {span}, reads {sees}, version {version}, scored {where}"
            homes = [scenario for scenario, own in self.scenarios.items() if name in own]
            homes += ["all others"] if name in self.weights else []
            lines.append(f"{line}, for {', '.join(homes)}" if self.scenarios else line)
        return lines

    def start(self, samples: Sequence[Sample], group: int) -> dict[str, list[Future | None]]:
        """Sends samples to the servers, group by group, without waiting.

        Call it with whole groups as soon as they are drawn; `finish` waits. Rows whose picture
        another host has, or whose scenario does not weigh the reward, are not sent, and stand at
        the floor.
        """
        out = {}
        for name, client in self._clients.items():
            groups = [samples[i : i + group] for i in range(0, len(samples), group)]
            out[name] = [client.submit(self._group, name, one) for one in groups]
        return out

    def finish(
        self, samples: Sequence[Sample], group: int, pending: Mapping[str, Sequence[Future]]
    ) -> Rated:
        """Scores samples where they are scored here, and waits for the servers.

        Raises:
          ValueError: as `parts`.
        """
        found, failed, causes = {}, np.zeros(len(samples), bool), []
        for name, reward in self.rewards.items():
            if name not in self._clients:
                found[name] = self._rate(samples, name)
                continue
            found[name] = np.full(len(samples), reward.floor, np.float32)
            for n, future in enumerate(pending[name]):
                rows = slice(n * group, (n + 1) * group)
                try:
                    found[name][rows] = future.result()
                except Failed as err:
                    failed[rows] = True
                    causes.append(str(err))
        return Rated(found, failed, tuple(dict.fromkeys(causes)))

    def rate(self, samples: Sequence[Sample], group: int) -> Rated:
        """Scores samples, rows of a group side by side; see `finish`."""
        return self.finish(samples, group, self.start(samples, group))

    def count(self, rated: Rated) -> None:
        """Takes what became of a step's groups.

        Raises:
          Unavailable: when more than `drop_limit` of the groups of recent steps were dropped.
        """
        self._recent.append(float(rated.failed.mean()) if rated.failed.size else 0.0)
        # Steps that were not made yet count as good: a server may need a minute to come back.
        share = sum(self._recent) / RECENT
        if share > self.drop_limit:
            raise Unavailable(
                f"{share:.0%} of the groups of the last {RECENT} steps had no reward, more than "
                f"drop_limit = {self.drop_limit:.0%}; last cause: {rated.causes[-1]}"
            )

    def _group(self, name: str, samples: Sequence[Sample]) -> np.ndarray:
        """Scores one group at its server."""
        reward, client = self.rewards[name], self._clients[name]

        def ask(shown: Sequence[Sample]) -> np.ndarray:
            if reward.asked is not None:
                return reward.asked(client, shown)
            return client.score(shown, floor=reward.floor, ceiling=reward.ceiling)[0]

        return self._rate(samples, name, ask)

    def _rate(
        self, samples: Sequence[Sample], name: str, function: Scores | None = None
    ) -> np.ndarray:
        """Scores [N] under one reward; samples that do not weigh it are not shown to it."""
        reward = self.rewards[name]
        tables = [weights_of(s.request, self.weights, self.scenarios) for s in samples]
        rows = np.flatnonzero([name in table for table in tables])
        out = np.full(len(samples), reward.floor, np.float32)
        out[rows] = _score([samples[row] for row in rows], name, reward, function)
        return out

    def _ask(self, name: str, reward: Reward) -> tuple[str, str]:
        """Where a served reward is scored and in which version.

        Raises:
          Failed: when a reward server states another name or version, or other bounds than the
            reward has.
        """
        service = self.servers[name]
        where = f"at {', '.join(service.urls)}"
        if service.model:
            return where, f"{version_of(reward)}, judge {service.model}"
        about = self._clients[name].health()[0]
        stated = about.get("floor", reward.floor), about.get("ceiling", reward.ceiling)
        if reward.asked is None and stated != (reward.floor, reward.ceiling):
            raise Failed(
                f"{name}: {where} states bounds {stated}, want {(reward.floor, reward.ceiling)}"
            )
        serves, version = about.get("reward"), about.get("version")
        if serves != name and reward.asked is None and (name in REWARDS or ":" in name):
            raise Failed(f"{name}: {where} is {serves!r}, not {name!r}")
        # A version that is a function hangs on what is installed over there.
        own = "1" if callable(reward.version) else reward.version
        if reward.function is not None and not callable(reward.version) and version != own:
            raise Failed(f"{name}: {where} is version {version!r}, here it is {own!r}")
        return where, f"{own}, server {serves} {version}"


def _score(
    samples: Sequence[Sample], name: str, reward: Reward, function: Scores | None = None
) -> np.ndarray:
    function = function or reward.function
    out = np.full(len(samples), reward.floor, np.float32)
    shown = [i for i, sample in enumerate(samples) if sample.valid and sample.here]
    if not shown:
        return out
    got = np.asarray(function([samples[i] for i in shown]), np.float32)
    if got.shape != (len(shown),):
        raise ValueError(f"reward {name!r}: scores {got.shape} for {len(shown)} samples")
    low, high = reward.floor - TOLERANCE, reward.ceiling + TOLERANCE
    bad = got[~((got >= low) & (got <= high))]  # catches what is not a number, too
    if bad.size:
        raise ValueError(
            f"reward {name!r} gave {bad[0]}, declared are [{reward.floor}, {reward.ceiling}]"
        )
    out[shown] = got
    return out
