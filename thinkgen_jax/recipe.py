# SPDX-License-Identifier: Apache-2.0
"""A config file's blocks turned into what the phases take; `starts` finds the parameters.

Nothing below these two files knows a ConfigDict.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from thinkgen_jax import hosts, logs, optim, parts, phases, pipeline, sharding, starts
from thinkgen_jax.bench import miniature
from thinkgen_jax.data import corpus, encoded
from thinkgen_jax.data.batches import Stream
from thinkgen_jax.data.corpus import Corpus, Source
from thinkgen_jax.data.prompt_sets import PromptSet
from thinkgen_jax.hf import assets
from thinkgen_jax.models import presets
from thinkgen_jax.models.lora import LoraConfig
from thinkgen_jax.optim import OptimConfig
from thinkgen_jax.phases import LEARNS, RlPlan, Setup, SftPlan
from thinkgen_jax.rewards.remote import Service
from thinkgen_jax.rollout import Draw
from thinkgen_jax.sampling.flow import Guidance
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps.dit_grpo import DitGrpoConfig
from thinkgen_jax.steps.mllm_grpo import MllmGrpoConfig
from thinkgen_jax.steps.state import Learner
from thinkgen_jax.steps.vae_sft import VaeLoss
from thinkgen_jax.structs import Params, States
from thinkgen_jax.world import tasks

CURVES = ("loss", "reward", "kl", "psnr", "entropy", "grad_norm")
LEAST = {  # that numbers of a run may be
    "steps": 1,
    "limit_skipped": 1,
    "checkpoint.every": 1,
    "log.images": 1,
    "evaluate.count": 0,
    "evaluate.steps": 1,
}
ENCODERS = ("mllm", "vae")  # trees that encode what the DiT learns from


def plain(config: ConfigDict) -> dict:
    """The resolved config as JSON-able dicts and lists."""
    return json.loads(config.to_json_best_effort())


def load(config: ConfigDict, log) -> tuple[Setup, States]:
    """Builds the system and finds its parameters.

    Raises:
      ValueError: when a source is missing or does not fit, naming the config key.
    """
    check_phases(config)
    check_rows(config)
    if is_encoded(config):
        folder = Path(config.plans.flow_sft.corpus.encoded)
        encoded.check_made(folder, starts.prints(config, ENCODERS))
    system = starts.system_of(config)
    built = parts.build(system, assets.load_text(starts.words_folder(config), system))
    learns = set(trained_trees(config))
    needed = learns | {"vae", "mllm", "dit"} if _is_rl(config) else learns | _frozen(config)
    trees = {tree: starts.tree_params(config, system, tree, log) for tree in sorted(needed)}
    learners = {tree: learner(config, tree) for tree in learns}
    adapted = {tree for tree, one in learners.items() if one.lora is not None}
    kind = frozen_dtype(config)
    still = partial(parts.kept, dtype=kind)
    references = {}
    if _is_rl(config):
        # Copies: the states' own arrays are donated at the first update.
        references = {t: parts.copied(trees[t], dtype=kind) for t in learns - adapted}
    states = {}
    for tree in sorted(learns):
        params = trees[tree]
        if tree in adapted:
            params = starts.fresh_adapters(config, tree, params, learners[tree].lora)
        states[tree] = learning.create(params, learners[tree])
    frozen = {t: still(t, params) for t, params in trees.items() if t not in learns - adapted}
    references |= {t: frozen[t] for t in adapted if _is_rl(config)}  # nobody donates them
    return Setup(built, frozen, references, learners, config.seed), states


def frozen_dtype(config: ConfigDict) -> str:
    """What trees that do not learn are kept in.

    Raises:
      ValueError: for an unknown one.
    """
    dtype = config.frozen_dtype or "float32"
    if dtype not in presets.DTYPES:
        raise ValueError(f"config.frozen_dtype {dtype!r} is not one of {presets.DTYPES}")
    return dtype


def _is_rl(config: ConfigDict) -> bool:
    return any(name.endswith("grpo") for name, _ in schedule(config))


def _frozen(config: ConfigDict) -> set[str]:
    names = {name for name, _ in schedule(config)}
    if "flow_sft" not in names or is_encoded(config):
        return set()
    return {"vae"} if config.get("dit_condition") else {"vae", "mllm"}


# --- blocks ---


def learner(config: ConfigDict, tree: str) -> Learner:
    """The optimizer block of a tree."""
    block = _tuples(config.optim[tree].to_dict())
    if config.prepad == 0:  # a pattern without a parameter would be refused
        block["trainable"] = tuple(p for p in block["trainable"] if p != starts.PREPAD)
    accumulate = block.pop("accumulate")
    own = OptimConfig(**block)
    return Learner(own, f"optim.{tree}", accumulate, adapters(config, tree), config.dtype)


def adapters(config: ConfigDict, tree: str) -> LoraConfig | None:
    """The adapters that learn in a tree's place; None where the tree itself learns.

    Raises:
      ValueError: for values out of range, a tree that cannot be adapted, or a base that nobody
        could find again.
    """
    if not starts.is_adapted(config, tree):
        return None
    block = config.lora[tree]
    alpha = float(block.rank) if block.alpha is None else block.alpha
    source = config.start[tree]
    if source == "random" or (tree == "dit" and (config.reinit or _is_fresh(config, source))):
        raise ValueError(
            f"config.lora.{tree}: adapters need a base that can be read again, "
            f"config.start.{tree}={source} makes fresh values; name a run or released weights"
        )
    try:
        return LoraConfig(block.rank, alpha, block.targets or ".")
    except ValueError as err:
        raise ValueError(f"config.lora.{tree}: {err}") from None


def _is_fresh(config: ConfigDict, source: str) -> bool:
    return bool(config.get("dit_condition")) or starts.released(source) == "omnigen2"


def plans(config: ConfigDict) -> Iterator[tuple[str, SftPlan | RlPlan]]:
    """The plan of every phase of the schedule.

    Raises:
      ValueError: for a value out of its range, naming the block; or as `check_phases`.
    """
    check_phases(config)
    for name in dict.fromkeys(name for name, _ in schedule(config)):
        try:
            yield name, plan(with_data(config, config.plans[name].to_dict()))
        except ValueError as err:
            raise ValueError(f"config.plans.{name}: {err}") from None


def schedule(config: ConfigDict) -> tuple[tuple[str, int], ...]:
    """The phases and how many steps each has before the next.

    Raises:
      ValueError: for none, or entries that are no such pairs.
    """
    if not config.phases:
        raise ValueError("config.phases is empty: at least one phase with one step is needed")
    for entry in config.phases:
        match entry:
            case [str(), int(count)] if count >= 1:
                continue
        raise ValueError(
            f"config.phases: {entry!r} must be a phase and its steps, at least 1, "
            "e.g. (('mllm_grpo', 14), ('dit_grpo', 8))"
        )
    return tuple((name, count) for name, count in config.phases)


def check_counts(config: ConfigDict) -> None:
    """Refuses numbers of a run that are below `LEAST`.

    Raises:
      ValueError: naming the key, the value and the bound.
    """
    for key, least in LEAST.items():
        block, _, name = key.rpartition(".")
        value = (config[block] if block else config)[name]
        if value < least:
            raise ValueError(f"config.{key} = {value}: must be at least {least}")


def check_phases(config: ConfigDict) -> None:
    """Refuses a schedule, or scenarios, that do not exist.

    Raises:
      ValueError: for no phase, an unknown one, or one without a plan or an optimizer, or without
        steps or micro-batches; for values of an optimizer or of adapters out of range; for an
        unknown scenario.
    """
    walk = schedule(config)
    wanted = [*config.evaluate.scenarios]
    for block in config.plans.values():
        if not block.get("sets"):  # they have scenarios of their own
            wanted += [name for s in block.streams.values() for name in s.scenarios]
    unknown = sorted({name.split("/")[0] for name in wanted} - set(tasks.SCENARIOS))
    if unknown:
        raise ValueError(
            f"scenarios {unknown} of config.evaluate or config.plans: not one of {tasks.SCENARIOS}"
        )
    for name, _ in walk:
        if name not in LEARNS:
            raise ValueError(f"config.phases: {name!r} is not one of {sorted(LEARNS)}")
        if name not in config.plans:
            raise ValueError(f"config.phases names {name!r}, config.plans has no such block")
        if LEARNS[name] not in config.optim:
            raise ValueError(f"config.optim has no block {LEARNS[name]!r} for {name!r}")
        cut = config.optim[LEARNS[name]].accumulate
        if cut < 1:
            raise ValueError(f"config.optim.{LEARNS[name]}.accumulate = {cut}: must be at least 1")
        one = learner(config, LEARNS[name])
        optim.check(one.config, one.name)


def check_evaluation(config: ConfigDict) -> None:
    """Refuses to draw before and after where the pictures would lie on several hosts.

    Raises:
      ValueError: naming `config.evaluate.count`.
    """
    if config.evaluate.count and hosts.several():
        raise ValueError(
            f"config.evaluate.count = {config.evaluate.count}: {jax.process_count()} hosts cannot "
            "draw for one; make it 0 and measure the commits with thinkgen_jax.evaluate on one host"
        )


def check_rows(config: ConfigDict) -> None:
    """Refuses batches that the mesh and the micro-batches do not divide.

    Raises:
      ValueError: naming the rows of a step and the number of parts.
    """
    for name, _ in schedule(config):
        axes = ("batch",) if LEARNS[name] == "mllm" else ("rows",)
        ways = sharding.parts(axes)
        block, accumulate = config.plans[name], config.optim[LEARNS[name]].accumulate
        key = "batch" if "batch" in block else "prompts * group"
        rows = block.batch if "batch" in block else block.prompts * block.group
        if rows % (ways * accumulate):
            raise ValueError(
                f"config.plans.{name}: {key} = {rows} is not divisible by {ways * accumulate} "
                f"({' * '.join(sharding.ACT_RULES[axes[0]])} of config.mesh = {ways}, "
                f"accumulate = {accumulate})"
            )


def with_data(config: ConfigDict, block: dict) -> dict:
    """A plan's block with `config.data`, where it is given, in the place of its pictures.

    Raises:
      ValueError: when the block takes no real pictures, or `config.data` cannot be read.
    """
    if config.get("data") is None:
        # What was encoded takes the place of streams and sources alike.
        if block.get("corpus", {}).get("encoded") is not None:
            return {**block, "streams": {}, "corpus": {**block["corpus"], "sources": {}}}
        return block
    if "corpus" not in block:
        raise ValueError("takes no real pictures, config.data must not be given")
    try:
        sources = corpus.parse_sources(config.data)
    except ValueError as err:
        raise ValueError(f"config.data: {err}") from None
    found = {f"s{number:03}": vars(source) for number, source in enumerate(sources)}
    return {**block, "streams": {}, "corpus": {**block["corpus"], "sources": found}}


def is_encoded(config: ConfigDict) -> bool:
    """Whether the supervised phase reads what the frozen networks have made already."""
    block = config.plans.get("flow_sft", {})
    return "corpus" in block and block.corpus.encoded is not None


def pictures(block: dict) -> Corpus | None:
    """A `corpus` block as a record, its sources in the order of their names; None without any."""
    if not block["sources"] and block["encoded"] is None:
        return None
    sources = []
    for name in sorted(block["sources"]):
        values = dict(block["sources"][name])
        values["columns"] = tuple(sorted(dict(values["columns"]).items()))
        try:
            sources.append(Source(**values))
        except ValueError as err:
            raise ValueError(f"corpus.sources.{name}: {err}") from None
    return Corpus(**{**_tuples(block), "sources": tuple(sources)})


def plan(block: dict) -> SftPlan | RlPlan:
    """One `config.plans` block as a record; streams in the order of their names."""
    values = _tuples(block)
    if "corpus" in values:
        values["corpus"] = pictures(block["corpus"])
    values["streams"] = tuple(
        _made(f"streams.{name}", Stream, **block["streams"][name])
        for name in sorted(block["streams"])
    )
    if "batch" in values:
        if "loss" in values:
            values["loss"] = VaeLoss(**block["loss"])
        return SftPlan(**values)
    guidance = Guidance(**block["draw"]["guidance"])
    sets = block.get("sets", {})
    values["sets"] = tuple(PromptSet(**sets[name]) for name in sorted(sets))
    servers = block.get("servers", {}).items()
    values["servers"] = {name: service(name, _tuples(one)) for name, one in servers}
    values["draw"] = _made("draw", Draw, **{**block["draw"], "guidance": guidance})
    if "token" in values:
        values["token"] = _made("token", MllmGrpoConfig, **block["token"])
    if "path" in values:
        values["path"] = _made("path", DitGrpoConfig, guidance=guidance, **block["path"])
    return RlPlan(**values)


def _made(key: str, record: type, **fields: object) -> object:
    """A record whose refusals name its fields by their whole keys."""
    try:
        return record(**fields)
    except ValueError as err:
        raise ValueError(f"{key}.{err}") from None


def service(name: str, values: dict) -> Service:
    """A block of `servers` as a record.

    Raises:
      ValueError: for a field that is unknown, missing, of another type or out of range.
    """
    known = {field.name for field in dataclasses.fields(Service)}
    if "urls" not in values or not set(values) <= known:
        unknown = sorted(set(values) - known)
        raise ValueError(f"servers.{name}: urls are needed; unknown {unknown} of {sorted(known)}")
    try:
        return Service(**values)
    except (TypeError, ValueError) as err:
        raise ValueError(f"servers.{name}: {err}") from None


def _tuples(block: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in block.items()}


# --- evaluation ---


def trained_trees(config: ConfigDict) -> tuple[str, ...]:
    """Trees that the schedule trains, in its order."""
    return tuple(dict.fromkeys(LEARNS[name] for name, _ in schedule(config)))


def modes(config: ConfigDict) -> dict[str, miniature.Mode]:
    """How a run's policies are asked before and after."""
    block = config.plans.get("dit_grpo")
    free = block is not None and block.draw.guidance.text <= 1
    return {**miniature.MODES, **(miniature.UNGUIDED if free else {})}


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
    trees = {tree: phases.params_of(setup, states, tree) for tree in {*setup.frozen, *states}}
    trees |= {tree: setup.references[tree] for tree in start}
    params = Params(*(trees[tree] for tree in Params._fields))
    found = miniature.sampled(
        setup.parts,
        params,
        scenarios=tuple(config.evaluate.scenarios),
        count=config.evaluate.count,
        workdir=workdir,
        when=when,
        modes=modes(config),
        settings=pipeline.default(setup.parts.system, batch=32, steps=config.evaluate.steps),
    )
    plainly = [{k: np.asarray(v).tolist() for k, v in part.items()} for part in found]
    logs.write_text(path, json.dumps(plainly))
    return found
