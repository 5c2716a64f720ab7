# SPDX-License-Identifier: Apache-2.0
"""Whole iterations of both reinforcement phases beside PyTorch's.

Ours runs through `phases`, with the plan of the recipe and the changes that a row names, so a row
follows whatever a phase does. Before the clock starts the peer makes one update from just what our
update got (paths or thoughts, old log-probabilities, advantages): loss, gradient norm and the
parameters afterwards must agree. The reward is the mean of the red channel on both sides.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from launch import contests, measure
from launch.contests import Outcome
from launch.peers import dit as peer_dit
from launch.peers import flow_grpo, models, token_grpo
from thinkgen_jax import parts, phases, recipe, rollout
from thinkgen_jax.hf import mllm as mllm_table
from thinkgen_jax.hf import streams
from thinkgen_jax.parts import Parts
from thinkgen_jax.phases import Phase, RlPlan, Setup
from thinkgen_jax.sampling import flow
from thinkgen_jax.sampling.flow import Guidance
from thinkgen_jax.steps import dit_grpo, grpo, mllm_grpo
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps.state import Learner
from thinkgen_jax.structs import Params, Request, States, Tree

# One update in float32 on both sides. Adam's first step is the sign of the gradient where this is
# larger than rounding, so parameters are compared by the distance of the two moves.
LOSS_ATOL = 2e-5
NORM_RTOL = 2e-3
MOVE_RTOL = 5e-2
REWARD = {"launch.measure:redness": 1.0}


class Job(NamedTuple):
    """Our side of a row, ready to run."""

    built: Parts
    params: Params
    plan: RlPlan
    learner: Learner
    phase: Phase
    states: States
    requests: list[Request]


def plan_of(name: str, size: str, changes: Mapping[str, Any], *, parts_: int):
    """Plan and learner of a phase: the recipe's plain ones, with the changes of a row.

    Args:
      changes: fields of `RlPlan`; "steps" and "scale" are of its drawing, "kl" of its objective.
      parts_: micro-batches of an update.
    """
    config = importlib.import_module(f"configs.{name}").get_config(f"{size},rl=plain")
    tree = recipe.LEARNS[name]
    config.optim[tree].update(warmup_steps=0, schedule="constant", accumulate=parts_)
    block = config.plans[name].to_dict()
    changes = dict(changes)
    block["draw"]["steps"] = changes.pop("steps", block["draw"]["steps"])
    scale = changes.pop("scale", block["draw"]["guidance"]["text"])
    block["draw"]["guidance"]["text"] = float(scale)
    if "kl" in changes:
        block["path"]["kl"] = changes.pop("kl")
    block.update(changes, rewards=REWARD)
    return recipe.plan(block), recipe.learner(config, tree)


def job(name: str, size: str, how: Mapping[str, Any], changes: Mapping[str, Any]) -> Job:
    """Our side of a row."""
    built, params = contests.ours_of(size)
    system = dataclasses.replace(built.system, image_size=(how["pixels"], how["pixels"]))
    built = parts.build(system, built.text)
    sizes = dict(prompts=how["prompts"], group=how["group"])
    plan, learner = plan_of(name, size, {**changes, **sizes}, parts_=how["parts"])
    tree = recipe.LEARNS[name]
    start = getattr(params, tree)
    frozen = {other: getattr(params, other) for other in parts.TREES if other != tree}
    setup = Setup(built, frozen, {tree: start}, {tree: learner}, seed=0)
    phase = phases.build(name, plan, setup)
    # A copy: states are donated at the first update, the reference stays.
    states = {tree: learning.create(jax.tree.map(jnp.copy, start), learner)}
    return Job(built, params, plan, learner, phase, states, list(next(phase.data)))


def runner(job: Job, found: dict) -> Callable[[], None]:
    """Our iteration as something to time; `found` gets the metrics of the last one."""
    held = {"states": job.states, "number": 0}

    def run() -> None:
        held["number"] += 1
        key = jax.random.key(held["number"])
        states, metrics, _ = job.phase.update(held["states"], job.requests, key)
        held["states"] = jax.block_until_ready(states)
        found.update(metrics)

    return run


def optimizer_settings(learner: Learner) -> dict[str, Any]:
    """What both peers' optimizers are told."""
    cfg = learner.config
    return dict(
        parts=learner.accumulate,
        lr=cfg.lr,
        decay=cfg.weight_decay,
        betas=(cfg.b1, cfg.b2),
        eps=cfg.eps,
        clip_norm=cfg.clip_norm,
    )


def picture_settings(built: Parts, plan: RlPlan) -> dict[str, Any]:
    """What both peers are told about drawing."""
    h, w = built.grid()
    system = built.system
    grid = flow.times(plan.draw.steps, latent_pixels=h * w, shift=system.shift)
    return dict(
        group=plan.group,
        scale=plan.draw.guidance.text,
        grid=grid.tolist(),
        close_id=built.text.close_id,
        most=system.instruction_tokens,
        patch=system.dit.patch_size,
        h=h,
        w=w,
    )


def path_settings(built: Parts, plan: RlPlan, learner: Learner) -> flow_grpo.Settings:
    """Our plan as the peer of Flow-GRPO takes it."""
    width, trained = phases.widths(plan)
    begin = plan.window[0]  # of the peer, which knows no windows at random
    levels = np.zeros(plan.draw.steps)
    levels[begin : begin + width] = plan.noise
    return flow_grpo.Settings(
        **picture_settings(built, plan),
        **optimizer_settings(learner),
        noise=levels.tolist(),
        steps=list(range(begin, begin + trained)),
        clip=plan.path.clip,
        kl=plan.path.kl,
        limit=plan.path.advantage_limit,
    )


def token_settings(built: Parts, plan: RlPlan, learner: Learner) -> token_grpo.Settings:
    """Our plan as the peer of token GRPO takes it."""
    return token_grpo.Settings(
        **picture_settings(built, plan),
        **optimizer_settings(learner),
        new_tokens=built.system.thought_tokens,
        stop_id=built.text.stop_id,
        pad_id=0,
        temperature=plan.draw.temperature,
        clip_low=plan.token.clip_low,
        clip_high=plan.token.clip_high,
        dual_clip=grpo.DUAL_CLIP,
        kl=plan.token.kl,
    )


def away_of(built: Parts, params: Params, scale: float) -> peer_dit.Text | None:
    """The negative prompt's states of one row."""
    away = rollout.negative_condition(built, params.mllm, Guidance(text=scale))
    return None if away is None else models.text_of(away)


def same_update(ours: Mapping, theirs: Mapping, before, after, moved) -> list[str]:
    """Checks one update; trees are flat dicts of tensors under one naming.

    Raises:
      ValueError: when loss, gradient norm or parameters afterwards differ.
    """
    norm = abs(float(ours["grad_norm"]) / theirs["grad_norm"] - 1)
    names = [name for name in after if not torch.equal(after[name], before[name])]
    apart = sum(float((moved[n].detach() - after[n]).double().square().sum()) for n in names)
    way = sum(float((after[n] - before[n]).double().square().sum()) for n in names)
    return [
        measure.agree("loss", abs(float(ours["loss"]) - theirs["loss"]), LOSS_ATOL),
        measure.agree("gradient norm, relative", norm, NORM_RTOL),
        measure.agree("move of parameters, relative", (apart / way) ** 0.5, MOVE_RTOL),
    ]


def more_of(metrics: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    """Numbers of our last iteration that stand beside its time, of those that are there."""
    return {name: float(metrics[name]) for name in names if name in metrics}


def paths(size: str, how: Mapping, count: int) -> Outcome:
    """Flow-GRPO; `how["recipe"]` changes our plan alone, the peer keeps its default."""
    # Old log-probabilities are those of the rollout on both sides.
    default = dict(steps=how["steps"], window=(0, 0), silent=1.0, keep_old=True)
    with measure.overheard(dit_grpo, "make_step") as heard:
        ours_job = job("dit_grpo", size, how, {**default, **how.get("recipe", {})})
        metrics: dict = {}
        ours = runner(ours_job, metrics)
        ours()
    built, params, plan, learner, *_ = ours_job
    same = path_settings(built, plan, learner)
    plain, _ = plan_of("dit_grpo", size, default, parts_=how["parts"])
    usual = path_settings(built, dataclasses.replace(plain, group=plan.group), learner)
    net = flow_grpo.peer(
        models.mllm_of(built.system, params.mllm).requires_grad_(False),
        peer_dit.of_tree(built.system.dit, params.dit),
        models.vae_of(built.system, params.vae).requires_grad_(False),
        away_of(built, params, usual.scale),
        usual,
    )
    agreed = _same_path_update(net, same, heard)
    prompt = rollout.pseudo_prompt(built, ours_job.requests, plan.streams[0])
    ids, mask = models.rows_of(prompt)
    turns: dict = {}

    def theirs() -> None:
        turns["seed"] = turns.get("seed", 0) + 1
        flow_grpo.iterate(net, usual, ids, mask, measure.red_of, turns["seed"])

    if how["warm"]:
        theirs()
    found = measure.pairs(ours, theirs, count)
    return Outcome(found, agreed, more_of(metrics, ("forward_equivalents", "ratio_first")))


def _same_path_update(net: flow_grpo.Peer, how: flow_grpo.Settings, heard: list) -> list[str]:
    """Lets the peer learn from the trajectory that ours learned from."""
    before, (_, path, negative, *_), after, metrics = heard
    rows = path.advantages.shape[0]
    if not np.asarray(path.weights).all():
        raise ValueError("a group was dropped, so the peer cannot learn from the same rows")
    away = None if net.away is None else models.repeat(net.away, rows)
    # Our trajectory holds the trained steps alone, so the peer's are counted from its first.
    count = len(path.old)
    how = how._replace(
        grid=path.times.tolist(), noise=[float(path.noise)] * count, steps=list(range(count))
    )
    same = flow_grpo.Path(
        models.tensor(path.latents),
        models.tensor(path.old),
        models.text_of(path.condition),
        away if negative is not None else None,
        models.tensor(path.target.positions),
        models.tensor(path.advantages),
    )
    theirs = flow_grpo.update(net, how, same)
    cfg = net.dit.cfg
    trees = (peer_dit.tensors_of(cfg, tree) for tree in (before, after))
    return same_update(metrics, theirs, *trees, dict(net.dit.named_parameters()))


def thoughts(size: str, how: Mapping, count: int) -> Outcome:
    """GRPO of the MLLM: thoughts, pictures, rewards, update."""
    with measure.overheard(mllm_grpo, "make_step") as heard:
        ours_job = job("mllm_grpo", size, how, dict(steps=how["steps"]))
        metrics: dict = {}
        ours = runner(ours_job, metrics)
        ours()
    built, params, plan, learner, *_ = ours_job
    settings = token_settings(built, plan, learner)
    net = token_grpo.peer(
        models.mllm_of(built.system, params.mllm),
        peer_dit.of_tree(built.system.dit, params.dit).requires_grad_(False),
        models.vae_of(built.system, params.vae).requires_grad_(False),
        away_of(built, params, settings.scale),
        settings,
    )
    agreed = _same_token_update(net, settings, built, heard)
    prompts = [built.text.think(request.prompt) for request in ours_job.requests]
    theirs_metrics: dict = {"seed": 0}

    def theirs() -> None:
        theirs_metrics["seed"] += 1
        seed = theirs_metrics["seed"]
        theirs_metrics.update(
            token_grpo.iterate(net, settings, prompts, measure.red_of, seed), seed=seed
        )

    if how["warm"]:
        theirs()
    found = measure.pairs(ours, theirs, count)
    more = more_of(metrics, ("tokens", "valid", "ratio_first"))
    return Outcome(found, agreed, {**more, "tokens of PyTorch": theirs_metrics["tokens"]})


def _same_token_update(net: token_grpo.Peer, how: token_grpo.Settings, built: Parts, heard: list):
    """Lets the peer learn from the thoughts that ours learned from."""
    before, (given, *_), after, metrics = heard
    if not np.asarray(given.mask).any():
        raise ValueError("every group was dropped, so there is nothing to compare")
    ids, mask = models.rows_of(given.prompt)
    length = ids.shape[1]
    rows = token_grpo.Rows(
        ids,
        mask,
        models.tensor(given.mask)[:, :length],
        models.tensor(given.old)[:, 1:length],
        None if given.ref is None else models.tensor(given.ref)[:, 1:length],
        models.tensor(given.advantages),
    )
    theirs = token_grpo.update(net, how, rows)
    learnt = {name: w for name, w in net.mllm.named_parameters() if w.grad is not None}
    trees = (_released(built, tree, learnt) for tree in (before, after))
    return same_update(metrics, theirs, *trees, learnt)


def _released(built: Parts, tree: Tree, names) -> dict[str, torch.Tensor]:
    entries = streams.released(tree, mllm_table.rules(built.system.mllm))
    tensors = streams.Lazy({name: entry for name, entry in entries.items() if name in names})
    return {name: torch.tensor(array) for name, array in tensors.items()}
