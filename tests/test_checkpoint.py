# SPDX-License-Identifier: Apache-2.0
"""Commits are complete or absent, come back bit for bit, and what does not fit is refused."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from thinkgen_jax import checkpoint
from thinkgen_jax.checkpoint import Checkpoints
from thinkgen_jax.structs import States, TrainState

ROOT = Path(__file__).parents[1]


def make_state(seed: int, width: int = 8) -> States:
    def one(key, ema):
        w = jax.random.normal(key, (4, width, 16))
        params = {"layers": {"q": {"kernel": w, "bias": jnp.ones((3,), jnp.bfloat16) / 3}}}
        opt_state = optax.adam(1e-3).init(params)
        return TrainState(jnp.int32(seed), params, opt_state, params if ema else None)

    keys = jax.random.split(jax.random.key(seed))
    return {"mllm": one(keys[0], True), "dit": one(keys[1], False)}


def abstract_of(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.dtype, a.shape, a.sharding) == (b.dtype, b.shape, b.sharding)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save(ckpt, step, state, **more):
    meta = {"phase": [0, step]}
    return ckpt.save(step, state, data={"a": {"next_index": 7}}, meta=meta, **more)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with the commits 10 and 20; tests copy it before they break it."""
    folder = tmp_path_factory.mktemp("run")
    with Checkpoints(folder) as ckpt:
        save(ckpt, 10, make_state(1))
        save(ckpt, 20, make_state(2))
    return folder


def test_round_trip_is_exact(run):
    want = make_state(2)
    with Checkpoints(run) as ckpt:
        assert (ckpt.steps, ckpt.latest_step) == ((10, 20), 20)
        got = ckpt.restore(20, abstract_of(want))
        older = ckpt.restore(10, abstract_of(want))
    assert_same(got.state, want)
    assert_same(older.state, make_state(1))
    assert got.data == {"a": {"next_index": 7}}
    assert (got.step, got.meta["phase"]) == (20, [0, 20])


def test_sharded_arrays_move_to_another_mesh_and_back(tmp_path):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    cut, whole = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P())
    w = jnp.arange(64.0).reshape(16, 4)
    here = {"w": w}
    cut_state, whole_state = {"w": jax.device_put(w, cut)}, {"w": jax.device_put(w, whole)}
    with Checkpoints(tmp_path) as ckpt:
        save(ckpt, 1, cut_state)
        save(ckpt, 2, here)
        assert_same(ckpt.restore(1, abstract_of(here)).state, here)
        assert_same(ckpt.restore(1, abstract_of(whole_state)).state, whole_state)
        assert_same(ckpt.restore(2, abstract_of(cut_state)).state, cut_state)
        plain = {"w": jax.ShapeDtypeStruct((16, 4), jnp.float32)}
        assert ckpt.restore(1, plain).state["w"].devices() == {jax.devices()[0]}


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    update = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
    state = {"w": jnp.arange(1_000_000.0)}
    want = np.asarray(state["w"]).copy()
    with Checkpoints(tmp_path) as ckpt:
        save(ckpt, 1, state)
        for _ in range(5):
            state = update(state)
        jax.block_until_ready(state)
        ckpt.wait()
        plain = {"w": jax.ShapeDtypeStruct((1_000_000,), jnp.float32)}
        np.testing.assert_array_equal(ckpt.restore(1, plain).state["w"], want)


def test_what_did_not_learn_is_where_it_came_from(tmp_path):
    start = {"mllm": "random", "dit": "assets", "vae": "runs/nano_vae-nano"}
    with Checkpoints(tmp_path) as ckpt:
        state = {"dit": make_state(1)["dit"]}
        ckpt.save(1, state, data={}, meta={"start": start})
    assert checkpoint.sources(tmp_path) == {"vae": start["vae"], "dit": str(tmp_path)}
    assert checkpoint.sources(tmp_path, start=["dit"]) == {"vae": start["vae"], "dit": "assets"}


def test_the_last_two_and_the_best_stay(tmp_path):
    with Checkpoints(tmp_path) as ckpt:
        for step, score in ((1, 0.1), (2, 0.9), (3, 0.3), (4, None), (5, 0.5)):
            assert save(ckpt, step, {"w": jnp.full((2,), step)}, score=score)
        ckpt.wait()
        assert (ckpt.steps, ckpt.best_step) == ((2, 4, 5), 2)
    with Checkpoints(tmp_path) as ckpt:  # the score is remembered
        assert not save(ckpt, 5, {"w": jnp.zeros(2)})  # already there: left as it is
        save(ckpt, 6, {"w": jnp.full((2,), 6)})
        ckpt.wait()
        assert (ckpt.steps, ckpt.best_step) == ((2, 5, 6), 2)
        plain = {"w": jax.ShapeDtypeStruct((2,), jnp.int32)}
        assert list(ckpt.restore(5, plain).state["w"]) == [5, 5]
    with pytest.raises(ValueError, match="config.checkpoint.keep=0"):
        Checkpoints(tmp_path, keep=0)


def test_subtrees_load_alone(run):
    want = make_state(2)
    names = ("dit/params", "mllm/ema/layers/q")
    for path in (run, run / "checkpoints", run / "checkpoints" / "20"):
        got = checkpoint.restore_subtree(path, names)
        assert_same(got["dit/params"], want["dit"].params)
        assert_same(got["mllm/ema/layers/q"], want["mllm"].ema["layers"]["q"])
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), want["dit"].params)
    got = checkpoint.restore_subtree(run, ("dit/params",), {"dit/params": half})["dit/params"]
    kernel = want["dit"].params["layers"]["q"]["kernel"]
    np.testing.assert_array_equal(got["layers"]["q"]["kernel"], kernel.astype(jnp.bfloat16))
    older = checkpoint.restore_subtree(run / "checkpoints" / "10", ("mllm/params",))
    assert_same(older["mllm/params"], make_state(1)["mllm"].params)
    with pytest.raises(ValueError, match="holds no 'dit/ema'"):
        checkpoint.restore_subtree(run, ("dit/ema",))


def test_others_start_from_the_average_where_there_is_one(run):
    assert checkpoint.learned(run) == {"mllm": "mllm/ema", "dit": "dit/params"}


def test_describe_lists_every_array(run):
    listing = checkpoint.describe(run)
    want = jax.tree.leaves(make_state(2))
    assert len(listing) == len(want)
    kernel = listing["mllm/params/layers/q/kernel"]
    assert (kernel.shape, kernel.dtype) == ((4, 8, 16), jnp.float32)


def test_other_dims_are_refused_with_both_shapes(run):
    wider = abstract_of(make_state(2, width=12))
    with Checkpoints(run) as ckpt, pytest.raises(ValueError) as err:
        ckpt.restore(20, wider)
    text = str(err.value)
    assert "mllm/params/layers/q/kernel: saved (4, 8, 16) float32, wanted (4, 12, 16)" in text
    # Kernels of params, mu, nu twice and one EMA.
    assert "7 arrays" in text and "and 2 more" in text and "\n" not in text
    with pytest.raises(ValueError, match=r"dit/params/layers/q/kernel: saved \(4, 8, 16\)"):
        checkpoint.restore_subtree(run, ("dit/params",), {"dit/params": wider["dit"].params})
    want = abstract_of(make_state(2))
    more = {**want, "dit": want["dit"]._replace(ema=want["dit"].params)}
    less = {**want, "mllm": want["mllm"]._replace(ema=None)}
    with Checkpoints(run) as ckpt:
        with pytest.raises(ValueError, match="dit/ema/layers/q/bias: saved absent"):
            ckpt.restore(20, more)
        with pytest.raises(ValueError, match="bfloat16, wanted absent"):
            ckpt.restore(20, less)


def test_missing_and_foreign_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match="no such directory"):
        checkpoint.find(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no commit"):
        checkpoint.find(tmp_path)
    (tmp_path / "7" / "default").mkdir(parents=True)
    with pytest.raises(ValueError, match="damaged or cut short"):
        checkpoint.find(tmp_path)
    (tmp_path / "7" / "meta").mkdir()
    (tmp_path / "7" / "meta" / "data.json").write_text('{"format": "another/1"}')
    with pytest.raises(ValueError, match="not a commit of this program"):
        checkpoint.restore_subtree(tmp_path, ("dit/params",))
    with Checkpoints(run) as ckpt, pytest.raises(ValueError, match="no such directory"):
        ckpt.restore(15, {})


def test_every_cut_off_or_lost_file_is_told_in_one_line(run, tmp_path, capfd):
    commit = tmp_path / "checkpoints" / "20"
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    capfd.readouterr()
    for file in sorted(p for p in commit.rglob("*") if p.is_file() and p.name != "files.json"):
        content = file.read_bytes()
        for damage in (lambda f, c=content: f.write_bytes(c[: len(c) // 2]), Path.unlink):
            damage(file)
            with pytest.raises(ValueError, match="damaged or cut short") as err:
                checkpoint.restore_subtree(tmp_path, ("dit/params",))
            assert file.name in str(err.value) and "\n" not in str(err.value)
            file.write_bytes(content)
    assert capfd.readouterr() == ("", "")
    checkpoint.restore_subtree(tmp_path, ("dit/params",))


def test_cut_off_arrays_are_refused_without_the_listing_too(run, tmp_path):
    commit = tmp_path / "20"
    shutil.copytree(run / "checkpoints" / "20", commit)
    (commit / "files.json").unlink()
    checkpoint.restore_subtree(commit, ("dit/params",))  # it is no condition
    file = max((commit / "state").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged or cut short"):
        checkpoint.restore_subtree(commit, ("dit/params",))


def test_a_state_that_is_not_finite_is_never_committed(tmp_path):
    good = {"w": jnp.ones((3,)), "n": jnp.int32(1), "h": jnp.ones((2,), jnp.bfloat16)}
    assert (
        checkpoint.is_finite(good)
        and checkpoint.is_finite({})
        and checkpoint.is_finite({"n": good["n"]})
    )
    for bad in (jnp.nan, jnp.inf):
        state = {**good, "h": good["h"].at[1].set(bad)}
        assert not checkpoint.is_finite(state)
        with Checkpoints(tmp_path) as ckpt:
            with pytest.raises(ValueError, match="step 3: .* NaN or infinity"):
                save(ckpt, 3, state, finite=checkpoint.is_finite(state))
            assert ckpt.steps == ()


def test_room_is_checked_before_a_run(tmp_path, monkeypatch):
    assert checkpoint.nbytes({"w": jnp.ones((3, 4)), "h": jnp.ones((5,), jnp.bfloat16)}) == 58
    checkpoint.ensure_space(tmp_path / "new" / "folder", 10)
    assert (tmp_path / "new" / "folder").is_dir()
    usage = SimpleNamespace(free=3 * 2**30)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    checkpoint.ensure_space(tmp_path, 3 * 2**30)
    with pytest.raises(ValueError, match=r"--out=.*: 3\.50 GiB needed .* 3\.00 GiB free"):
        checkpoint.ensure_space(tmp_path, 7 * 2**29, flag="--out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--workdir=.*cannot be written: Not a directory"):
        checkpoint.ensure_space(tmp_path / "file" / "run", 0)
    with pytest.raises(ValueError, match="cannot be written"):
        Checkpoints(tmp_path / "file" / "run")


CHILD = """
    import os, resource, signal, sys
    import jax, jax.numpy as jnp
    from thinkgen_jax.checkpoint import Checkpoints

    def save(ckpt, step):
        ckpt.save(step, {"w": jax.random.normal(jax.random.key(step), (400, 500))},
                  data={"at": step}, meta={})
"""


def child(body: str, folder: Path, **more) -> subprocess.Popen:
    code = textwrap.dedent(CHILD) + textwrap.dedent(body)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], text=True, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
    )  # fmt: skip


def assert_latest_is_whole(folder: Path) -> int:
    abstract = {"w": jax.ShapeDtypeStruct((400, 500), jnp.float32)}
    with Checkpoints(folder) as ckpt:
        step = ckpt.latest_step
        got = ckpt.restore(step, abstract)
    assert got.data == {"at": step}
    np.testing.assert_array_equal(
        got.state["w"], jax.random.normal(jax.random.key(step), (400, 500))
    )
    return step


def test_full_disk_then_kill_before_the_rename(tmp_path):
    """A failed write is told and harmless; a kill at the last moment leaves the commit before."""
    body = """
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        ckpt = Checkpoints(sys.argv[1])
        save(ckpt, 1)
        ckpt.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        try:
            save(ckpt, 2)
            ckpt.wait()
        except ValueError as err:
            print(err)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        save(ckpt, 3)
        ckpt.wait()
        print(ckpt.steps)
        rename = os.rename
        def last_moment(source, target, *args, **kwargs):
            if os.path.basename(os.fspath(target)) == "4":
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(source, target, *args, **kwargs)
        os.rename = os.replace = last_moment
        save(ckpt, 4)
        ckpt.wait()
    """
    process = child(body, tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err
    first, second = out.splitlines()
    assert "commit of step 2 could not be written" in first and "complete commit: 1" in first
    assert second == "(1, 3)"
    assert any(p.name.startswith("4.") for p in (tmp_path / "checkpoints").iterdir())
    assert checkpoint.find(tmp_path).name == "3"  # the left-over is no commit
    assert assert_latest_is_whole(tmp_path) == 3
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert names == {"1", "3"}  # and is gone after the next opening


def test_kill_at_any_moment_leaves_a_whole_commit(tmp_path):
    body = """
        with Checkpoints(sys.argv[1]) as ckpt:
            step = ckpt.latest_step or 0
            while True:
                step += 1
                save(ckpt, step)
                ckpt.wait()
                print("ready", flush=True)
    """
    last = 0
    for seconds in (0.61, 0.43):
        process = child(body, tmp_path)
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        time.sleep(seconds)
        process.kill()
        _, err = process.communicate()
        assert err == ""
        step = assert_latest_is_whole(tmp_path)
        assert step > last
        last = step
