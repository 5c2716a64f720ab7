# SPDX-License-Identifier: Apache-2.0
"""The training loop where a step goes wrong: NaN, an error of a reward; nothing learned is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import nano_vae
from tests.toy import SYSTEM, Counter, toy_text
from thinkgen_jax import checkpoint, logs, parts, train
from thinkgen_jax.optim import OptimConfig
from thinkgen_jax.phases import Phase, Setup
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps.state import Learner

LEARNER = Learner(OptimConfig(lr=0.1, warmup_steps=0, ema_decay=0.5))
STEPS = 6


def loss(params, x):
    return jnp.sum(jnp.square(params["w"] - x)), jnp.float32(x.size), {}


@pytest.fixture(scope="module")
def step():
    """A real update of three numbers, which takes the state away as those of all stages do."""
    return jax.jit(lambda state, x: learning.learn(state, loss, x, LEARNER), donate_argnums=0)


class Stream(Counter):
    """A stream that may meet an error at a step."""

    def __init__(self, spoil):
        super().__init__()
        self.spoil = spoil

    def __next__(self):
        if self.spoil.get(super().__next__()) == "data":
            raise ValueError("no picture can be read")
        return self.place


def run(step, workdir, spoil, *, steps=STEPS, every=100, limit=2):
    """Goes on with a run in `workdir`; its numbers and the steps that are committed.

    Args:
      spoil: by step from 1, what stands in for its numbers, or an error: "data" of its batch,
        "early" before the update, "late" behind it.
    """
    config = nano_vae.get_config("tiny")
    config.steps, config.checkpoint.every, config.limit_skipped = steps, every, limit

    def update(states, batch, key):
        if spoil.get(batch) == "early":
            raise ValueError("a reward is not finite")
        x = jnp.full(3, spoil.get(batch, batch) if spoil.get(batch) != "late" else batch)
        state, metrics = step(states["vae"], x)
        if spoil.get(batch) == "late":
            raise ValueError("a reward is not finite")
        return {"vae": state}, metrics, None

    setup = Setup(parts.build(SYSTEM, toy_text(SYSTEM)), {}, {}, {}, 0)
    states = {"vae": learning.create({"w": jnp.zeros(3)}, LEARNER)}
    built = {"vae_sft": Phase("vae", Stream(spoil), update)}
    with checkpoint.Checkpoints(workdir, keep=STEPS) as saves:
        start, skipped = 0, 0
        if saves.latest_step is not None:
            skipped = checkpoint.meta_of(workdir)[train.SKIPPED]
            start, states = train.resume(saves, states, built)
        train.loop(config, workdir, saves, setup, states, built, start, skipped=skipped)
    return [row["vae_sft/skipped"] for row in logs.read_metrics(workdir)]


def commits(workdir):
    """Everything that is committed, by step."""
    with checkpoint.Checkpoints(workdir) as saves:
        steps = saves.steps
    folders = {at: workdir / "checkpoints" / str(at) for at in steps}
    trees = {at: checkpoint.restore_subtree(path, ["vae"]) for at, path in folders.items()}
    return {at: [np.asarray(x) for x in jax.tree.leaves(tree)] for at, tree in trees.items()}


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_step_with_nan_is_skipped_counted_and_never_committed(step, tmp_path):
    """The commit behind it has the bits of the one before it, and training goes on."""
    assert run(step, tmp_path, {3: jnp.nan}, steps=4, every=1) == [0, 0, 1, 0]
    found = commits(tmp_path)
    assert same(found[2], found[3])
    assert not same(found[1], found[2]) and not same(found[3], found[4])
    assert all(np.isfinite(x).all() for leaves in found.values() for x in leaves)


def test_nan_in_a_row_stops_the_run_and_loses_nothing(step, tmp_path):
    """What was learned before it is committed; without the cause the same command goes on."""
    broken = {3: jnp.nan, 4: jnp.inf, 5: jnp.nan}
    message = r"step 4: 2 steps in a row had NaN .* \(config.limit_skipped\); what was learned"
    with pytest.raises(ValueError, match=message):
        run(step, tmp_path, broken)
    # What a step did is read while the next one is computed, which is therefore there, too.
    (at,) = found = commits(tmp_path)
    assert at == 5
    run(step, tmp_path / "good", {}, steps=2)
    assert same(found[5], commits(tmp_path / "good")[2])
    assert run(step, tmp_path, {}) == [0, 0, 1, 1, 1, 0]


def test_nan_that_stays_stops_every_start(step, tmp_path):
    """The first of a new start is one too many; a good one is forgiven."""
    broken = dict.fromkeys(range(3, 9), jnp.nan)
    for last in (5, 7):
        with pytest.raises(ValueError, match=rf"step {last - 1}: \d steps in a row had NaN"):
            run(step, tmp_path, broken, steps=9)
        assert max(commits(tmp_path)) == last
    assert run(step, tmp_path, {}, steps=9) == [0, 0, 1, 1, 1, 1, 1, 0, 0]


def test_nan_at_the_very_end_is_never_called_finished(step, tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="step 6: 2 steps in a row"):
            run(step, tmp_path, {5: jnp.nan, 6: jnp.nan})


@pytest.mark.parametrize(
    ("what", "cause"), [("early", "a reward is not finite"), ("data", "no picture can be read")]
)
def test_an_error_loses_no_step(what, cause, step, tmp_path):
    """It stops the run in front of the step, and the same command takes that step again."""
    message = f"step 3: {cause}; step 2 is committed, and the run goes on from there"
    with pytest.raises(ValueError, match=message):
        run(step, tmp_path, {3: what})
    assert list(commits(tmp_path)) == [2]
    run(step, tmp_path, {})
    run(step, tmp_path / "whole", {})
    assert same(commits(tmp_path)[STEPS], commits(tmp_path / "whole")[STEPS])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({1: "early"}, "step 1: a reward is not finite$"),
        ({2: "late"}, "step 2: a reward is not finite; steps behind the last commit are lost$"),
    ],
)
def test_where_there_is_nothing_to_commit_nothing_is(spoil, message, step, tmp_path):
    """Not in the first step, nor where the device already has the states."""
    with pytest.raises(ValueError, match=message):
        run(step, tmp_path, spoil)
    assert not checkpoint.has_commit(tmp_path)


def test_a_commit_that_fails_as_well_hides_nothing(step, tmp_path, monkeypatch):
    def full(*_, **__):
        raise ValueError("the disk is full")

    monkeypatch.setattr(checkpoint.Checkpoints, "save", full)
    message = "step 3: a reward is not finite; and step 2 cannot be committed: the disk is full"
    with pytest.raises(ValueError, match=message):
        run(step, tmp_path, {3: "early"})
