# SPDX-License-Identifier: Apache-2.0
"""The least that a program must do, by the program's name: arithmetic, memory and link traffic.

A lower bound on time follows, and is labelled an estimate wherever it is shown: arithmetic at the
chip's peak and weights read from memory go side by side, whichever takes longer; what the compiled
text shows as exposed of the link traffic comes on top. Activations' traffic is left out.

* A network's weights are read in bfloat16 once a pass: forward, backward and, with remat, once more
  for every micro-batch.
* Links carry the gathered weights of every pass and the gradients of every micro-batch; with tensor
  parallelism, two sums of the decoder's activations for every layer and pass.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from thinkgen_jax import flops, parts, phases
from thinkgen_jax.aot import programs
from thinkgen_jax.aot.programs import Job, heaviest
from thinkgen_jax.models.layers import remat_name

HALF, FULL = 2, 4  # bytes of a bfloat16 and of a float32
MOMENTS = 6 * FULL  # bytes an update of AdamW reads and writes for each parameter, gradient aside


class Work(NamedTuple):
    """Of one call.

    Attributes:
      flops: of the networks, on all devices together; `again` of remat beside them.
      memory: bytes of weights and optimizer one device reads and writes.
      links: bytes one device receives.
    """

    flops: float
    again: float
    memory: float
    links: float


class Bound(NamedTuple):
    """Least seconds of one call."""

    arithmetic: float
    memory: float
    links: float  # exposed share

    @property
    def total(self) -> float:
        """Seconds."""
        return max(self.arithmetic, self.memory) + self.links


def bound(work: Work, chip, devices: int, exposed: float) -> Bound:
    """Least time on so many chips, when this share of the link traffic is exposed."""
    return Bound(
        (work.flops + work.again) / devices / chip.flops,
        work.memory / chip.memory,
        exposed * work.links / chip.links,
    )


def _count(job: Job, tree: str) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(parts.shapes(job.parts.system, tree)))


def _held(job: Job, tree: str) -> float:
    """Parameters one device holds while it computes: the decoder stays cut by `tensor`."""
    return _count(job, tree) / (job.mesh.shape["tensor"] if tree == "mllm" else 1)


def _gathered(job: Job, tree: str) -> float:
    """Of those, the ones it has to receive first."""
    ways = job.mesh.shape["fsdp"] * (1 if tree == "mllm" else job.mesh.shape["tensor"])
    return _held(job, tree) * (1 - 1 / ways)


def _sums(job: Job, rows: int, tokens: int) -> float:
    """Bytes of a pass's sums over `tensor`: two for every decoder layer."""
    cfg, tensor = job.parts.system.mllm, job.mesh.shape["tensor"]
    mine = rows / (job.mesh.shape["data"] * job.mesh.shape["fsdp"])
    one = mine * tokens * cfg.hidden_size * HALF * 2 * (1 - 1 / tensor)
    return 2 * cfg.num_hidden_layers * one


def _forward(job: Job, tree: str, total: float, passes: int, sums: float = 0.0) -> Work:
    memory, links = passes * HALF * _held(job, tree), passes * HALF * _gathered(job, tree)
    return Work(total, 0.0, memory, links + sums)


def _train(job: Job, tree: str, forward: float, passes: int, sums: float = 0.0) -> Work:
    """An update from `passes` micro-batches that take `forward` operations in all."""
    again = remat_name(getattr(job.parts.system, tree).remat) != "none"
    each = 3 if again else 2
    learning = sum(leaf.size for leaf in jax.tree.leaves(programs.state(job, tree).params))
    mine, share = learning / job.mesh.size, learning / _count(job, tree)
    return Work(
        flops.TRAIN * forward,
        forward if again else 0.0,
        passes * each * HALF * _held(job, tree) + (MOMENTS + 2 * FULL * passes) * mine,
        passes * (each * HALF + share * FULL) * _gathered(job, tree) + each * sums,
    )


def _lengths(job: Job, name: str) -> tuple[int, int, int]:
    """Tokens of a prompt, of a thought, and patches of a prompt's pictures."""
    stream, spec = heaviest(job.plans[name]), job.parts.vision
    patches = stream.pictures * spec.max_pixels // spec.patch**2
    return stream.length, job.parts.system.thought_tokens, patches


def _rows(job: Job, name: str) -> int:
    plan = job.plans[name]
    return plan.batch if isinstance(plan, phases.SftPlan) else plan.prompts * plan.group


def _prefill(job: Job, name: str) -> Work:
    plan, cfg = job.plans[name], job.parts.system.mllm
    length, _, patches = _lengths(job, name)
    total = plan.prompts * flops.mllm(cfg, length, logits=False, patches=patches)
    return _forward(job, "mllm", total, 1, _sums(job, plan.prompts, length))


def _think(job: Job, name: str) -> Work:
    plan, cfg = job.plans[name], job.parts.system.mllm
    rows = plan.prompts * (plan.group if name == "mllm_grpo" else 1)
    length, count, _ = _lengths(job, name)
    first = _prefill(job, name)
    kv = 2 * cfg.num_kv_heads * cfg.head_dim * cfg.num_hidden_layers * HALF
    # A group reads its prompt together, and every row what it has written.
    cached = kv * (plan.prompts * length + rows * count / 2) / job.mesh.size
    return Work(
        first.flops + rows * flops.writing(cfg, length, count),
        0.0,
        first.memory + count * (HALF * _held(job, "mllm") + cached),
        first.links + count * _sums(job, rows, 1),
    )


def _whole(job: Job, name: str, *, logits: bool) -> tuple[float, float]:
    """Operations and sums of one pass over prompts and thoughts."""
    rows = _rows(job, name)
    length, count, patches = _lengths(job, name)
    cfg, total = job.parts.system.mllm, length + count
    if isinstance(job.plans[name], phases.SftPlan):
        total = length
    one = flops.mllm(cfg, total, logits=logits, patches=patches)
    return rows * one, _sums(job, rows, total)


def _read(job: Job, name: str) -> Work:
    total, sums = _whole(job, name, logits=False)
    return _forward(job, "mllm", total, 1, sums)


def _token_logprobs(job: Job, name: str) -> Work:
    total, sums = _whole(job, name, logits=True)
    return _forward(job, "mllm", total, 1, sums)


def _mllm_step(job: Job, name: str) -> Work:
    total, sums = _whole(job, name, logits=True)
    return _train(job, "mllm", total, job.learners["mllm"].accumulate, sums)


def _tokens(job: Job) -> int:
    h, w = job.parts.grid()
    return h * w // job.parts.system.dit.patch_size**2


def _velocity(job: Job, name: str) -> tuple[float, float]:
    """Operations of a row's context and of one of its velocities."""
    cfg, words = job.parts.system.dit, job.parts.system.instruction_tokens
    shown = heaviest(job.plans[name]).pictures * _tokens(job)
    return flops.dit_context(cfg, words), flops.dit(cfg, words, _tokens(job), shown)


def _branches(job: Job, name: str) -> int:
    plan = job.plans[name]
    return plan.draw.guidance.passes(0, 1, heaviest(plan).pictures > 0)


def _draw(job: Job, name: str) -> Work:
    plan = job.plans[name]
    context, step = _velocity(job, name)
    total = _rows(job, name) * _branches(job, name) * (context + plan.draw.steps * step)
    return _forward(job, "dit", total, 1 + plan.draw.steps)


def _path_logprobs(job: Job, name: str) -> Work:
    context, step = _velocity(job, name)
    count = phases.widths(job.plans[name])[1]
    branches = _branches(job, name)
    total = _rows(job, name) * branches * count * (context + step)
    return _forward(job, "dit", total, branches * count)


def _dit_step(job: Job, name: str) -> Work:
    """Every trained step and micro-batch: the branch that learns, the others, the reference's."""
    plan = job.plans[name]
    context, step = _velocity(job, name)
    count = phases.widths(plan)[1]
    passes = count * job.learners["dit"].accumulate
    one = _rows(job, name) * count * (context + step)
    learned = _train(job, "dit", one, passes)
    still = (2 if plan.path.kl else 1) * _branches(job, name) - 1
    rest = _forward(job, "dit", still * one, still * passes)
    return Work(*(a + b for a, b in zip(learned, rest, strict=True)))


def _flow_step(job: Job, name: str) -> Work:
    plan, system = job.plans[name], job.parts.system
    height, width = system.image_size
    stream = heaviest(plan)
    context, step = _velocity(job, name)
    forward = plan.batch * plan.draws * (context + step)
    work = _train(job, "dit", forward, job.learners["dit"].accumulate)
    pictures = plan.batch * (1 + stream.pictures)
    frozen = plan.batch * flops.mllm(system.mllm, stream.length, logits=False)
    frozen += pictures * flops.vae_encode(system.vae, height, width)
    rest = _forward(job, "mllm", frozen, 1, _sums(job, plan.batch, stream.length))
    return Work(*(a + b for a, b in zip(work, rest, strict=True)))


def _decode_pixels(job: Job, name: str) -> Work:
    total = _rows(job, name) * flops.vae_decode(job.parts.system.vae, *job.parts.system.image_size)
    return Work(total, 0.0, FULL * _held(job, "vae"), 0.0)


def _encode_pixels(job: Job, name: str) -> Work:
    plan, system = job.plans[name], job.parts.system
    pictures = plan.prompts * max(heaviest(plan).pictures, 1)
    total = pictures * flops.vae_encode(system.vae, *system.image_size)
    return Work(total, 0.0, FULL * _held(job, "vae"), 0.0)


WORK: dict[str, Callable[[Job, str], Work]] = {
    "prefill": _prefill,
    "think": _think,
    "think_once": _think,
    "read": _read,
    "logprobs": _token_logprobs,
    "mllm_step": _mllm_step,
    "text_step": _mllm_step,
    "draw": _draw,
    "paths": _draw,
    "path_logprobs": _path_logprobs,
    "dit_step": _dit_step,
    "flow_step": _flow_step,
    "pixels": _decode_pixels,
    "paint": _decode_pixels,
    "encode": _encode_pixels,
}
