# SPDX-License-Identifier: Apache-2.0
"""Writing with the MLLM, and how likely it was to write just that.

* `sample` reads a prompt once (once per group, too), then writes until every row has stopped.
* `join` puts what was written behind its prompt, so that one teacher-forced pass, the same as in
  training, gives log-probabilities and the states that condition the DiT.
* `logprobs` never holds logits of more than `chunk` tokens a row; the backward pass recomputes
  them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from thinkgen_jax import sharding
from thinkgen_jax.models.mllm import KVCache, Mllm
from thinkgen_jax.models.rope import PAD_POSITION, next_position
from thinkgen_jax.structs import Decoded, Key, Prompt, Tree

HEAD = ("lm_head", "embed_tokens")  # subtrees that make logits
READ = ("decoder", *HEAD)  # and those that every step of writing reads


class Scores(NamedTuple):
    """Per token, given the ones before it; 0 at the first token and at padding."""

    logprobs: Float[Array, "B T"]
    entropy: Float[Array, "B T"]  # of the distribution the token was drawn from, in nats


class _State(NamedTuple):
    """What the writing loop carries; `step` tokens are written."""

    step: Int[Array, ""]
    ids: Int[Array, "B T"]
    counts: Int[Array, "B"]  # tokens written up to and including the end token
    stopped: Bool[Array, "B"]
    hidden: Float[Array, "B D"]  # state that the next token is drawn from
    cache: KVCache


@partial(
    jax.jit, static_argnames=("mllm", "max_new_tokens", "temperature", "top_p", "top_k", "group")
)
def sample(
    mllm: Mllm,
    params: Tree,
    prompt: Prompt,
    key: Key,
    *,
    max_new_tokens: int,
    stop_id: int | Int[Array, ""],
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    group: int = 1,
    pad_id: int | Int[Array, ""] = 0,
) -> Decoded:
    """Writes up to `max_new_tokens` tokens behind each right-padded prompt.

    Args:
      stop_id: token that ends a row; a negative one never does.
      temperature: divides the logits; 0 takes the likeliest token and ignores `key`.
      top_p: draws from the fewest tokens that hold this share of the probability, in (0, 1].
      top_k: draws from this many likeliest tokens; 0 from all.
      group: writings per prompt, which is read once; row b · group + g is prompt b's g-th.
      pad_id: what stands behind the end token.

    Raises:
      ValueError: when a setting is out of its range.
    """
    _check(max_new_tokens, temperature, top_p, top_k, group)
    params = serving(mllm, params)
    variables = {"params": params}
    start, state = _begin(mllm, params, prompt, max_new_tokens, group, pad_id)
    rows = start.shape[0]

    def write(state: _State) -> _State:
        logits = mllm.apply(variables, state.hidden, method="logits")
        key_now = jax.random.fold_in(key, state.step)
        token = _draw(logits, key_now, temperature=temperature, top_p=top_p, top_k=top_k)
        token = jnp.where(state.stopped, pad_id, token.astype(jnp.int32))
        one = Prompt(
            ids=token[:, None],
            segments=jnp.ones((rows, 1), jnp.int32),
            positions=jnp.broadcast_to((start + state.step)[None, :, None], (3, rows, 1)),
        )
        out = mllm.apply(variables, one, state.cache)
        return _State(
            step=state.step + 1,
            ids=jax.lax.dynamic_update_slice(state.ids, token[:, None], (0, state.step)),
            counts=state.counts + ~state.stopped,
            stopped=state.stopped | (token == stop_id),
            hidden=out.hidden[:, 0],
            cache=out.cache,
        )

    state = jax.lax.while_loop(
        lambda s: (s.step < max_new_tokens) & ~jnp.all(s.stopped), write, state
    )
    segments = jnp.arange(max_new_tokens)[None] < state.counts[:, None]
    return Decoded(state.ids, segments.astype(jnp.int32), state.stopped)


def serving(mllm: Mllm, params: Tree, names: tuple[str, ...] = READ) -> Tree:
    """Matrices as a loop reads them: in the activations' dtype, cut by `tensor` alone.

    Gathering them once, before the loop, is what makes each of its turns cheap.
    """
    dtype = mllm.cfg.dtype
    read = {name: params[name] for name in names if name in params}
    read = jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, read)
    return {**params, **sharding.keep(read, without=("fsdp",))}


def _begin(
    mllm: Mllm, params: Tree, prompt: Prompt, count: int, group: int, pad_id: int | Int[Array, ""]
) -> tuple[Int[Array, "B"], _State]:
    """Reads each prompt once; returns the first position of `count` new tokens, and the state."""
    size = prompt.ids.shape[1] + count
    read = mllm.apply({"params": params}, prompt, size=size, method="prefill")
    last = jnp.maximum(jnp.sum(prompt.segments > 0, axis=1) - 1, 0)
    hidden = jnp.take_along_axis(read.hidden, last[:, None, None], axis=1)[:, 0]
    repeat = partial(jnp.repeat, repeats=group)
    start = repeat(next_position(prompt.positions, prompt.segments), axis=0)
    k, v = jax.tree.map(partial(repeat, axis=-4), (read.cache.k, read.cache.v))
    state = _State(
        step=jnp.zeros((), jnp.int32),
        ids=jnp.full((start.shape[0], count), pad_id, jnp.int32),
        counts=jnp.zeros(start.shape[0], jnp.int32),
        stopped=jnp.zeros(start.shape[0], bool),
        hidden=repeat(hidden, axis=0),
        cache=read.cache._replace(k=k, v=v, segments=repeat(read.cache.segments, axis=0)),
    )
    return start, state


def _check(max_new_tokens: int, temperature: float, top_p: float, top_k: int, group: int) -> None:
    if max_new_tokens < 1 or group < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} and group {group} must be at least 1")
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature {temperature} and top_k {top_k} must not be negative, "
            f"top_p {top_p} must lie in (0, 1]"
        )


def _draw(
    logits: Float[Array, "B V"], key: Key, *, temperature: float, top_p: float, top_k: int
) -> Int[Array, "B"]:
    """Draws one token a row; top-k cuts before top-p."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / temperature
    if top_k or top_p < 1:
        best, ids = jax.lax.top_k(logits, min(top_k or logits.shape[-1], logits.shape[-1]))
        shares = jax.nn.softmax(best, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        # The likeliest token stays, whatever rounding does to the sum before it.
        kept = (before < top_p) | (jnp.arange(best.shape[-1]) == 0)[None]
        choice = jax.random.categorical(key, jnp.where(kept, best, -jnp.inf))
        return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0]
    return jax.random.categorical(key, logits)


@jax.jit
def join(prompt: Prompt, decoded: Decoded) -> Prompt:
    """Puts each row's writing right behind its prompt, right-padded, positions continued.

    With several writings per prompt (see `sample`), prompts and their pictures are repeated.
    """
    group = decoded.ids.shape[0] // prompt.ids.shape[0]
    prompt = _repeat(prompt, group)
    length, more = prompt.ids.shape[1], decoded.ids.shape[1]
    total = length + more
    read = jnp.sum(prompt.segments > 0, axis=1)[:, None]
    written = jnp.sum(decoded.segments > 0, axis=1)[:, None]
    places = jnp.arange(total)[None]
    old = jnp.minimum(jnp.broadcast_to(places, (read.shape[0], total)), length - 1)
    new = jnp.clip(places - read, 0, more - 1)
    is_old, is_new = places < read, (places >= read) & (places < read + written)
    segments = (is_old | is_new).astype(jnp.int32)
    ids = jnp.where(
        is_old,
        jnp.take_along_axis(prompt.ids, old, axis=1),
        jnp.take_along_axis(decoded.ids, new, axis=1),
    )
    start = next_position(prompt.positions, prompt.segments)[:, None]
    positions = jnp.where(
        is_old[None],
        jnp.take_along_axis(prompt.positions, old[None], axis=2),
        jnp.where(is_new, start + places - read, PAD_POSITION)[None],
    )
    patches = prompt.patches
    if patches is not None:  # places past the prompt's end must stay past the longer row's end
        slots = jnp.where(patches.slots >= length, total, patches.slots)
        patches = patches._replace(slots=slots)
    return Prompt(jnp.where(segments > 0, ids, 0), segments, positions, patches)


def response_mask(prompt: Prompt, decoded: Decoded) -> Bool[Array, "B T"]:
    """True at the written tokens, end token included, of what `join` returns."""
    group = decoded.ids.shape[0] // prompt.ids.shape[0]
    read = jnp.repeat(jnp.sum(prompt.segments > 0, axis=1), group)[:, None]
    written = jnp.sum(decoded.segments > 0, axis=1)[:, None]
    places = jnp.arange(prompt.ids.shape[1] + decoded.ids.shape[1])[None]
    return (places >= read) & (places < read + written)


def _repeat(prompt: Prompt, group: int) -> Prompt:
    """Repeats every row `group` times, copies side by side."""
    rows = partial(jnp.repeat, repeats=group, axis=0)
    patches = None if prompt.patches is None else jax.tree.map(rows, prompt.patches)
    positions = jnp.repeat(prompt.positions, group, axis=1)
    return Prompt(rows(prompt.ids), rows(prompt.segments), positions, patches)


def logprobs(
    mllm: Mllm, params: Tree, prompt: Prompt, *, temperature: float = 1.0, chunk: int = 256
) -> Float[Array, "B T"]:
    """Log-probability of every token given the ones before it; see `scores`."""
    return scores(mllm, params, prompt, temperature=temperature, chunk=chunk).logprobs


def scores(
    mllm: Mllm, params: Tree, prompt: Prompt, *, temperature: float = 1.0, chunk: int = 256
) -> Scores:
    """Log-probabilities and entropies in one teacher-forced pass; differentiable.

    Args:
      temperature: the one the tokens were sampled at, > 0. Top-p and top-k are not accounted for.
      chunk: tokens per row whose logits exist at once.
    """
    hidden = mllm.apply({"params": params}, prompt).hidden
    return score_hidden(mllm, params, hidden, prompt, temperature=temperature, chunk=chunk)


def score_hidden(
    mllm: Mllm,
    params: Tree,
    hidden: Float[Array, "B T D"],
    prompt: Prompt,
    *,
    temperature: float = 1.0,
    chunk: int = 256,
) -> Scores:
    """`scores` from residual streams that are already there.

    Raises:
      ValueError: when `temperature` or `chunk` is not positive.
    """
    if temperature <= 0 or chunk < 1:
        raise ValueError(f"temperature {temperature} and chunk {chunk} must be positive")
    count = prompt.ids.shape[1] - 1
    size = max(1, min(chunk, count))
    pad = -count % size
    states = jnp.pad(hidden[:, :-1], ((0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(prompt.ids[:, 1:], ((0, 0), (0, pad)))

    params = serving(mllm, params, HEAD)

    @jax.checkpoint
    def one(piece):
        states, targets = piece
        logits = mllm.apply({"params": params}, states, method="logits") / temperature
        total = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        mean = jnp.sum(jnp.exp(logits - total[..., None]) * logits, axis=-1)
        return chosen - total, total - mean

    def cut(x):
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    def whole(x):
        x = jnp.moveaxis(x, 0, 1).reshape(hidden.shape[0], -1)[:, :count]
        return jnp.pad(x, ((0, 0), (1, 0))) * valid

    # A token counts where it and its predecessor are tokens.
    seen = (prompt.segments > 0).astype(jnp.float32)
    valid = jnp.pad(seen[:, 1:] * seen[:, :-1], ((0, 0), (1, 0)))
    chosen, entropy = jax.lax.map(one, (cut(states), cut(targets)))
    return Scores(whole(chosen), whole(entropy))
