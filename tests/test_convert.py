# SPDX-License-Identifier: Apache-2.0
"""The door that gathers trees of runs into a folder."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver

from tests.hf import released
from tests.toy import golden_tree, toy_text
from thinkgen_jax import checkpoint, cli, convert, parts
from thinkgen_jax.hf import adapters, assets, folders
from thinkgen_jax.models import presets
from thinkgen_jax.structs import TrainState


@pytest.fixture
def door():
    """Runs the door with given arguments."""
    saved = flagsaver.save_flag_values(convert.FLAGS)
    yield lambda *words: cli.start(convert.FLAGS, convert.run, ["convert", *words])
    flagsaver.restore_flag_values(saved, convert.FLAGS)


def commit(folder, tree, params, ema=None, **meta):
    with checkpoint.Checkpoints(folder) as saves:
        state = {tree: TrainState(jnp.zeros((), jnp.int32), params, {}, ema)}
        saves.save(1, state, data={}, meta={"preset": "tiny", **meta})


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
        (["--out=x"], "--out=x: nothing to write; name --mllm, --dit, --vae or --tokenizer"),
        (["--out=x", "--dit=run", "--dtype=float7"], "--dtype=float7"),
        (["--out=x", "--preset=huge"], "'huge' is not"),
        (["--out=x", "--dit=nowhere"], "nowhere"),
        (["--out=x", "--format=thinkgen", "--source=nowhere"], "--source=nowhere: no released"),
        (["--out=x", "--format=qwen3vl"], "--format=qwen3vl needs --mllm"),
    ],
)
def test_refusals(door, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        door(*words)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_released_folder_comes_back_with_what_a_run_learned(door, tmp_path):
    """Named trees are exchanged; all others, configs and words are the source's, byte by byte."""
    source = released.thinkgen(tmp_path / "source", shards=2)
    params = jax.tree.map(lambda x: x + 1, golden_tree("dit"))
    commit(tmp_path / "run", "dit", params)
    out = tmp_path / "out"
    door("--format=thinkgen", f"--source={source}", f"--dit={tmp_path / 'run'}", f"--out={out}")
    want = {p.relative_to(source): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    got = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert got.keys() == want.keys()
    changed = {str(p) for p in want if got[p] != want[p]}
    assert changed and all(
        p.startswith("transformer/") and p.endswith(".safetensors") for p in changed
    )
    system = folders.read_system(out)
    tree = folders.read_tree(out, system, "dit", shapes=params)
    jax.tree.map(np.testing.assert_array_equal, tree, params)


def test_an_mllm_alone_moves_between_folders(door, tmp_path):
    """Out of a pipeline into a Qwen3-VL of its own, and into one of ours."""
    source = released.thinkgen(tmp_path / "source")
    door("--format=qwen3vl", f"--source={source}", f"--out={tmp_path / 'qwen'}")
    assert folders.kind(tmp_path / "qwen") == "qwen3vl"
    got, want = (released.all_tensors(tmp_path / n) for n in ("qwen", "source/mllm"))
    released.assert_same_tensors(got, want)
    words = ["--format=assets", f"--mllm={tmp_path / 'qwen'}", f"--source={source}"]
    door(*words, f"--out={tmp_path / 'ours'}")
    system = assets.load_system(tmp_path / "ours")
    tree = assets.load_tree(tmp_path / "ours", system, "mllm", shapes=golden_tree("mllm"))
    assert jax.tree.structure(tree) == jax.tree.structure(golden_tree("mllm"))


def test_a_marker_goes_with_its_run(door, tmp_path, capsys):
    params, out = golden_tree("dit"), tmp_path / "out"
    commit(tmp_path / "run", "dit", params, system={"marker": "<INS>"})
    door(f"--dit={tmp_path / 'run'}", f"--out={out}", "--preset=tiny")
    assert assets.load_system(out).marker == "<INS>"
    source = released.thinkgen(tmp_path / "source")
    with pytest.raises(SystemExit):
        door(f"--dit={tmp_path / 'run'}", f"--out={out}", "--format=thinkgen", f"--source={source}")
    assert "markers ['<INS>'] cannot stand" in capsys.readouterr().err


QUERY = "layers.0.attn.to_q.weight"


def lora(folder, name, shape):
    """A random adapter of rank 2 and scale 3 for one weight [out, in]; returns what it adds."""
    rng = np.random.default_rng(0)
    b, a = (rng.normal(size=size).astype(np.float32) for size in ((shape[0], 2), (2, shape[1])))
    settings = adapters.AdapterSettings(r=2, lora_alpha=6, target_modules=("to_q",))
    adapters.write_adapter(folder, adapters.Adapter(settings, {name: (a, b)}))
    return 3 * b @ a


def test_an_adapter_is_merged(door, tmp_path):
    source = released.thinkgen(tmp_path / "source")
    want = released.weights("transformer")
    added = lora(tmp_path / "lora", QUERY, want[QUERY].shape)
    words = [f"--source={source}", f"--adapter={tmp_path / 'lora'}", f"--out={tmp_path / 'out'}"]
    door("--format=thinkgen", *words)
    found = released.all_tensors(tmp_path / "out" / "transformer")
    got = {key.split(":")[1]: tensor for key, tensor in found.items()}
    np.testing.assert_allclose(got.pop(QUERY), want.pop(QUERY) + added, rtol=1e-5, atol=1e-6)
    released.assert_same_tensors(got, want)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("layers.99.attn.to_q.weight", (), "layers.99.attn.to_q.weight is in no tree"),
        (QUERY, ("--format=qwen3vl",), "--adapter is one of the dit, and no dit is written"),
    ],
)
def test_adapters_without_a_place_are_refused(door, tmp_path, capsys, name, words, message):
    source = released.thinkgen(tmp_path / "source")
    lora(tmp_path / "lora", name, released.weights("transformer")[QUERY].shape)
    given = [f"--source={source}", f"--adapter={tmp_path / 'lora'}", f"--out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit):
        door("--format=thinkgen", *given, *words)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_a_folder_keeps_must_fit_what_is_written(door, tmp_path, capsys):
    """One config.json stands for all trees of a folder: none may be of another size."""
    commit(tmp_path / "run", "dit", golden_tree("dit"))
    system = presets.get("tiny")
    small = replace(system, vae=replace(system.vae, latent_channels=2))
    vae = parts.random_params(small, "vae", jax.random.key(0))
    nano = replace(system, name="nano"), "has the vae of preset 'nano', not 'tiny'"
    for kept, message in (nano, (small, "has a vae of other dimensions: ")):
        out = tmp_path / f"out-{kept.name}"
        assets.save(out, kept, {"vae": vae})
        before = {path: path.read_bytes() for path in out.iterdir()}
        with pytest.raises(SystemExit):
            door(f"--dit={tmp_path / 'run'}", f"--out={out}", "--preset=tiny")
        assert f"--out={out} {message}" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in out.iterdir()} == before
    foreign = released.thinkgen(tmp_path / "foreign") / "mllm"
    with pytest.raises(SystemExit):
        door(f"--dit={tmp_path / 'run'}", f"--out={foreign}", "--preset=tiny")
    assert "has a config.json that is not of the format" in capsys.readouterr().err


def test_refuses_a_tree_of_other_dimensions(door, tmp_path, capsys):
    commit(tmp_path / "run", "dit", golden_tree("dit"))
    with pytest.raises(SystemExit):
        door(f"--dit={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    assert "dit/" in capsys.readouterr().err and not (tmp_path / "out").exists()
