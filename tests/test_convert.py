# SPDX-License-Identifier: Apache-2.0
"""The door that gathers trees of runs into a folder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver

from tests.toy import golden_tree, toy_text
from thinkgen_jax import checkpoint, cli, convert
from thinkgen_jax.hf import assets
from thinkgen_jax.models import presets
from thinkgen_jax.structs import TrainState


@pytest.fixture
def door():
    """Runs the door with given arguments."""
    saved = flagsaver.save_flag_values(convert.FLAGS)
    yield lambda *words: cli.start(convert.FLAGS, convert.run, ["convert", *words])
    flagsaver.restore_flag_values(saved, convert.FLAGS)


def commit(folder, tree, params, ema=None):
    with checkpoint.Checkpoints(folder) as saves:
        state = {tree: TrainState(jnp.zeros((), jnp.int32), params, {}, ema)}
        saves.save(1, state, data={}, meta={"preset": "tiny"})


def test_takes_the_average_and_leaves_the_rest(door, tmp_path, capsys):
    """A run's running average goes into the folder; what is there already stays."""
    params = golden_tree("dit")
    commit(tmp_path / "run", "dit", params, jax.tree.map(lambda x: 2 * x, params))
    system = presets.get("tiny")
    out = tmp_path / "out"
    assets.save(out, system, {"vae": golden_tree("vae")}, toy_text(system))
    before = (out / "vae.safetensors").read_bytes()
    door(f"--dit={tmp_path / 'run'}", f"--out={out}", "--preset=tiny")
    assert (out / "vae.safetensors").read_bytes() == before
    got = assets.load_tree(out, system, "dit", shapes=params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=2**-8, atol=1e-30), got, params
    )
    assert f"{out}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--out is needed"),
        (["--out=x", "--preset=huge"], "'huge' is not"),
        (["--out=x", "--dit=nowhere"], "nowhere"),
    ],
)
def test_refusals(door, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        door(*words)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_refuses_a_tree_of_other_dimensions(door, tmp_path, capsys):
    commit(tmp_path / "run", "dit", golden_tree("dit"))
    with pytest.raises(SystemExit):
        door(f"--dit={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    assert "dit/" in capsys.readouterr().err and not (tmp_path / "out").exists()
