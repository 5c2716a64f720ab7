# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a command line or its config file ends in one line, behind every door."""

import pytest
from absl import flags
from absl.testing import flagsaver
from ml_collections import config_flags

from thinkgen_jax import cli, compile, doctor, precompute

CONFIG = "--config=configs/sepgrpo.py:tiny"
DOORS = {"compile": compile, "doctor": doctor, "precompute": precompute}


def told(known, run, words, monkeypatch, capsys):
    """The line that a door ends in."""
    monkeypatch.setattr("sys.argv", words)  # where a config's overrides are looked for
    with pytest.raises(SystemExit) as stop:
        cli.start(known, run)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([CONFIG, "--config.foo=1"], "--config.foo=1: the config has no such key"),
        ([CONFIG, "--config.optim.dit.rate=1"], "--config.optim.dit.rate=1: the config has no"),
        ([CONFIG, "--config.steps=many"], "many"),
        ([CONFIG, "--speed=9"], "speed"),
        ([CONFIG, "more"], "unknown arguments ['more']"),
        (["--config=configs/sepgrpo.py:huge"], "'huge' is not one of"),
        (["--config=configs/none.py"], "No such file"),
    ],
)
def test_one_line_for_what_is_wrong(words, message, monkeypatch, capsys):
    known = cli.values()
    config_flags.DEFINE_config_file("config", None, "Recipe.", flag_values=known)
    assert message in told(known, lambda: None, ["door", *words], monkeypatch, capsys)


@pytest.mark.parametrize("name", sorted(DOORS))
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([CONFIG, "--config.foo=1"], "--config.foo=1: the config has no such key"),
        (["--config=configs/none.py"], "No such file"),
    ],
)
def test_every_door_with_a_config_says_it(name, words, message, monkeypatch, capsys):
    door = DOORS[name]
    saved = flagsaver.save_flag_values(door.FLAGS)
    try:
        assert message in told(door.FLAGS, door.run, [name, *words], monkeypatch, capsys)
    finally:
        flagsaver.restore_flag_values(saved, door.FLAGS)


def test_a_mistake_inside_a_door_keeps_its_traceback(monkeypatch):
    def run():
        raise AttributeError("ours")

    known = cli.values()
    flags.DEFINE_integer("steps", 1, "Steps.", flag_values=known)
    monkeypatch.setattr("sys.argv", ["door", "--steps=2"])
    with pytest.raises(AttributeError, match="ours"):
        cli.start(known, run)


def test_a_door_looks_for_garbage_seldom(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(cli, "collect_rarely", lambda: called.append("before the run"))
    cli.start(cli.values(), lambda: called.append("the run"), ["door"])
    assert called == ["before the run", "the run"]
