# SPDX-License-Identifier: Apache-2.0
"""Writing with the MLLM, and how likely it was to write just that.

* `sample` reads a prompt once (once per group, too), then writes until every row has stopped; rows
  that have may leave the batch on the way, which changes nothing that the others write.
* `join` puts what was written behind its prompt, so that one teacher-forced pass, the same as in
  training, gives log-probabilities and the states that condition the DiT.
* `logprobs` never holds logits of more than `chunk` tokens a row; the backward pass recomputes
  them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from thinkgen_jax import sharding
from thinkgen_jax.models.mllm import KVCache, Mllm, empty_cache, layered
from thinkgen_jax.models.rope import PAD_POSITION, next_position
from thinkgen_jax.structs import Decoded, Key, Prompt, Tree

HEAD = ("lm_head", "embed_tokens")  # subtrees that make logits
READ = ("decoder", *HEAD)  # and those that every step of writing reads
LOGITS = 2**24  # values of logits that exist at once on a device: 64 MiB


class Scores(NamedTuple):
    """Per token, given the ones before it; 0 at the first token and at padding."""

    logprobs: Float[Array, "B T"]
    entropy: Float[Array, "B T"]  # of the distribution the token was drawn from, in nats


class _State(NamedTuple):
    """What the writing loop carries; `step` tokens are written."""

    step: Int[Array, ""]
    rows: Int[Array, "B"]  # which rows of the batch these are
    start: Int[Array, "B"]  # position of the first new token
    ids: Int[Array, "B T"]
    counts: Int[Array, "B"]  # tokens written up to and including the end token
    stopped: Bool[Array, "B"]
    hidden: Float[Array, "B D"]  # state that the next token is drawn from
    cache: KVCache


@partial(
    jax.jit,
    static_argnames=(
        *("mllm", "max_new_tokens", "temperature", "top_p", "top_k", "group", "halvings"),
    ),
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
    halvings: int = 0,
) -> Decoded:
    """Writes up to `max_new_tokens` tokens behind each right-padded prompt.

    Args:
      stop_id: token that ends a row; a negative one never does.
      temperature: divides the logits; 0 takes the likeliest token and ignores `key`.
      top_p: draws from the fewest tokens that hold this share of the probability, in (0, 1].
      top_k: draws from this many likeliest tokens; 0 from all.
      group: writings per prompt, which is read once; row b · group + g is prompt b's g-th.
      pad_id: what stands behind the end token.
      halvings: times the batch is halved once half of it has stopped; each is one more loop to
        compile. Only where the batch lies on one device: elsewhere caches would have to travel.

    Raises:
      ValueError: when a setting is out of its range.
    """
    _check(max_new_tokens, temperature, top_p, top_k, group)
    params = layered(mllm.cfg, serving(mllm, params))
    state = _begin(mllm, params, prompt, max_new_tokens, group, pad_id)
    out = (state.ids, state.counts, state.stopped)
    draw = partial(_draw, temperature=temperature, top_p=top_p, top_k=top_k)
    write = partial(_write, mllm, params, key, draw, stop_id, pad_id)
    for fewer in (*_sizes(state.rows.shape[0], halvings)[1:], 0):
        state = jax.lax.while_loop(
            lambda s, fewer=fewer: (s.step < max_new_tokens) & (jnp.sum(~s.stopped) > fewer),
            write,
            state,
        )
        found = (state.ids, state.counts, state.stopped)
        out = jax.tree.map(lambda all, some, at=state.rows: all.at[at].set(some), out, found)
        if fewer:
            state = _first(state, jnp.argsort(state.stopped, stable=True)[:fewer])
    ids, counts, stopped = out
    segments = jnp.arange(max_new_tokens)[None] < counts[:, None]
    return sharding.whole(Decoded(ids, segments.astype(jnp.int32), stopped))


def _write(mllm: Mllm, params: Tree, key: Key, draw, stop_id, pad_id, state: _State) -> _State:
    """Writes one token in every row that has not stopped, and reads it."""
    logits = mllm.apply({"params": params}, state.hidden, method="logits")
    # A row draws by its number, whoever else is still in the batch.
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, state.step)))(state.rows)
    token = jnp.where(state.stopped, pad_id, draw(logits, keys).astype(jnp.int32))
    rows = token.shape[0]
    one = Prompt(
        ids=token[:, None],
        segments=jnp.ones((rows, 1), jnp.int32),
        positions=jnp.broadcast_to((state.start + state.step)[None, :, None], (3, rows, 1)),
    )
    new = mllm.apply({"params": params}, one, state.cache)
    return state._replace(
        step=state.step + 1,
        ids=jax.lax.dynamic_update_slice(state.ids, token[:, None], (0, state.step)),
        counts=state.counts + ~state.stopped,
        stopped=state.stopped | (token == stop_id),
        hidden=new.hidden[:, 0],
        cache=new.cache,
    )


def _sizes(rows: int, halvings: int) -> list[int]:
    """Rows of the batch to begin with and after each halving."""
    sizes, ways = [rows], sharding.parts(("batch",))
    while ways == 1 and len(sizes) <= halvings and sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _first(state: _State, index: Int[Array, "b"]) -> _State:
    """Some rows of a state."""
    rows = {
        name: getattr(state, name)[index]
        for name in ("rows", "start", "ids", "counts", "stopped", "hidden")
    }
    return state._replace(**rows, cache=_rows(state.cache, index))


def _rows(cache: KVCache, index: Int[Array, "b"]) -> KVCache:
    """Some rows of a cache, each with a prompt of its own: groups may have lost rows."""
    k, v = jax.tree.map(partial(jnp.take, indices=index, axis=-4), (cache.k, cache.v))
    prompt = cache.prompt
    if prompt is not None:
        prompt = _rows(prompt, index // (cache.segments.shape[0] // prompt.segments.shape[0]))
    return cache._replace(k=k, v=v, segments=cache.segments[index], prompt=prompt)


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
) -> _State:
    """Reads each prompt once; the state before the first of `count` new tokens."""
    size = prompt.ids.shape[1]
    read = mllm.apply({"params": params}, prompt, size=size, method="prefill")
    last = jnp.maximum(jnp.sum(prompt.segments > 0, axis=1) - 1, 0)
    hidden = jnp.take_along_axis(read.hidden, last[:, None, None], axis=1)[:, 0]
    repeat = partial(jnp.repeat, repeats=group)
    start = repeat(next_position(prompt.positions, prompt.segments), axis=0)
    rows = start.shape[0]
    return _State(
        step=jnp.zeros((), jnp.int32),
        rows=jnp.arange(rows),
        start=start,
        ids=jnp.full((rows, count), pad_id, jnp.int32),
        counts=jnp.zeros(rows, jnp.int32),
        stopped=jnp.zeros(rows, bool),
        hidden=repeat(hidden, axis=0),
        cache=empty_cache(mllm.cfg, rows, count, prompt=read.cache),
    )


def _check(max_new_tokens: int, temperature: float, top_p: float, top_k: int, group: int) -> None:
    if max_new_tokens < 1 or group < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} and group {group} must be at least 1")
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature {temperature} and top_k {top_k} must not be negative, "
            f"top_p {top_p} must lie in (0, 1]"
        )


def _draw(
    logits: Float[Array, "B V"], keys: Key, *, temperature: float, top_p: float, top_k: int
) -> Int[Array, "B"]:
    """Draws one token a row, each with its own key; top-k cuts before top-p."""
    choose = jax.vmap(jax.random.categorical)
    if temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / temperature
    if top_k or top_p < 1:
        best, ids = jax.lax.top_k(logits, min(top_k or logits.shape[-1], logits.shape[-1]))
        shares = jax.nn.softmax(best, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        # The likeliest token stays, whatever rounding does to the sum before it.
        kept = (before < top_p) | (jnp.arange(best.shape[-1]) == 0)[None]
        choice = choose(keys, jnp.where(kept, best, -jnp.inf))
        return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0]
    return choose(keys, logits)


def joined_length(prompt: Prompt, decoded: Decoded) -> int:
    """Shortest of four lengths that holds every row of `join`; waits for the device.

    Rows are padded to the longest thought there may be, which hardly ever is written; four lengths
    keep the number of compiled programs small.
    """
    total = prompt.ids.shape[1] + decoded.ids.shape[1]
    longest = int(np.max(np.asarray(_counts(prompt, decoded))))
    sizes = [-(-total * part // 64) * 16 for part in (1, 2, 3)]  # quarters, in multiples of 16
    return min([size for size in sizes if size >= longest], default=total)


@jax.jit
def _counts(prompt: Prompt, decoded: Decoded) -> Int[Array, "B"]:
    return sharding.whole(sum(_lengths(prompt, decoded)))


def _lengths(prompt: Prompt, decoded: Decoded) -> tuple[Int[Array, "B"], Int[Array, "B"]]:
    """Tokens that each row of `decoded` has read and written."""
    read = jnp.sum(prompt.segments > 0, axis=1)
    group = decoded.ids.shape[0] // prompt.ids.shape[0]
    return jnp.repeat(read, group), jnp.sum(decoded.segments > 0, axis=1)


@partial(jax.jit, static_argnames="length")
def join(prompt: Prompt, decoded: Decoded, *, length: int | None = None) -> Prompt:
    """Puts each row's writing right behind its prompt, right-padded, positions continued.

    With several writings per prompt (see `sample`), prompts and their pictures are repeated.

    Args:
      length: of the rows, at least what the longest needs; None holds anything.
    """
    read, written = (count[:, None] for count in _lengths(prompt, decoded))
    prompt = _repeat(prompt, decoded.ids.shape[0] // prompt.ids.shape[0])
    before, more = prompt.ids.shape[1], decoded.ids.shape[1]
    total = length or before + more
    places = jnp.arange(total)[None]
    old = jnp.minimum(jnp.broadcast_to(places, (read.shape[0], total)), before - 1)
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
        slots = jnp.where(patches.slots >= before, total, patches.slots)
        patches = patches._replace(slots=slots)
    return Prompt(jnp.where(segments > 0, ids, 0), segments, positions, patches)


def response_mask(
    prompt: Prompt, decoded: Decoded, *, length: int | None = None
) -> Bool[Array, "B T"]:
    """True at the written tokens, end token included, of what `join` returns."""
    read, written = (count[:, None] for count in _lengths(prompt, decoded))
    places = jnp.arange(length or prompt.ids.shape[1] + decoded.ids.shape[1])[None]
    return (places >= read) & (places < read + written)


def _repeat(prompt: Prompt, group: int) -> Prompt:
    """Repeats every row `group` times, copies side by side."""

    def rows(x: jax.Array) -> jax.Array:
        # Said again: of a batch cut by two mesh axes the compiler else puts all rows everywhere.
        return sharding.shard(jnp.repeat(x, group, axis=0), "batch", *(None,) * (x.ndim - 1))

    patches = None if prompt.patches is None else jax.tree.map(rows, prompt.patches)
    positions = sharding.shard(jnp.repeat(prompt.positions, group, axis=1), None, "batch", None)
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
      chunk: most tokens per row whose logits exist at once; fewer where they are more than
        `LOGITS`, so that memory does not grow with the vocabulary.
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
    size = max(1, min(chunk, count, _room(hidden.shape[0], mllm.cfg.vocab_size)))
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


def _room(rows: int, vocab: int) -> int:
    """Tokens per row whose logits are at most `LOGITS` on a device, a power of two."""
    here = -(-rows // sharding.parts(("batch",))) * -(-vocab // sharding.parts(("vocab",)))
    return 1 << max(0, (LOGITS // here).bit_length() - 1)
