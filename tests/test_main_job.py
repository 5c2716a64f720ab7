# SPDX-License-Identifier: Apache-2.0
"""The main job in miniature: phases alternate, the other tree stands still, kill and resume."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import sepgrpo
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
    """The command line of the main job in miniature, as a process."""
    line = [sys.executable, "-m", "thinkgen_jax.train", "--config=configs/sepgrpo.py:tiny"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*line, f"--workdir={workdir}"], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The main job in miniature: one step of each phase."""
    workdir = tmp_path_factory.mktemp("whole")
    process = main_job(workdir)
    said = process.communicate()[1]
    assert process.returncode == 0, said[-2000:]
    return workdir


def test_phases_alternate_and_report(uninterrupted):
    rows = logs.read_metrics(uninterrupted)
    assert [row["step"] for row in rows] == [1, 2]
    assert "mllm_grpo/reward" in rows[0] and "dit_grpo/reward" in rows[1]
    for row in rows:
        name = "mllm_grpo" if row["step"] == 1 else "dit_grpo"
        # Random weights write no marker: then every group is dropped and no token counts.
        learnt = row[f"{name}/dropped_groups"] < 1
        assert row[f"{name}/ratio_first"] == pytest.approx(float(learnt), abs=1e-6)
        assert row[f"{name}/skipped"] == 0
    assert (uninterrupted / "report.md").is_file()
    assert list((uninterrupted / "pictures").rglob("*.png"))


def test_the_other_tree_is_frozen(uninterrupted):
    """Step 1 moves the MLLM alone, step 2 the DiT alone."""
    config = sepgrpo.get_config("tiny")
    first, last = leaves(uninterrupted, 1), leaves(uninterrupted, 2)
    with jax.set_mesh(sharding.make_mesh(**config.mesh)):
        dit = starts.tree_params(config, starts.system_of(config), "dit", logs.setup())
    for key, value in jax.tree_util.tree_leaves_with_path(dit):
        name = f"['dit']['params']{jax.tree_util.keystr(key)}"
        np.testing.assert_array_equal(first[name], value, err_msg=name)
    moved = {key for key in first if not np.array_equal(first[key], last[key])}
    assert moved and all("dit" in key.split("]")[0] for key in moved)


def test_kill_and_resume_ends_with_the_same_bits(uninterrupted, tmp_path):
    workdir = tmp_path / "killed"
    process = main_job(workdir)
    deadline = time.monotonic() + 400
    while not (workdir / "checkpoints" / "1").is_dir():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for last_word in ("report", "finished"):  # goes on; then has nothing left to do
        again = main_job(workdir)
        said = again.communicate()[1]
        assert again.returncode == 0 and last_word in said, said[-2000:]
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
