# SPDX-License-Identifier: Apache-2.0
"""The main job with three real reward servers: to its end, and with one of them killed."""

import contextlib
import importlib.util
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from configs import served as recipe
from launch import served
from tests.test_main_job import leaves
from thinkgen_jax import logs
from thinkgen_jax.recipe import plans
from thinkgen_jax.rewards.remote import Client, Failed, Service

ROOT = Path(__file__).parents[2]
NEEDED = ("rapidocr", "onnxruntime", "torch")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
real = pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} not installed (.ci/requirements.txt)")
TINY = "configs/served.py:tiny"


def test_servers_are_those_of_the_config():
    config = recipe.get_config()
    assert list(served.SERVERS) == list(recipe.SERVED)
    place = served.Place(Path("x"), recipe.PORT, here=False, dry=True)
    for _, plan in plans(config):  # they are checked where they are read
        assert set(plan.rewards) == set(served.SERVERS)
        for name in served.SERVERS:
            assert plan.servers[name].urls == (place.url(name),)
    for server in served.SERVERS.values():
        assert all((ROOT / path).is_file() for path in server.needs)


def test_a_dry_run_tells_everything_and_does_nothing(tmp_path, capsys):
    place = served.Place(tmp_path / "out", 9000, here=False, dry=True)
    served.run(place, TINY, ["--config.seed=3"])
    lines = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]
    behind = list(served.BEHIND)
    assert lines[-1][: len(behind)] == behind and behind[0] not in sum(lines[:-1], [])
    modules = [words[words.index("-m") + 1] for words in lines]
    assert modules == (
        ["venv", "pip"] * 3
        + ["launch.tiny_siglip", *["launch.reward_server"] * 3]
        + ["thinkgen_jax.doctor", "thinkgen_jax.train"]
    )
    own = [words[0] for words in lines[7:10]]
    assert len(set(own)) == 3 and all(str(tmp_path) in path for path in own)
    url = "--config.plans.dit_grpo.servers.siglip2.urls=('http://127.0.0.1:9002',)"
    assert url in lines[10] and url in lines[11] and lines[11][-1] == "--config.seed=3"
    assert not (tmp_path / "out").exists()


def test_environments_are_made_again_when_requirements_change(tmp_path):
    place = served.Place(tmp_path, 9000, here=False, dry=False)
    made = tmp_path / "venvs" / "siglip2" / "made-of.txt"
    made.parent.mkdir(parents=True)
    made.write_text((ROOT / "launch/scorers/requirements-siglip2.txt").read_text())
    served.make(place, "siglip2")  # else it would install
    assert [p.name for p in made.parent.iterdir()] == ["made-of.txt"]


def test_hidden_time_is_weighed_by_time():
    rows = [
        {"dit_grpo/reward_seconds": s, "dit_grpo/reward_hidden": h, "dit_grpo/failed_groups": f}
        | {"dit_grpo/step_seconds": 5.0}
        for s, h, f in ((1.0, 0.2, 0.0), (3.0, 1.0, 0.5))
    ]
    assert served.told(rows) == (
        "dit_grpo: 2 steps in 10.0 s, rewards took 4.0 s, 80% of it hidden; groups of 0.5 steps "
        "dropped\nin all 80% of 4.0 s hidden"
    )


# --- for real ---


def free_ports():
    """The first of three ports in a row that nobody has."""
    for port in range(20_000, 30_000, 3):
        with contextlib.ExitStack() as held:
            try:
                for number in range(3):
                    held.enter_context(socket.create_server(("127.0.0.1", port + number)))
                return port
            except OSError:
                continue
    raise AssertionError("no ports")


def place_of(folder):
    return served.Place(folder, free_ports(), here=True, dry=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run whose servers live."""
    place = place_of(tmp_path_factory.mktemp("whole"))
    served.run(place, TINY, ["--config.plans.dit_grpo.drop_limit=0.0"])
    return place


@real
def test_three_servers_reward_a_run(whole):
    page = (whole.folder / "check" / "rewards-dit_grpo.md").read_text()
    for name in served.SERVERS:
        assert f"reward {name} " in page and whole.url(name) in page
        with Client(name, Service((whole.url(name),), tries=1)) as client:
            with pytest.raises(Failed):  # it was stopped
                client.health()
    rows = logs.read_metrics(whole.folder / "run")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["dit_grpo/failed_groups"] == 0 and rows[1]["dit_grpo/reward_seconds"] > 0
    told = [rows[1][f"dit_grpo/reward_{name}"] for name in served.SERVERS]
    assert np.isfinite(told).all()


@real
def test_a_server_left_dead_stops_the_run_and_the_same_line_goes_on(
    whole, tmp_path, monkeypatch, capfd
):
    """Killed between the two steps; what comes of it all is what would have come without."""
    place, started = place_of(tmp_path), {}
    start = served.start
    monkeypatch.setattr(served, "start", lambda *a: started.setdefault(a[1], start(*a)))
    monkeypatch.setattr(served, "do", lambda place, words: None)  # known set: scored above
    monkeypatch.setattr(served, "BEHIND", ())  # the suite's other tests would go first
    (tmp_path / "siglip").symlink_to(whole.folder / "siglip")

    def kill():
        end = time.monotonic() + 400
        while not (tmp_path / "run" / "checkpoints" / "1").is_dir() and time.monotonic() < end:
            time.sleep(0.02)
        started["word_ned"].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    line = ["--config.plans.dit_grpo.drop_limit=0.0"]
    with pytest.raises(served.Stopped) as stopped:
        served.run(place, TINY, line)
    killer.join()
    errors = [row for row in capfd.readouterr().err.splitlines() if row.startswith("error: ")]
    assert stopped.value.status == 2 and len(errors) == 1
    assert "step 2: " in errors[0] and "word_ned: http://" in errors[0]
    assert "step 1 is committed, and the run goes on from there" in errors[0]
    started.clear()
    served.run(place, TINY, line)
    got, want = leaves(tmp_path / "run"), leaves(whole.folder / "run")
    assert got.keys() == want.keys()
    for name in got:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    rows = logs.read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2] and rows[1]["dit_grpo/failed_groups"] == 0


@real
def test_a_server_killed_and_started_again_costs_groups_alone(whole, tmp_path, monkeypatch):
    """Killed behind the first step; the run is held while it starts again, however slow that is."""
    place, started, runs = place_of(tmp_path), {}, []
    start, name = served.start, "miniature_robust"

    class Held(subprocess.Popen):
        def __init__(self, words, **how):
            super().__init__(words, **how)
            runs.extend([self] if "thinkgen_jax.train" in words else [])

    monkeypatch.setattr(served, "start", lambda *a: started.setdefault(a[1], start(*a)))
    monkeypatch.setattr(served, "do", lambda place, words: None)  # known set: scored above
    monkeypatch.setattr(served, "BEHIND", ())  # the suite's other tests would go first
    monkeypatch.setattr(served.subprocess, "Popen", Held)
    (tmp_path / "siglip").symlink_to(whole.folder / "siglip")

    def reach(step):
        end = time.monotonic() + 400
        while not (tmp_path / "run" / "checkpoints" / str(step)).is_dir():
            assert time.monotonic() < end and (not runs or runs[0].poll() is None)
            time.sleep(0.02)

    def exchange():
        reach(1)
        started[name].kill()
        reach(2)
        os.kill(runs[0].pid, signal.SIGSTOP)
        try:
            started["again"] = start(place, name)
            served.wait(place, name, started["again"])
        finally:
            os.kill(runs[0].pid, signal.SIGCONT)

    other = threading.Thread(target=exchange)
    other.start()
    steps = "--config.phases=(('mllm_grpo', 1), ('dit_grpo', 5))"
    limit = "--config.plans.dit_grpo.drop_limit=1.0"
    try:
        served.run(place, TINY, [steps, "--config.steps=6", limit])
    finally:
        other.join()
        served.stop({name: started.get("again")})
    rows = logs.read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    failed = [row["dit_grpo/failed_groups"] for row in rows[1:]]
    # Of the second step no answer is had; groups without a valid response ask for none.
    assert failed[0] > 0 and failed[-1] == 0 and failed == sorted(failed, reverse=True)
    assert np.isfinite(rows[-1][f"dit_grpo/reward_{name}"])
