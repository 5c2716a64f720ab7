# SPDX-License-Identifier: Apache-2.0
"""The smallest networks that have every part, for tests of the updates."""

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from thinkgen_jax import parts
from thinkgen_jax.models import presets
from thinkgen_jax.models.dit import Dit
from thinkgen_jax.models.mllm import Mllm, init_params
from thinkgen_jax.models.packing import pack
from thinkgen_jax.optim import OptimConfig
from thinkgen_jax.steps.state import Learner
from thinkgen_jax.structs import Condition, Prompt

NANO = presets.get("nano")
MLLM = replace(
    NANO.mllm,
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mrope_section=(2, 1, 1),
    vision=None,
    scan_unroll=1,
)
DIT = replace(
    NANO.dit,
    in_channels=2,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    multiple_of=8,
    axes_dim_rope=(2, 2, 4),
    axes_lens=(64, 64, 64),
    condition_dim=8,
    num_prepad=2,
    scan_unroll=1,
)
LEARNER = Learner(OptimConfig(lr=1e-2, warmup_steps=0, weight_decay=0.0))


@lru_cache(maxsize=1)
def mllm():
    return Mllm(MLLM), jax.jit(partial(init_params, MLLM))(jax.random.key(0))


@lru_cache(maxsize=1)
def dit():
    """A DiT whose zero-initialised parts are drawn at random, so that every path matters."""

    @jax.jit
    def init():
        leaves, tree = jax.tree.flatten(parts.init_dit(DIT, jax.random.key(1)))
        keys = jax.random.split(jax.random.key(2), len(leaves))
        noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(tree, noisy)

    return Dit(DIT), init()


def prompt(rows=4, length=10, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(9, 32, (rows, length))
    segments = (np.arange(length)[None] < rng.integers(6, length + 1, (rows, 1))).astype(np.int32)
    positions = np.broadcast_to(np.arange(length), (3, rows, length))
    arrays = (ids * segments, segments, positions)
    return Prompt(*(jnp.asarray(a, jnp.int32) for a in arrays))


def target(rows=4, seed=0):
    key = jax.random.key(seed)
    return pack(jax.random.normal(key, (rows, 4, 4, DIT.in_channels)), patch=2)


def condition(rows=4, length=3, seed=0):
    states = jax.random.normal(jax.random.key(seed), (rows, length, DIT.condition_dim))
    return Condition(states, jnp.ones((rows, length), jnp.int32))
