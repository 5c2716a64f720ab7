# SPDX-License-Identifier: Apache-2.0
"""One group: requests become G thoughts or G paths, pictures, rewards and a batch to learn from.

* Phase A (`think_group`): G thoughts per request at temperature 1; the frozen DiT draws each from
  the same initial noise inside a group, so that rewards differ by the text alone.
* Phase B (`path_group`): one condition per request, shared by its group; the DiT draws G stochastic
  paths from different noise.
* Requests of one batch are of one kind (drawing, editing, ...): shapes stay static.
* What becomes of the rewards, and of invalid responses, is `rewards.pool`'s.

Source: paper 4 (SepGRPO); Flow-GRPO.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from thinkgen_jax import hosts, sharding
from thinkgen_jax.data import batches, prompts
from thinkgen_jax.data.batches import Stream
from thinkgen_jax.data.images import merged_tokens
from thinkgen_jax.models import vgi
from thinkgen_jax.parts import Parts
from thinkgen_jax.sampling import decode, flow, sde
from thinkgen_jax.sampling.flow import Guidance
from thinkgen_jax.sampling.rows import fewest, in_parts, rows_first, rows_last
from thinkgen_jax.steps.encode import blank, to_uint8
from thinkgen_jax.structs import (
    Condition,
    Decoded,
    Key,
    Packed,
    Params,
    Prompt,
    Request,
    Sample,
    Trajectory,
    Tree,
)

READ = 2**16  # most tokens of prompts and thoughts that a device passes to the MLLM at a time


@dataclass(frozen=True)
class Draw:
    """How rollouts draw.

    Attributes:
      steps: denoising steps.
      guidance: scales; 1 draws without the negative branch.
      temperature: of sampled thoughts; 0 is greedy.
      halvings: of the batch while thoughts are written, see `decode.sample`.
    """

    steps: int = 20
    guidance: Guidance = flow.NO_GUIDANCE
    temperature: float = 1.0
    halvings: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps = {self.steps}: must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature = {self.temperature}: must be at least 0")
        if self.halvings < 0:
            raise ValueError(f"halvings = {self.halvings}: must be at least 0")


class Thinking(NamedTuple):
    """Sampled responses of a batch and what the DiT reads of them."""

    asked: Prompt  # one row a request
    decoded: Decoded  # one row a response
    valid: jax.Array  # bool [B]
    condition: Condition


class Drawn(NamedTuple):
    """Pictures of a batch with what was written for them."""

    thinking: Thinking | None
    condition: Condition
    references: Packed | None
    images: jax.Array  # uint8 [B, height, width, 3]


# --- words ---


def think_prompt(parts: Parts, requests: list[Request], stream: Stream) -> Prompt:
    """The think form of a batch, with the pixels of its pictures, laid over all hosts."""
    text, vision = parts.text, parts.vision
    rows = [
        text.think(r.prompt, pictures=[merged_tokens(i, vision) for i in r.images])
        for r in requests
    ]
    patches = stream.pictures * vision.max_pixels // vision.patch**2 if stream.pictures else None
    prompt = prompts.assemble(
        rows,
        length=stream.length,
        image_id=text.image_id,
        pictures=[r.images for r in requests] if stream.pictures else None,
        vision=vision,
        patches=patches,
    )
    return hosts.lay(prompt, "batch")


def pseudo_prompt(parts: Parts, requests: list[Request], stream: Stream) -> Prompt:
    """The pseudo-CoT form of a batch: the user's own words behind an empty thought."""
    rows = [parts.text.pseudo(r.prompt, images=len(r.images)) for r in requests]
    return hosts.lay(prompts.assemble(rows, length=stream.length), "batch")


def negative_condition(parts: Parts, params: Tree, guidance: Guidance) -> Condition | None:
    """The negative prompt's condition, one row, where guidance needs it.

    An empty negative prompt is the whole template, as in the release.
    """
    if guidance.text <= 1:
        return None
    ids = parts.text.pseudo(parts.system.negative_prompt)
    return _condition(parts.encoder, params, prompts.assemble([ids], length=len(ids)))


@partial(jax.jit, static_argnames=("encoder", "drop_last"))
def _condition(encoder, params, prompt, drop_last=False):
    return encoder.condition(params, prompt, drop_last=drop_last)


def think(
    parts: Parts,
    params: Tree,
    prompt: Prompt,
    key: Key,
    *,
    group: int,
    temperature: float,
    halvings: int = 0,
) -> Thinking:
    """Writes `group` responses per prompt and reads their states in one teacher-forced pass."""
    decoded = decode.sample(
        parts.mllm,
        params,
        prompt,
        key,
        max_new_tokens=parts.system.thought_tokens,
        stop_id=parts.text.stop_id,
        temperature=temperature,
        group=group,
        halvings=halvings,
    )
    length = decode.joined_length(prompt, decoded)
    valid, condition = _read(parts.encoder, params, prompt, decoded, length)
    return Thinking(prompt, decoded, valid, fitted(condition))


@partial(jax.jit, static_argnames=("encoder", "length"))
def _read(encoder, params: Tree, prompt: Prompt, decoded: Decoded, length: int):
    whole = decode.join(prompt, decoded, length=length)
    valid = vgi.has_instruction(
        whole.ids, whole.segments, close_id=encoder.close_id, drop_last=True
    )
    rows, length = whole.ids.shape
    pieces = fewest(rows, sharding.parts(("batch",)) * READ / length)
    condition = in_parts(
        lambda rows: encoder.condition(params, rows_last(rows), drop_last=True),
        rows_first(whole),
        pieces,
    )
    return sharding.whole(valid), condition


def fitted(condition: Condition) -> Condition:
    """Cut to half its length where that holds every row; waits for the device.

    The DiT passes every place of a condition at every step, and most instructions are far shorter
    than the longest that is let through; two lengths keep the number of compiled programs small.
    """
    half = -(-condition.segments.shape[1] // 2)
    if int(np.max(np.asarray(_lengths(condition.segments)))) > half:
        return condition
    return jax.tree.map(lambda x: x[:, :half], condition)


@jax.jit
def _lengths(segments: Int[Array, "B S"]) -> Int[Array, "B"]:
    return sharding.whole(jnp.sum(segments > 0, axis=1))


def stacked(conditions: Sequence[Condition]) -> Condition:
    """Several batches of conditions as one, padded to the longest of their lengths."""
    length = max(c.segments.shape[1] for c in conditions)
    wide = [flow.widen(c, length) for c in conditions]
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *wide)


def together(thoughts: Sequence[Thinking]) -> Thinking:
    """Several batches of responses as one."""
    if len(thoughts) == 1:
        return thoughts[0]

    def rows(*parts):
        return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)

    asked = rows_last(rows(*(rows_first(t.asked) for t in thoughts)))
    decoded, valid = (rows(*(getattr(t, name) for t in thoughts)) for name in ("decoded", "valid"))
    return Thinking(asked, decoded, valid, stacked([t.condition for t in thoughts]))


def written(thinking: Thinking) -> tuple[Prompt, jax.Array]:
    """Prompts with their responses behind them, and True at the response's tokens."""
    asked, decoded = thinking.asked, thinking.decoded
    length = decode.joined_length(asked, decoded)
    prompt = decode.join(asked, decoded, length=length)
    return prompt, _response_mask(asked, decoded, length=length)


_response_mask = jax.jit(decode.response_mask, static_argnames="length")


# --- pictures ---


def draw(
    parts: Parts,
    params: Params,
    condition: Condition,
    references: Packed | None,
    noise: jax.Array,
    how: Draw,
) -> jax.Array:
    """Draws one picture per condition row by the deterministic sampler; uint8 [B, y, x, 3]."""
    negative = negative_condition(parts, params.mllm, how.guidance)
    grid = flow.times(how.steps, latent_pixels=_area(parts), shift=parts.system.shift)
    tokens = flow.sample(
        parts.dit,
        params.dit,
        _places(parts, noise.shape[0])._replace(tokens=noise),
        condition,
        negative,
        references,
        jnp.asarray(grid),
        guidance=how.guidance,
    )
    return decode_pixels(parts, params.vae, tokens)


def decode_pixels(parts: Parts, vae: Tree, tokens: jax.Array) -> jax.Array:
    """Latent tokens to uint8 pictures; they stay on the device until somebody looks."""
    h, w = parts.grid()
    return _pixels(parts.encoder, vae, tokens, h, w)


@partial(jax.jit, static_argnames=("encoder", "h", "w"))
def _pixels(encoder, vae, tokens, h, w):
    pixels = to_uint8(encoder.tokens_to_pixels(vae, tokens, h=h, w=w))
    return sharding.shard(pixels, "rows", None, None, None)


@partial(jax.jit, static_argnames=("encoder",))
def _references(encoder, vae, references):
    return encoder.references_to_tokens(vae, references)


def reference_tokens(
    parts: Parts, vae: Tree, requests: list[Request], stream: Stream
) -> Packed | None:
    """Encodes the pictures of a batch of requests, all of one size."""
    packed = batches.reference_batch([r.images for r in requests], stream)
    return None if packed is None else _references(parts.encoder, vae, hosts.lay(packed, "rows"))


def initial_noise(parts: Parts, key: Key, rows: int) -> jax.Array:
    """Standard normal latent tokens of the default size."""
    return jax.random.normal(key, _places(parts, rows).tokens.shape)


def _places(parts: Parts, rows: int) -> Packed:
    h, w = parts.grid()
    cfg = parts.system.dit
    return blank(rows, h, w, patch=cfg.patch_size, values=cfg.token_dim)


def _area(parts: Parts) -> int:
    h, w = parts.grid()
    return h * w


# --- groups ---


def think_group(
    parts: Parts,
    params: Params,
    requests: list[Request],
    stream: Stream,
    key: Key,
    *,
    group: int,
    how: Draw,
) -> Drawn:
    """Phase A: `group` thoughts per request, each drawn from its group's one initial noise."""
    think_key, noise_key = jax.random.split(key)
    prompt = think_prompt(parts, requests, stream)
    thinking = think(
        parts,
        params.mllm,
        prompt,
        think_key,
        group=group,
        temperature=how.temperature,
        halvings=how.halvings,
    )
    references = reference_tokens(parts, params.vae, requests, stream)
    references = flow.spread(references, group)
    noise = jnp.repeat(initial_noise(parts, noise_key, len(requests)), group, axis=0)
    images = draw(parts, params, thinking.condition, references, noise, how)
    return Drawn(thinking, thinking.condition, references, images)


def shared_condition(
    parts: Parts,
    params: Tree,
    requests: list[Request],
    stream: Stream,
    *,
    silent: int,
) -> tuple[Condition, Thinking | None]:
    """Phase B: one condition per request, of the first `silent` from the user's own words.

    Returns:
      The conditions, and the greedy thoughts of the other requests; None where there are none.
    """
    quiet, loud = requests[:silent], requests[silent:]
    found, thought = [], None
    if quiet:
        prompt = pseudo_prompt(parts, quiet, stream)
        found.append(fitted(_condition(parts.encoder, params, prompt)))
    if loud:
        prompt = think_prompt(parts, loud, stream)
        thought = think(parts, params, prompt, jax.random.key(0), group=1, temperature=0.0)
        found.append(thought.condition)
    return stacked(found), thought


class Span(NamedTuple):
    """Which steps of a path are stochastic, and who shares the others.

    Attributes:
      begin: first stochastic step.
      width: number of stochastic steps.
      noise: their noise level.
      shared: a group shares its first noise and the steps before `begin`, taken once.
    """

    begin: jax.Array | int
    width: int
    noise: float
    shared: bool = False


class Paths(NamedTuple):
    """Stochastic paths of a batch; advantages are still 0."""

    path: Trajectory  # `old` as the rollout computed it
    negative: Condition | None  # one row
    end: jax.Array  # latent tokens of the pictures


def learned(drawn: Sequence[Paths], trained: int) -> tuple[Trajectory, Condition | None]:
    """The first `trained` stochastic steps of all paths, and the negative condition."""
    first = drawn[0].path

    def rows(*parts, axis=0):
        return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis), *parts)

    paths = [p.path for p in drawn]
    path = rows(
        *(
            p._replace(latents=None, old=None, times=None, second=None, noise=None, condition=None)
            for p in paths
        )
    )
    return path._replace(
        condition=stacked([p.condition for p in paths]),
        latents=rows(*(p.latents[: trained + 1] for p in paths), axis=1),
        old=rows(*(p.old[:trained] for p in paths), axis=1),
        times=first.times[: trained + 1],
        second=first.second,
        noise=first.noise,
    ), drawn[0].negative


def path_group(
    parts: Parts,
    params: Params,
    condition: Condition,
    references: Packed | None,
    key: Key,
    *,
    group: int,
    how: Draw,
    span: Span,
    kernel: str,
) -> Paths:
    """Phase B: `group` stochastic paths per condition; row b · group + g is condition b's g-th."""
    first_key, path_key = jax.random.split(key)
    few = condition.states.shape[0]
    many = few * group
    places = _places(parts, many)
    begun = initial_noise(parts, first_key, few if span.shared else many)
    grid = jnp.asarray(flow.times(how.steps, latent_pixels=_area(parts), shift=parts.system.shift))
    negative = negative_condition(parts, params.mllm, how.guidance)
    rolled = sde.rollout(
        parts.dit,
        params.dit,
        _places(parts, begun.shape[0])._replace(tokens=begun),
        condition,
        negative,
        references,
        grid,
        jnp.asarray(span.begin, jnp.int32),
        jnp.float32(span.noise),
        path_key,
        width=span.width,
        group=group,
        guidance=how.guidance,
        kernel=kernel,
    )
    path = Trajectory(
        latents=rolled.latents,
        times=jax.lax.dynamic_slice_in_dim(grid, span.begin, span.width + 1),
        second=grid[1],
        noise=jnp.float32(span.noise),
        old=rolled.logprobs,
        target=places,
        condition=flow.spread(condition, group),
        references=flow.spread(references, group),
        advantages=jnp.zeros(many),
        weights=jnp.ones(many),
    )
    return Paths(path, negative, rolled.end)


# --- rewards ---


def samples(
    parts: Parts, requests: list[Request], group: int, images: jax.Array, thinking: Thinking | None
) -> list[Sample]:
    """What the rewards see, once the device has drawn it: row b · group + g is request b's g-th.

    Every host gets all rows, the pictures and words of those alone that it scores.

    Args:
      thinking: thoughts of all rows, or one of each of the last requests, shared by its group;
        requests without one speak for themselves.
    """
    rows, (numbers, shown) = [r for r in requests for _ in range(group)], hosts.rows_here(images)
    pictures = dict(zip(numbers.tolist(), shown, strict=True))
    words, valid = [r.prompt for r in rows], np.ones(len(rows), bool)
    if thinking is not None:
        ids, segments = np.asarray(thinking.decoded.ids), np.asarray(thinking.decoded.segments)
        each = 1 if len(ids) == len(rows) else group
        first = len(rows) - each * len(ids)
        needed = sorted({(row - first) // each for row in pictures if row >= first})
        texts = {n: parts.text.split(ids[n][segments[n] > 0].tolist())[1] for n in needed}
        words[first:] = [texts.get(n, "") for n in range(len(ids)) for _ in range(each)]
        valid[first:] = np.repeat(np.asarray(thinking.valid), each)
    return [
        Sample(request, instruction, pictures[i], bool(ok))
        if i in pictures
        else Sample(request, "", None, bool(ok), here=False)
        for i, (request, instruction, ok) in enumerate(zip(rows, words, valid, strict=True))
    ]
