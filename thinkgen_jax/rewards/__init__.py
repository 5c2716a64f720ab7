# SPDX-License-Identifier: Apache-2.0
"""Rewards by name: what was drawn and written becomes one number a sample.

A reward is a function of a list of samples to float32 [N]; its declared floor and ceiling bound it
and give invalid responses their place. A name "module:function" takes a reward from the user's own
code, which declares its bounds as attributes `floor` and `ceiling` (0 and 1 where absent).

* An error inside a reward is an error: it never becomes a low score.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from thinkgen_jax.rewards import form, miniature
from thinkgen_jax.structs import Sample

TOLERANCE = 1e-5  # rounding beyond the declared bounds


@dataclass(frozen=True)
class Reward:
    """A rule and the bounds of its scores."""

    function: Callable[[Sequence[Sample]], np.ndarray]
    floor: float = 0.0
    ceiling: float = 1.0


REWARDS = {
    "form": Reward(form.rate),
    "miniature": Reward(miniature.rate),
    "miniature_robust": Reward(miniature.rate_robust),
}


def find(name: str) -> Reward:
    """Looks a reward up, or imports it for a name "module:function".

    Raises:
      ValueError: for an unknown name, a module or function that is not there, or wrong bounds.
    """
    if name in REWARDS:
        return REWARDS[name]
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
    return Reward(found, float(floor), float(ceiling))


def check(weights: Mapping[str, float]) -> None:
    """Refuses what `score` could not use.

    Raises:
      ValueError: for no reward at all, or as `find`.
    """
    if not weights:
        raise ValueError("rewards is empty: at least one reward is needed")
    for name in weights:
        find(name)


def bounds(weights: Mapping[str, float]) -> tuple[float, float]:
    """Floor and ceiling of the weighted sum."""
    ends = [(w * find(n).floor, w * find(n).ceiling) for n, w in weights.items()]
    return sum(map(min, ends)), sum(map(max, ends))


def parts(samples: Sequence[Sample], weights: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Scores float32 [N] under every reward of `weights`; invalid samples get the floor.

    Raises:
      ValueError: when a reward returns another number of scores, one that is not finite, or one
        beyond its bounds.
    """
    return {name: _score(samples, name, find(name)) for name in weights}


def score(samples: Sequence[Sample], weights: Mapping[str, float]) -> np.ndarray:
    """The weighted sum of rewards, float32 [N].

    Args:
      samples: what was written and drawn; those with `valid` False are not shown to any reward and
        get every floor (the smaller end under a negative weight).
      weights: reward name to weight, at least one.

    Raises:
      ValueError: as `parts`, and for no reward at all.
    """
    check(weights)
    found = parts(samples, weights)
    total = np.zeros(len(samples), np.float32)
    for name, weight in weights.items():
        total += np.float32(weight) * found[name]
    valid = np.asarray([s.valid for s in samples], bool)
    return np.where(valid, total, np.float32(bounds(weights)[0]))


def _score(samples: Sequence[Sample], name: str, reward: Reward) -> np.ndarray:
    out = np.full(len(samples), reward.floor, np.float32)
    shown = [i for i, sample in enumerate(samples) if sample.valid]
    if not shown:
        return out
    got = np.asarray(reward.function([samples[i] for i in shown]), np.float32)
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
