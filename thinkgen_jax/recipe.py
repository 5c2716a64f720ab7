# SPDX-License-Identifier: Apache-2.0
"""A config file's blocks turned into what the phases take: the one place that reads a ConfigDict.

`load` finds each tree's parameters: random, the shipped assets, or another run (its running average
where it has one). Nothing below this file knows a ConfigDict.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from thinkgen_jax import checkpoint, logs, parts, pipeline, sharding
from thinkgen_jax.bench import miniature
from thinkgen_jax.data.batches import Stream
from thinkgen_jax.hf import assets
from thinkgen_jax.models import presets
from thinkgen_jax.models.presets import System
from thinkgen_jax.optim import OptimConfig
from thinkgen_jax.phases import RlPlan, Setup, SftPlan
from thinkgen_jax.rollout import Draw
from thinkgen_jax.sampling.flow import Guidance
from thinkgen_jax.steps import flow_sft
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps.dit_grpo import DitGrpoConfig
from thinkgen_jax.steps.mllm_grpo import MllmGrpoConfig
from thinkgen_jax.steps.state import Learner
from thinkgen_jax.steps.vae_sft import VaeLoss
from thinkgen_jax.structs import Params, States, Tree
from thinkgen_jax.world import tasks

CURVES = ("loss", "reward", "kl", "psnr", "entropy", "grad_norm")
SHIPPED = "nano"  # preset of the shipped weights
PREPAD = "prepad_embed"  # the DiT's parameter that `config.prepad=0` leaves out
LEARNS = {
    "vae_sft": "vae",
    "text_sft": "mllm",
    "flow_sft": "dit",
    "mllm_grpo": "mllm",
    "dit_grpo": "dit",
}


def plain(config: ConfigDict) -> dict:
    """The resolved config as JSON-able dicts and lists."""
    return json.loads(config.to_json_best_effort())


def system_of(config: ConfigDict) -> System:
    """The preset, with the config's changes to it."""
    system = presets.get(config.model)
    if config.prepad is not None:
        system = dataclasses.replace(
            system, dit=dataclasses.replace(system.dit, num_prepad=config.prepad)
        )
    if config.get("dit_condition"):
        dit = dataclasses.replace(system.dit, condition_dim=config.dit_condition, num_prepad=0)
        system = dataclasses.replace(system, dit=dit)
    return system


def load(config: ConfigDict, log) -> tuple[Setup, States]:
    """Builds the system and finds its parameters.

    Raises:
      ValueError: when a source is missing or does not fit, naming the config key.
    """
    check_phases(config)
    check_rows(config)
    system = system_of(config)
    built = parts.build(system, assets.load_text(parts.ASSETS, system))
    learns = set(trained_trees(config))
    needed = learns | {"vae", "mllm", "dit"} if _is_rl(config) else learns | _frozen(config)
    trees = {tree: tree_params(config, system, tree, log) for tree in sorted(needed)}
    learners = {tree: learner(config, tree) for tree in learns}
    references = {}
    if _is_rl(config):
        # Copies: the states' own arrays are donated at the first update.
        references = {t: jax.tree.map(jnp.copy, trees[t]) for t in learns}
    states = {tree: learning.create(trees[tree], learners[tree]) for tree in sorted(learns)}
    frozen = {tree: params for tree, params in trees.items() if tree not in learns}
    return Setup(built, frozen, references, learners, config.seed), states


def sources(config: ConfigDict) -> dict[str, str]:
    """`config.start` with absolute paths, so that a run can be read from anywhere."""
    words = ("random", "assets")
    return {k: v if v in words else str(Path(v).absolute()) for k, v in config.start.items()}


def tree_params(config: ConfigDict, system: System, tree: str, log) -> Tree:
    """Parameters of one tree from where `config.start` says."""
    source = config.start[tree]
    key = jax.random.fold_in(jax.random.key(config.seed), sum(tree.encode()))
    if source == "random":
        params = parts.random_params(system, tree, key)
    elif source == "assets":
        if system.name != SHIPPED:
            raise ValueError(
                f"config.start.{tree}=assets: the shipped weights are {SHIPPED}, not "
                f"{system.name}; name a run, or random"
            )
        shapes = parts.shapes(system, tree)
        params = assets.load_tree(parts.ASSETS, system, tree, shapes=shapes)
    else:
        params = _from_run(config, system, tree, source)
    if tree == "dit":
        params = _reinit(config, system, params, key)
        if config.get("dit_condition"):
            table = jax.random.normal(key, (system.mllm.vocab_size, config.dit_condition))
            params = {**params, flow_sft.EMBED: {"embedding": table}}
    log.info("%s: %s (%d parameters)", tree, source, _count(params))
    mesh = jax.sharding.get_mesh()
    return jax.device_put(params, sharding.infer(params, mesh))


def _from_run(config: ConfigDict, system: System, tree: str, source: str) -> Tree:
    """Reads a tree from a run: its running average if it has one."""
    path = Path(source)
    if not path.exists():
        raise ValueError(
            f"config.start.{tree}={source}: no such run; train it first, e.g. "
            f"python -m thinkgen_jax.train --config=configs/{path.name.split('-')[0]}.py"
        )
    found = checkpoint.restore_learned(path, tree)
    found = {k: v for k, v in found.items() if k != flow_sft.EMBED}
    if tree == "dit" and config.reinit:
        return found
    _compare(found, parts.shapes(system, tree), f"config.start.{tree}={source}")
    return found


def _reinit(config: ConfigDict, system: System, params: Tree, key: jax.Array) -> Tree:
    """Fresh values for parameters that match `config.reinit`, or that the source does not have."""
    if not config.reinit:
        return params
    fresh = parts.random_params(system, "dit", key)
    flat = dict(_flat(params))
    hits = 0

    def pick(path, leaf):
        nonlocal hits
        name = sharding.path_name(path)
        if any(re.search(pattern, name) for pattern in config.reinit):
            hits += 1
            return leaf
        if name not in flat or flat[name].shape != leaf.shape:
            raise ValueError(f"config.start.dit: {name} is missing or mis-shaped there")
        return flat[name]

    out = jax.tree_util.tree_map_with_path(pick, fresh)
    if not hits:
        raise ValueError(f"config.reinit={config.reinit} matches no parameter")
    return out


def _compare(found: Tree, wanted: Tree, where: str) -> None:
    a, b = dict(_flat(found)), dict(_flat(wanted))
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b or a[name].shape != b[name].shape:
            sizes = [str(getattr(t.get(name), "shape", "nothing")) for t in (a, b)]
            raise ValueError(f"{where}: {name} is {sizes[0]} there, {sizes[1]} here")


def _flat(tree: Tree) -> Iterator[tuple[str, object]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield sharding.path_name(path), leaf


def _count(params: Tree) -> int:
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


def _is_rl(config: ConfigDict) -> bool:
    return any(name.endswith("grpo") for name, _ in config.phases)


def _frozen(config: ConfigDict) -> set[str]:
    names = {name for name, _ in config.phases}
    if "flow_sft" not in names:
        return set()
    return {"vae"} if config.get("dit_condition") else {"vae", "mllm"}


# --- blocks ---


def learner(config: ConfigDict, tree: str) -> Learner:
    """The optimizer block of a tree."""
    block = _tuples(config.optim[tree].to_dict())
    if config.prepad == 0:  # a pattern without a parameter would be refused
        block["trainable"] = tuple(p for p in block["trainable"] if p != PREPAD)
    accumulate = block.pop("accumulate")
    return Learner(OptimConfig(**block), f"optim.{tree}", accumulate)


def plans(config: ConfigDict) -> Iterator[tuple[str, SftPlan | RlPlan]]:
    """The plan of every phase of the schedule.

    Raises:
      ValueError: for a value out of its range, naming the block.
    """
    for name in dict.fromkeys(name for name, _ in config.phases):
        try:
            yield name, plan(config.plans[name].to_dict())
        except ValueError as err:
            raise ValueError(f"config.plans.{name}: {err}") from None


def check_phases(config: ConfigDict) -> None:
    """Refuses a schedule, or scenarios, that do not exist.

    Raises:
      ValueError: for no phase, an unknown one, or one without a plan or an optimizer; for an
        unknown scenario.
    """
    wanted = [*config.evaluate.scenarios]
    for block in config.plans.values():
        wanted += [name for s in block.streams.values() for name in s.scenarios]
    unknown = sorted({name.split("/")[0] for name in wanted} - set(tasks.SCENARIOS))
    if unknown:
        raise ValueError(
            f"scenarios {unknown} of config.evaluate or config.plans: not one of {tasks.SCENARIOS}"
        )
    if not sum(count for _, count in config.phases):
        raise ValueError("config.phases is empty: at least one phase with one step is needed")
    for name, _ in config.phases:
        if name not in LEARNS:
            raise ValueError(f"config.phases: {name!r} is not one of {sorted(LEARNS)}")
        if name not in config.plans:
            raise ValueError(f"config.phases names {name!r}, config.plans has no such block")
        if LEARNS[name] not in config.optim:
            raise ValueError(f"config.optim has no block {LEARNS[name]!r} for {name!r}")


def check_rows(config: ConfigDict) -> None:
    """Refuses batches that the mesh and the micro-batches do not divide.

    Raises:
      ValueError: naming the rows of a step and the number of parts.
    """
    ways = sharding.batch_ways(jax.sharding.get_mesh())
    for name, _ in config.phases:
        block, accumulate = config.plans[name], config.optim[LEARNS[name]].accumulate
        key = "batch" if "batch" in block else "prompts * group"
        rows = block.batch if "batch" in block else block.prompts * block.group
        if rows % (ways * accumulate):
            raise ValueError(
                f"config.plans.{name}: {key} = {rows} is not divisible by {ways * accumulate} "
                f"(config.mesh data * fsdp = {ways}, accumulate = {accumulate})"
            )


def plan(block: dict) -> SftPlan | RlPlan:
    """One `config.plans` block as a record; streams in the order of their names."""
    values = _tuples(block)
    values["streams"] = tuple(Stream(**block["streams"][name]) for name in sorted(block["streams"]))
    if "batch" in values:
        if "loss" in values:
            values["loss"] = VaeLoss(**block["loss"])
        return SftPlan(**values)
    guidance = Guidance(**block["draw"]["guidance"])
    values["draw"] = Draw(**{**block["draw"], "guidance": guidance})
    if "token" in values:
        values["token"] = MllmGrpoConfig(**block["token"])
    if "path" in values:
        values["path"] = DitGrpoConfig(guidance=guidance, **block["path"])
    return RlPlan(**values)


def _tuples(block: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in block.items()}


# --- evaluation ---


def trained_trees(config: ConfigDict) -> tuple[str, ...]:
    """Trees that the schedule trains, in its order."""
    return tuple(dict.fromkeys(LEARNS[name] for name, _ in config.phases))


def evaluation(
    config: ConfigDict,
    setup: Setup,
    states: States,
    workdir: Path,
    when: str,
    *,
    start: Sequence[str] = (),
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores on held-out prompts and their clusters, see `bench.miniature.sampled`.

    They are kept in `<workdir>/<when>.json` for resumed runs.

    Args:
      start: trees that are taken as they were at the start of the run, so that what another tree
        has learned shows alone.
    """
    if not config.evaluate.count:
        return {}, {}
    path = workdir / f"{when}.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        return tuple({k: np.asarray(v) for k, v in part.items()} for part in kept)
    trees = {**setup.frozen, **{tree: state.params for tree, state in states.items()}}
    trees |= {tree: setup.references[tree] for tree in start}
    params = Params(*(trees[tree] for tree in Params._fields))
    found = miniature.sampled(
        setup.parts,
        params,
        scenarios=tuple(config.evaluate.scenarios),
        count=config.evaluate.count,
        workdir=workdir,
        when=when,
        settings=pipeline.default(setup.parts.system, batch=32, steps=config.evaluate.steps),
    )
    plainly = [{k: np.asarray(v).tolist() for k, v in part.items()} for part in found]
    logs.write_text(path, json.dumps(plainly))
    return found
