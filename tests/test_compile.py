# SPDX-License-Identifier: Apache-2.0
"""The door that compiles for machines that are not there: what it refuses, verdicts, search."""

import json

import jax
import pytest

from configs import sepgrpo
from thinkgen_jax import cli, compile
from thinkgen_jax.aot import build, slices

JOB = "--config=configs/sepgrpo.py"


@pytest.fixture
def door(monkeypatch, tmp_path, capsys):
    """Runs the door; returns (status, what it wrote, what it printed)."""
    for name, value in slices.QUIET.items():
        monkeypatch.setenv(name, value)
    kept = jax.config.jax_enable_compilation_cache

    def run(*args):
        out = tmp_path / "found.json"
        status, argv = 0, ["compile", *args, f"--json={out}"]
        monkeypatch.setattr("sys.argv", argv)  # where a config's overrides are looked for
        try:
            cli.start(compile.FLAGS, compile.run)
        except SystemExit as end:
            status = end.code
        finally:
            jax.config.update("jax_enable_compilation_cache", kept)
            compile.FLAGS.unparse_flags()
        printed = capsys.readouterr()
        return status, json.loads(out.read_text()) if out.exists() else {}, printed

    yield run


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--topology=v5e-4"], "--config and --topology are needed"),
        ([f"{JOB}:tiny", "--topology=v5e-5"], "--topology=v5e-5: no such machine"),
        ([f"{JOB}:tiny", "--topology=v5e-4", "--mesh=fsdp=2"], "makes 2 devices, v5e-4 has 4"),
        ([f"{JOB}:tiny", "--topology=v5e-4", "--mesh=rows=4"], "--mesh"),
    ],
)
def test_mistakes_are_one_line(door, args, message):
    status, _, printed = door(*args)
    assert status == 2 and message in printed.err and printed.err.count("\n") == 1


def test_verdicts():
    assert build.verdict(9.0, 10.0) == build.FITS
    assert build.verdict(9.1, 10.0) == build.TIGHT
    assert build.verdict(10.1, 10.0) == build.TOO_BIG
    assert build.verdict(None, 10.0) == build.TOO_BIG


def test_search_finds_the_largest_micro_batch_that_fits(monkeypatch, capsys):
    """Memory here is 40 GiB over the cut of the weights, and 8 over the number of parts."""

    def judged(job, name, machine, held, *, quick, headroom):
        cut = job.learners["mllm"].accumulate
        ways = job.mesh.shape["fsdp"] * job.mesh.shape["tensor"]
        peak = 40 / ways + 8 / cut
        fine = build.verdict(peak, machine.chip.hbm, headroom)
        bound = dict(total=1.0 / cut + ways, arithmetic=0.0, memory=0.0, links=0.0)
        sizes = (peak, 0.0, 0.0, 0.0, 0.0, 15.75, 0.0)
        return build.Result(name, fine, *sizes, True, 1.0, bound)

    monkeypatch.setattr(build, "compile_program", judged)
    monkeypatch.setattr(build, "residents", lambda job: {})
    monkeypatch.setattr(slices, "devices", lambda machine: jax.devices()[: machine.count])
    compile.FLAGS(["compile", "--program=mllm_step", f"{JOB}:tiny"])
    config = sepgrpo.get_config("tiny")
    with config.unlocked():
        config.plans.mllm_grpo.update(prompts=16)
        config.plans.dit_grpo.update(prompts=16)
    found = compile.search(config, slices.parse("v5e-8"))
    compile.FLAGS.unparse_flags()
    best = found["best"]["mllm_step"]
    tried = {
        tuple(one["mesh"].values()): (one["accumulate"], one["verdict"]) for one in found["tried"]
    }
    assert tried[1, 8, 1, 1] == (1, build.FITS)  # 5 + 8 of 15.75
    assert tried[2, 4, 1, 1] == (2, build.FITS)  # 10 + 8 is too much, 10 + 4 is not
    assert tried[4, 2, 1, 1][1] == build.TOO_BIG  # 20 alone
    assert best["mesh"]["fsdp"] == 4 and "best that fit" in capsys.readouterr().out


def test_search_walks_meshes_that_exist():
    found = list(compile.meshes(32))
    assert dict(data=1, fsdp=8, tensor=4, context=1) in found
    for sizes in found:
        assert sizes["data"] * sizes["fsdp"] * sizes["tensor"] == 32
        assert max(sizes["fsdp"], sizes["tensor"]) <= 8
