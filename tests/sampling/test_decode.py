# SPDX-License-Identifier: Apache-2.0
"""Writing and scoring: official sequences, and what must agree with what."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import qwen
from thinkgen_jax.models.mllm import Mllm, init_params
from thinkgen_jax.sampling import decode
from thinkgen_jax.structs import Decoded, Prompt

MODEL = Mllm(qwen.CFG)
TEXT = Mllm(
    replace(
        qwen.CFG,
        vision=None,
        num_hidden_layers=2,
        hidden_size=32,
        vocab_size=24,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
)
PARAMS = init_params(TEXT.cfg, jax.random.key(0))
KEY = jax.random.key(7)


def text(*rows):
    """Right-padded rows of ids."""
    total = max(map(len, rows))
    ids = np.full((len(rows), total), 3, np.int32)
    segments = np.zeros_like(ids)
    for b, row in enumerate(rows):
        ids[b, : len(row)], segments[b, : len(row)] = row, 1
    places = np.where(segments > 0, np.arange(total)[None], 1).astype(np.int32)
    return Prompt(
        jnp.asarray(ids),
        jnp.asarray(segments),
        jnp.broadcast_to(jnp.asarray(places), (3, *ids.shape)),
    )


@pytest.mark.parametrize("name", ["gen_text", "gen_image"])
def test_greedy_equals_official(name):
    prompt, params = qwen.prompt(name), qwen.params()
    count = qwen.META["cases"][name]["new_tokens"]
    out = decode.sample(
        MODEL, params, prompt, KEY, max_new_tokens=count, stop_id=-1, temperature=0.0
    )
    joined = decode.join(prompt, out)
    np.testing.assert_array_equal(joined.ids, qwen.ARRAYS[f"{name}.sequences"])
    assert not bool(out.stopped[0])
    # The last token was never read by the release.
    read = MODEL.apply({"params": params}, joined)
    key = f"{name}.hs_cat"
    np.testing.assert_allclose(
        read.taps[:, :-1], qwen.ARRAYS[key], rtol=0, atol=qwen.tolerance(key)
    )
    logits = MODEL.apply({"params": params}, read.hidden[:, -count - 1 : -1], method="logits")
    key = f"{name}.step_logits"
    np.testing.assert_allclose(logits, qwen.ARRAYS[key], rtol=0, atol=qwen.tolerance(key))


def test_rows_of_different_lengths_write_as_alone():
    rows = ([1, 2, 3, 4, 5, 6], [7, 8], [9, 10, 11, 12])
    settings = dict(max_new_tokens=6, stop_id=-1, temperature=0.0)
    together = decode.sample(TEXT, PARAMS, text(*rows), KEY, **settings)
    for b, row in enumerate(rows):
        alone = decode.sample(TEXT, PARAMS, text(row), KEY, **settings)
        np.testing.assert_array_equal(together.ids[b], alone.ids[0])


def test_greedy_takes_the_likeliest_next_token():
    """What was written is the argmax of a teacher-forced pass at every place."""
    prompt = text([1, 2, 3], [5])
    out = decode.sample(TEXT, PARAMS, prompt, KEY, max_new_tokens=5, stop_id=-1, temperature=0.0)
    joined = decode.join(prompt, out)
    hidden = TEXT.apply({"params": PARAMS}, joined).hidden
    best = jnp.argmax(TEXT.apply({"params": PARAMS}, hidden, method="logits"), axis=-1)
    for b, count in enumerate((3, 1)):
        np.testing.assert_array_equal(best[b, count - 1 : count + 4], out.ids[b])


def test_end_token_ends_a_row():
    prompt = text([1, 2, 3], [5], [5])
    free = decode.sample(TEXT, PARAMS, prompt, KEY, max_new_tokens=8, stop_id=-1, group=2)
    ids = np.asarray(free.ids)
    stop = int(ids[0, 3])
    out = decode.sample(
        TEXT, PARAMS, prompt, KEY, max_new_tokens=8, stop_id=stop, group=2, pad_id=23
    )
    for b, row in enumerate(ids):
        found = np.flatnonzero(row == stop)
        count = found[0] + 1 if len(found) else 8
        np.testing.assert_array_equal(out.ids[b], [*row[:count], *[23] * (8 - count)])
        np.testing.assert_array_equal(out.segments[b], np.arange(8) < count)
        assert bool(out.stopped[b]) == bool(len(found))
    assert bool(out.stopped[0])


def test_group_equals_repeated_prompts():
    prompt = qwen.prompt("two_images")
    repeated = decode._repeat(prompt, 3)
    settings = dict(max_new_tokens=5, stop_id=-1, temperature=1.0)
    grouped = decode.sample(MODEL, qwen.params(), prompt, KEY, group=3, **settings)
    plain = decode.sample(MODEL, qwen.params(), repeated, KEY, **settings)
    np.testing.assert_array_equal(grouped.ids, plain.ids)
    assert len({tuple(row) for row in np.asarray(grouped.ids)[:3].tolist()}) > 1


def first_tokens(count, **settings):
    """Frequencies of the first written token behind one prompt, and the model's logits for it."""
    prompt = text([1, 2, 3])
    out = decode.sample(
        TEXT, PARAMS, prompt, KEY, max_new_tokens=1, stop_id=-1, group=count, **settings
    )
    hidden = TEXT.apply({"params": PARAMS}, prompt).hidden[0, -1]
    logits = np.asarray(TEXT.apply({"params": PARAMS}, hidden, method="logits"), np.float64)
    return np.bincount(np.asarray(out.ids)[:, 0], minlength=len(logits)) / count, logits


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_gives_the_tempered_distribution(temperature):
    count = 40_000
    got, logits = first_tokens(count, temperature=temperature)
    want = softmax(logits / temperature)
    assert np.all(np.abs(got - want) < 5 * np.sqrt(want * (1 - want) / count) + 1e-4)


def test_top_k_and_top_p_cut_the_tail():
    count = 20_000
    _, logits = first_tokens(1)
    order, p = np.argsort(-logits), softmax(logits)
    kept = order[:3]
    got, _ = first_tokens(count, top_k=3)
    assert set(np.flatnonzero(got)) == set(kept)
    np.testing.assert_allclose(got[kept], p[kept] / p[kept].sum(), atol=0.02)
    # Just past the share of the two likeliest: a third token is needed.
    share = float(p[order[:2]].sum() + 0.25 * p[order[2]])
    got, _ = first_tokens(count, top_p=share)
    assert set(np.flatnonzero(got)) == set(kept)
    np.testing.assert_allclose(got[kept], p[kept] / p[kept].sum(), atol=0.02)
    got, _ = first_tokens(100, top_p=1e-6)
    assert set(np.flatnonzero(got)) == {order[0]}


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"group": 0}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        decode.sample(TEXT, PARAMS, text([1]), KEY, max_new_tokens=2, stop_id=0, **bad)


def test_join_by_hand():
    prompt = text([1, 2, 3], [4])
    decoded = Decoded(
        jnp.asarray([[5, 6], [7, 8], [9, 0], [10, 11]]),
        jnp.asarray([[1, 1], [1, 1], [1, 0], [1, 1]]),
        jnp.zeros(4, bool),
    )
    got = decode.join(prompt, decoded)
    np.testing.assert_array_equal(
        got.ids, [[1, 2, 3, 5, 6], [1, 2, 3, 7, 8], [4, 9, 0, 0, 0], [4, 10, 11, 0, 0]]
    )
    np.testing.assert_array_equal(
        got.segments, [[1] * 5, [1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    )
    want = [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 1, 1, 1], [0, 1, 2, 1, 1]]
    np.testing.assert_array_equal(got.positions, [want] * 3)
    mask = decode.response_mask(prompt, decoded).astype(int)
    np.testing.assert_array_equal(
        mask, [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0]]
    )


def test_join_keeps_pictures_in_place():
    prompt = qwen.prompt("two_images")
    rows, length = prompt.ids.shape
    more = Decoded(jnp.full((rows, 4), 2), jnp.ones((rows, 4), jnp.int32), jnp.zeros(rows, bool))
    joined = decode.join(prompt, more)
    want = MODEL.apply({"params": qwen.params()}, prompt).hidden
    got = MODEL.apply({"params": qwen.params()}, joined).hidden[:, :length]
    keep = np.asarray(prompt.segments) > 0
    np.testing.assert_allclose(np.asarray(got)[keep], np.asarray(want)[keep], atol=2e-5)
    assert int(joined.positions[0, 0, -1]) == int(jnp.max(prompt.positions[:, 0])) + 4
    dropped = np.asarray(prompt.patches.slots) >= length
    assert dropped.any() and (np.asarray(joined.patches.slots)[dropped] >= length + 4).all()


def test_logprobs_by_definition():
    prompt = text([1, 2, 3, 4, 5], [6, 7, 8])
    temperature = 0.7
    got = decode.scores(TEXT, PARAMS, prompt, temperature=temperature)
    hidden = TEXT.apply({"params": PARAMS}, prompt).hidden
    logits = np.asarray(TEXT.apply({"params": PARAMS}, hidden, method="logits"), np.float64)
    for b, count in enumerate((5, 3)):
        for t in range(5):
            if t == 0 or t >= count:
                assert got.logprobs[b, t] == 0 and got.entropy[b, t] == 0
                continue
            p = softmax(logits[b, t - 1] / temperature)
            np.testing.assert_allclose(
                got.logprobs[b, t], np.log(p[int(prompt.ids[b, t])]), atol=1e-5
            )
            np.testing.assert_allclose(got.entropy[b, t], -(p * np.log(p)).sum(), atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_chunked_logprobs_equal_whole_and_so_do_gradients(chunk):
    prompt = text([1, 2, 3, 4, 5, 6, 7, 8], [6, 7, 8])

    def loss(params, chunk):
        got = decode.scores(TEXT, params, prompt, chunk=chunk)
        return jnp.sum(got.logprobs) + jnp.sum(got.entropy), got

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    want, got = run(PARAMS, 7), run(PARAMS, chunk)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5, rtol=1e-4), got, want)


def test_sampled_tokens_have_the_probability_they_were_drawn_with():
    """The mean of -log p over many samples is the entropy."""
    prompt = text([1, 2, 3])
    out = decode.sample(
        TEXT, PARAMS, prompt, KEY, max_new_tokens=2, stop_id=-1, group=4000, temperature=1.0
    )
    got = decode.scores(TEXT, PARAMS, decode.join(prompt, out))
    gap = np.asarray(got.logprobs + got.entropy)[:, 3:]
    assert abs(gap.mean()) < 5 * gap.std() / np.sqrt(gap.size)
