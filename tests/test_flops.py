# SPDX-License-Identifier: Apache-2.0
"""The FLOP model against products counted in the traced networks themselves."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thinkgen_jax import flops, parts
from thinkgen_jax.models import presets
from thinkgen_jax.models.dit import Dit
from thinkgen_jax.models.mllm import Mllm, example_prompt
from thinkgen_jax.models.packing import pack
from thinkgen_jax.models.vae import Vae
from thinkgen_jax.structs import Condition

TINY = presets.get("tiny")
MLLM = replace(TINY.mllm, vision=None)


def traced(function, *args) -> float:
    """Operations of all products and convolutions of a function, loop bodies by their turns."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * depth * math.prod(eqn.outvars[0].aval.shape)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            total += 2.0 * math.prod(kernel[:3]) * math.prod(eqn.outvars[0].aval.shape)
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += times * _count(inner)
    return total


def apply(module, method=None):
    return lambda params, *args: module.apply({"params": params}, *args, method=method)


def test_decoder():
    """All keys are computed here; the model counts half of them for causal attention."""
    rows, tokens = 3, 17
    prompt = example_prompt(MLLM)._replace(
        ids=jnp.zeros((rows, tokens), jnp.int32),
        segments=jnp.ones((rows, tokens), jnp.int32),
        positions=jnp.zeros((3, rows, tokens), jnp.int32),
    )
    params = parts.shapes(replace(TINY, mllm=MLLM), "mllm")
    whole = flops.attention(tokens, tokens, MLLM.num_heads, MLLM.head_dim)
    want = rows * flops.mllm(MLLM, tokens, logits=False)
    want += rows * MLLM.num_hidden_layers * whole / 2
    assert traced(apply(Mllm(MLLM)), params, prompt) == want
    hidden = jnp.zeros((rows, tokens, MLLM.hidden_size))
    more = flops.mllm(MLLM, tokens, logits=True) - flops.mllm(MLLM, tokens, logits=False)
    assert traced(apply(Mllm(MLLM), "logits"), params, hidden) == rows * more


def test_vision_tower():
    cfg = TINY.mllm
    params, one = parts.shapes(TINY, "mllm"), example_prompt(cfg)
    count = one.patches.pixels.shape[1]

    def see(params, patches):
        return Mllm(cfg).apply({"params": params}, patches, method=lambda m, p: m.visual(p))

    assert traced(see, params, one.patches) == flops.vision(cfg.vision, count)


@pytest.mark.parametrize("shown", [False, True])
def test_dit(shown):
    cfg, rows, words = TINY.dit, 2, 7
    target = pack(jnp.zeros((rows, 8, 4, cfg.in_channels)), patch=cfg.patch_size)
    references = pack(jnp.zeros((rows, 4, 4, cfg.in_channels)), patch=cfg.patch_size)
    condition = Condition(
        jnp.zeros((rows, words, cfg.condition_dim)), jnp.ones((rows, words), jnp.int32)
    )
    args = (target, jnp.zeros(rows), condition, references if shown else None)
    count = 4 if shown else 0
    want = rows * (flops.dit_context(cfg, words) + flops.dit(cfg, words, 8, count))
    assert traced(apply(Dit(cfg)), parts.shapes(TINY, "dit"), *args) == want


def test_autoencoder():
    cfg, side = TINY.vae, 16
    params = parts.shapes(TINY, "vae")
    picture, latents = (
        jnp.zeros((1, side, side, 3)),
        jnp.zeros((1, side // cfg.factor, side // cfg.factor, cfg.latent_channels)),
    )
    assert traced(apply(Vae(cfg), "encode"), params, picture) == flops.vae_encode(cfg, side, side)
    assert traced(apply(Vae(cfg), "decode"), params, latents) == flops.vae_decode(cfg, side, side)


def test_released_sizes():
    """One velocity at 512² with 256 words is 8.7e12, at 1024² 34e12: what OmniGen2's sizes say."""
    cfg = presets.get("thinkgen").dit
    np.testing.assert_allclose(flops.dit(cfg, 256, 1024) / 8.7e12, 1.0, atol=0.12)
    np.testing.assert_allclose(flops.dit(cfg, 256, 4096) / 34e12, 1.0, atol=0.12)


def test_writing_is_reading_one_by_one():
    """Every written token meets what a causal pass over all of them meets, head included."""
    one = flops.writing(MLLM, 0, 64) / 64
    alone = flops.writing(MLLM, 0, 1)
    grown = MLLM.num_hidden_layers * flops.attention(1, 1, MLLM.num_heads, MLLM.head_dim)
    assert one == alone + grown * (65 / 2 - 1)
