# SPDX-License-Identifier: Apache-2.0
"""Compiles a config for a machine that is not there: does it fit, and how fast could it be?

    python -m thinkgen_jax.compile --config=configs/sepgrpo.py:thinkgen --topology=v5p-64

Every program that training calls is compiled ahead of time from shapes alone, with the places that
training gives its arrays. Exit status 1 when anything does not fit.

* `--program=dit_step,think` compiles some; `--program=none` sums up what lives on a device.
* `--quick` compiles fast: memory is right within a percent, overlap of collectives is not.
* `--search` tries meshes and micro-batches by memory alone and prints the best that fit.
* Nothing is executed: seconds are estimates from published peak rates.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from thinkgen_jax import cli, parts, recipe, sharding, starts
from thinkgen_jax.aot import build, programs, slices
from thinkgen_jax.aot.build import GIB, TOO_BIG, Result
from thinkgen_jax.aot.programs import Job
from thinkgen_jax.aot.slices import Slice
from thinkgen_jax.data import files
from thinkgen_jax.hf import assets
from thinkgen_jax.models import presets

FLAGS = cli.values()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe.", lock_config=True, flag_values=FLAGS
)
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Machine: v5p-64, v5p:2x4x4, h100-8; see aot/slices.py.", flag_values=FLAGS
)
PROGRAMS = flags.DEFINE_list(
    "program", None, "Programs by name, or none; default all.", flag_values=FLAGS
)
MESH = flags.DEFINE_list(
    "mesh", None, "Axes, fsdp=8,tensor=4; default the config's.", flag_values=FLAGS
)
QUICK = flags.DEFINE_bool("quick", False, "Compile fast, for memory alone.", flag_values=FLAGS)
FULL = flags.DEFINE_list(
    "full", [], "Programs that --quick does not make quick.", flag_values=FLAGS
)
SEARCH = flags.DEFINE_bool("search", False, "Try meshes and micro-batches.", flag_values=FLAGS)
HEADROOM = flags.DEFINE_float(
    "headroom", build.HEADROOM, "Share of the memory that may be used.", flag_values=FLAGS
)
JSON = flags.DEFINE_string("json", None, "File for all numbers; default none.", flag_values=FLAGS)
# What "auto" means on a TPU. cuDNN's kernels cannot be compiled without a GPU: plain attention
# stands for them, and takes more memory than they do.
ATTENTION = {"h100": "xla"}
# Nothing can be timed here, and untimed tilings of generated kernels do not suit every product.
GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
LEARNING = ("mllm_step", "dit_step", "flow_step", "text_step")  # what `--search` looks at


def run() -> None:
    """Compiles, prints and writes; exits with 1 when something does not fit.

    Raises:
      ValueError: for anything a user can put right.
    """
    config, machine = CONFIG.value, _machine()
    if JSON.value:  # before an hour is spent on what goes into it
        Path(JSON.value).parent.mkdir(parents=True, exist_ok=True)
        _check_json(Path(JSON.value))
    mesh = sharding.make_mesh(**mesh_sizes(config, machine), devices=slices.devices(machine))
    found = search(config, machine) if SEARCH.value else judge(config, machine, mesh)
    _save(found)
    if found["verdict"] == TOO_BIG:
        raise SystemExit(1)


def _check_json(path: Path) -> None:
    """Refuses a file that cannot be written, or that holds anything but what was found before."""
    if not path.exists():
        return
    try:
        with path.open("r+b") as file:
            old = files.parse(file.read())
    except OSError as err:
        raise ValueError(f"--json={path} cannot be written: {err.strerror}") from err
    except ValueError as err:
        raise ValueError(f"--json={path} {err}; name another file") from err
    if not isinstance(old, dict) or not {"topology", "verdict"} <= old.keys():
        raise ValueError(f"--json={path} holds no result of a compilation; name another file")


def _save(found: dict) -> None:
    """Writes what was found, if the user wants a file.

    Programs that were compiled before under the same conditions stay beside it.
    """
    if not JSON.value:
        return
    path = Path(JSON.value)
    if path.exists() and "tried" not in found:
        old, apart = json.loads(path.read_text(encoding="utf-8")), ("programs", "verdict")
        if all(old.get(k) == v for k, v in found.items() if k not in apart):
            known = {one["program"]: one for one in old["programs"] + found["programs"]}
            found = {**found, "programs": list(known.values())}
            verdicts = [one["verdict"] for one in found["programs"]] + [found["verdict"]]
            found["verdict"] = max(verdicts, key=build.VERDICTS.index)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _machine() -> Slice:
    if CONFIG.value is None or TOPOLOGY.value is None:
        raise ValueError("--config and --topology are needed, e.g. --topology=v5p-64")
    machine = slices.parse(TOPOLOGY.value)
    os.environ |= {k: v for k, v in slices.QUIET.items() if k not in os.environ}
    if machine.kind == "h100":
        os.environ["XLA_FLAGS"] = f"{GPU_FLAGS} {os.environ.get('XLA_FLAGS', '')}"
    # This process computes nothing, and no compiled program of another machine can be kept.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    return machine


def mesh_sizes(config: ConfigDict, machine: Slice) -> dict[str, int]:
    """Axes of the mesh: of `--mesh`, else of the config, else the machine's usual ones.

    Raises:
      ValueError: for an unknown axis, or sizes that do not make the machine's devices.
    """
    sizes = dict(config.mesh)
    if set(sizes.values()) == {1}:
        sizes = slices.mesh_of(machine)
    if MESH.value is not None:
        pairs = [part.partition("=")[::2] for part in MESH.value]
        wrong = [f"{k}={v}" for k, v in pairs if k not in sharding.AXES or not v.isdigit()]
        if wrong:
            raise ValueError(f"--mesh: {wrong} must be one of {sharding.AXES} = a number")
        sizes = dict.fromkeys(sharding.AXES, 1) | {k: int(v) for k, v in pairs}
    product = 1
    for size in sizes.values():
        product *= size
    if product != machine.count:
        raise ValueError(
            f"mesh {sizes} (--mesh, config.mesh) makes {product} devices, {machine.name} has "
            f"{machine.count}"
        )
    return sizes


def job_of(config: ConfigDict, machine: Slice, mesh: jax.sharding.Mesh) -> Job:
    """The config's records on a mesh, which must be set.

    Raises:
      ValueError: for a config that training would refuse as well.
    """
    config = _named(config)
    recipe.check_phases(config)
    recipe.check_rows(config)
    system = presets.running(
        starts.system_of(config),
        dtype=config.dtype,
        remat=config.remat,
        attention=ATTENTION.get(machine.kind, "splash"),
    )
    text = assets.load_text(starts.words_folder(config), system)
    learners = {tree: recipe.learner(config, tree) for tree in recipe.trained_trees(config)}
    plans, dtype = dict(recipe.plans(config)), recipe.frozen_dtype(config)
    return Job(parts.build(system, text), plans, learners, mesh, dtype)


def _named(config: ConfigDict) -> ConfigDict:
    """The config with a path for every source of pictures: none is read here."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for plan in config.plans.values():
            for source in plan.get("corpus", {}).get("sources", {}).values():
                source.path = source.path or "-"
    return config


def judge(config: ConfigDict, machine: Slice, mesh: jax.sharding.Mesh) -> dict:
    """Compiles the chosen programs on one mesh."""
    with jax.set_mesh(mesh):
        job = job_of(config, machine, mesh)
        held, known = build.residents(job), programs.table(job)
        chosen = list(known) if PROGRAMS.value is None else PROGRAMS.value
        chosen = [] if chosen == ["none"] else chosen
        unknown = sorted(set(chosen) - set(known))
        if unknown:
            raise ValueError(f"--program={unknown}: this config has {', '.join(known)}")
        _print_head(config, machine, mesh, held, build.most(held, job.learners))
        about, results = _about(config, machine, mesh, held), []
        need = build.most(held, job.learners)
        for name in chosen:
            if results:  # a compiler that aborts over this one takes nothing with it
                _save(_judged(about, results, need, machine))
            how = dict(quick=QUICK.value and name not in FULL.value, headroom=HEADROOM.value)
            results.append(build.compile_program(job, name, machine, held, **how))
            _print_result(results[-1], machine)
            need = max(need, results[-1].need)
    found = _judged(about, results, need, machine)
    print(
        f"\nall of these: {found['verdict']}, at most {need:.2f} of {machine.chip.hbm} GiB a device"
    )
    return found


def _judged(about: dict, results: list[Result], need: float, machine: Slice) -> dict:
    told = build.verdict(need, machine.chip.hbm, HEADROOM.value)
    return {**about, "verdict": told, "programs": list(map(build.as_dict, results))}


def search(config: ConfigDict, machine: Slice) -> dict:
    """Tries every mesh, on each the largest micro-batch of every learning step that fits.

    Larger micro-batches come first; what is too large is refused within seconds.
    """
    devices, found = slices.devices(machine), []
    for sizes in meshes(machine.count):
        mesh = sharding.make_mesh(**sizes, devices=devices)
        with jax.set_mesh(mesh):
            for name, result, cut in _largest(config, machine, mesh):
                line = {"mesh": sizes, "accumulate": cut, **build.as_dict(result)}
                found.append(line)
                print(
                    f"{name:<10} {_axes(sizes):<34} accumulate {cut:<4} {result.verdict:<12} "
                    f"{result.need:6.2f} GiB, at least {result.bound['total']:.2f} s",
                    flush=True,
                )
    best, together = _best(found)
    print("\nbest that fit:")
    for name in dict.fromkeys(line["program"] for line in found):
        line = best.get(name)
        print(f"{name:<10} {_told(line) if line else 'nowhere'}")
    if len(best) > 1:
        print("all on one mesh:", *(f"\n{one['program']:<10} {_told(one)}" for one in together))
    told = build.FITS if together else TOO_BIG
    about = {"topology": machine.name, "verdict": told}
    return {**about, "best": best, "together": together, "tried": found}


def _told(line: Mapping) -> str:
    return f"--mesh={_axes(line['mesh'])} accumulate {line['accumulate']}"


def _best(found: list[dict]) -> tuple[dict[str, dict], list[dict]]:
    """Of what fits the fastest line of each program, and of the mesh where all fit fastest.

    A run has one mesh: where no mesh fits all of them there is nothing to run.
    """
    fits = sorted(
        (line for line in found if line["verdict"] == build.FITS),
        key=lambda line: line["bound"]["total"],
    )
    best: dict[str, dict] = {}
    for line in fits:
        best.setdefault(line["program"], line)
    wanted = {line["program"] for line in found}
    groups: dict[str, list[dict]] = {}
    for line in fits:
        groups.setdefault(_axes(line["mesh"]), []).append(line)
    whole = [lines for lines in groups.values() if {one["program"] for one in lines} == wanted]

    def seconds(lines: list[dict]) -> float:
        return sum(line["bound"]["total"] for line in lines)

    return best, min(whole, key=seconds, default=[])


def meshes(count: int) -> Iterator[dict[str, int]]:
    """Meshes of so many devices that the networks can lie on, by the DiT's limit of 8."""
    for fsdp in (8, 4, 2, 1):
        for tensor in (1, 2, 4, 8):
            if count % (fsdp * tensor) == 0 and fsdp >= tensor:
                data = count // (fsdp * tensor)
                yield dict(data=data, fsdp=fsdp, tensor=tensor, context=1)


def _largest(config: ConfigDict, machine: Slice, mesh) -> Iterator[tuple[str, Result, int]]:
    """For every learning step its result with the largest micro-batch that is not too big."""
    wanted = PROGRAMS.value or LEARNING
    for name in wanted:
        result, cut = None, 1
        while result is None or (result.verdict == TOO_BIG and cut <= 64):
            tried = config.copy_and_resolve_references()
            for block in tried.optim.values():
                block.accumulate = cut
            try:
                job = job_of(tried, machine, mesh)
            except ValueError:  # rows that this mesh does not divide
                break
            if name not in programs.table(job):
                break
            held = build.residents(job)
            result = build.compile_program(
                job, name, machine, held, quick=True, headroom=HEADROOM.value
            )
            cut *= 2
        if result is not None:
            yield name, result, cut // 2


# --- what is shown ---


def _about(config: ConfigDict, machine: Slice, mesh, held: Mapping[str, float]) -> dict:
    return {
        "config": f"{config.name}:{config.arg}",
        "topology": machine.name,
        "shape": machine.shape,
        "chips": machine.chips,
        "devices": machine.count,
        "mesh": dict(mesh.shape),
        "versions": versions(),
        "usable": machine.chip.hbm,
        "residents": dict(held),
    }


def versions() -> dict[str, str]:
    """Versions that the numbers hang on."""
    found = {}
    for name in ("jax", "jaxlib", "flax", "optax", "libtpu", "jax-cuda12-plugin"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _axes(sizes: Mapping[str, int]) -> str:
    return ",".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "data=1"


def _print_head(
    config: ConfigDict, machine: Slice, mesh, held: Mapping[str, float], most: float
) -> None:
    told = " ".join(f"{name} {version}" for name, version in versions().items())
    print(f"{config.name}:{config.arg} on {machine.name} ({machine.kind}:{machine.shape})")
    print(f"{machine.chips} chips, {machine.count} devices, mesh {_axes(mesh.shape)}; {told}")
    print(f"{machine.chip.hbm} GiB usable a device; of each device are taken by:")
    for name, size in held.items():
        print(f"  {name:<16} {size:6.2f} GiB")
    print(f"  {'at a time':<16} {most:6.2f} GiB: one optimizer, the others sleep\n", flush=True)


def _print_result(result: Result, machine: Slice) -> None:
    rest = f"{result.beside:.2f} beside = {result.need:.2f} of {result.usable:.2f} GiB"
    peak = "refused" if result.peak is None else f"peak {result.peak:.2f}"
    print(f"{result.program}: {result.verdict}: {peak} + {rest}")
    if result.refusal:
        print(f"  the compiler: {result.refusal}")
    print(
        f"  arguments {result.arguments:.2f}, temporary {result.temporary:.2f}, code "
        f"{result.code:.2f} GiB; compiled in {result.seconds:.0f} s{' (quick)' * result.quick}"
    )
    least = result.bound
    links = "not counted: quick" if result.quick else f"{least['links']:.3g}"
    share = machine.share(result.flops, least["total"])
    print(
        f"  {result.flops:.3g} FLOP; estimate, not measured: at least {least['total']:.3g} s a call"
        f" (arithmetic {least['arithmetic']:.3g}, memory {least['memory']:.3g}, exposed links "
        f"{links}), so at most {share:.0%} MFU"
    )
    _print_text(result.text)
    sys.stdout.flush()


def _print_text(text: dict) -> None:
    if not text:
        return
    kinds = ", ".join(
        f"{kind} {n['hidden']} hidden, {n['exposed_in_loops']} exposed in loops, "
        f"{n['exposed_at_entry']} at entry"
        for kind, n in text["collectives"].items()
    )
    print(f"  collectives: {kinds or 'none'}")
    print(f"  kernels {text['kernels']}, of attention {text['attention_kernels']}")
    for size, source in text["copies"]:
        print(f"  copy of {size / GIB:.2f} GiB: {source[-80:] or 'unnamed'}")


if __name__ == "__main__":
    cli.start(FLAGS, run)
