# SPDX-License-Identifier: Apache-2.0
"""A run whose reward server dies: a real server process, killed; groups dropped, stop, resume."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, dit_grpo
from tests.toy import SYSTEM, Counter, toy_text
from thinkgen_jax import checkpoint, logs, parts, recipe, rewards, train
from thinkgen_jax.phases import Phase, Setup
from thinkgen_jax.rewards.remote import Service
from thinkgen_jax.steps.state import TrainState
from thinkgen_jax.structs import Request, Sample

ROOT = Path(__file__).parents[1]
SCORER = """
ABOUT = {"reward": "mean", "version": "1", "floor": 0.0, "ceiling": 1.0}
load = lambda args: None
score = lambda state, samples: [float(s["image"].mean()) / 255 for s in samples]
"""
STEPS, GROUP, DEAD = 7, 2, 3  # the server dies before the third step


class Server:
    """A reward server in a process of its own, always at the same port."""

    def __init__(self, folder):
        self.scorer, self.port, self.process = folder / "mean.py", 0, None
        self.scorer.write_text(SCORER)
        self.start()

    def start(self):
        words = ["-m", "launch.reward_server", f"--scorer={self.scorer}", f"--port={self.port}"]
        self.process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        assert line.startswith("mean 1 at http://127.0.0.1:"), line
        self.port = int(line.rsplit(":", 1)[1])

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process = None


@pytest.fixture
def server(tmp_path):
    one = Server(tmp_path)
    yield one
    if one.process is not None:
        one.kill()


def run(server, workdir, before, *, drop_limit, start=0):
    """Steps through `train.loop`: a parameter that adds up batch · reward of what is not dropped.

    Args:
      before: by step from 1, what happens to the server before it.
    """
    config = dit_grpo.get_config("tiny")
    config.steps, config.checkpoint.every = STEPS, 100
    service = Service((f"http://127.0.0.1:{server.port}",), tries=1, timeout=10.0)
    scorer = rewards.Scorer({"far": 1.0}, {"far": service}, drop_limit=drop_limit)

    def update(states, batch, key):
        before.get(batch, lambda: None)()
        images = np.asarray(jax.random.randint(key, (4, 2, 2, 3), 0, 256), np.uint8)
        rated = scorer.rate([Sample(Request("p"), "", image) for image in images], GROUP)
        scorer.count(rated)
        kept = float(rated.parts["far"][~rated.failed].sum())
        state = states["dit"]
        new = {"w": state.params["w"] + batch * kept}
        metrics = {"reward": kept, "loss": 0.0, "failed_groups": float(rated.failed.mean())}
        return {"dit": state._replace(step=state.step + 1, params=new)}, metrics, None

    setup = Setup(parts.build(SYSTEM, toy_text(SYSTEM)), {}, {}, {}, 0)
    states = {"dit": TrainState(jnp.zeros((), jnp.int32), {"w": jnp.zeros(3)}, (), None)}
    built = {"dit_grpo": Phase("dit", Counter(), update)}
    with scorer, checkpoint.Checkpoints(workdir, keep=2) as saves:
        begun = 0
        if saves.latest_step is not None:
            begun, states = train.resume(saves, states, built)
        assert begun == start
        states = train.loop(config, workdir, saves, setup, states, built, begun)
    failed = [row["dit_grpo/failed_groups"] for row in logs.read_metrics(workdir)]
    return np.asarray(states["dit"].params["w"]), failed


def test_killed_and_back_loses_groups_and_goes_on(server, tmp_path):
    before = {DEAD: server.kill, DEAD + 2: server.start}
    got, failed = run(server, tmp_path / "run", before, drop_limit=0.5)
    assert failed == [0, 0, 1, 1, 0, 0, 0] and got.min() > 0


def test_a_server_may_have_moved_when_a_run_goes_on(tmp_path):
    """Another address, another patience: the same run. Another judge: another run."""
    config = dit_grpo.get_config("tiny")
    where = dict(urls=("http://old:1",), model="m", timeout=5.0)
    config.plans.dit_grpo.update(common.scoring({"judge": where}, judge=1.0))
    plain = json.dumps(recipe.plain(config))
    (tmp_path / train.CONFIG_FILE).write_text(plain)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)  # without a commit any config may begin
    config.plans.dit_grpo.servers.judge.urls = ("http://new:1", "http://new:2")
    config.plans.dit_grpo.servers.judge.timeout = 9.0
    config.plans.dit_grpo.drop_limit = 0.75
    train.check_config(tmp_path, config, fresh=False)
    config.plans.dit_grpo.servers.judge.model = "n"
    with pytest.raises(ValueError, match=r"dit_grpo.servers.judge.model: 'm' -> 'n'"):
        train.check_config(tmp_path, config, fresh=False)


def test_a_run_of_before_scenarios_had_rewards_goes_on(tmp_path):
    config = dit_grpo.get_config("tiny")
    plain = recipe.plain(config)
    assert plain["plans"]["dit_grpo"].pop("scenario_rewards") == {}
    (tmp_path / train.CONFIG_FILE).write_text(json.dumps(plain))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    train.check_config(tmp_path, config, fresh=False)
    with config.unlocked():
        config.plans.dit_grpo.scenario_rewards = {"text": {"form": 1.0}}
    with pytest.raises(ValueError, match="dit_grpo.scenario_rewards.text.form: None -> 1.0"):
        train.check_config(tmp_path, config, fresh=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(url="http://x"), r"servers.judge: urls are needed; unknown \['url'\]"),
        (dict(model="m"), "servers.judge: urls are needed"),
        (dict(urls=("http://x",), timeout="9"), "servers.judge: "),
        (dict(urls=("x",)), "servers.judge: urls = "),
    ],
)
def test_servers_that_are_none_are_told_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        recipe.service("judge", given)


def test_left_dead_the_run_stops_and_resumes_exactly(server, tmp_path):
    """At most two of ten steps may be lost; the third stops the run, with the second committed."""
    whole, _ = run(
        server, tmp_path / "whole", {DEAD: server.kill, DEAD + 2: server.start}, drop_limit=1.0
    )
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"step 5: 30% of the groups .* step 4 is committed"):
        run(server, tmp_path / "run", {DEAD: server.kill}, drop_limit=0.2)
    assert time.monotonic() - begun < 30
    server.start()
    got, failed = run(server, tmp_path / "run", {}, drop_limit=0.2, start=4)
    np.testing.assert_array_equal(got, whole)
    assert failed == [0, 0, 1, 1, 0, 0, 0]
