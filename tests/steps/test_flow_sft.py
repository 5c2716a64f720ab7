# SPDX-License-Identifier: Apache-2.0
"""Flow matching by hand: its loss, and what a step does with a picture."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from tests.steps import small
from thinkgen_jax import parts
from thinkgen_jax.models.dit import Dit
from thinkgen_jax.models.packing import pack
from thinkgen_jax.models.vae import Vae, VaeConfig
from thinkgen_jax.steps import flow_sft
from thinkgen_jax.steps.encode import Encoder, to_signed
from thinkgen_jax.steps.state import create
from thinkgen_jax.structs import FlowBatch, Packed, References

NORM = dict(norm_num_groups=2, mid_block_add_attention=False)
PROMPT = small.prompt(rows=2, length=8)


def test_loss_of_a_silent_network():
    """A fresh DiT predicts 0, so the error is the velocity itself; padding does not count."""
    params = jax.jit(partial(parts.init_dit, small.DIT))(jax.random.key(0))
    target = small.target()
    target = target._replace(segments=target.segments.at[0, 1:].set(0))
    noise = jax.random.normal(jax.random.key(1), target.tokens.shape)
    t = jnp.linspace(0.1, 0.9, 4)
    loss = jax.jit(flow_sft.matching_loss, static_argnums=0)
    total, count = loss(Dit(small.DIT), params, target, small.condition(), None, t, noise)
    velocity = np.array(target.tokens - noise)
    velocity[0, 1:] = 0
    np.testing.assert_allclose(total, np.square(velocity).sum(), rtol=1e-5)
    assert count == (3 * 4 + 1) * target.tokens.shape[-1]


def test_order_of_tokens_does_not_matter():
    """Only their places count."""
    dit, params = small.dit()
    target, condition, t = small.target(), small.condition(), jnp.full((4,), 0.4)
    order = jnp.array([3, 1, 0, 2])
    turned = Packed(*(a[:, order] for a in target))
    apply = jax.jit(dit.apply)
    u = apply({"params": params}, target, t, condition)
    v = apply({"params": params}, turned, t, condition)
    np.testing.assert_allclose(v, u[:, order], atol=1e-5)


def test_draws_repeat_every_picture():
    """Two draws of a batch are one draw of the batch with every row twice."""
    vae = Vae(VaeConfig(latent_channels=2, block_out_channels=(4, 8), layers_per_block=1, **NORM))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    init = jax.jit(vae.init)(jax.random.key(3), jnp.zeros((1, 8, 8, 3)))
    frozen = {"mllm": None, "vae": init["params"]}
    network, params = small.dit()
    table = jax.random.normal(jax.random.key(4), (32, small.DIT.condition_dim))
    encoder = Encoder(None, vae, patch=2, close_id=1, max_len=4)

    def loss(rows, draws):
        batch = FlowBatch(jax.tree.map(lambda x: x[..., rows, :], PROMPT), pixels[rows], None)
        state = create({**params, flow_sft.EMBED: {"embedding": table}}, small.LEARNER)
        state = jax.tree.map(jnp.copy, state)  # the step donates it
        step = flow_sft.make_step(network, encoder, small.LEARNER, shift=1.0, draws=draws)
        return step(state, frozen, batch, jax.random.key(5))[1]["loss"]

    twice = loss(np.array([0, 0, 1, 1]), 1)
    np.testing.assert_allclose(loss(np.array([0, 1]), 2), twice, rtol=1e-6)


def test_draws_are_from_the_posterior():
    """Latents of many keys: mean and spread of the autoencoder's own moments; without, the mode."""
    vae = Vae(VaeConfig(latent_channels=2, block_out_channels=(4, 8), layers_per_block=1, **NORM))
    params = jax.jit(vae.init)(jax.random.key(3), jnp.zeros((1, 8, 8, 3)))["params"]
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)), jnp.uint8)
    encoder = Encoder(None, vae, patch=2, close_id=1, max_len=4)
    shown = References(pixels[None], jnp.ones((1, 1), jnp.int32))
    batch = FlowBatch(PROMPT, pixels, shown)

    def tokens(key=None):
        found = flow_sft.encode(encoder, {"vae": params}, batch, key, words=False)
        return found.target.tokens, found.references.tokens

    many, refs = jax.jit(jax.vmap(tokens))(jax.random.split(jax.random.key(0), 4000))
    mode, _ = jax.jit(tokens)()
    _, logvar = vae.apply({"params": params}, to_signed(pixels), method="moments")
    spread = pack(jnp.exp(0.5 * logvar) * vae.cfg.scaling_factor, patch=2).tokens
    np.testing.assert_allclose(many.mean(0), mode, atol=5 * float(spread.max()) / 4000**0.5)
    np.testing.assert_allclose(many.std(0), spread, rtol=0.1)
    assert not np.array_equal(many[0], refs[0])  # the same picture, drawn twice


def test_a_step_that_draws_learns_other_latents():
    vae = Vae(VaeConfig(latent_channels=2, block_out_channels=(4, 8), layers_per_block=1, **NORM))
    init = jax.jit(vae.init)(jax.random.key(3), jnp.zeros((1, 8, 8, 3)))
    network, params = small.dit()
    params = {**params, flow_sft.EMBED: {"embedding": jnp.ones((32, small.DIT.condition_dim))}}
    encoder = Encoder(None, vae, patch=2, close_id=1, max_len=4)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    losses = []
    for sample in (False, True):
        step = flow_sft.make_step(network, encoder, small.LEARNER, shift=1.0, sample=sample)
        state = jax.tree.map(jnp.copy, create(params, small.LEARNER))
        frozen = {"mllm": None, "vae": init["params"]}
        losses.append(step(state, frozen, FlowBatch(PROMPT, pixels, None), jax.random.key(5))[1])
    assert abs(losses[0]["loss"] - losses[1]["loss"]) > 1e-3


def test_batches_of_two_sizes_add_up_to_one():
    """Released loss: errors of all latent elements over their number, large pictures weigh more."""
    vae = Vae(VaeConfig(latent_channels=2, block_out_channels=(4, 8), layers_per_block=1, **NORM))
    init = jax.jit(vae.init)(jax.random.key(3), jnp.zeros((1, 8, 8, 3)))
    network, params = small.dit()
    params = {**params, flow_sft.EMBED: {"embedding": jnp.ones((32, small.DIT.condition_dim))}}
    encoder = Encoder(None, vae, patch=2, close_id=1, max_len=4)
    step = flow_sft.make_step(network, encoder, small.LEARNER, shift=1.0, tokens=6.0)
    found, counts = [], (4, 8)  # DiT tokens of 8 x 8 and of 8 x 16 pixels
    for tokens in counts:
        pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 2 * tokens, 3)).astype(np.uint8)
        state = jax.tree.map(jnp.copy, create(params, small.LEARNER))
        frozen = {"mllm": None, "vae": init["params"]}
        _, metrics = step(state, frozen, FlowBatch(PROMPT, pixels, None), jax.random.key(5))
        found.append(metrics)
    errors = [float(m["error"]) for m in found]
    expected = np.dot(errors, counts) / sum(counts)
    np.testing.assert_allclose(np.mean([float(m["loss"]) for m in found]), expected, rtol=1e-5)
    assert abs(errors[0] - errors[1]) > 1e-3
