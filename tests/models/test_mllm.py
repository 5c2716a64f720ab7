# SPDX-License-Identifier: Apache-2.0
"""The MLLM against the official network's numbers, and its invariants."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import qwen
from thinkgen_jax import sharding
from thinkgen_jax.models.mllm import Mllm, MllmConfig, init_params
from thinkgen_jax.models.rope import next_position
from thinkgen_jax.structs import Prompt

FORWARD = ("text_left", "text_right", "image", "two_images", "image_token_no_pixels")
MODEL = Mllm(qwen.CFG)
TIED = replace(qwen.CFG, vision=None, num_hidden_layers=3, tie_word_embeddings=True)


@partial(jax.jit, static_argnames="cfg")
def read(params, prompt, cfg=qwen.CFG):
    """One plain forward pass: output, normed states, logits."""
    model, variables = Mllm(cfg), {"params": params}
    out = model.apply(variables, prompt)
    normed = model.apply(variables, out.hidden, method="normed")
    return out, normed, model.apply(variables, out.hidden, method="logits")


def random_prompt(seed, lengths, total, vocab=500):
    """Right-padded random text with junk behind it."""
    ids = jax.random.randint(jax.random.key(seed), (len(lengths), total), 0, vocab)
    segments = (np.arange(total)[None] < np.asarray(lengths)[:, None]).astype(np.int32)
    places = np.where(segments > 0, np.arange(total)[None], 1).astype(np.int32)
    return Prompt(
        ids, jnp.asarray(segments), jnp.broadcast_to(jnp.asarray(places), (3, *ids.shape))
    )


@pytest.mark.parametrize("name", FORWARD)
def test_states_and_logits_equal_official(name):
    prompt = qwen.prompt(name)
    out, normed, logits = read(qwen.params(), prompt)
    before, last = jnp.split(out.taps, 2, axis=-1)
    qwen.assert_valid(f"{name}.hs_m2", before, prompt.segments)
    qwen.assert_valid(f"{name}.hs_m1", last, prompt.segments)
    np.testing.assert_array_equal(last, out.hidden)
    qwen.assert_valid(f"{name}.final_norm", normed, prompt.segments)
    qwen.assert_valid(f"{name}.logits", logits, prompt.segments)


def test_pictures_matter_and_their_padding_does_not():
    prompt = qwen.prompt("two_images")
    want = read(qwen.params(), prompt)[0].hidden
    junk = prompt.patches.pixels + 3.0 * (prompt.patches.segments == 0)[..., None]
    padded = prompt._replace(patches=prompt.patches._replace(pixels=junk))
    np.testing.assert_array_equal(read(qwen.params(), padded)[0].hidden, want)
    blind = read(qwen.params(), prompt._replace(patches=None))[0].hidden
    first = int(prompt.patches.slots[0, 0])
    assert float(jnp.abs(blind - want)[0, first].max()) > 0.1


def test_prefill_and_steps_equal_full_forward():
    """Rows of different lengths, continued token by token and then by two at once."""
    prompt, params = qwen.prompt("two_images"), qwen.params()
    rows, length = prompt.ids.shape
    more = jax.random.randint(jax.random.key(1), (rows, 5), 0, 500)
    counts = jnp.sum(prompt.segments, axis=1)
    start = next_position(prompt.positions, prompt.segments)

    # The whole rows at once: continuation right behind each row's own tokens.
    places = counts[:, None] + jnp.arange(5)[None]
    at = jnp.arange(rows)[:, None]
    grown = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 5))), (prompt.ids, prompt.segments))
    ids, segments = grown[0].at[at, places].set(more), grown[1].at[at, places].set(1)
    positions = jnp.pad(prompt.positions, ((0, 0), (0, 0), (0, 5)))
    steps = start[:, None] + jnp.arange(5)[None]
    for axis in range(3):
        positions = positions.at[axis, at, places].set(steps)
    slots = jnp.where(prompt.patches.slots >= length, 99, prompt.patches.slots)
    patches = prompt.patches._replace(slots=slots)
    full = read(params, Prompt(ids, segments, positions, patches))[0].taps
    want = jnp.take_along_axis(full, places[..., None], axis=1)

    prefill = jax.jit(partial(MODEL.apply, size=length + 5, method="prefill"))
    out = prefill({"params": params}, prompt)
    np.testing.assert_allclose(
        np.asarray(out.taps)[np.asarray(prompt.segments) > 0],
        np.asarray(full[:, :length])[np.asarray(prompt.segments) > 0],
        atol=2e-5,
    )
    step = jax.jit(lambda prompt, cache: MODEL.apply({"params": params}, prompt, cache))
    got, done = [], 0
    for size in (1, 1, 1, 2):
        span = slice(done, done + size)
        three = jnp.broadcast_to(steps[None, :, span], (3, rows, size))
        part = Prompt(more[:, span], jnp.ones((rows, size), jnp.int32), three)
        out = step(part, out.cache)
        got, done = [*got, out.taps], done + size
    np.testing.assert_allclose(jnp.concatenate(got, axis=1), want, atol=3e-5)
    assert int(out.cache.end) == length + 5


def test_layers_one_by_one_rematerialised_agree_with_the_scan():
    prompt, params = qwen.prompt("image"), qwen.params()

    @partial(jax.jit, static_argnums=1)
    def gradient(params, cfg):
        def loss(params):
            out, _, logits = read(params, prompt, cfg)
            return jnp.mean(jnp.square(logits)) + jnp.mean(jnp.square(out.taps))

        return jax.value_and_grad(loss)(params)

    want = gradient(params, qwen.CFG)
    got = gradient(params, replace(qwen.CFG, scan_unroll=4, remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), got, want)
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(want[1]))


def test_fresh_tied_model_reads_its_embedding():
    params = jax.jit(lambda key: init_params(TIED, key))(jax.random.key(0))
    assert set(params) == {"embed_tokens", "decoder", "norm"}
    np.testing.assert_array_equal(params["norm"]["scale"], 1)
    kernel = params["decoder"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_allclose(jnp.std(kernel, axis=(1, 2)), TIED.initializer_range, rtol=0.05)
    assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0  # layers start differently
    _, normed, logits = read(params, random_prompt(0, [7, 4], 7), TIED)
    want = np.asarray(normed) @ np.asarray(params["embed_tokens"]["embedding"]).T
    np.testing.assert_allclose(logits, want, atol=1e-5)


def test_bfloat16_stays_near_float32_with_float32_logits():
    params, prompt = qwen.random_params(TIED), random_prompt(0, [7, 4], 7)
    want, _, _ = read(params, prompt, TIED)
    out, normed, logits = read(params, prompt, replace(TIED, dtype="bfloat16"))
    assert (out.taps.dtype, normed.dtype, logits.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    keep = np.asarray(prompt.segments) > 0
    a, b = np.asarray(out.hidden, np.float32)[keep], np.asarray(want.hidden)[keep]
    assert np.abs(a - b).max() < 0.05 * np.abs(b).max()


def test_one_device_equals_mesh():
    cfg = replace(qwen.CFG, scan_unroll=1)
    prompt = qwen.prompt("text_right")
    prompt = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=-2), prompt)
    want = read(qwen.params(), prompt, cfg)[2]
    mesh = sharding.make_mesh(fsdp=2, tensor=2, context=2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(qwen.params(), sharding.infer(qwen.params(), mesh))
        got = read(placed, prompt, cfg)[2]
    keep = np.asarray(prompt.segments) > 0
    np.testing.assert_allclose(np.asarray(got)[keep], np.asarray(want)[keep], atol=5e-5)


def test_released_size_is_inferred_on_a_pod():
    """Every released parameter has a rule that fits a mesh of 8, by shape alone."""
    shapes = qwen.abstract(MllmConfig())
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        spec = sharding.spec_of(sharding.path_name(path), leaf.shape, mesh)
        cut = any(spec)
        assert cut or leaf.size < 1e9 / 2, f"{sharding.path_name(path)} lies whole everywhere"
