# SPDX-License-Identifier: Apache-2.0
"""The training door: arguments and refusals; what it does: test_recipes.py, test_main_job.py."""

import contextlib
import ctypes
import importlib
import io
import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from thinkgen_jax import checkpoint, logs, parts, phases, recipe, train
from thinkgen_jax.hf import assets
from thinkgen_jax.models import presets
from thinkgen_jax.optim import OptimConfig
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps import turns
from thinkgen_jax.steps.state import Learner

ROOT = Path(__file__).parents[1]
RECIPES = sorted(
    p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common")
)


def config_of(name, arg="tiny"):
    return importlib.import_module(f"configs.{name}").get_config(arg)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_answers_its_arguments(name):
    small = ("nano_vae", "nano_mllm", "nano_dit", "nano_signs", "served")
    for arg in (None, "tiny", *(() if name in small else ("thinkgen", "thinkgen,mesh=v5p-64"))):
        config = config_of(name, arg)
        assert config.name == name and config.steps > 0
        json.dumps(config.to_dict())


@pytest.mark.parametrize("arg", ["huge", "tiny,mesh=moon", "tiny,speed=9"])
def test_unknown_arguments_are_refused(arg):
    with pytest.raises(ValueError, match="is not one of|known are"):
        config_of("align", arg)


def refused(change, words, tmp_path, name="nano_mllm"):
    config = config_of(name)
    with config.unlocked():
        change(config)
    with pytest.raises(ValueError, match=words):
        train.run(config, tmp_path / "run")


def test_refuses_a_missing_start(tmp_path):
    refused(lambda c: c.start.update(mllm="runs/none"), "config.start.mllm=runs/none", tmp_path)


def test_refuses_a_mesh_without_devices(tmp_path):
    refused(lambda c: c.mesh.update(data=64), "needs 64 devices", tmp_path)


def test_refuses_a_batch_that_the_mesh_does_not_divide(tmp_path):
    change = lambda c: c.mesh.update(fsdp=8)  # noqa: E731
    refused(change, "text_sft: batch = 2 is not divisible by 8", tmp_path)


def test_refuses_group_size_one(tmp_path):
    change = lambda c: c.plans.mllm_grpo.update(group=1)  # noqa: E731
    refused(change, "group = 1", tmp_path, "mllm_grpo")


GROUPS = ("mllm_grpo", "dit_grpo")
TOO_LOW = [
    ("steps", 0, 1),
    ("steps", -1, 1),
    ("limit_skipped", 0, 1),
    ("checkpoint.every", 0, 1),
    ("log.images", 0, 1),
    ("evaluate.count", -1, 0),
    ("evaluate.steps", 0, 1),
    ("optim.dit.accumulate", 0, 1),
    ("plans.mllm_grpo.inner", 0, 1),
    ("plans.dit_grpo.prompts", 0, 1),
    ("plans.dit_grpo.draw.steps", 0, 1),
    ("plans.dit_grpo.streams.a_drawn.length", 0, 1),
    ("plans.mllm_grpo.streams.b_edited.pictures", -1, 0),
    ("plans.mllm_grpo.draw.temperature", -0.5, 0),
    ("plans.mllm_grpo.draw.halvings", -1, 0),
    ("plans.mllm_grpo.streams.a_drawn.weight", -1.0, 0),
    ("plans.mllm_grpo.streams.a_drawn.weight", math.inf, 0),
    ("plans.mllm_grpo.streams.a_drawn.scenarios.reasoning", math.nan, 0),
]


@pytest.mark.parametrize(("key", "value", "least"), TOO_LOW)
def test_numbers_out_of_range_are_refused_before_anything_is_read(
    key, value, least, tmp_path, monkeypatch
):
    """The words name the key, the value and the bound."""
    monkeypatch.setattr(recipe, "load", None)
    plan = next((f"plans.{name}" for name in GROUPS if key.startswith(f"plans.{name}.")), "")
    told = f"config.{plan}: {key.removeprefix(plan + '.')}" if plan else f"config.{key}"
    words = re.escape(f"{told} = {value}: must be at least {least}")
    refused(lambda c: c.update_from_flattened_dict({key: value}), words, tmp_path, "sepgrpo")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim.dit.lr", -1.0, r"config.optim.dit.lr=-1.0: must be >= 0"),
        ("optim.mllm.b2", 1.0, r"config.optim.mllm.b2=1.0: must be in \[0, 1\)"),
        ("plans.dit_grpo.path.kernel", "euler", "dit_grpo: path.kernel = 'euler' is not one of"),
        ("plans.mllm_grpo.token.temperature", 0.0, "mllm_grpo: token.temperature = 0.0: must be"),
        ("plans.dit_grpo.streams.a_drawn.weight", 0.0, "streams: one of their weights must be"),
        ("plans.dit_grpo.rewards.miniature_robust", math.nan, "miniature_robust = nan: must be f"),
        ("plans.mllm_grpo.scenario_rewards", {"reasoning": {"form": math.inf}}, "form = inf: must"),
        ("phases", ("mllm_grpo", 1), "config.phases: 'mllm_grpo' must be a phase and its steps"),
        ("phases", (("mllm_grpo", 0),), r"config.phases: \('mllm_grpo', 0\) must be a phase"),
        ("phases", (("mllm_grpo", 1), ("dit_grpo",)), r"config.phases: \('dit_grpo',\) must be"),
        ("phases", (("mllm_grpo", 1, 2),), r"config.phases: \('mllm_grpo', 1, 2\) must be"),
        ("phases", ((1, "mllm_grpo"),), r"config.phases: \(1, 'mllm_grpo'\) must be a phase"),
        ("phases", (3,), "config.phases: 3 must be a phase and its steps"),
    ],
)
def test_values_that_mean_nothing_are_refused_before_anything_is_read(
    key, value, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(recipe, "load", None)

    def change(config):
        *blocks, name = key.split(".")
        for block in blocks:
            config = config[block]
        config[name] = value

    refused(change, message, tmp_path, "sepgrpo")


@pytest.mark.parametrize(("key", "least"), [("prepad", 0), ("thought_tokens", 1)])
def test_sizes_below_nothing_are_refused(key, least, tmp_path):
    words = f"config.{key} = {least - 1}: must be at least {least}"
    refused(lambda c: c.update({key: least - 1}), words, tmp_path, "dit_grpo")


def test_pictures_that_nobody_named_are_missed_before_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "load", None)
    with pytest.raises(ValueError, match="config.plans.flow_sft: corpus.sources.*path is not set"):
        train.run(config_of("align", "thinkgen"), tmp_path / "run")


def test_refuses_an_unknown_phase(tmp_path):
    refused(lambda c: c.update(phases=(("dream", 1),)), "dream", tmp_path)
    refused(lambda c: c.update(phases=()), "config.phases is empty", tmp_path)


def test_refuses_weights_of_another_size(tmp_path):
    words = "the shipped weights are nano, not tiny"
    refused(lambda c: c.start.update(mllm="assets"), words, tmp_path, "mllm_grpo")


def test_refuses_an_unknown_reward(tmp_path):
    change = lambda c: c.plans.mllm_grpo.update(rewards={"beauty": 1.0})  # noqa: E731
    refused(
        change, "config.plans.mllm_grpo: rewards: 'beauty' is not one of", tmp_path, "mllm_grpo"
    )


def test_recipes_of_the_nano_system_know_no_released_size():
    with pytest.raises(ValueError, match="'thinkgen' is not one of"):
        config_of("nano_vae", "thinkgen")


def test_without_prepadding_none_learns():
    config = config_of("align")
    assert "prepad_embed" in recipe.learner(config, "dit").config.trainable
    config.prepad = 0
    assert recipe.learner(config, "dit").config.trainable == ("caption_embedder",)


def test_commits_are_compared_over_whole_rounds():
    """14 + 8 steps with a commit every 10; a round of 1 with one every 200."""
    config = config_of("sepgrpo", None)
    config.phases = (("mllm_grpo", 14), ("dit_grpo", 8))
    assert train.window(config) == 22
    assert train.window(config_of("align", None)) == 200
    recent = deque([1.0, math.nan], maxlen=3)
    assert train.standing(recent) is None
    recent.append(2.0)
    assert train.standing(recent) == 1.5


def test_refuses_an_unknown_scenario(tmp_path):
    refused(lambda c: c.evaluate.update(scenarios=("cooking",)), "'cooking'", tmp_path)


def test_refuses_another_config_and_starts_fresh(tmp_path):
    config = config_of("nano_vae")
    folder = tmp_path / "run"
    folder.mkdir()
    train.check_config(folder, config, fresh=False)
    (folder / "config.json").write_text(json.dumps(recipe.plain(config)))
    train.check_config(folder, config, fresh=False)
    config.seed = 7
    (folder / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(ValueError, match="seed: 0 -> 7"):
        train.check_config(folder, config, fresh=False)
    train.check_config(folder, config, fresh=True)
    assert not list(folder.iterdir())
    assert len(list(tmp_path.iterdir())) == 2  # the old run was moved aside, not deleted


def test_what_was_refused_is_not_agreed_with(tmp_path):
    """The line put right works in the same folder."""
    refused(lambda c: c.plans.mllm_grpo.update(group=1), "group = 1", tmp_path, "mllm_grpo")
    train.check_config(tmp_path / "run", config_of("mllm_grpo"), fresh=False)


def test_a_run_without_a_commit_binds_nobody(tmp_path, monkeypatch):
    """What it measured before the first step goes with its config."""
    folder, config = tmp_path / "run", config_of("nano_vae")
    with monkeypatch.context() as patch:
        patch.setattr(train, "loop", failing)
        with pytest.raises(ValueError, match="step 1: no"):
            train.run(config, folder)
    assert (folder / "config.json").exists()
    (folder / "before.json").write_text("[{}, {}]")
    train.keep_config(folder, config)
    assert (folder / "before.json").exists()
    config.seed = 7
    train.run(config, folder)
    assert not (folder / "before.json").exists()
    assert json.loads((folder / "config.json").read_text())["seed"] == 7
    config.seed = 8
    with pytest.raises(ValueError, match="seed: 7 -> 8"):
        train.run(config, folder)


def failing(*_):
    raise ValueError("step 1: no")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=configs/nano_vae.py:tiny", "--config.foo=1"], "--config.foo=1: the config has"),
        (["--config=configs/nano_vae.py:huge"], "'huge' is not one of"),
        (["--config=configs/none.py"], "No such file"),
        (["--config=configs/nano_vae.py:tiny", "--config.steps=many"], "many"),
        (["--config=configs/nano_vae.py:tiny", "--speed=9"], "speed"),
        (["--config=configs/nano_vae.py:tiny", "--gpus=0"], "--gpus needs --distributed"),
        (["--config=configs/nano_vae.py:tiny", "--distributed", "--gpus=x"], "--gpus=x must be"),
    ],
)
def test_one_line_for_what_is_wrong(words, message):
    run = [sys.executable, "-m", "thinkgen_jax.train", *words]
    found = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    (line,) = found.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_guard_stops_after_too_many_skipped_steps():
    guard = train.Guard(2)
    for step, skipped in enumerate((1.0, 0.0, 1.0, 1.0), start=1):
        guard.see(step, {"skipped": skipped})
        guard.check()
    guard.settle()
    with pytest.raises(ValueError, match="step 4: 2 steps in a row"):
        guard.check()


def test_log_probabilities_that_drift_stop_a_run_that_goes_on_without_them(tmp_path, monkeypatch):
    """Told one iteration late, with all of them committed; any drift is too much here."""
    config, folder = config_of("dit_grpo"), tmp_path / "run"
    config.plans.dit_grpo.keep_old, config.checkpoint.every = True, 100
    begin = phases.KeptOld.__init__

    def strict(self, plan):
        begin(self, plan)
        self.limit = -1.0 if self.limit else None

    monkeypatch.setattr(phases.KeptOld, "__init__", strict)
    with pytest.raises(ValueError, match="step 2: keep_old: .* step 1 is committed"):
        train.run(config, folder)
    config.plans.dit_grpo.keep_old = False
    train.run(config, folder)
    assert "resumed at step 1 of 2" in (folder / "log.txt").read_text()


def test_three_steps_are_traced_into_the_run_folder(tmp_path):
    """Of two steps both; a trace is a file that names what ran."""
    config = config_of("nano_vae")
    train.run(config, tmp_path / "run", profile=0)
    (found,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    assert b"jit_step" in found.read_bytes()
    assert "profile: " in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("start", "profile", "first"),
    [(0, None, None), (0, 0, 2), (10, 0, 12), (0, 16, 15), (10, 4, 10), (0, 66, 63), (65, 0, 65)],
)
def test_the_steps_that_are_traced(start, profile, first):
    config = config_of("sepgrpo", None)
    config.steps = 66
    assert train.traced(config, start, profile) == first


def test_weights_and_biases_that_is_not_there_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    change = lambda c: c.log.update(wandb="mine")  # noqa: E731
    refused(change, "config.log.wandb = 'mine' needs .* launch/requirements-wandb.txt", tmp_path)
    assert not (tmp_path / "run" / "config.json").exists()


def test_who_is_told_may_change_in_a_run_that_goes_on(tmp_path):
    config = config_of("nano_vae")
    (tmp_path / "config.json").write_text(json.dumps(recipe.plain(config)))
    config.log.wandb = "mine"
    train.check_config(tmp_path, config, fresh=False)


class Still:
    """A stream of nothing, and the update of a phase that looks where optimizers are."""

    def __init__(self, learns, seen):
        self.learns, self.seen = learns, seen

    def __next__(self):
        return []

    def get_state(self):
        return {}

    def update(self, states, batch, key):
        places = {
            tree: {x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state)}
            for tree, state in states.items()
        }
        self.seen.append((self.learns, places))
        return states, {"loss": 0.0, "skipped": 0.0}, None


@contextlib.contextmanager
def interrupted(monkeypatch, *numbers):
    """Runs are sent signals while their first step is under way."""
    build, left = phases.build, list(numbers)

    def built(*given):
        phase = build(*given)

        def update(*taken):
            for number in [left.pop(0) for _ in numbers if left]:
                signal.raise_signal(number)
            return phase.update(*taken)

        return phase._replace(update=update)

    with monkeypatch.context() as patch:
        patch.setattr(phases, "build", built)
        yield


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_commits_says_how_to_go_on_and_goes_on(number, tmp_path, monkeypatch, capsys):
    config, folder = config_of("nano_vae"), tmp_path / "run"
    config.checkpoint.every = 100
    before = signal.getsignal(number)
    with interrupted(monkeypatch, number):
        with pytest.raises(SystemExit, match="stopped at step 1; the same command goes on"):
            train.run(config, folder)
    assert capsys.readouterr().err.count(train.STOPPING) == 1
    assert signal.getsignal(number) is before
    with checkpoint.Checkpoints(folder) as saves:
        assert saves.steps == (1,)
    train.run(config, folder)
    assert "resumed at step 1 of 2" in (folder / "log.txt").read_text()
    assert [row["step"] for row in logs.read_metrics(folder)] == [1, 2]


def test_a_second_ctrl_c_does_not_wait_for_the_commit(tmp_path, monkeypatch, capsys):
    config, folder = config_of("nano_vae"), tmp_path / "run"
    with interrupted(monkeypatch, signal.SIGINT, signal.SIGINT):
        with pytest.raises(KeyboardInterrupt):
            train.run(config, folder)
    assert capsys.readouterr().err.count(train.STOPPING) == 1
    assert not checkpoint.has_commit(folder)


def test_an_interrupt_is_answered_while_the_main_thread_is_deep_in_a_call(monkeypatch):
    """Two that arrive during it reach Python as one; they still count as two."""
    said, heard = io.StringIO(), []
    monkeypatch.setattr(sys, "stderr", said)

    def send():
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        while train.STOPPING not in said.getvalue() and not heard:
            time.sleep(0.01)
        heard.append("answered")
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), train._interrupts():
        threading.Thread(target=send).start()
        ctypes.CDLL(None).sleep(2)  # as a compilation does, it neither ends early nor runs handlers
        heard.append("awake")
        time.sleep(1)  # Python's own calls the handler
    assert heard[0] == "answered" and said.getvalue().count(train.STOPPING) == 1


def test_in_every_phase_the_other_optimizer_is_off_the_devices(tmp_path):
    config, seen = config_of("sepgrpo"), []
    config.steps = 4
    config.checkpoint.every = 4
    params = {"lm_head": {"kernel": jnp.ones((4, 4))}}
    states = {tree: learning.create(params, Learner(OptimConfig())) for tree in ("mllm", "dit")}
    built = {}
    for name in ("mllm_grpo", "dit_grpo"):
        still = Still(name.split("_")[0], seen)
        built[name] = phases.Phase(still.learns, still, still.update)
    system = presets.get("tiny")
    made = parts.build(system, assets.load_text(parts.ASSETS, system))
    setup = phases.Setup(made, {}, {}, {}, 0)
    with checkpoint.Checkpoints(tmp_path) as saves:
        train.loop(config, tmp_path, saves, setup, states, built, 0)
        assert saves.latest_step == 4
    usual = jax.devices()[0].default_memory().kind
    mllm, dit = {"mllm": {usual}, "dit": {turns.HOST}}, {"mllm": {turns.HOST}, "dit": {usual}}
    assert seen == [("mllm", mllm), ("dit", dit)] * 2
