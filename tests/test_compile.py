# SPDX-License-Identifier: Apache-2.0
"""The door that compiles for machines that are not there; small programs for real ones."""

import json
import resource
import time
from types import SimpleNamespace

import jax
import pytest

from configs import sepgrpo
from thinkgen_jax import cli, compile, sharding
from thinkgen_jax.aot import build, programs, slices, work

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


def needs_compiler():
    return pytest.importorskip("libtpu", reason="launch/requirements-tpu.txt is not installed")


def test_every_program_of_the_main_job_compiles_for_a_slice(door):
    needs_compiler()
    with jax.default_matmul_precision("default"):  # the kernels know no exact bfloat16 products
        status, found, printed = door(
            f"{JOB}:tiny",
            "--topology=v5e-4",
            "--mesh=fsdp=2,tensor=2",
            "--quick",
            "--config.thought_tokens=128",
            "--config.remat=full",
            "--config.dtype=bfloat16",
        )
    assert status == 0, printed
    results = {one["program"]: one for one in found["programs"]}
    wanted = programs.PROGRAMS["mllm_grpo"] | programs.PROGRAMS["dit_grpo"]
    assert set(results) == set(wanted)
    for one in results.values():
        assert one["verdict"] == build.FITS and 0 < one["peak"] < 1
    for name in ("logprobs", "mllm_step", "dit_step", "paths", "draw"):
        assert results[name]["text"]["attention_kernels"] > 0, name
    assert "all-gather" in results["dit_step"]["text"]["collectives"]
    assert "FITS" in printed.out and "estimate, not measured" in printed.out


def test_what_does_not_fit_is_told(door):
    """The released system on four small chips: its trees alone are 200 GB."""
    needs_compiler()
    status, found, printed = door(
        f"{JOB}:thinkgen", "--topology=v5e-4", "--mesh=fsdp=4", "--program=prefill"
    )
    assert status == 1 and found["verdict"] == build.TOO_BIG
    assert sum(found["residents"].values()) > found["usable"]
    assert "DOES NOT FIT" in printed.out


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be written"),
        ("", "is no JSON"),
        ("[" * 10**5, "is no JSON"),
        ("[1]", "holds no result of a compilation"),
        ('{"topology": "v5e-4"}', "holds no result of a compilation"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_before_anything_is_compiled(
    monkeypatch, tmp_path, content, message
):
    """None is a folder."""
    monkeypatch.setattr(compile, "_machine", lambda: None)
    monkeypatch.setattr(compile, "mesh_sizes", None)
    path = tmp_path / "found.json"
    path.mkdir() if content is None else path.write_text(content)
    monkeypatch.setattr(compile, "JSON", SimpleNamespace(value=str(path)))
    monkeypatch.setattr(compile, "CONFIG", SimpleNamespace(value=None))
    with pytest.raises(ValueError) as told:
        compile.run()
    assert f"--json={path}" in str(told.value) and message in str(told.value)
    assert content is None or path.read_text() == content


def test_verdicts():
    assert build.verdict(9.0, 10.0) == build.FITS
    assert build.verdict(9.1, 10.0) == build.TIGHT
    assert build.verdict(10.1, 10.0) == build.TOO_BIG
    assert build.verdict(None, 10.0) == build.TOO_BIG


def job(mesh, **changes):
    config = sepgrpo.get_config("thinkgen")
    with config.unlocked():
        config.update(changes)
    return compile.job_of(config, slices.parse("v5p-8"), mesh)


def test_the_whole_released_job_traces_from_shapes_alone():
    """8.8 B and 4.0 B parameters, 1,024 and 1,536 rows of rollouts; no array is made.

    In two minutes of one core and 8 GiB, of which this process may hold other tests' arrays too.
    """
    begun = time.process_time()
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    with jax.set_mesh(mesh):
        made = job(mesh)
        held = build.residents(made)
        total = 4 * (8_767_123_696 + 3_982_838_840)
        # Parameters and two moments, once more the parameters for the references; norms are whole.
        assert sum(held.values()) == pytest.approx(4 * total / 8 / build.GIB, rel=0.03)
        for name, make in programs.table(made).items():
            program = make()
            traced = program.function.trace(*program.args, **program.kwargs)
            assert traced.jaxpr.jaxpr.eqns, name
            least = work.WORK[name](made, programs.phase_of(made, name))
            assert least.flops > 1e12 and least.memory > 0
            assert build.nbytes(program.loose) < 8 * build.GIB
    assert time.process_time() - begun < 120
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 8 * build.GIB


def test_what_does_not_learn_may_be_kept_in_half_the_bytes():
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    with jax.set_mesh(mesh):
        config = sepgrpo.get_config("thinkgen")
        config.frozen_dtype = "bfloat16"
        half = build.residents(compile.job_of(config, slices.parse("v5p-8"), mesh))
        for name, size in build.residents(job(mesh)).items():
            part = 2 if name.startswith("reference/") else 1
            assert half[name] == pytest.approx(size / part), name


def test_adapters_need_no_reference_and_few_moments():
    """Of each learning tree: itself, once more merged; of adapters two moments and themselves."""
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    with jax.set_mesh(mesh):
        whole = job(mesh)
        config = sepgrpo.get_config("thinkgen")
        config.lora.mllm.rank = config.lora.dit.rank = 16
        config.start.update(mllm="somewhere", dit="somewhere")
        made = compile.job_of(config, slices.parse("v5p-8"), mesh)
        held, full = build.residents(made), build.residents(whole)
        assert not any(name.startswith("reference/") for name in held)
        for tree in ("mllm", "dit"):
            assert held[f"frozen/{tree}"] == held[f"merged/{tree}"] == full[f"reference/{tree}"]
            assert held[f"state/{tree}"] < 0.03 * full[f"state/{tree}"]  # cut along one axis
            assert held[f"optimizer/{tree}"] == pytest.approx(2 * held[f"state/{tree}"], rel=1e-3)
            program = programs.table(made)[f"{tree}_step"]()
            assert program.function.trace(*program.args).jaxpr.jaxpr.eqns
            least, most = (work.WORK[f"{tree}_step"](one, f"{tree}_grpo") for one in (made, whole))
            assert least.flops == most.flops and least.memory < most.memory


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


def test_a_search_wants_one_mesh_for_all():
    """The fastest of each lie on two meshes; a program that fits nowhere leaves nothing to run."""

    def line(program, fsdp, total, verdict=build.FITS):
        bound = dict(total=total)
        return dict(program=program, mesh=dict(fsdp=fsdp), verdict=verdict, bound=bound)

    found = [line("a", 8, 1.0), line("b", 8, 5.0), line("a", 4, 2.0), line("b", 4, 3.0)]
    found.append(line("a", 2, 0.1, build.TIGHT))
    best, together = compile._best(found)
    assert best == dict(a=found[0], b=found[3]) and together == [found[2], found[3]]
    best, together = compile._best([*found, line("c", 8, 9.0, build.TOO_BIG)])
    assert set(best) == {"a", "b"} and together == []


def test_search_walks_meshes_that_exist():
    found = list(compile.meshes(32))
    assert dict(data=1, fsdp=8, tensor=4, context=1) in found
    for sizes in found:
        assert sizes["data"] * sizes["fsdp"] * sizes["tensor"] == 32
        assert max(sizes["fsdp"], sizes["tensor"]) <= 8
