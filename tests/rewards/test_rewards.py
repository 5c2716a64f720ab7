# SPDX-License-Identifier: Apache-2.0
"""The table: weights, bounds, invalid samples, errors that stay errors, rewards of the user."""

import numpy as np
import pytest

from thinkgen_jax import rewards
from thinkgen_jax.rewards.form import is_well_formed
from thinkgen_jax.structs import Request, Sample


def sample(instruction="a red circle", valid=True) -> Sample:
    return Sample(Request("p"), instruction, None, valid)


def length(samples):
    """A user's reward: characters, at most 4."""
    return [min(len(s.instruction), 4) for s in samples]


length.floor, length.ceiling = -1.0, 4.0


def broken(samples):
    raise RuntimeError("the server is gone")


def nan(samples):
    return [float("nan")] * len(samples)


def high(samples):
    return [1.5] * len(samples)


def short(samples):
    return [1.0]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """Under importlib mode the test module is not importable by its dotted name."""
    import sys
    import types

    module = types.ModuleType("user_rewards")
    for function in (length, broken, nan, high, short):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, "user_rewards", module)


def test_form():
    samples = [sample(), sample(""), sample(" \n"), sample("a <think> b"), sample(valid=False)]
    assert rewards.score(samples, {"form": 1.0}).tolist() == [1, 0, 0, 0, 0]
    assert is_well_formed("x < y") and not is_well_formed("x<|im_end|>")


def test_weights_add_up_and_bounds_follow():
    weights = {"form": 2.0, "user_rewards:length": 0.5}
    got = rewards.score([sample("abcdef"), sample("abc")], weights)
    assert got.dtype == np.float32 and got.tolist() == [2 + 0.5 * 4, 2 + 0.5 * 3]
    assert rewards.bounds(weights) == (-0.5, 4.0)
    assert rewards.bounds({"user_rewards:length": -1.0}) == (-4.0, 1.0)
    each = rewards.parts([sample("abc")], weights)
    assert {k: v.tolist() for k, v in each.items()} == {"form": [1], "user_rewards:length": [3]}


def test_invalid_samples_get_the_floor_unseen():
    samples = [sample(valid=False), sample("abc"), sample(valid=False)]
    assert rewards.score(samples, {"user_rewards:length": 1.0}).tolist() == [-1, 3, -1]
    assert rewards.score(samples[:1], {"user_rewards:broken": 1.0}).tolist() == [0]
    assert rewards.score(samples, {"user_rewards:length": -1.0}).tolist() == [-4, -3, -4]


def test_errors_stay_errors():
    with pytest.raises(RuntimeError, match="server is gone"):
        rewards.score([sample()], {"form": 1.0, "user_rewards:broken": 1.0})
    for name, message in (("nan", "nan"), ("high", "1.5, declared"), ("short", "scores")):
        with pytest.raises(ValueError, match=message):
            rewards.score([sample(), sample()], {f"user_rewards:{name}": 1.0})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beauty", "not one of"),
        ("no_such_module:f", "cannot be imported"),
        ("user_rewards:nothing", "cannot be imported"),
        ("math:pi", "no function"),
    ],
)
def test_unknown_rewards_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        rewards.score([sample()], {name: 1.0})
    with pytest.raises(ValueError, match="empty"):
        rewards.score([sample()], {})
