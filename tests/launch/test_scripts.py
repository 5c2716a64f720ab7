# SPDX-License-Identifier: Apache-2.0
"""Dry runs of the launch scripts: what they would execute, and what they refuse."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
PLACE = {"PROJECT": "mine", "ZONE": "there", "RUNS": "/runs"}
STAGES = ("align", "pretrain", "finetune", "mllm_grpo", "dit_grpo")


def dry(script, *args, **env):
    """Status, commands as lists of words, and the errors of a dry run."""
    kept = {k: v for k, v in os.environ.items() if k not in (*PLACE, "SPOT", "SLICE", "START")}
    done = subprocess.run(
        [LAUNCH / script, "--dry-run", *args], env=kept | env, capture_output=True, text=True
    )
    return done.returncode, [shlex.split(line) for line in done.stdout.splitlines()], done.stderr


def scripts():
    return sorted(LAUNCH.glob("*.sh"))


@pytest.mark.parametrize("script", scripts(), ids=lambda path: path.name)
def test_every_script_parses_and_can_be_executed(script):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def test_a_slice_is_created_set_up_used_and_given_back():
    status, commands, _ = dry("tpu.sh", "train", "one", "v5e-256", "--config=c.py", **PLACE)
    assert status == 0
    created, made, copied, installed, trained, deleted = commands
    assert created[3:5] == ["queued-resources", "create"]
    assert {"--accelerator-type=v5litepod-256", "--project=mine", "--zone=there"} <= set(created)
    assert "--spot" not in created
    assert {"scp", "requirements.txt", "one:thinkgen_jax/"} <= set(copied)
    for words in (made, copied, installed, trained):
        assert "--worker=all" in words
    assert "launch/requirements-tpu.txt" in installed[-1]
    assert "python -m thinkgen_jax.train --distributed --config=c.py" in trained[-1]
    assert deleted[3:6] == ["queued-resources", "delete", "one"]


def test_spot_capacity_is_asked_for():
    _, commands, _ = dry("tpu.sh", "create", "one", "v6e-64", **PLACE, SPOT="1")
    assert "--spot" in commands[0]


def test_words_reach_the_workers_whole():
    _, commands, _ = dry("tpu.sh", "run", "one", "m", "a b", "c'd", **PLACE)
    assert shlex.split(commands[0][-1])[-2:] == ["a b", "c'd"]


@pytest.mark.parametrize("slice_", ["v5p-64", "v6e-64"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_stages_start_where_the_one_before_ended(number, slice_):
    name = STAGES[number - 1]
    script = f"stage{number}-{name.replace('_', '-')}.sh"
    status, commands, errors = dry(script, "--config.seed=3", **PLACE, SLICE=slice_)
    assert status == 0, errors
    train = shlex.split(commands[4][-1])
    dit = ["OmniGen2", "align", "pretrain", "finetune", "finetune"][number - 1]
    assert f"--config=configs/{name}.py:thinkgen,mesh={slice_}" in train
    assert f"--config.start.dit=/runs/{dit}" in train and f"--workdir=/runs/{name}" in train
    assert train[-1] == "--config.seed=3"


def test_main_job_on_a_slice_and_on_one_host():
    status, commands, _ = dry("sepgrpo-v5e-256.sh", **PLACE, START="released")
    train = commands[4][-1]
    assert status == 0 and "--checkpoint=/runs/ThinkGen" in train
    assert "mesh=v5e-256" in train.replace("\\", "")
    status, commands, _ = dry("sepgrpo-gpu-8.sh", RUNS="/runs")
    assert status == 0 and "--config=configs/sepgrpo.py:thinkgen,mesh=gpu-8" in commands[0]


def test_topologies_names_every_recipe():
    status, commands, _ = dry("topologies.sh", "v5p-64", "tpu7x-32")
    assert status == 0 and len(commands) == 4
    assert sum(any(word.startswith("--full=") for word in words) for words in commands) == 2


@pytest.mark.parametrize(
    ("script", "args", "env", "message"),
    [
        ("tpu.sh", ("create", "one", "v5p-64"), {}, "PROJECT and ZONE must be set"),
        ("tpu.sh", ("create", "one", "v9-64"), PLACE, "no slice is called v9-64"),
        ("tpu.sh", ("grow", "one"), PLACE, "launch/tpu.sh"),
        ("recipe.sh", ("align", "v5p-8"), PLACE, "no mesh is known for v5p-8"),
        ("recipe.sh", ("paint", "v5p-64"), PLACE, "no recipe is called paint"),
        ("sepgrpo-gpu-8.sh", (), {}, "RUNS must be set"),
    ],
)
def test_mistakes_are_told(script, args, env, message):
    status, commands, errors = dry(script, *args, **env)
    assert status != 0 and message in errors and not commands
