# SPDX-License-Identifier: Apache-2.0
"""Encoding ahead: what is read again is what the frozen networks would have made in the step."""

import importlib
import json

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from tests.data import real
from thinkgen_jax import cli, logs, parts, precompute, recipe, sharding, starts, train
from thinkgen_jax.data import encoded, feeding
from thinkgen_jax.data.batches import Shape
from thinkgen_jax.hf import assets
from thinkgen_jax.steps import flow_sft


def config_of(path, **changes):
    config = importlib.import_module("configs.own").get_config("tiny")
    with config.unlocked():
        config.data = str(path)
        config.plans.flow_sft.update(drop=0.0)
        config.plans.flow_sft.corpus.update(clean=0.0, scales=(1.0,), broken=0.3, **changes)
    return config


def test_encodings_are_what_the_step_would_have_made(tmp_path, monkeypatch):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    for number in range(4):
        (tmp_path / f"a_cat_{number}.png").write_bytes(real.picture(number, size=(64, 64)))
    whole = (tmp_path / "a_cat_3.png").read_bytes()
    (tmp_path / "a_cat_3.png").write_bytes(whole[: len(whole) // 2])
    config, out = config_of(tmp_path), tmp_path / "coded"
    how = dict(batch=2, shard=2, dtype="float32")
    strict = config_of(tmp_path)
    strict.plans.flow_sft.corpus.broken = 0.1
    with pytest.raises(ValueError, match="1 of 4 records cannot be used, more than the share 0.1"):
        precompute.encode(strict, out, **how)
    assert precompute.encode(config, out, **how) == 3  # with a higher limit it goes on
    assert list(encoded.read_json(out / "skipped.json")) == ["a_cat_3.png"]

    # The same again changes nothing; a lost shard alone is made again, and equal.
    lost, kept = out / "0000-00000.array_record", out / "0000-00001.array_record"
    before, times = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    (out / "0000-00000.json").unlink()
    assert precompute.encode(config, out, **how) == 3
    assert lost.read_bytes() == before and kept.stat().st_mtime_ns == times
    with pytest.raises(ValueError, match=r"something else:\n  dtype: 'float32' -> 'bfloat16'"):
        precompute.encode(config, out, **{**how, "dtype": "bfloat16"})

    # Read again: the batches of the corpus, encoded.
    (tmp_path / "a_cat_3.png").unlink()
    found = encoded.Encodings(str(out))
    made, mean = encoded_live(config, 3)  # twice all records
    assert encoded.mean_tokens(found) == mean
    (data,), _ = encoded.streams(found, size=2, drop=0.0, seed=config.seed)
    tokens, states, segments = (
        np.concatenate(arrays)
        for arrays in zip(*((m.target.tokens, *m.condition) for m in made), strict=True)
    )
    for batch in (data[n] for n in range(3)):
        for row in range(2):
            apart = np.abs(tokens - batch.target.tokens[row]).max(axis=(1, 2))
            assert np.sort(apart)[0] < 1e-5 and (apart > 0.1).sum() == 4
            same, kept = apart.argmin(), batch.condition.segments[row]
            np.testing.assert_array_equal(kept, segments[same])
            words = states[same] * kept[:, None]
            np.testing.assert_allclose(batch.condition.states[row], words, atol=1e-5)

    # A stage learns from it without MLLM and autoencoder.
    config = importlib.import_module("configs.own").get_config("tiny")
    with config.unlocked():
        config.plans.flow_sft.corpus.encoded = str(out)
    monkeypatch.setattr(starts, "tree_params", only_dit(starts.tree_params))
    config.seed += 1  # what is random is other networks then
    with pytest.raises(ValueError, match="was made by another mllm .random, tiny, seed 0. than"):
        train.run(config, tmp_path / "other")
    config.seed -= 1
    rows = logs.read_metrics(train.run(config, tmp_path / "run"))
    assert len(rows) == 2 and all(np.isfinite(row["flow_sft/loss"]) for row in rows)


def test_draws_from_the_posterior_are_the_same_again(tmp_path):
    """One draw a picture: not the mode, not another's, and what a lost shard gets back."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    for number in range(2):  # the same picture twice
        (tmp_path / f"a_cat_{number}.png").write_bytes(real.picture(0, size=(64, 64)))
    how, found = dict(batch=1, shard=2, dtype="float32"), {}
    for name, sample in (("mode", False), ("drawn", True), ("again", True)):
        config = config_of(tmp_path)
        config.plans.flow_sft.sample = sample
        precompute.encode(config, tmp_path / name, **how)
        coded = encoded.Encodings(str(tmp_path / name))
        found[name] = np.stack([coded[n].target.tokens for n in range(2)])
    np.testing.assert_array_equal(found["again"], found["drawn"])
    np.testing.assert_array_equal(found["mode"][0], found["mode"][1])
    apart = [np.abs(a - b).mean() for a, b in (found["drawn"], (found["mode"], found["drawn"]))]
    assert min(apart) > 1e-4
    with pytest.raises(ValueError, match=r"something else:\n  sample: True -> False"):
        config.plans.flow_sft.sample = False
        precompute.encode(config, tmp_path / "drawn", **how)


def encoded_live(config, count):
    """What a step would make of the corpus' first batches of two, and mean tokens of a picture."""
    (plan,) = dict(recipe.plans(config)).values()
    system = starts.system_of(config)
    built = parts.build(system, assets.load_text(parts.ASSETS, system))
    with jax.set_mesh(sharding.make_mesh()):
        quiet = logs.setup()
        frozen = {t: starts.tree_params(config, system, t, quiet) for t in ("mllm", "vae")}
    shape, sizes = Shape(built.text, None, config.seed), dict(multiple=16, tokens=system.multiple)
    feed, mean = feeding.feed(plan.corpus, shape, **sizes, size=2, drop=0.0)
    frame = len(built.text.pseudo(""))
    run = jax.jit(lambda batch: flow_sft.encode(built.encoder, frozen, batch, frame=frame))
    return [jax.device_get(run(next(feed))) for _ in range(count)], mean


def only_dit(real_params):
    def params(config, system, tree, log):
        assert tree == "dit"
        return real_params(config, system, tree, log)

    return params


def test_what_cannot_be_encoded_is_refused(tmp_path):
    config = importlib.import_module("configs.own").get_config("tiny")
    with pytest.raises(ValueError, match="either streams or a corpus"):
        precompute.encode(config, tmp_path / "a", batch=2, shard=2, dtype="float32")
    config = importlib.import_module("configs.align").get_config("tiny")
    with pytest.raises(ValueError, match="no pictures to encode; give --config.data="):
        precompute.encode(config, tmp_path / "a", batch=2, shard=2, dtype="float32")
    with pytest.raises(ValueError, match="--batch=0"):
        precompute.encode(config, tmp_path / "a", batch=0, shard=2, dtype="float32")
    assert not (tmp_path / "a").exists()


def test_a_path_that_climbs_is_one_line_at_the_door(tmp_path, capsys, monkeypatch):
    """A PermissionError, which is no ValueError."""
    record = {"task_type": "t2i", "instruction": "a cat", "output_image": "../out.png"}
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text(json.dumps(record) + "\n")
    words = ["--config=configs/own.py:tiny", f"--config.data={tmp_path / 'in/a.jsonl'}"]
    # The flags of a config are found on the command line itself.
    monkeypatch.setattr("sys.argv", ["precompute", *words, f"--out={tmp_path / 'out'}"])
    saved = flagsaver.save_flag_values(precompute.FLAGS)
    try:
        with pytest.raises(SystemExit) as stop:
            cli.start(precompute.FLAGS, precompute.run)
    finally:
        flagsaver.restore_flag_values(saved, precompute.FLAGS)
    told = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and told.startswith("error: ") and "leads out of" in told
