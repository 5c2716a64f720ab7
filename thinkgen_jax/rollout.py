# SPDX-License-Identifier: Apache-2.0
"""One group: requests become G thoughts or G paths, pictures, rewards and a batch to learn from.

* Phase A (`think_group`): G thoughts per request at temperature 1; the frozen DiT draws each from
  the same initial noise inside a group, so that rewards differ by the text alone.
* Phase B (`path_group`): one condition per request, shared by its group; the DiT draws G stochastic
  paths from different noise.
* Requests of one batch are of one kind (drawing, editing, ...): shapes stay static.
* An invalid response (no marker, or nothing behind it) gets the least valid reward of its group, or
  the reward's floor if that is less; a group without a valid response is dropped and counted.

Source: paper 4 (SepGRPO); Flow-GRPO.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thinkgen_jax.data import batches, prompts
from thinkgen_jax.data.batches import Stream
from thinkgen_jax.data.images import merged_tokens
from thinkgen_jax.models import vgi
from thinkgen_jax.parts import Parts
from thinkgen_jax.sampling import decode, flow, sde
from thinkgen_jax.sampling.flow import Guidance
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
    Tree,
)


@dataclass(frozen=True)
class Draw:
    """How rollouts draw.

    Attributes:
      steps: denoising steps.
      guidance: scales; 1 draws without the negative branch.
      temperature: of sampled thoughts; 0 is greedy.
      pieces: parts a batch's pictures are drawn (in phase B: decoded) in, whole groups one after
        the other; rewards of the first are under way while the next are made.
    """

    steps: int = 20
    guidance: Guidance = flow.NO_GUIDANCE
    temperature: float = 1.0
    pieces: int = 1


Seen = Callable[[slice, np.ndarray, "Thinking | None"], None]


class Thinking(NamedTuple):
    """Sampled responses of a batch and what the DiT reads of them."""

    prompt: Prompt  # prompt and response in one row
    mask: jax.Array  # True at response tokens
    valid: jax.Array  # bool [B]
    condition: Condition
    decoded: Decoded


class Drawn(NamedTuple):
    """Pictures of a batch with what was written for them."""

    thinking: Thinking | None
    condition: Condition
    references: Packed | None
    images: np.ndarray  # uint8 [B, height, width, 3]


# --- words ---


def think_prompt(parts: Parts, requests: list[Request], stream: Stream) -> Prompt:
    """The think form of a batch, with the pixels of its pictures."""
    text, vision = parts.text, parts.vision
    rows = [
        text.think(r.prompt, pictures=[merged_tokens(i, vision) for i in r.images])
        for r in requests
    ]
    patches = stream.pictures * vision.max_pixels // vision.patch**2 if stream.pictures else None
    return prompts.assemble(
        rows,
        length=stream.length,
        image_id=text.image_id,
        pictures=[r.images for r in requests] if stream.pictures else None,
        vision=vision,
        patches=patches,
    )


def pseudo_prompt(parts: Parts, requests: list[Request], stream: Stream) -> Prompt:
    """The pseudo-CoT form of a batch: the user's own words behind an empty thought."""
    rows = [parts.text.pseudo(r.prompt, images=len(r.images)) for r in requests]
    return prompts.assemble(rows, length=stream.length)


def negative_condition(parts: Parts, params: Tree, rows: int) -> Condition:
    """The negative prompt's condition, repeated; an empty one is the whole template."""
    ids = parts.text.pseudo(parts.system.negative_prompt)
    prompt = prompts.assemble([ids], length=len(ids))
    one = _condition(parts.encoder, params, prompt)
    return jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), one)


@partial(jax.jit, static_argnames=("encoder", "drop_last"))
def _condition(encoder, params, prompt, drop_last=False):
    return encoder.condition(params, prompt, drop_last=drop_last)


def think(
    parts: Parts, params: Tree, prompt: Prompt, key: Key, *, group: int, temperature: float
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
    )
    return _read(parts.encoder, params, prompt, decoded)


@partial(jax.jit, static_argnames=("encoder",))
def _read(encoder, params: Tree, prompt: Prompt, decoded: Decoded) -> Thinking:
    whole = decode.join(prompt, decoded)
    valid = vgi.has_instruction(
        whole.ids, whole.segments, close_id=encoder.close_id, drop_last=True
    )
    condition = encoder.condition(params, whole, drop_last=True)
    mask = decode.response_mask(prompt, decoded)
    return Thinking(whole, mask, valid, condition, decoded)


# --- pictures ---


def draw(
    parts: Parts,
    params: Params,
    condition: Condition,
    references: Packed | None,
    noise: jax.Array,
    how: Draw,
) -> np.ndarray:
    """Draws one picture per condition row by the deterministic sampler; uint8 on the host."""
    negative = _negative(parts, params, condition.states.shape[0], how.guidance)
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


def decode_pixels(parts: Parts, vae: Tree, tokens: jax.Array) -> np.ndarray:
    """Latent tokens to uint8 pictures on the host."""
    h, w = parts.grid()
    return np.asarray(_pixels(parts.encoder, vae, tokens, h, w))


@partial(jax.jit, static_argnames=("encoder", "h", "w"))
def _pixels(encoder, vae, tokens, h, w):
    return to_uint8(encoder.tokens_to_pixels(vae, tokens, h=h, w=w))


@partial(jax.jit, static_argnames=("encoder",))
def _references(encoder, vae, references):
    return encoder.references_to_tokens(vae, references)


def reference_tokens(
    parts: Parts, vae: Tree, requests: list[Request], stream: Stream
) -> Packed | None:
    """Encodes the pictures of a batch of requests, all of one size."""
    packed = batches.reference_batch([r.images for r in requests], stream)
    return None if packed is None else _references(parts.encoder, vae, packed)


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


def _negative(parts: Parts, params: Params, rows: int, guidance: Guidance) -> Condition | None:
    if guidance.text <= 1:
        return None
    return negative_condition(parts, params.mllm, rows)


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
    seen: Seen | None = None,
) -> Drawn:
    """Phase A: `group` thoughts per request, each drawn from its group's one initial noise.

    Args:
      seen: called with (rows, pictures, thinking) whenever a piece is finished.
    """
    think_key, noise_key = jax.random.split(key)
    prompt = think_prompt(parts, requests, stream)
    thinking = think(
        parts, params.mllm, prompt, think_key, group=group, temperature=how.temperature
    )
    references = reference_tokens(parts, params.vae, requests, stream)
    references = _repeat(references, group)
    noise = jnp.repeat(initial_noise(parts, noise_key, len(requests)), group, axis=0)
    images = []
    for rows in pieces(noise.shape[0], group, how.pieces):
        condition, looked_at = jax.tree.map(lambda x: x[rows], (thinking.condition, references))  # noqa: B023
        images.append(draw(parts, params, condition, looked_at, noise[rows], how))
        if seen is not None:
            seen(rows, images[-1], thinking)
    return Drawn(thinking, thinking.condition, references, np.concatenate(images))


def pieces(rows: int, group: int, count: int) -> list[slice]:
    """Cuts rows into at most `count` equal parts of whole groups.

    Raises:
      ValueError: when the groups do not divide.
    """
    groups = rows // group
    if count < 1 or groups % count:
        raise ValueError(f"draw.pieces = {count} does not divide the {groups} groups of a batch")
    step = rows // count
    return [slice(start, start + step) for start in range(0, rows, step)]


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
        found.append(_condition(parts.encoder, params, pseudo_prompt(parts, quiet, stream)))
    if loud:
        prompt = think_prompt(parts, loud, stream)
        thought = think(parts, params, prompt, jax.random.key(0), group=1, temperature=0.0)
        found.append(thought.condition)
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *found), thought


def path_group(
    parts: Parts,
    params: Params,
    condition: Condition,
    references: Packed | None,
    key: Key,
    *,
    group: int,
    how: Draw,
    noise: np.ndarray,
    kernel: str,
):
    """Phase B: `group` stochastic paths per condition.

    Args:
      noise: noise level of each step [J].

    Returns:
      (latents [J + 1, B · G, T, C], condition, references, negative, places, grid), repeated to
      B · G rows where they belong to rows.
    """
    first_key, path_key = jax.random.split(key)
    condition, references = _repeat(condition, group), _repeat(references, group)
    rows = condition.states.shape[0]
    negative = _negative(parts, params, rows, how.guidance)
    grid = flow.times(how.steps, latent_pixels=_area(parts), shift=parts.system.shift)
    places = _places(parts, rows)
    latents = sde.rollout(
        parts.dit,
        params.dit,
        places._replace(tokens=initial_noise(parts, first_key, rows)),
        condition,
        negative,
        references,
        jnp.asarray(grid),
        jnp.asarray(noise, jnp.float32),
        path_key,
        guidance=how.guidance,
        kernel=kernel,
    )
    return latents, condition, references, negative, places, jnp.asarray(grid)


def _repeat(tree: Tree, group: int) -> Tree:
    return jax.tree.map(lambda x: jnp.repeat(x, group, axis=0), tree)


# --- rewards ---


def samples(
    parts: Parts,
    requests: list[Request],
    group: int,
    rows: slice,
    images: np.ndarray,
    thinking: Thinking | None,
) -> list[Sample]:
    """What the rewards see of some rows: row b · group + g is request b's g-th.

    Args:
      rows: which ones; `images` holds as many.
      thinking: thoughts of all rows, or one of each of the last requests, shared by its group;
        requests without one speak for themselves.
    """
    asked = [r for r in requests for _ in range(group)]
    words, valid = [r.prompt for r in asked], np.ones(len(asked), bool)
    if thinking is not None:
        ids, segments = np.asarray(thinking.decoded.ids), np.asarray(thinking.decoded.segments)
        texts = [
            parts.text.split(row[mask > 0].tolist())[1]
            for row, mask in zip(ids, segments, strict=True)
        ]
        each = 1 if len(texts) == len(asked) else group
        first = len(asked) - each * len(texts)
        words[first:] = [text for text in texts for _ in range(each)]
        valid[first:] = np.repeat(np.asarray(thinking.valid), each)
    return [
        Sample(request, instruction, image, bool(ok))
        for request, instruction, image, ok in zip(
            asked[rows], words[rows], images, valid[rows], strict=True
        )
    ]


def settle(
    rewards: np.ndarray, valid: np.ndarray, *, group: int, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards [B, G] with invalid responses settled, and which groups can be learnt from.

    Args:
      rewards: [B · G].
      valid: bool [B · G], False for a response without an instruction.
      floor: least value the reward can take.
    """
    table, ok = rewards.reshape(-1, group).astype(np.float64), valid.reshape(-1, group)
    usable = ok.any(axis=1)
    least = np.where(ok, table, np.inf).min(axis=1, keepdims=True)
    least = np.minimum(least, floor)
    settled = np.where(ok, table, least)
    return np.where(usable[:, None], settled, floor).astype(np.float32), usable
