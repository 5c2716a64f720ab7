# SPDX-License-Identifier: Apache-2.0
"""One door to attention: `attend()`, whose only mask currency is segment ids.

A query sees the keys of its own segment (and, if causal, none behind it). Padding has segment 0 and
sees padding, so that no row of the softmax is empty.

* `xla` works everywhere and is the truth; `cudnn` is the fused kernel of NVIDIA GPUs, `splash` that
  of TPUs, `interpret` the same run step by step on any backend.
* Softmax is computed in float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from thinkgen_jax.models import splash

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash", "interpret")
BEST = {"gpu": "cudnn", "tpu": "splash"}  # by backend; xla on others
SHORT = 128  # below this many queries a blocked kernel pads more than it saves
NAMES = ("batch", "seq", "heads", None)  # what the axes of queries mean, see `sharding.shard`


def resolve(impl: str) -> str:
    """Turns "auto" into what this machine's backend runs best.

    Raises:
      ValueError: for a name that is not in `IMPLEMENTATIONS`.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"attention implementation {impl!r} is not one of {IMPLEMENTATIONS}")
    if impl != "auto":
        return impl
    return BEST.get(jax.default_backend(), "xla")


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    q_segments: Int[Array, "B T"],
    kv_segments: Int[Array, "B S"],
    *,
    causal: bool = False,
    impl: str = "auto",
    names: tuple[str | None, ...] = NAMES,
) -> Float[Array, "B T N H"]:
    """Attends with grouped queries: key/value head j serves query heads j·N/K to (j+1)·N/K - 1.

    Args:
      causal: query i also sees no key behind place i; needs T = S, and rows that are padded at the
        right alone.
      names: what the axes of q mean, as in `sharding.shard`.
    """
    impl = resolve(impl)
    if impl in ("splash", "interpret") and q.shape[1] >= SHORT:
        segments, interpret = (q_segments, kv_segments), impl == "interpret"
        return splash.attend(q, k, v, *segments, causal=causal, names=names, interpret=interpret)
    fused = impl == "cudnn" and q.dtype in (jnp.bfloat16, jnp.float16)
    if fused and causal:  # a mask would cost the kernel most of its speed
        lengths = jnp.sum(q_segments > 0, axis=1)
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            is_causal=True,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            implementation="cudnn",
        )
    mask = segment_mask(q_segments, kv_segments)
    if causal:
        places = jnp.arange(q.shape[1])
        mask = mask & (places[:, None] >= places[None, :])[None]
    if fused:
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="cudnn")
    return _softmax_attention(q, k, v, mask)


def _softmax_attention(q, k, v, mask):
    """Plain attention, heads first: the queries of one key/value head form one long matrix.

    On CPU this is 1.7 times as fast as the same einsum over interleaved heads.
    """
    b, t, n, h = q.shape
    s, heads = k.shape[1], k.shape[2]
    group = n // heads
    q = q.transpose(0, 2, 1, 3).reshape(b, heads, group * t, h)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    logits = jnp.einsum("bkth,bksh->bkts", q, k, preferred_element_type=jnp.float32) * h**-0.5
    logits = jnp.where(mask[:, None, None], logits.reshape(b, heads, group, t, s), -1e30)
    y = _weighed(logits.reshape(b, heads, group * t, s), v)
    return y.reshape(b, n, t, h).transpose(0, 2, 1, 3)


def _weighed(
    logits: Float[Array, "B K X S"], values: Float[Array, "B K S H"]
) -> Float[Array, "B K X H"]:
    """Softmax over keys times values, divided by the sum last, where there is least to divide.

    The largest logit is a constant to the gradient, as it cancels: so the way back is half as long.
    """
    most = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    shares = jnp.exp(logits - most)
    y = _mixed(shares, values)
    return (y / jnp.sum(shares, axis=-1, keepdims=True)).astype(values.dtype)


def _mixed(
    shares: Float[Array, "B K X S"], values: Float[Array, "B K S H"]
) -> Float[Array, "B K X H"]:
    """Values summed in float32, by shares rounded to the values' dtype."""
    rounded = shares.astype(values.dtype)
    return jnp.einsum("bkxs,bksh->bkxh", rounded, values, preferred_element_type=jnp.float32)


def cached(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
    prompt: tuple[Float[Array, "P K C H"], Float[Array, "P K C H"], Bool[Array, "P C"]]
    | None = None,
) -> Float[Array, "B T N H"]:
    """Attends to a cache that lies by head, so that no key or value is moved to be read.

    Args:
      prompt: keys, values and mask of what groups of rows have in common: row b has prompt
        b // (B / P) before its own. Each is read once, for its whole group.
    """
    rows, count, heads, width = q.shape
    kv_heads = keys.shape[1]
    grouped = q.reshape(rows, count, kv_heads, -1, width).transpose(0, 2, 3, 1, 4)
    flat = grouped.reshape(rows, kv_heads, -1, width)  # one product per key head
    logits, values = _logits(flat, keys, mask), values.astype(q.dtype)
    if prompt is None:
        y = _weighed(logits, values)
    else:
        y = _weighed_both(flat, logits, values, prompt)
    return y.reshape(grouped.shape).transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _logits(
    flat: Float[Array, "B K X H"], keys: Float[Array, "B K S H"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B K X S"]:
    """Scaled products in float32, very low where the mask is False; X ends with the T queries."""
    dots = jnp.einsum(
        "bkxh,bksh->bkxs", flat, keys.astype(flat.dtype), preferred_element_type=jnp.float32
    )
    apart = dots.reshape(*dots.shape[:2], -1, *mask.shape[1:]) * flat.shape[-1] ** -0.5
    return jnp.where(mask[:, None, None], apart, jnp.finfo(jnp.float32).min).reshape(dots.shape)


def _weighed_both(
    flat: Float[Array, "B K X H"],
    logits: Float[Array, "B K X S"],
    values: Float[Array, "B K S H"],
    prompt: tuple[Float[Array, "P K C H"], Float[Array, "P K C H"], Bool[Array, "P C"]],
) -> Float[Array, "B K X H"]:
    """`_weighed` over a group's prompt and a row's own values, as if they lay side by side."""
    their_keys, their_values, seen = prompt
    group = flat.shape[0] // their_keys.shape[0]
    theirs = _logits(_together(flat, group), their_keys, seen[:, None])
    their_most = _apart(jnp.max(theirs, axis=-1, keepdims=True), group)
    most = jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), their_most)
    shares, their_shares = jnp.exp(logits - most), jnp.exp(theirs - _together(most, group))
    their_y = _mixed(their_shares, their_values.astype(values.dtype))
    y = _mixed(shares, values) + _apart(their_y, group)
    total = jnp.sum(shares, axis=-1, keepdims=True)
    total = total + _apart(jnp.sum(their_shares, axis=-1, keepdims=True), group)
    return (y / total).astype(values.dtype)


def _together(x: Float[Array, "B K X W"], group: int) -> Float[Array, "P K Y W"]:
    """Queries of one prompt's rows as one long matrix per key head; Y = G X."""
    rows, heads, count, width = x.shape
    x = x.reshape(rows // group, group, heads, count, width).swapaxes(1, 2)
    return x.reshape(rows // group, heads, group * count, width)


def _apart(x: Float[Array, "P K Y W"], group: int) -> Float[Array, "B K X W"]:
    """Undoes `_together`."""
    prompts, heads, count, width = x.shape
    x = x.reshape(prompts, heads, group, count // group, width).swapaxes(1, 2)
    return x.reshape(prompts * group, heads, count // group, width)


def segment_mask(
    q_segments: Int[Array, "B T"], kv_segments: Int[Array, "B S"]
) -> Bool[Array, "B T S"]:
    """True where query and key belong to the same segment."""
    return q_segments[:, :, None] == kv_segments[:, None, :]
