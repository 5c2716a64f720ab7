# SPDX-License-Identifier: Apache-2.0
"""From a request to the states that condition the DiT, with or without a thought.

* A thinking MLLM reads the pixels of the pictures, writes, and is read again with what it wrote;
  one that does not think reads the user's own words behind an empty thought, and no pixels.
* States are kept per row without padding, so that any rows can be drawn together.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from thinkgen_jax.data import images, prompts
from thinkgen_jax.parts import Parts
from thinkgen_jax.pipeline.settings import Settings, bucket, chunks, condition_room, filled
from thinkgen_jax.sampling import decode
from thinkgen_jax.steps.encode import Encoder
from thinkgen_jax.structs import Condition, Prompt, Request, Tree

# (words, merged tokens of each picture) to token ids: the template of a kind of request.
Form = Callable[[str, list[int]], list[int]]


class Reading(NamedTuple):
    """What the MLLM made of one request.

    Attributes:
      states: float32 [S, E], what conditions the DiT; S may be 0.
      text: the whole response, special tokens kept; "" without thinking.
      warnings: one line each.
      valid: False where a response has no marker or nothing after it.
    """

    states: np.ndarray
    thought: str
    instruction: str
    text: str
    warnings: tuple[str, ...] = ()
    valid: bool = True


class Written(NamedTuple):
    """Responses of one batch.

    Attributes:
      whole: prompts and responses in one row each; rows beyond the requests are padding.
      responses: token ids of each response, end token included.
      warnings: of each request.
    """

    whole: Prompt
    responses: list[list[int]]
    warnings: list[tuple[str, ...]]


def read(
    parts: Parts, params: Tree, requests: Sequence[Request], settings: Settings
) -> list[Reading]:
    """Reads requests, thinking where they say so, in their order; `params` are the MLLM's."""
    out: dict[int, Reading] = {}
    for function, thinks in ((_think, True), (_recite, False)):
        index = [i for i, r in enumerate(requests) if r.think == thinks]
        found = function(parts, params, [requests[i] for i in index], settings)
        out.update(zip(index, found, strict=True))
    return [out[i] for i in range(len(requests))]


def _think(
    parts: Parts, params: Tree, requests: Sequence[Request], settings: Settings
) -> list[Reading]:
    text = parts.text

    def form(words: str, tokens: list[int]) -> list[int]:
        return text.think(words, pictures=tokens)

    out = []
    for written in respond(parts, params, requests, settings, form):
        states, warnings = condition(parts, params, written.whole, drop_last=True)
        for b, response in enumerate(written.responses):
            thought, instruction, _ = text.split(response)
            told = written.warnings[b] + warnings[b]
            # The last token has no state: at least one more must follow the marker.
            valid = text.close_id in response[:-2]
            out.append(Reading(states[b], thought, instruction, text.decode(response), told, valid))
    return out


def _recite(
    parts: Parts, params: Tree, requests: Sequence[Request], settings: Settings
) -> list[Reading]:
    """The user's own words behind an empty thought."""
    out = []
    for chunk in chunks(requests, settings.batch):
        rows = [parts.text.pseudo(r.prompt, images=len(r.images)) for r in chunk]
        states, warnings = condition(parts, params, _padded(parts, rows), drop_last=False)
        for b, (request, row) in enumerate(zip(chunk, rows, strict=True)):
            told = _cut_warning(len(row), _limit(parts)) + warnings[b]
            out.append(Reading(states[b], "", request.prompt, "", told))
    return out


def negative(parts: Parts, params: Tree, words: str) -> np.ndarray:
    """States [S, E] that guidance points away from; "" gives those of the whole template."""
    prompt = _padded(parts, [parts.text.pseudo(words)])
    return condition(parts, params, prompt, drop_last=False)[0][0]


def _padded(parts: Parts, rows: Sequence[Sequence[int]]) -> Prompt:
    """Rows without pixels, cut at the right where they are too long, as the release does."""
    length = min(bucket(max(map(len, rows))), _limit(parts))
    return prompts.assemble(filled(rows), length=length, cut=True)


def _limit(parts: Parts) -> int:
    """Longest pseudo-CoT form: the user's turn, and the instruction once more."""
    return parts.system.prompt_tokens + parts.system.instruction_tokens


def _cut_warning(count: int, limit: int) -> tuple[str, ...]:
    return (f"the prompt was cut: {count} tokens, {limit} fit",) if count > limit else ()


def respond(
    parts: Parts, params: Tree, requests: Sequence[Request], settings: Settings, form: Form
) -> list[Written]:
    """Writes a response to each request, with the pixels of its pictures before it."""
    out = []
    for chunk in chunks(requests, settings.batch):
        prompt, warnings = _with_pixels(parts, chunk, form)
        decoded = decode.sample(
            parts.mllm,
            params,
            prompt,
            jax.random.key(chunk[0].seed),
            max_new_tokens=parts.system.thought_tokens,
            stop_id=parts.text.stop_id,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
        )
        ids, counts = np.asarray(decoded.ids), np.asarray(decoded.segments).sum(1)
        responses = [ids[b, : counts[b]].tolist() for b in range(len(chunk))]
        out.append(Written(_join(prompt, decoded), responses, warnings))
    return out


_join = jax.jit(decode.join)


def _with_pixels(
    parts: Parts, requests: Sequence[Request], form: Form
) -> tuple[Prompt, list[tuple[str, ...]]]:
    """Prompts of a batch, padded in length, rows and patches to a few sizes; and warnings."""
    fitted = [_fit_words(parts, r.prompt, form) for r in requests]
    pictures = [r.images for r in requests]
    vision = parts.vision if any(pictures) else None
    tokens = [[images.merged_tokens(image, vision) for image in row] for row in pictures]
    rows = [form(words, count) for (words, _), count in zip(fitted, tokens, strict=True)]
    length, warnings = bucket(max(map(len, rows))), [told for _, told in fitted]
    if vision is None:
        return prompts.assemble(filled(rows), length=length), warnings
    patches = max(sum(count) for count in tokens) * vision.merge**2
    prompt = prompts.assemble(
        filled(rows),
        length=length,
        image_id=parts.text.image_id,
        pictures=filled(pictures),
        vision=vision,
        patches=bucket(patches, vision.merge**2),
    )
    return prompt, warnings


def _fit_words(parts: Parts, words: str, form: Form) -> tuple[str, tuple[str, ...]]:
    """Cuts a user's words at the end so that the template around them stays whole."""
    room = max(parts.system.prompt_tokens - len(form("", [])), 1)
    ids = parts.text.encode(words)
    if len(ids) <= room:
        return words, ()
    return parts.text.decode(ids[:room]), _cut_warning(len(ids), room)


def condition(
    parts: Parts, params: Tree, prompt: Prompt, *, drop_last: bool
) -> tuple[list[np.ndarray], list[tuple[str, ...]]]:
    """Runs the one teacher-forced pass and keeps each row's states behind the marker.

    A row without the marker, or that ends with it, keeps all its states, as the release does; an
    instruction beyond the system's limit is cut. Both are told.

    Returns:
      Per row float32 [S, E], and warnings.
    """
    ids, totals = np.asarray(prompt.ids), np.asarray(prompt.segments).sum(1).tolist()
    limit, states, warnings = parts.system.instruction_tokens, [], []
    whole = min(ids.shape[1], condition_room(parts.system))
    found: dict[int, np.ndarray] = {}  # one program for instructions, one for whole texts
    for b, total in enumerate(totals):
        cut = _cut(ids[b, :total], parts.text.close_id)
        count = total - cut - drop_last
        length = limit if cut else whole
        if length not in found:
            out = _condition(parts.encoder, params, prompt, drop_last=drop_last, max_len=length)
            found[length] = np.asarray(out.states, np.float32)
        states.append(found[length][b, : min(count, length)])
        warnings.append(_condition_warning(parts.text.marker, cut, count, limit))
    return states, warnings


@partial(jax.jit, static_argnames=("encoder", "drop_last", "max_len"))
def _condition(
    encoder: Encoder, params: Tree, prompt: Prompt, *, drop_last: bool, max_len: int
) -> Condition:
    return replace(encoder, max_len=max_len).condition(params, prompt, drop_last=drop_last)


def _cut(ids: np.ndarray, close_id: int) -> int:
    """First place behind the first marker; 0 without one, or where it is the last token."""
    found = np.flatnonzero(ids == close_id)
    return int(found[0]) + 1 if found.size and found[0] + 1 < len(ids) else 0


def _condition_warning(marker: str, cut: int, count: int, limit: int) -> tuple[str, ...]:
    if not cut:
        return (f"no words behind {marker}: the whole text conditions the picture",)
    if count < 1:
        return (f"nothing stands behind {marker}: the picture is drawn without words",)
    if count > limit:
        return (f"the instruction was cut: {count} tokens, {limit} fit",)
    return ()
