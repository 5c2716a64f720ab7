# SPDX-License-Identifier: Apache-2.0
"""The programs of a config: the functions training calls, with abstract arguments as it lays them.

Nothing is allocated: parameters, batches and rollouts are shapes with places on the mesh in force.
A phase is given its heaviest stream, the one with most pictures and then most tokens a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from thinkgen_jax import parts, phases, rollout, sharding
from thinkgen_jax.data.batches import Stream
from thinkgen_jax.models import lora
from thinkgen_jax.parts import Parts
from thinkgen_jax.phases import RlPlan, SftPlan
from thinkgen_jax.sampling import decode, flow, sde
from thinkgen_jax.steps import dit_grpo, flow_sft, mllm_grpo, text_sft
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps.state import Learner
from thinkgen_jax.structs import (
    Condition,
    Decoded,
    FlowBatch,
    Packed,
    Patches,
    Prompt,
    References,
    TextBatch,
    Thoughts,
    TrainState,
    Trajectory,
    Tree,
)


@dataclass(frozen=True)
class Job:
    """One config on one mesh.

    Attributes:
      plans: of every phase of the schedule, by name.
      learners: of every tree that learns.
      mesh: also to be set with `jax.set_mesh`.
      frozen: dtype of trees that do not learn, see `parts.kept`.
    """

    parts: Parts
    plans: Mapping[str, SftPlan | RlPlan]
    learners: Mapping[str, Learner]
    mesh: Mesh
    frozen: str = "float32"


class Program(NamedTuple):
    """A jitted function with abstract arguments.

    Attributes:
      loose: those arguments that are no parameters: batches and what a rollout made.
    """

    function: Any
    args: tuple
    kwargs: dict
    loose: tuple


# --- what lives on the machine ---

MERGED = "merged/"  # a tree with its adapters: there until an update begins
OPTIMIZER = "optimizer/"  # of a tree: on the devices in the phases alone in which it learns


def place(tree: Tree, mesh: Mesh) -> Tree:
    """Parameters, or anything shaped like them, as training lays them."""
    return jax.tree.map(_lay, tree, sharding.infer(tree, mesh))


def _lay(leaf, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def params(job: Job, tree: str, *, still: bool | None = None) -> Tree:
    """Parameters of one tree, placed.

    Args:
      still: whether they do not learn; None: whether the tree does not.
    """
    shapes = parts.shapes(job.parts.system, tree)
    if tree not in job.learners if still is None else still:
        shapes = jax.eval_shape(partial(parts.kept, tree, dtype=job.frozen), shapes)
    return place(shapes, job.mesh)


def state(job: Job, tree: str) -> TrainState:
    """A learning tree with its optimizer and average, placed."""
    learner = job.learners[tree]
    shapes = parts.shapes(job.parts.system, tree)
    if learner.lora is not None:
        key = jax.eval_shape(lambda: jax.random.key(0))
        shapes = jax.eval_shape(lambda key: lora.init(shapes, learner.lora, key), key)
    made = jax.eval_shape(partial(learning.create, learner=learner), shapes)
    return place(made, job.mesh)


def base(job: Job, tree: str) -> Tree | None:
    """The frozen tree below adapters; None where the tree itself learns."""
    return None if job.learners[tree].lora is None else params(job, tree, still=True)


def resident(job: Job) -> dict[str, Tree]:
    """Everything that lives beside the programs, by name.

    "state/mllm" learns, "optimizer/mllm" is its optimizer and average, "frozen/vae" does not learn,
    "reference/mllm" is what a KL term compares with. Where adapters learn, the frozen tree below
    them is the reference, and "merged/mllm" is what a rollout reads.
    """
    rl = any(isinstance(plan, RlPlan) for plan in job.plans.values())
    found: dict[str, Tree] = {}
    for tree in job.learners:
        made = state(job, tree)
        found[f"state/{tree}"] = made._replace(opt_state=None, ema=None)
        found[f"{OPTIMIZER}{tree}"] = made.opt_state, made.ema
    frozen = set(parts.TREES) if rl else {"vae", "mllm"} if "flow_sft" in job.plans else set()
    adapted = {tree for tree, learner in job.learners.items() if learner.lora is not None}
    still = partial(params, job, still=True)
    found |= {f"frozen/{tree}": still(tree) for tree in sorted(frozen - set(job.learners))}
    found |= {f"frozen/{tree}": still(tree) for tree in sorted(adapted)}
    if rl:
        found |= {f"reference/{tree}": still(tree) for tree in job.learners.keys() - adapted}
        found |= {f"{MERGED}{tree}": params(job, tree) for tree in sorted(adapted)}
    return found


# --- arguments ---


def _array(job: Job, shape: tuple[int, ...], names: tuple, dtype=jnp.float32):
    names = (*names, *(None,) * (len(shape) - len(names)))
    return jax.ShapeDtypeStruct(
        shape, dtype, sharding=NamedSharding(job.mesh, sharding.spec(names, shape))
    )


def _ints(job: Job, shape: tuple[int, ...], *names):
    return _array(job, shape, names, jnp.int32)


def _key(job: Job):
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(
        key.shape, key.dtype, sharding=NamedSharding(job.mesh, jax.sharding.PartitionSpec())
    )


def _prompt(job: Job, rows: int, length: int, pictures: int = 0) -> Prompt:
    """Token rows, with the pixels of so many pictures each."""
    ids = _ints(job, (rows, length), "batch")
    places, patches = _ints(job, (3, rows, length), None, "batch"), None
    if pictures:
        spec = job.parts.vision
        count = pictures * spec.max_pixels // spec.patch**2
        dim = job.parts.system.mllm.vision.patch_dim
        two = _ints(job, (rows, count, 2), "batch")
        patches = Patches(
            _array(job, (rows, count, dim), ("batch",)),
            two,
            two,
            _ints(job, (rows, count), "batch"),
            _ints(job, (rows, count // spec.merge**2), "batch"),
        )
    return Prompt(ids, ids, places, patches)


def _condition(job: Job, rows: int) -> Condition:
    system = job.parts.system
    shape = (rows, system.instruction_tokens)
    states = _array(job, (*shape, system.dit.condition_dim), ("rows",), system.mllm.dtype)
    return Condition(states, _ints(job, shape, "rows"))


def _packed(job: Job, rows: int, pictures: int = 1) -> Packed:
    """Latent tokens of pictures of the default size."""
    h, w = job.parts.grid()
    cfg = job.parts.system.dit
    count = pictures * (h // cfg.patch_size) * (w // cfg.patch_size)
    return Packed(
        _array(job, (rows, count, cfg.token_dim), ("rows",)),
        _ints(job, (rows, count, 2), "rows"),
        _ints(job, (rows, count), "rows"),
    )


def _pixels(job: Job, rows: int):
    return _array(job, (rows, *job.parts.system.image_size, 3), ("rows",), jnp.uint8)


def _pictures(job: Job, rows: int, count: int) -> References | None:
    if not count:
        return None
    shape = (rows, count, *job.parts.system.image_size, 3)
    return References(_array(job, shape, ("rows",), jnp.uint8), _ints(job, (rows, count), "rows"))


def heaviest(plan: SftPlan | RlPlan) -> Stream:
    """The stream whose batches take most memory; real pictures count as edits of one picture."""
    if isinstance(plan, SftPlan) and plan.corpus is not None:
        return Stream(1.0, {}, pictures=1, length=plan.corpus.length)
    return max(plan.streams, key=lambda s: (s.pictures, s.length))


def _negative(job: Job, plan: RlPlan) -> Condition | None:
    return _condition(job, 1) if plan.draw.guidance.text > 1 else None


# --- the table ---


def _think(job: Job, name: str) -> Program:
    """Writes the thoughts of a rollout: each prompt is read once, then all rows write."""
    plan, system, stream = job.plans[name], job.parts.system, heaviest(job.plans[name])
    group = plan.group if name == "mllm_grpo" else 1
    prompt = _prompt(job, plan.prompts, stream.length, stream.pictures)
    args = (job.parts.mllm, params(job, "mllm"), prompt, _key(job))
    kwargs = dict(
        max_new_tokens=system.thought_tokens,
        stop_id=job.parts.text.stop_id,
        temperature=plan.draw.temperature,
        group=group,
        halvings=plan.draw.halvings,
    )
    return Program(decode.sample, args, kwargs, (prompt,))


def _prefill(job: Job, name: str) -> Program:
    """Reads the prompts of a rollout into the cache that thoughts are written behind."""
    plan, stream = job.plans[name], heaviest(job.plans[name])
    mllm, size = job.parts.mllm, stream.length

    @jax.jit
    def prefill(params, prompt):
        params = decode.serving(mllm, params)
        return mllm.apply({"params": params}, prompt, size=size, method="prefill").cache

    prompt = _prompt(job, plan.prompts, stream.length, stream.pictures)
    args = (params(job, "mllm"), prompt)
    return Program(prefill, args, {}, (prompt,))


def _whole(job: Job, plan: RlPlan, rows: int) -> Prompt:
    stream = heaviest(plan)
    return _prompt(job, rows, stream.length + job.parts.system.thought_tokens, stream.pictures)


def _read(job: Job, name: str) -> Program:
    """The one pass over prompts and thoughts whose states condition the DiT."""
    plan, stream = job.plans[name], heaviest(job.plans[name])
    rows = plan.prompts * plan.group
    shape = (rows, job.parts.system.thought_tokens)
    ids = _ints(job, shape, "batch")
    decoded = Decoded(ids, ids, _array(job, (rows,), ("batch",), jnp.bool_))
    prompt = _prompt(job, plan.prompts, stream.length, stream.pictures)
    length = stream.length + job.parts.system.thought_tokens
    args = (job.parts.encoder, params(job, "mllm"), prompt, decoded, length)
    return Program(rollout._read, args, {}, (prompt, decoded))


def _token_logprobs(job: Job, name: str) -> Program:
    plan = job.plans[name]
    rows = plan.prompts * plan.group
    whole = _whole(job, plan, rows)
    mask = _array(job, whole.ids.shape, ("batch",), jnp.bool_)
    cut = job.learners["mllm"].accumulate
    function = mllm_grpo.make_logprobs(job.parts.mllm, plan.token, cut)
    return Program(function, (params(job, "mllm"), whole, mask), {}, (whole, mask))


def _mllm_step(job: Job, name: str) -> Program:
    plan = job.plans[name]
    rows = plan.prompts * plan.group
    whole = _whole(job, plan, rows)
    each = _array(job, whole.ids.shape, ("batch",))
    mask = _array(job, whole.ids.shape, ("batch",), jnp.bool_)
    ref = each if plan.token.kl else None
    thoughts = Thoughts(whole, mask, each, ref, _array(job, (rows,), ("batch",)))
    function = mllm_grpo.make_step(job.parts.mllm, job.learners["mllm"], plan.token)
    args = (state(job, "mllm"), thoughts, base(job, "mllm"))
    return Program(function, args, {}, (thoughts,))


def _text_step(job: Job, name: str) -> Program:
    """Supervised; in a config without that phase, of the rows that reinforcement learns from."""
    plan = job.plans[name]
    if isinstance(plan, SftPlan):
        rows, stream = plan.batch, heaviest(plan)
        prompt = _prompt(job, rows, stream.length, stream.pictures)
    else:
        rows = plan.prompts * plan.group
        prompt = _whole(job, plan, rows)
    batch = TextBatch(prompt, _array(job, prompt.ids.shape, ("batch",)))
    function = text_sft.make_step(job.parts.mllm, job.learners["mllm"])
    return Program(function, (state(job, "mllm"), batch, base(job, "mllm")), {}, (batch,))


def _flow_step(job: Job, name: str) -> Program:
    plan, stream = job.plans[name], heaviest(job.plans[name])
    text, system = job.parts.text, job.parts.system
    function = flow_sft.make_step(
        job.parts.dit,
        job.parts.encoder,
        job.learners["dit"],
        shift=system.shift if plan.shift is None else plan.shift,
        draws=plan.draws,
        frame=len(text.pseudo("")),
        sample=plan.sample,
    )
    frozen = {"mllm": params(job, "mllm"), "vae": params(job, "vae")}
    rows = plan.batch
    batch = FlowBatch(
        _prompt(job, rows, stream.length), _pixels(job, rows), _pictures(job, rows, stream.pictures)
    )
    args = (state(job, "dit"), frozen, batch, _key(job), base(job, "dit"))
    return Program(function, args, {}, (batch,))


def _draw(job: Job, name: str) -> Program:
    """Phase A's pictures: the deterministic sampler."""
    plan, stream = job.plans[name], heaviest(job.plans[name])
    rows = plan.prompts * plan.group
    refs = _packed(job, rows, stream.pictures) if stream.pictures else None
    args = (
        job.parts.dit,
        params(job, "dit"),
        _packed(job, rows),
        _condition(job, rows),
        _negative(job, plan),
        refs,
        _array(job, (plan.draw.steps + 1,), ()),
    )
    kwargs = dict(guidance=plan.draw.guidance)
    return Program(flow.sample, args, kwargs, args[2:])


def _paths(job: Job, name: str) -> Program:
    """Phase B's pictures: stochastic paths, their stochastic steps kept."""
    plan, stream = job.plans[name], heaviest(job.plans[name])
    few = plan.prompts
    args = (
        job.parts.dit,
        params(job, "dit"),
        _packed(job, few if plan.shared else few * plan.group),
        _condition(job, few),
        _negative(job, plan),
        _packed(job, few, stream.pictures) if stream.pictures else None,
        _array(job, (plan.draw.steps + 1,), ()),
        _ints(job, ()),
        _array(job, (), ()),
        _key(job),
    )
    kwargs = dict(
        width=phases.widths(plan)[0],
        group=plan.group,
        guidance=plan.draw.guidance,
        kernel=plan.path.kernel,
    )
    return Program(sde.rollout, args, kwargs, args[2:])


def _path(job: Job, plan: RlPlan) -> Trajectory:
    """A sampled batch of phase B."""
    rows, trained = plan.prompts * plan.group, phases.widths(plan)[1]
    target, stream = _packed(job, rows), heaviest(plan)
    return Trajectory(
        latents=_array(job, (trained + 1, *target.tokens.shape), (None, "rows")),
        times=_array(job, (trained + 1,), ()),
        second=_array(job, (), ()),
        noise=_array(job, (), ()),
        old=_array(job, (trained, rows), (None, "rows")),
        target=target,
        condition=_condition(job, rows),
        references=_packed(job, rows, stream.pictures) if stream.pictures else None,
        advantages=_array(job, (rows,), ("rows",)),
        weights=_array(job, (rows,), ("rows",)),
    )


def _path_logprobs(job: Job, name: str) -> Program:
    plan = job.plans[name]
    path, negative = _path(job, plan), _negative(job, plan)
    function = dit_grpo.make_logprobs(job.parts.dit, plan.path)
    return Program(function, (params(job, "dit"), path, negative), {}, (path, negative))


def _dit_step(job: Job, name: str) -> Program:
    plan = job.plans[name]
    path, negative = _path(job, plan), _negative(job, plan)
    reference = params(job, "dit", still=True) if plan.path.kl else None
    function = dit_grpo.make_step(job.parts.dit, job.learners["dit"], plan.path)
    args = (state(job, "dit"), reference, path, negative, base(job, "dit"))
    return Program(function, args, {}, (path, negative))


def _decode_pixels(job: Job, name: str) -> Program:
    """The autoencoder paints a rollout."""
    plan = job.plans[name]
    rows, (h, w) = plan.prompts * plan.group, job.parts.grid()
    args = (job.parts.encoder, params(job, "vae"), _packed(job, rows).tokens, h, w)
    return Program(rollout._pixels, args, {}, args[2:3])


def _encode_pixels(job: Job, name: str) -> Program:
    """The autoencoder reads the references of a rollout, at least one a request."""
    plan, stream = job.plans[name], heaviest(job.plans[name])
    pictures = _pictures(job, plan.prompts, max(stream.pictures, 1))
    args = (job.parts.encoder, params(job, "vae"), pictures)
    return Program(rollout._references, args, {}, (pictures,))


# Programs by phase.
PROGRAMS: dict[str, dict[str, Callable[[Job, str], Program]]] = {
    "text_sft": {"text_step": _text_step},
    "flow_sft": {"flow_step": _flow_step},
    "mllm_grpo": {
        "prefill": _prefill,
        "think": _think,
        "read": _read,
        "encode": _encode_pixels,
        "draw": _draw,
        "pixels": _decode_pixels,
        "logprobs": _token_logprobs,
        "mllm_step": _mllm_step,
        "text_step": _text_step,
    },
    "dit_grpo": {
        "think_once": _think,
        "paths": _paths,
        "paint": _decode_pixels,
        "path_logprobs": _path_logprobs,
        "dit_step": _dit_step,
    },
}


def table(job: Job) -> dict[str, Callable[[], Program]]:
    """The programs of a job by name, each built when called."""
    return {
        name: partial(make, job, phase)
        for phase in job.plans
        for name, make in PROGRAMS.get(phase, {}).items()
    }


def phase_of(job: Job, name: str) -> str:
    """The phase a program belongs to."""
    return next(phase for phase in job.plans if name in PROGRAMS.get(phase, {}))
