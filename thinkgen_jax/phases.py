# SPDX-License-Identifier: Apache-2.0
"""What one training step is: the table of phases, and who learns when.

A phase is a data stream and an update (states, batch, key) -> (states, metrics, pictures).
Supervised stages have one phase; SepGRPO alternates two:

  vae_sft    the autoencoder reconstructs           (preparation of the nano system)
  text_sft   the MLLM learns to write               (preparation of the nano system)
  flow_sft   the DiT learns to draw                 (align, pretrain, finetune)
  mllm_grpo  the MLLM learns from its pictures' rewards, DiT frozen   (stage 4)
  dit_grpo   the DiT learns from its pictures' rewards, MLLM frozen   (stage 5)

Trees that learn are in `states`; the others are in `Setup.frozen`. References for the KL terms are
the parameters at the start of the run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thinkgen_jax import hosts, logs, rewards, rollout, scoring
from thinkgen_jax.data import batches, corpus, encoded, feeding, prompt_sets
from thinkgen_jax.data.batches import Shape, Stream
from thinkgen_jax.data.corpus import Corpus
from thinkgen_jax.data.prompt_sets import PromptSet
from thinkgen_jax.models import lora
from thinkgen_jax.parts import Parts
from thinkgen_jax.rewards import DROP_LIMIT, Scenarios, Weights
from thinkgen_jax.rewards.pool import COMBINE, Pool, reward_metrics
from thinkgen_jax.rewards.remote import Service
from thinkgen_jax.rollout import Draw, Paths, Span, Thinking
from thinkgen_jax.scoring import Gallery
from thinkgen_jax.steps import cost, dit_grpo, flow_sft, mllm_grpo, text_sft, vae_sft
from thinkgen_jax.steps.dit_grpo import DitGrpoConfig
from thinkgen_jax.steps.mllm_grpo import MllmGrpoConfig
from thinkgen_jax.steps.state import Learner
from thinkgen_jax.structs import Key, Params, Request, States, Thoughts, Tree


@dataclass(frozen=True)
class SftPlan:
    """A supervised phase.

    Attributes:
      batch: rows of a step.
      streams: kinds of batches, mixed by weight; none beside a corpus.
      corpus: real pictures instead of streams (flow_sft).
      pool: batches whose rows are sorted by length together, so that short ones are padded less;
        1 gives every batch the stream's length (flow_sft).
      workers: processes that make the batches; 0 makes them in this one, which is enough where a
        step takes longer than its batch.
      drop: share of words dropped for guidance (flow_sft).
      wrong: by scenario, share of thoughts that come to a wrong conclusion (text_sft).
      silent: share of responses without a thought (text_sft).
      plain: condition on a learned text embedding instead of the MLLM (flow_sft).
      draws: times, each with its own noise, at which a picture is learned in a step (flow_sft).
      shift: time shift of training, larger is nearer to the noise; None takes the system's
        (flow_sft).
      sample: learn draws from the autoencoder's posterior, as the release does, instead of its mode
        (flow_sft).
      loss: constants of the reconstruction loss (vae_sft).
      crop: side of cut-outs in pixels, 0 for whole pictures (vae_sft).
    """

    batch: int
    streams: tuple[Stream, ...] = ()
    corpus: Corpus | None = None
    pool: int = 1
    workers: int = 0
    drop: float = 0.1
    wrong: Mapping[str, float] = field(default_factory=dict)
    silent: float = 0.2
    plain: bool = False
    draws: int = 1
    shift: float | None = None
    sample: bool = False
    loss: vae_sft.VaeLoss = field(default_factory=vae_sft.VaeLoss)
    crop: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "pool", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if (self.corpus is None) == (not self.streams):
            raise ValueError("give either streams or a corpus with sources")
        if self.corpus is not None and self.pool > 1:
            raise ValueError(f"pool = {self.pool}: rows of a corpus are not pooled, it must be 1")
        if self.workers < 0 or (self.workers and self.pool > 1):
            raise ValueError(
                f"workers = {self.workers}, pool = {self.pool}: workers must be at least 0, and "
                "with workers each batch is made by itself, so pool must be 1"
            )
        if not 0 <= self.drop <= 1 or not 0 <= self.silent <= 1:
            raise ValueError(f"drop = {self.drop}, silent = {self.silent}: must lie in [0, 1]")
        if self.shift is not None and self.shift <= 0:
            raise ValueError(f"shift = {self.shift}: must be above 0")
        _check_shares(self.streams)


@dataclass(frozen=True)
class RlPlan:
    """A reinforcement phase.

    Attributes:
      prompts: requests of an iteration.
      group: G, responses or paths per request; at least 2.
      inner: updates per rollout.
      streams: kinds of request batches, mixed by weight.
      sets: prompt sets that requests come from instead of the miniature world; the streams then say
        only the length and pictures of their scenarios.
      against: prompt files of evaluations; what they ask is taken out of the sets.
      draw: how pictures are drawn for the reward.
      rewards: reward names and weights.
      scenario_rewards: by scenario, names and weights that stand in the place of `rewards` there.
      servers: where rewards are scored that are not scored here, by name.
      combine: "sum" compares weighted sums; "gdpo" first brings each reward to mean 0 and spread 1
        inside its group, so that none drowns the others by its scale.
      drop_limit: share of recent groups that may be dropped for want of a server's answer.
      token, path: constants of the two objectives.
      chunks: parts of an iteration that are drawn one after the other, each scored while the next
        is drawn.
      noise: noise level of stochastic steps (dit_grpo).
      window: (first, last + 1) step that may be stochastic; (0, 0) is all (dit_grpo).
      width: stochastic steps of an iteration, placed at random inside the window; 0 is the whole
        window (dit_grpo).
      shared: a group shares its first noise, and so the steps before the stochastic ones, which
        are then taken once (dit_grpo).
      keep_old: learn from the log-probabilities that the rollout computed; refused when they differ
        from the training function's by more than a tenth of the clip (dit_grpo).
      silent: share of requests conditioned on the user's own words (dit_grpo).
    """

    prompts: int
    group: int
    streams: tuple[Stream, ...]
    inner: int = 1
    draw: Draw = field(default_factory=Draw)
    sets: tuple[PromptSet, ...] = ()
    against: tuple[str, ...] = ()
    rewards: Weights = field(default_factory=lambda: {"miniature": 1.0})
    scenario_rewards: Scenarios = field(default_factory=dict)
    servers: Mapping[str, Service] = field(default_factory=dict)
    combine: str = "sum"
    drop_limit: float = DROP_LIMIT
    token: MllmGrpoConfig = field(default_factory=MllmGrpoConfig)
    path: DitGrpoConfig = field(default_factory=DitGrpoConfig)
    noise: float = 0.7
    chunks: int = 1
    window: tuple[int, int] = (0, 0)
    width: int = 0
    shared: bool = False
    keep_old: bool = False
    silent: float = 0.5

    def __post_init__(self) -> None:
        for name in ("prompts", "inner"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.group < 2:
            raise ValueError(f"group = {self.group} has no advantage; it must be at least 2")
        if self.chunks < 1 or self.prompts % self.chunks:
            raise ValueError(f"chunks = {self.chunks} does not divide prompts = {self.prompts}")
        begin, end = self.window
        if self.window != (0, 0) and not 0 <= begin < end <= self.draw.steps:
            raise ValueError(f"window {self.window} does not lie inside {self.draw.steps} steps")
        if not 0 <= self.width <= ((end - begin) or self.draw.steps):
            raise ValueError(f"width = {self.width} does not fit the window {self.window}")
        if not 0 <= self.silent <= 1:
            raise ValueError(f"silent = {self.silent}: must lie in [0, 1]")
        if self.against and not self.sets:
            raise ValueError(f"against = {self.against}: there are no sets to take prompts out of")
        if self.combine not in COMBINE:
            raise ValueError(f"combine = {self.combine!r} is not one of {COMBINE}")
        if not 0 <= self.drop_limit <= 1:
            raise ValueError(f"drop_limit = {self.drop_limit}: must lie in [0, 1]")
        _check_shares(self.streams)
        rewards.check(self.rewards, self.servers, self.scenario_rewards)
        there = {name.partition("/")[0] for s in self.streams for name in s.scenarios}
        idle = sorted(set(self.scenario_rewards) - there)
        if idle:
            raise ValueError(f"scenario_rewards {idle}: no stream has them, there are {there}")


def _check_shares(streams: Sequence[Stream]) -> None:
    if streams and not any(stream.weight for stream in streams):
        raise ValueError("streams: one of their weights must be above 0")


class Setup(NamedTuple):
    """What every phase is built from."""

    parts: Parts
    frozen: dict[str, Tree]  # trees that do not learn in this run, or below adapters that do
    references: dict[str, Tree]  # parameters at the start of the run, of trees with a KL term
    learners: dict[str, Learner]
    seed: int


class Phase(NamedTuple):
    """One kind of step: which tree learns, on what, how."""

    learns: str
    data: Any  # iterator with get_state and set_state
    update: Callable[[States, Any, Key], tuple[States, dict, Gallery | None]]
    sliced: bool = False  # whether hosts make their own rows of a batch alone
    close: Callable[[], None] = lambda: None  # lets go of threads and connections


def at(step: int, schedule: Sequence[tuple[str, int]]) -> str:
    """Name of the phase of a step (from 0): the schedule is walked round and round."""
    names = [name for name, count in schedule for _ in range(count)]
    return names[step % len(names)]


def build(name: str, plan: SftPlan | RlPlan, setup: Setup) -> Phase:
    """Builds one phase by its name.

    Raises:
      ValueError: for a name that is not in `PHASES`.
    """
    if name not in PHASES:
        raise ValueError(f"config.phases: {name!r} is not one of {sorted(PHASES)}")
    return PHASES[name](plan, setup)


def params_of(setup: Setup, states: States, tree: str) -> Tree:
    """Current parameters of a tree, learning or frozen; adapters are merged into it."""
    if tree not in states:
        return setup.frozen[tree]
    learner = setup.learners[tree]
    if learner.lora is None:
        return states[tree].params
    return lora.merged(setup.frozen[tree], states[tree].params, learner.lora)


# --- supervised ---


def _vae(plan: SftPlan, setup: Setup) -> Phase:
    step = vae_sft.make_step(setup.parts.vae, setup.learners["vae"], plan.loss)
    shape = _shape(setup)
    data = [batches.picture_stream(s, shape, size=plan.batch, crop=plan.crop) for s in plan.streams]

    def update(states: States, batch, key: Key):
        state, metrics = step(states["vae"], batch, key)
        return {**states, "vae": state}, metrics, None

    return Phase("vae", _mixed(data, plan), update)


def _text(plan: SftPlan, setup: Setup) -> Phase:
    step = text_sft.make_step(setup.parts.mllm, setup.learners["mllm"])
    shape = _shape(setup)
    data = [
        batches.text_stream(s, shape, size=plan.batch, wrong=plan.wrong, silent=plan.silent)
        for s in plan.streams
    ]

    def update(states: States, batch, key: Key):
        state, metrics = step(states["mllm"], batch, setup.frozen.get("mllm"))
        return {**states, "mllm": state}, metrics, None

    return Phase("mllm", _mixed(data, plan), update)


def _flow(plan: SftPlan, setup: Setup) -> Phase:
    parts = setup.parts
    data, tokens = _flow_data(plan, setup)
    if isinstance(data, feeding.Feed):
        for line in data.about:
            logs.note(line)
    step = flow_sft.make_step(
        parts.dit,
        parts.encoder,
        setup.learners["dit"],
        shift=parts.system.shift if plan.shift is None else plan.shift,
        draws=plan.draws,
        frame=len(parts.text.pseudo("")),
        tokens=tokens,
        sample=plan.sample,
    )
    frozen = {tree: setup.frozen.get(tree) for tree in ("mllm", "vae")}

    def update(states: States, batch, key: Key):
        state, metrics = step(states["dit"], frozen, batch, key, setup.frozen.get("dit"))
        if isinstance(data, feeding.Feed):
            for name, why in data.news():
                logs.note(f"skipped {name}: {why}")
            metrics = {**metrics, "broken": float(len(data.broken))}
        return {**states, "dit": state}, metrics, None

    return Phase("dit", data, update, sliced=plan.corpus is not None)


def _flow_data(plan: SftPlan, setup: Setup):
    """The batches of a flow phase, and the mean tokens of a picture where their sizes differ."""
    shape = _shape(setup)
    how = dict(drop=plan.drop, plain=plan.plain)
    if plan.corpus is None:
        data = [
            batches.flow_stream(s, shape, size=plan.batch, pool=plan.pool, **how)
            for s in plan.streams
        ]
        return _mixed(data, plan), None
    side, host = setup.parts.system.multiple, (jax.process_index(), jax.process_count())
    if plan.corpus.encoded is not None:
        with hosts.together():
            found = encoded.Encodings(plan.corpus.encoded)
            encoded.check(found, width=setup.parts.system.dit.condition_dim, plain=plan.plain)
        hosts.same(f"corpus.encoded = {plan.corpus.encoded}", found.content)
        data, weights = encoded.streams(
            found, size=plan.batch, drop=plan.drop, seed=setup.seed, host=host
        )
        feed = batches.mixed(data, weights, workers=plan.workers)
        return feed, encoded.mean_tokens(found)
    with hosts.together():
        feed, tokens = feeding.feed(
            plan.corpus,
            shape,
            multiple=corpus.multiple_of(side),
            tokens=side,
            size=plan.batch,
            workers=plan.workers,
            host=host,
            **how,
        )
    hosts.same("corpus.sources", feed.content)
    return feed, tokens


def _mixed(data: Sequence, plan: SftPlan):
    return batches.mixed(data, [s.weight for s in plan.streams], workers=plan.workers)


# --- reinforcement ---


def _mllm_grpo(plan: RlPlan, setup: Setup) -> Phase:
    parts = setup.parts
    cut = setup.learners["mllm"].accumulate
    logprobs = mllm_grpo.make_logprobs(parts.mllm, plan.token, cut)
    grpo_step = mllm_grpo.make_step(parts.mllm, setup.learners["mllm"], plan.token)
    reference = setup.references.get("mllm")
    data, pool = _requests("mllm_grpo", plan, setup), _open("mllm_grpo", plan)

    def draw(params: Params, requests: list[Request], key: Key) -> Thinking:
        """Draws part of an iteration and hands it over to the rewards."""
        stream = stream_of(requests, plan.streams)
        drawn = rollout.think_group(
            parts, params, requests, stream, key, group=plan.group, how=plan.draw
        )
        thinking = drawn.thinking
        pool.submit(partial(rollout.samples, parts, requests, plan.group, drawn.images, thinking))
        return thinking

    def update(states: States, requests: Sequence[Request], key: Key):
        params = _params(setup, states)
        thinking = rollout.together(
            [draw(params, *part) for part in _chunks(requests, key, plan.chunks)]
        )
        prompt, mask = rollout.written(thinking)
        old = logprobs(params.mllm, prompt, mask)
        ref = logprobs(reference, prompt, mask) if plan.token.kl else None
        jax.block_until_ready((old, ref))  # what is left to do needs the rewards
        del params  # merged ones are a copy that the update has no use for
        scored, settled = scoring.collect(pool, plan.combine)
        if settled.failed.all():  # nothing to learn from, not even where the reference lies
            return states, reward_metrics(settled, scored), None
        scope = "group" if plan.combine == "sum" else "batch"
        advantage = scoring.advantages(settled, scope=scope, ddof=1, eps=1e-6)
        mask = mask & jnp.asarray(np.repeat(settled.usable, plan.group))[:, None]
        thoughts = Thoughts(prompt, mask, old, ref, advantage)
        state = states["mllm"]
        for inner in range(plan.inner):
            state, metrics = grpo_step(state, thoughts, setup.frozen.get("mllm"))
            if inner == 0:
                first = metrics
        written = np.asarray(thinking.decoded.segments).sum(axis=1)
        metrics = {
            **metrics,
            "ratio_first": first["ratio"],
            **reward_metrics(settled, scored),
            "valid": float(np.mean(np.asarray(thinking.valid))),
            "tokens": float(written.mean()),
            "stopped": float(np.mean(np.asarray(thinking.decoded.stopped))),
        }
        shown = scoring.gallery(scored.samples, settled, plan.group)
        return {**states, "mllm": state}, metrics, shown

    return Phase("mllm", data, update, close=pool.close)


def _dit_grpo(plan: RlPlan, setup: Setup) -> Phase:
    parts = setup.parts
    logprobs = dit_grpo.make_logprobs(parts.dit, plan.path)
    grpo_step = dit_grpo.make_step(parts.dit, setup.learners["dit"], plan.path)
    reference = setup.references.get("dit") if plan.path.kl else None
    data = _requests("dit_grpo", plan, setup)
    pool, kept = _open("dit_grpo", plan), KeptOld(plan)

    def draw(params: Params, span: Span, requests: list[Request], key: Key) -> Paths:
        """Draws part of an iteration and hands it over to the rewards."""
        stream = stream_of(requests, plan.streams)
        condition, thought = rollout.shared_condition(
            parts, params.mllm, requests, stream, silent=round(plan.silent * len(requests))
        )
        references = rollout.reference_tokens(parts, params.vae, requests, stream)
        how = dict(group=plan.group, how=plan.draw, span=span, kernel=plan.path.kernel)
        paths = rollout.path_group(parts, params, condition, references, key, **how)
        images = rollout.decode_pixels(parts, params.vae, paths.end)
        pool.submit(partial(rollout.samples, parts, requests, plan.group, images, thought))
        return paths

    def update(states: States, requests: Sequence[Request], key: Key):
        params = _params(setup, states)
        key, span_key = jax.random.split(key)
        span, trained = span_of(plan, span_key)
        path, negative = rollout.learned(
            [draw(params, span, *part) for part in _chunks(requests, key, plan.chunks)], trained
        )
        if not plan.keep_old:
            path = path._replace(old=logprobs(params.dit, path, negative))
        jax.block_until_ready(path)  # what is left to do needs the rewards
        kept.check()  # here it waits for nothing, and the states are still the loop's
        del params
        scored, settled = scoring.collect(pool, plan.combine)
        if settled.failed.all():
            return states, reward_metrics(settled, scored), None
        path = path._replace(
            advantages=scoring.advantages(settled, scope="batch", ddof=0, eps=1e-4),
            weights=jnp.asarray(np.repeat(settled.usable, plan.group), jnp.float32),
        )
        state = states["dit"]
        for inner in range(plan.inner):
            base = setup.frozen.get("dit")
            state, metrics = grpo_step(state, reference, path, negative, base)
            if inner == 0:
                first = metrics
        kept.before = first["drift"]
        metrics = {
            **metrics,
            "ratio_first": first["ratio"],
            "drift_first": first["drift"],
            **reward_metrics(settled, scored),
            "forward_equivalents": forwards(plan, span, trained, path.references is not None),
        }
        shown = scoring.gallery(scored.samples, settled, plan.group)
        return {**states, "dit": state}, metrics, shown

    return Phase("dit", data, update, close=pool.close)


class KeptOld:
    """Watches, one step late, that log-probabilities kept from the rollout may be used.

    Attributes:
      before: |log ratio| of the last iteration's first update, which should be 0.
    """

    def __init__(self, plan: RlPlan):
        self.limit = plan.path.clip / 10 if plan.keep_old else None
        self.before: jax.Array | None = None

    def check(self) -> None:
        """Reads `before`.

        Raises:
          ValueError: when it is above a tenth of the clip.
        """
        if self.limit is None or self.before is None:
            return
        if (drift := float(self.before)) > self.limit:
            raise ValueError(
                f"keep_old: log-probabilities of rollout and training differ by {drift:.2g}, a "
                f"tenth of the clip is {self.limit:.2g}; "
                "go on with --config.plans.dit_grpo.keep_old=False"
            )


def span_of(plan: RlPlan, key: Key) -> tuple[Span, int]:
    """The stochastic steps of an iteration, and how many of them are trained."""
    begin, end = plan.window if plan.window != (0, 0) else (0, plan.draw.steps)
    width, trained = widths(plan)
    if end - begin > width:
        begin = jax.random.randint(key, (), begin, end - width + 1)
    return Span(begin, width, plan.noise, plan.shared), trained


def widths(plan: RlPlan) -> tuple[int, int]:
    """Number of stochastic steps, and of trained ones.

    Where every step is stochastic the first 99 % of them are trained: the last one has almost no
    noise left.
    """
    steps, (begin, end) = plan.draw.steps, plan.window
    width = plan.width or end - begin or steps
    return width, width if width < steps else max(1, int(0.99 * steps))


def forwards(plan: RlPlan, span: Span, trained: int, references: bool) -> float | jax.Array:
    """Forwards of the DiT per picture of an iteration, see `steps.cost`."""
    return cost.path_forwards(
        steps=plan.draw.steps,
        begin=span.begin,
        trained=trained,
        group=plan.group,
        shared=span.shared,
        passes=plan.draw.guidance.passes(0, 1, references),
        inner=plan.inner,
        reference=bool(plan.path.kl),
        recompute=not plan.keep_old,
    )


def stream_of(requests: Sequence[Request], streams: Sequence[Stream]) -> Stream:
    """The stream a batch came from: the one with its scenarios."""
    found = [r.meta["item"] for r in requests]
    for stream in streams:
        if batches.takes(stream, found):
            return stream
    raise ValueError(f"no stream has the scenarios {sorted({i.scenario for i in found})}")


def _params(setup: Setup, states: States) -> Params:
    return Params(*(params_of(setup, states, tree) for tree in Params._fields))


def _open(name: str, plan: RlPlan) -> Pool:
    how = dict(group=plan.group, drop_limit=plan.drop_limit, scenarios=plan.scenario_rewards)
    return scoring.open_pool(name, plan.rewards, plan.servers, **how)


def _chunks(requests: Sequence[Request], key: Key, count: int) -> list[tuple[list[Request], Key]]:
    """An iteration in `count` parts, each with its key."""
    size = len(requests) // count
    parts = [list(requests[i * size : (i + 1) * size]) for i in range(count)]
    return list(zip(parts, jax.random.split(key, count), strict=True))


def _shape(setup: Setup) -> Shape:
    return Shape(setup.parts.text, setup.parts.vision, setup.seed)


def _requests(name: str, plan: RlPlan, setup: Setup):
    shape, scored = _shape(setup), (plan.rewards, plan.servers, plan.scenario_rewards)
    if plan.sets:
        try:
            items = [item for one in plan.sets for item in prompt_sets.read(one)]
            items, told = prompt_sets.apart(items, plan.against)
        except ValueError as err:
            raise ValueError(f"config.plans.{name}.sets: {err}") from None
        for line in told:
            logs.note(line)
        asked = [Request(item.prompt, meta={"item": item}) for item in items]
        prompt_sets.check_streams(items, plan.streams, f"config.plans.{name}.streams")
        scoring.check_requests(name, asked, *scored)
        side = setup.parts.system.image_size
        prompt_sets.check_pictures(items, side)
        how = dict(size=plan.prompts, seed=setup.seed, picture=side)
        return batches.mixed(*prompt_sets.streams(items, **how))
    scoring.check_requests(name, batches.examples(plan.streams, shape), *scored)
    data = [batches.request_stream(s, shape, size=plan.prompts) for s in plan.streams]
    return batches.mixed(data, [s.weight for s in plan.streams])


LEARNS = {  # the tree that learns in a phase
    "vae_sft": "vae",
    "text_sft": "mllm",
    "flow_sft": "dit",
    "mllm_grpo": "mllm",
    "dit_grpo": "dit",
}
PHASES = {
    "vae_sft": _vae,
    "text_sft": _text,
    "flow_sft": _flow,
    "mllm_grpo": _mllm_grpo,
    "dit_grpo": _dit_grpo,
}
