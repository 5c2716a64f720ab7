# SPDX-License-Identifier: Apache-2.0
"""Two hosts, as processes of four devices each, do what one device does, and end together."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.hosts import rl_run, small_run
from thinkgen_jax import checkpoint, hosts, sharding

ROOT = Path(__file__).parents[2]
PATIENCE = 60  # seconds in which a host that lost another must have ended


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def start(tmp_path):
    """Starts both hosts; whatever is still there at the end is killed."""
    started = []

    def both(mode):
        address = f"127.0.0.1:{free_port()}"
        for index in range(2):
            command = [sys.executable, "-m", "tests.hosts.worker", address, "2", str(index)]
            with (tmp_path / f"out-{index}").open("w") as out:
                process = subprocess.Popen(
                    [*command, str(tmp_path), mode],
                    cwd=ROOT,
                    env={**os.environ, "JAX_PLATFORMS": "cpu"},
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            started.append(process)
        return started

    yield both
    for process in started:
        process.kill()
        process.wait()


def told(tmp_path, index):
    return (tmp_path / f"out-{index}").read_text(errors="replace")


def test_two_hosts_are_one_device_and_their_commit_is_read_on_another_mesh(start, tmp_path):
    for index, process in enumerate(start("steps")):
        assert process.wait(timeout=240) == 0, told(tmp_path, index)
    state, step, batch = small_run.begin()
    losses = []
    for _ in range(small_run.STEPS):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    for index in range(2):
        found = json.loads((tmp_path / f"losses-{index}.json").read_text())
        np.testing.assert_allclose(found, losses, rtol=0, atol=1e-5)

    mesh = sharding.make_mesh(data=1, fsdp=2)
    with jax.set_mesh(mesh), checkpoint.Checkpoints(tmp_path) as saves:
        fresh, _, _ = small_run.begin(mesh)
        abstract = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            fresh,
            sharding.infer(fresh, mesh),
        )
        assert saves.latest_step == small_run.STEPS
        read = saves.restore(small_run.STEPS, {"mllm": abstract}).state["mllm"]
    kernel = read.params["decoder"]["mlp"]["up_proj"]["kernel"]
    assert len(kernel.sharding.device_set) == 2
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(read), jax.tree.leaves(state), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_two_hosts_reinforce_as_one_device_and_each_scores_its_own_pictures(start, tmp_path):
    """Also with a group that one server is silent about, and with a reward that fails on a host."""
    processes = start("rl")
    want, states, cause = rl_run.run()
    for index, process in enumerate(processes):
        assert process.wait(timeout=400) == 0, told(tmp_path, index)
    rows = rl_run.GROUPS * rl_run.GROUP
    assert "a picture that nobody can score" in cause
    assert [one["failed_groups"] for one in want] == [0, 0, 1 / 3, 1 / 3]
    for index in range(2):
        found, found_cause = json.loads((tmp_path / f"told-{index}.json").read_text())
        for one, other in zip(found, want, strict=True):
            for key in rl_run.KEPT:
                assert one[key] == pytest.approx(other[key], rel=1e-5, abs=1e-5), key
        assert "a picture that nobody can score" in found_cause
        assert ("host 1" in found_cause) == (index == 0), found_cause  # the last group is host 1's
        assert 0 < found[1]["scored"] <= rows / 2 < want[1]["scored"]
        assert found[1]["shown"] == 6  # the one group that lies on this host as a whole
    both = [json.loads((tmp_path / f"told-{index}.json").read_text())[0] for index in range(2)]
    for one, other, whole in zip(*both, want, strict=True):
        assert one["scored"] + other["scored"] == whole["scored"]
    params = np.load(tmp_path / "params.npz")
    leaves = jax.tree.leaves({name: state.params for name, state in states.items()})
    assert len(params.files) == len(leaves)
    for i, leaf in enumerate(leaves):
        np.testing.assert_allclose(params[str(i)], leaf, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_host_ends_the_other_with_its_cause(start, tmp_path, lost):
    processes = start("forever")
    begun = time.monotonic()
    while not all((tmp_path / f"alive-{i}").exists() for i in range(2)):
        assert time.monotonic() - begun < 240, told(tmp_path, 0) + told(tmp_path, 1)
        assert all(process.poll() is None for process in processes), told(tmp_path, 0)
        time.sleep(0.5)
    processes[lost].kill()
    assert processes[1 - lost].wait(timeout=PATIENCE) != 0
    cause = told(tmp_path, 1 - lost).lower()
    words = ("connection closed by peer", "connection reset", "heartbeat", "unavailable", "gloo")
    assert any(word in cause.replace("[gloo] rank", "") for word in words), cause[-2000:]


def test_a_cause_on_one_host_is_told_by_the_other(start, tmp_path):
    """Even where it waits for a sum that will not come; and what several hosts cannot do at all."""
    first, second = start("refused")
    assert first.wait(timeout=240) == 2 and second.wait(timeout=PATIENCE) != 0
    assert "\nOSError: no such weights\n" in told(tmp_path, 1)
    assert "error: host 1: no such weights\n" in told(tmp_path, 0), told(tmp_path, 0)


def test_two_hosts_end_with_one_line_each(tmp_path):
    """Host 0 alone looks whether the run in the folder has another config."""
    (tmp_path / "config.json").write_text('{"seed": 7}')
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)  # of a run that has committed
    address = f"--coordinator=127.0.0.1:{free_port()}"
    words = ["--config=configs/nano_mllm.py:tiny", "--config.mesh.data=2", f"--workdir={tmp_path}"]
    command = [sys.executable, "-m", "thinkgen_jax.train", *words, "--distributed", address]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    both = [
        subprocess.Popen(
            [*command, "--hosts=2", f"--host={n}"], cwd=ROOT, env=env, stderr=subprocess.PIPE
        )
        for n in range(2)
    ]
    try:
        errors = [one.communicate(timeout=240)[1].decode().strip() for one in both]
    finally:
        for one in both:
            one.kill()
            one.wait()
    assert [one.returncode for one in both] == [2, 2], errors
    cause = f"--workdir={tmp_path} holds a run of another config"
    for said, line in zip(errors, (f"error: {cause}", f"error: host 0: {cause}"), strict=True):
        assert f"\n{line}" in f"\n{said}" and "Traceback" not in said, said


def test_a_host_needs_all_of_its_flags():
    with pytest.raises(ValueError, match="--coordinator, --hosts and --host"):
        hosts.start("127.0.0.1:1", None, 0)
    with pytest.raises(ValueError, match=r"--host=2 must lie in \[0, --hosts=2\)"):
        hosts.start("127.0.0.1:1", 2, 2)
    for gpus in ([], [-1], [0, 0]):
        with pytest.raises(ValueError, match=r"--gpus=\[.*\] must be numbers from 0, each once"):
            hosts.start("127.0.0.1:1", 2, 0, gpus)


def test_alone_nothing_changes():
    batch = {"x": np.ones(3)}
    assert hosts.lay(batch, "rows") is batch and hosts.is_first() and not hosts.several()
    assert hosts.agree(True) and not hosts.agree(False)
    assert hosts.exchange({"x": 1}) == [{"x": 1}]
    numbers, rows = hosts.rows_here(jax.numpy.arange(6).reshape(3, 2))
    assert numbers.tolist() == [0, 1, 2] and rows.tolist() == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ValueError, match="^no server$"), hosts.together():
        raise ValueError("no server")
