# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL: vision tower and decoder, with the two hidden states that condition the DiT.

* `Mllm` returns residual streams, not logits: `logits` is a separate method, so that nothing of
  size [B, T, V] exists unless asked for.
* `taps` are the outputs of the last two layers before the final norm, HF's `hidden_states[-2]` and
  `[-1]` side by side.
* The cache is an explicit argument. New tokens take the same places in every row, behind the padded
  prompt, and a mask hides the padding: one slice is written in place per layer, whatever the
  lengths.
* Layers run under one scan, or, when `scan_unroll` covers them all, one by one; then every layer
  has its own cache arrays, which a decoding step reads where they lie.
* Deepstack feature k is added at the picture's tokens behind layer k.

Source: transformers@4.57.1 models/qwen3_vl/modeling_qwen3_vl.py.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from thinkgen_jax.models import rope
from thinkgen_jax.models.attention import attend, cached
from thinkgen_jax.models.layers import (
    POLICIES,
    Dtype,
    Linear,
    RMSNorm,
    apart,
    each,
    param,
    remat_name,
    rematerialized,
)
from thinkgen_jax.models.vision import VisionConfig, VisionTower
from thinkgen_jax.sharding import laid, shard
from thinkgen_jax.structs import Key, Patches, Prompt, Tree

UNEMBED = "unembed"  # the turned table of words in `layered` parameters


@dataclass(frozen=True)
class MllmConfig:
    """Sizes of the MLLM; defaults are Qwen3-VL-8B's (8,767,123,696 parameters).

    Attributes:
      mrope_section: channel pairs of the (time, row, column) axes, H / 2 in all.
      vision: the vision tower, None for a model of text alone.
      initializer_range: standard deviation of fresh weights.
      dtype: of activations; softmax, norm statistics, rotations and logits are float32.
      attention: implementation for whole sequences, see `attention.IMPLEMENTATIONS`.
      scan_unroll: layers traced one by one per loop turn; all of them for the fastest decoding.
      remat: what the backward pass computes again, see `layers.POLICIES`.
    """

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 36
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    rope_theta: float = 5_000_000.0
    mrope_section: tuple[int, int, int] = (24, 20, 20)
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 262144
    image_token_id: int = 151655
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    vision: VisionConfig | None = field(default_factory=VisionConfig)
    initializer_range: float = 0.02
    dtype: Dtype = "float32"
    attention: str = "auto"
    scan_unroll: int = 1
    remat: str | bool = "none"

    @property
    def one_by_one(self) -> bool:
        """Whether layers run without a scan."""
        return self.scan_unroll >= self.num_hidden_layers

    @property
    def tower(self) -> VisionConfig | None:
        """The vision config with this config's settings of execution."""
        if self.vision is None:
            return None
        return replace(
            self.vision,
            initializer_range=self.initializer_range,
            dtype=self.dtype,
            attention=self.attention,
            scan_unroll=self.scan_unroll,
            remat=self.remat,
        )


STACK = (None, "batch", "heads", None, None)  # axes of all layers' keys or values


class KVCache(NamedTuple):
    """Keys and values of what a batch has read, S places a row.

    Keys and values are one stack, or one array per layer where layers run one by one. `segments` is
    0 at places that hold nothing or padding; `end` is the next place, for every row. `prompt` is
    what all rows of a group have read before: row b of B continues row b // (B / P) of its P.
    """

    k: Float[Array, "L B K S H"] | tuple[Float[Array, "B K S H"], ...]
    v: Float[Array, "L B K S H"] | tuple[Float[Array, "B K S H"], ...]
    segments: Int[Array, "B S"]
    end: Int[Array, ""]
    prompt: "KVCache | None" = None


class MllmOutput(NamedTuple):
    """Residual streams before the final norm; `taps` holds the last two layers' side by side."""

    hidden: Float[Array, "B T D"]
    taps: Float[Array, "B T E"]
    cache: KVCache | None


class Shared(NamedTuple):
    """What every decoder layer reads besides its input; None where a call has no use for it."""

    cos: Float[Array, "B T X"]
    sin: Float[Array, "B T X"]
    segments: Int[Array, "B T"]
    mask: Bool[Array, "B T S"] | None  # set: attend to the cache; None: to the call's own tokens
    start: Int[Array, ""] | None  # place in the cache of the call's first token
    prompt: KVCache | None  # what the rows' groups have read before the cache; never written
    deepstack: Float[Array, "Z B M D"] | None
    slots: Int[Array, "B M"] | None


def linear(
    cfg: MllmConfig, features: tuple[int, ...], name: str | None = None, axes: int = 1
) -> Linear:
    """A projection without bias, with Qwen's initial spread."""
    init = nn.initializers.normal(cfg.initializer_range)
    return Linear(features, axes=axes, bias=False, init=init, name=name)


class Attention(nn.Module):
    """Causal grouped-query attention with normed and rotated queries and keys."""

    cfg: MllmConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], layer, keys, values, shared: Shared):
        cfg = self.cfg
        q = linear(cfg, (cfg.num_heads, cfg.head_dim), "q_proj")(x)
        k = linear(cfg, (cfg.num_kv_heads, cfg.head_dim), "k_proj")(x)
        v = linear(cfg, (cfg.num_kv_heads, cfg.head_dim), "v_proj")(x)
        q = rope.rotate(RMSNorm(cfg.rms_norm_eps, name="q_norm")(q), shared.cos, shared.sin)
        k = rope.rotate(RMSNorm(cfg.rms_norm_eps, name="k_norm")(k), shared.cos, shared.sin)
        q = shard(q, "batch", "seq", "heads", None)
        if keys is not None:
            keys, all_k = _store(keys, k, layer, shared.start)
            values, all_v = _store(values, v, layer, shared.start)
        if shared.mask is None:
            segments = shared.segments
            y = attend(q, k, v, segments, segments, causal=True, impl=cfg.attention)
        else:
            y = cached(q, all_k, all_v, shared.mask, _before(shared.prompt, layer))
        return linear(cfg, (cfg.hidden_size,), "o_proj", axes=2)(y), keys, values


def _store(cache, new: Float[Array, "B T K H"], layer, start):
    """Writes new keys or values in place; returns the cache and this layer's part of it."""
    new = new.astype(cache.dtype).swapaxes(1, 2)
    if cache.ndim == 4:  # this layer's own array
        cache = jax.lax.dynamic_update_slice(cache, new, (0, 0, start, 0))
        return cache, cache
    cache = jax.lax.dynamic_update_slice(cache, new[None], (layer, 0, 0, start, 0))
    cache = laid(cache, *STACK)
    return cache, jax.lax.dynamic_index_in_dim(cache, layer, 0, keepdims=False)


def _before(prompt: KVCache | None, layer):
    """A layer's keys, values and mask of what a group shares."""
    if prompt is None:
        return None
    k, v = prompt.k, prompt.v
    if k.ndim > 4:
        k, v = (jax.lax.dynamic_index_in_dim(x, layer, 0, keepdims=False) for x in (k, v))
    return k, v, prompt.segments > 0


class Mlp(nn.Module):
    """SwiGLU."""

    cfg: MllmConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate = linear(self.cfg, (self.cfg.intermediate_size,), "gate_proj")(x)
        up = linear(self.cfg, (self.cfg.intermediate_size,), "up_proj")(x)
        return linear(self.cfg, (self.cfg.hidden_size,), "down_proj")(jax.nn.silu(gate) * up)


class Layer(nn.Module):
    """One decoder layer as a step of the scan over layers.

    The carry is (stream, the stream before it, cache keys, cache values); the cache may be the
    whole stack or this layer's part.
    """

    cfg: MllmConfig

    @nn.compact
    def __call__(self, carry, layer: Int[Array, ""], shared: Shared):
        x, _, keys, values = carry
        before = x
        y = RMSNorm(self.cfg.rms_norm_eps, name="input_layernorm")(x)
        y, keys, values = Attention(self.cfg, name="self_attn")(y, layer, keys, values, shared)
        x = x + shard(y, "batch", "seq", "width")
        y = RMSNorm(self.cfg.rms_norm_eps, name="post_attention_layernorm")(x)
        x = x + shard(Mlp(self.cfg, name="mlp")(y), "batch", "seq", "width")
        if shared.deepstack is not None:
            x = _add_deepstack(x, layer, shared.deepstack, shared.slots)
        x = shard(x, "batch", "seq", "width")
        return (x, before, keys, values), None


def _add_deepstack(x, layer, deepstack, slots):
    """Adds feature `layer` at the picture's tokens, while there is one."""
    last = deepstack.shape[0] - 1

    @jax.vmap  # row by row, so that no device needs another's
    def put(x, slots, feature):
        return x.at[slots].add(feature.astype(x.dtype), mode="drop")

    def add(x):
        return put(x, slots, deepstack[jnp.minimum(layer, last)])

    return jax.lax.cond(layer <= last, add, lambda x: x, x)


class Unembed(nn.Module):
    """The output head; its products are accumulated and returned in float32."""

    cfg: MllmConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        init = nn.initializers.normal(self.cfg.initializer_range)
        kernel = param(self, "kernel", init, (self.cfg.hidden_size, self.cfg.vocab_size))
        return jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)


class Mllm(nn.Module):
    """The whole network: `__call__` for sequences or one more step, `prefill`, `logits`."""

    cfg: MllmConfig

    def setup(self) -> None:
        cfg = self.cfg
        init = nn.initializers.normal(cfg.initializer_range)
        self.embed_tokens = nn.Embed(
            cfg.vocab_size, cfg.hidden_size, dtype=cfg.dtype, embedding_init=init
        )
        if cfg.tower is not None:
            self.visual = VisionTower(cfg.tower)
        layer = rematerialized(Layer, cfg.remat)
        self.decoder = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=cfg.num_hidden_layers,
            unroll=min(cfg.scan_unroll, cfg.num_hidden_layers),
        )(cfg)
        self.norm = RMSNorm(cfg.rms_norm_eps)
        if not cfg.tie_word_embeddings:
            self.lm_head = Unembed(cfg)

    def __call__(self, prompt: Prompt, cache: KVCache | None = None) -> MllmOutput:
        """Reads token rows; with a cache, as the continuation of what it holds.

        Pictures enter through `prompt.patches`; without it an image token is an ordinary token.
        """
        out = self._read(prompt, cache, fresh=False)
        if self.is_initializing():
            self.logits(out.hidden)
        return out

    def prefill(self, prompt: Prompt, *, size: int) -> MllmOutput:
        """Reads a prompt into a new cache of `size` places."""
        return self._read(prompt, empty_cache(self.cfg, prompt.ids.shape[0], size), fresh=True)

    def normed(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """The final norm."""
        return self.norm(hidden)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Final norm and head, float32."""
        x = self.norm(hidden)
        if not self.cfg.tie_word_embeddings:
            return self.lm_head(x)
        turned = self.variables["params"].get(UNEMBED)
        table = self.embed_tokens.embedding.T if turned is None else turned
        return jnp.matmul(x, table.astype(x.dtype), preferred_element_type=jnp.float32)

    def _read(self, prompt: Prompt, cache: KVCache | None, *, fresh: bool) -> MllmOutput:
        cfg = self.cfg
        x, deepstack, slots = self._embed(prompt)
        angles = rope.text_angles(
            prompt.positions,
            head_dim=cfg.head_dim,
            theta=cfg.rope_theta,
            section=cfg.mrope_section,
        )
        keys = values = mask = start = None
        if cache is not None:
            keys, values, start = cache.k, cache.v, cache.end
            written = jax.lax.dynamic_update_slice(
                cache.segments, prompt.segments.astype(jnp.int32), (0, start)
            )
            mask = None if fresh else _cache_mask(written, start, prompt.ids.shape[1])
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        before = None if cache is None else cache.prompt
        shared = Shared(cos, sin, prompt.segments, mask, start, before, deepstack, slots)
        if cfg.one_by_one and not self.is_initializing():
            x, before, keys, values = self._each_layer(x, keys, values, shared)
        else:
            layers = jnp.arange(cfg.num_hidden_layers, dtype=jnp.int32)
            (x, before, keys, values), _ = self.decoder((x, x, keys, values), layers, shared)
        if cache is not None:
            cache = cache._replace(
                k=keys, v=values, segments=written, end=start + prompt.ids.shape[1]
            )
        return MllmOutput(x, jnp.concatenate([before, x], axis=-1), cache)

    def _each_layer(self, x, keys, values, shared: Shared):
        """What `decoder` does, without a scan; `keys` and `values` hold one array per layer."""
        cfg, count = self.cfg, self.cfg.num_hidden_layers

        def step(params, carry, layer, shared):
            return Layer(cfg, parent=None).apply({"params": params}, carry, layer, shared)[0]

        if remat_name(cfg.remat) != "none":
            policy = POLICIES[remat_name(cfg.remat)]
            step = jax.checkpoint(step, prevent_cse=False, policy=policy)
        parts = each(self.variables["params"]["decoder"], count)
        before, features = x, 0 if shared.deepstack is None else shared.deepstack.shape[0]
        new_keys, new_values = [], []
        for layer in range(count):
            params = parts[layer]
            if layer >= features:
                shared = shared._replace(deepstack=None)
            own = (None, None) if keys is None else (keys[layer], values[layer])
            read = shared.prompt and shared.prompt._replace(
                k=shared.prompt.k[layer], v=shared.prompt.v[layer]
            )
            carry = step(params, (x, before, *own), jnp.int32(layer), shared._replace(prompt=read))
            x, before, k, v = carry
            new_keys.append(k)
            new_values.append(v)
        if keys is None:
            return x, before, None, None
        return x, before, tuple(new_keys), tuple(new_values)

    def _embed(self, prompt: Prompt):
        """Token embeddings with the pictures put in their places, and the deepstack features."""
        x = shard(self._words(prompt.ids), "batch", "seq", "width")
        if prompt.patches is None:
            return x, None, None
        merged, deepstack = self.visual(prompt.patches)
        merged = shard(merged, "batch", None, "width")
        deepstack = shard(deepstack, None, "batch", None, "width")
        slots = prompt.patches.slots

        @jax.vmap  # row by row, so that no device needs another's
        def put(x, slots, merged):
            return x.at[slots].set(merged.astype(x.dtype), mode="drop")

        x = put(x, slots, merged)
        features = deepstack if deepstack.shape[0] else None
        return shard(x, "batch", "seq", "width"), features, slots

    def _words(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The table's rows; every device looks up its own rows' words in its part of the table."""
        table = shard(self.embed_tokens.embedding.astype(self.cfg.dtype), "vocab", "width")
        return jnp.take(table, ids, axis=0)


def empty_cache(cfg: MllmConfig, rows: int, size: int, prompt: KVCache | None = None) -> KVCache:
    """A cache of `size` places that holds nothing yet but what its groups share."""
    shape = (rows, cfg.num_kv_heads, size, cfg.head_dim)
    if cfg.one_by_one:
        one = shard(jnp.zeros(shape, cfg.dtype), *STACK[1:])
        empty = (one,) * cfg.num_hidden_layers
    else:
        empty = shard(jnp.zeros((cfg.num_hidden_layers, *shape), cfg.dtype), *STACK)
    segments = jnp.zeros((rows, size), jnp.int32)
    return KVCache(empty, empty, segments, jnp.zeros((), jnp.int32), prompt)


def layered(cfg: MllmConfig, params: Tree) -> Tree:
    """Parameters as a loop wants them, where layers run one by one.

    The stack is one tree per layer, see `layers.apart`, and a table of words that is the head too
    stands beside itself the other way round: a product with few rows would turn it every time.
    """
    if not cfg.one_by_one:
        return params
    turned = {UNEMBED: params["embed_tokens"]["embedding"].T} if cfg.tie_word_embeddings else {}
    return {**apart(params, {"decoder": cfg.num_hidden_layers}), **turned}


def _cache_mask(
    segments: Int[Array, "B S"], start: Int[Array, ""], count: int
) -> Bool[Array, "B T S"]:
    """True at the filled places that each of `count` new tokens may see, its own included."""
    places = jnp.arange(segments.shape[1])
    own = start + jnp.arange(count)
    return (segments > 0)[:, None] & (places[None, :] <= own[:, None])[None]


def example_prompt(cfg: MllmConfig) -> Prompt:
    """A smallest prompt that touches every parameter: one picture of one merged token."""
    merge = cfg.vision.spatial_merge_size if cfg.vision else 1
    ids = jnp.full((1, 2), cfg.image_token_id if cfg.vision else 0, jnp.int32)
    positions = jnp.zeros((3, 1, 2), jnp.int32)
    patches = None
    if cfg.vision is not None:
        count = merge**2
        patches = Patches(
            pixels=jnp.zeros((1, count, cfg.vision.patch_dim)),
            positions=jnp.zeros((1, count, 2), jnp.int32),
            grids=jnp.full((1, count, 2), merge, jnp.int32),
            segments=jnp.ones((1, count), jnp.int32),
            slots=jnp.zeros((1, 1), jnp.int32),
        )
    return Prompt(ids, jnp.ones((1, 2), jnp.int32), positions, patches)


def init_params(cfg: MllmConfig, key: Key) -> Tree:
    """Makes fresh parameters, vision tower and head included."""
    return Mllm(cfg).init(key, example_prompt(cfg))["params"]
