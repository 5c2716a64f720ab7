# SPDX-License-Identifier: Apache-2.0
"""The main job cut short: phases alternate, the other tree stands still, kill and resume."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import sepgrpo
from tests import main_job as main_config
from thinkgen_jax import checkpoint, logs, recipe, sharding, starts, train

ROOT = Path(__file__).parents[1]


def leaves(workdir, step=None):
    """All arrays of a run's last (or given) commit, by path."""
    path = checkpoint.find(workdir if step is None else workdir / "checkpoints" / str(step))
    names = sorted({name.split("/")[0] for name in checkpoint.describe(path)})
    tree = checkpoint.restore_subtree(path, names)
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in found}


def main_job(workdir):
    """The command line of the main job in `main_job.py`, as a process."""
    line = [sys.executable, "-m", "thinkgen_jax.train", "--config=tests/main_job.py"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*line, f"--workdir={workdir}"], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Two steps of each phase."""
    workdir = tmp_path_factory.mktemp("whole")
    process = main_job(workdir)
    said = process.communicate()[1]
    assert process.returncode == 0, said[-2000:]
    return workdir


def test_phases_alternate_learn_and_report(uninterrupted):
    config, rows = main_config.get_config(), logs.read_metrics(uninterrupted)
    names = ["mllm_grpo", "dit_grpo"] * 2
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for name, row in zip(names, rows, strict=True):
        assert {key.split("/")[0] for key in row} == {"step", "seconds", name}
        # The DiT's old log-probabilities are those of its rollout.
        near = 1e-6 if name == "mllm_grpo" else config.plans.dit_grpo.path.clip / 10
        assert row[f"{name}/ratio_first"] == pytest.approx(1, abs=near)
        assert row[f"{name}/dropped_groups"] < 1 and 0 <= row[f"{name}/reward"] <= 1
        assert row[f"{name}/skipped"] == 0
    for name in names[:2]:  # of a single step all groups may be worth the same
        assert max(row.get(f"{name}/grad_norm", 0) for row in rows) > 0
    assert (uninterrupted / "report.md").is_file()
    assert list((uninterrupted / "pictures").rglob("*.png"))


def test_the_other_tree_is_frozen(uninterrupted):
    """Odd steps move the MLLM alone, even ones the DiT; moments stand still with their tree."""
    config = main_config.get_config()
    commits = [leaves(uninterrupted, step) for step in (1, 2, 3, 4)]
    begun = {}
    with jax.set_mesh(sharding.make_mesh(**config.mesh)):
        for tree in ("mllm", "dit"):
            params = starts.tree_params(config, starts.system_of(config), tree, logs.setup())
            for key, value in jax.tree_util.tree_leaves_with_path(params):
                begun[f"['{tree}']['params']{jax.tree_util.keystr(key)}"] = np.asarray(value)
    learners = ("mllm", "dit", "mllm", "dit")
    for (before, after), tree in zip(pairwise([begun, *commits]), learners, strict=True):
        moved = {key for key in before if not np.array_equal(before[key], after[key])}
        assert any(key.startswith(f"['{tree}']['params']") for key in moved)
        assert all(key.startswith(f"['{tree}']") for key in moved)


def first_step_begins(workdir):
    return (workdir / "events").exists()


def commit_is_under_way(workdir):
    """Orbax writes into a folder of another name, and renames it in the end."""
    folder = workdir / "checkpoints"
    return folder.exists() and any("tmp" in path.name for path in folder.iterdir())


def committed(step):
    return lambda workdir: (workdir / "checkpoints" / str(step)).is_dir()


def test_killed_at_many_moments_it_ends_with_the_same_bits(uninterrupted, tmp_path):
    """In the first step, within a commit, behind one, and between the last one and the report."""
    workdir = tmp_path / "killed"
    for moment in (first_step_begins, commit_is_under_way, committed(2), committed(4)):
        process = main_job(workdir)
        deadline = time.monotonic() + 400
        while not moment(workdir):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # Goes on, unless the last kill came too late; then has nothing left to do.
    rest = ("finished",) if (workdir / "report.md").exists() else ("report", "finished")
    for last_word in rest:
        again = main_job(workdir)
        said = again.communicate()[1]
        assert again.returncode == 0 and last_word in said, said[-2000:]
    assert [row["step"] for row in logs.read_metrics(workdir)] == [1, 2, 3, 4]
    a, b = leaves(workdir), leaves(uninterrupted)
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_effects_are_measured_one_tree_at_a_time(tmp_path, monkeypatch):
    """What counts as before, and who has learned, at each of the three evaluations."""
    config = sepgrpo.get_config("tiny")
    with config.unlocked():
        config.steps, config.evaluate.count = 1, 4
    seen = []

    def sampled(parts, params, **more):
        trees = params.mllm, params.dit
        seen.append([float(jax.tree.leaves(tree)[0].reshape(-1)[0]) for tree in trees])
        return {"reward": np.arange(4.0) + sum(seen[-1])}, {"reward": np.arange(4)}

    monkeypatch.setattr(recipe.miniature, "sampled", sampled)
    monkeypatch.setattr(train, "loop", lambda *args: _raised(args[4]))
    train.run(config, tmp_path)
    (mllm, dit), *later = seen
    assert later == [[mllm + 1, dit], [mllm + 1, dit + 1]]
    report = (tmp_path / "report.md").read_text()
    assert report.count("+1.000 [+1.000, +1.000]") == 2
    assert report.index("what the mllm learned") < report.index("what the dit learned")


def _raised(states):
    """What a training might give back: every parameter is 1 larger."""
    return {
        tree: state._replace(params=jax.tree.map(lambda x: x + 1, state.params))
        for tree, state in states.items()
    }
