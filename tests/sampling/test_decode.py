# SPDX-License-Identifier: Apache-2.0
"""Writing and scoring: official sequences, and what must agree with what."""

from dataclasses import replace
from functools import partial

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
        scan_unroll=2,  # layers one by one; the golden model runs them in a scan
    )
)
PARAMS = qwen.random_params(TEXT.cfg)
KEY = jax.random.key(7)


@partial(jax.jit, static_argnums=0)
def read(mllm, params, prompt):
    """Residual streams of the last two layers and logits of one teacher-forced pass."""
    out = mllm.apply({"params": params}, prompt)
    return out.taps, mllm.apply({"params": params}, out.hidden, method="logits")


def text(*rows, total=6):
    """Rows of ids, right-padded with junk."""
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
    taps, logits = read(MODEL, params, joined)
    for key, got in (("hs_cat", taps[:, :-1]), ("step_logits", logits[:, -count - 1 : -1])):
        key = f"{name}.{key}"
        np.testing.assert_allclose(got, qwen.ARRAYS[key], rtol=0, atol=qwen.tolerance(key))


def test_greedy_takes_the_likeliest_next_token():
    """In rows of different lengths, each token is the best of a teacher-forced pass."""
    prompt = text([1, 2, 3, 4, 5, 6], [7, 8], [9, 10, 11, 12])
    out = decode.sample(TEXT, PARAMS, prompt, KEY, max_new_tokens=6, stop_id=-1, temperature=0.0)
    best = jnp.argmax(read(TEXT, PARAMS, decode.join(prompt, out))[1], axis=-1)
    for b, count in enumerate((6, 2, 4)):
        np.testing.assert_array_equal(best[b, count - 1 : count + 5], out.ids[b])
    assert len(set(np.asarray(out.ids).ravel().tolist())) > 3


def test_end_token_ends_a_row():
    prompt = text([1, 2, 3], [5], [5])
    run = partial(decode.sample, TEXT, PARAMS, prompt, KEY, max_new_tokens=8, group=2)
    ids = np.asarray(run(stop_id=-1).ids)
    stop = int(ids[0, 3])
    out = run(stop_id=stop, pad_id=23)
    for b, row in enumerate(ids):
        found = np.flatnonzero(row == stop)
        count = found[0] + 1 if len(found) else 8
        np.testing.assert_array_equal(out.ids[b], [*row[:count], *[23] * (8 - count)])
        np.testing.assert_array_equal(out.segments[b], np.arange(8) < count)
        assert bool(out.stopped[b]) == bool(len(found))
    assert bool(out.stopped[0])


def test_group_equals_repeated_prompts():
    prompt = text([1, 2, 3], [5], [7, 8, 9, 10])
    repeated = decode._repeat(prompt, 3)
    settings = dict(max_new_tokens=5, stop_id=-1, temperature=1.0)
    grouped = decode.sample(TEXT, PARAMS, prompt, KEY, group=3, **settings)
    plain = decode.sample(TEXT, PARAMS, repeated, KEY, **settings)
    np.testing.assert_array_equal(grouped.ids, plain.ids)
    assert len({tuple(row) for row in np.asarray(grouped.ids)[:3].tolist()}) > 1


@pytest.mark.parametrize("halvings", [1, 3])
def test_rows_that_stop_leave_without_a_trace(halvings):
    prompt = text([1, 2, 3], [5], [7, 8, 9, 10])
    settings = dict(max_new_tokens=40, temperature=1.0, group=3, pad_id=23)
    stop = int(decode.sample(TEXT, PARAMS, prompt, KEY, stop_id=-1, **settings).ids[0, 2])
    whole = decode.sample(TEXT, PARAMS, prompt, KEY, stop_id=stop, **settings)
    fewer = decode.sample(TEXT, PARAMS, prompt, KEY, stop_id=stop, halvings=halvings, **settings)
    for a, b in zip(whole, fewer, strict=True):
        np.testing.assert_array_equal(a, b)
    counts = np.asarray(whole.segments).sum(1)
    assert len(set(counts.tolist())) > 2 and np.sort(counts)[4] < counts.max()
    assert decode._sizes(9, halvings) == [9, 5, 3, 2][: halvings + 1]


def test_joined_rows_are_cut_to_one_of_four_lengths():
    prompt = text([1, 2, 3], [5], total=40)  # 40 + 24 places: lengths 16, 32, 48, 64
    for count, length in ((10, 16), (14, 32), (24, 32)):
        segments = (jnp.arange(24)[None] < jnp.array([[count], [1]])).astype(jnp.int32)
        decoded = Decoded(segments * 9, segments, jnp.ones(2, bool))
        assert decode.joined_length(prompt, decoded) == length
        whole, cut = decode.join(prompt, decoded), decode.join(prompt, decoded, length=length)
        assert cut.ids.shape == (2, length)
        np.testing.assert_array_equal(cut.ids, whole.ids[:, :length])
        np.testing.assert_array_equal(cut.positions, whole.positions[:, :, :length])
        assert not np.asarray(whole.segments)[:, length:].any()
        mask = decode.response_mask(prompt, decoded)
        cut_mask = decode.response_mask(prompt, decoded, length=length)
        np.testing.assert_array_equal(cut_mask, mask[:, :length])


LOGITS = np.array([0.3, 2.0, -1.0, 1.2, 0.9])
DRAWS = 20_000


def frequencies(**settings):
    """How often each token of `LOGITS` is drawn."""
    logits = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (DRAWS, len(LOGITS)))
    draw = partial(decode._draw, **{"temperature": 1.0, "top_p": 1.0, "top_k": 0, **settings})
    drawn = np.asarray(jax.jit(draw)(logits, jax.random.split(KEY, DRAWS)))
    return np.bincount(drawn, minlength=len(LOGITS)) / DRAWS


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_gives_the_tempered_distribution(temperature):
    got, want = frequencies(temperature=temperature), softmax(LOGITS / temperature)
    assert np.all(np.abs(got - want) < 5 * np.sqrt(want * (1 - want) / DRAWS))


def test_top_k_and_top_p_cut_the_tail():
    p = softmax(LOGITS)
    want = np.where([0, 1, 0, 1, 1], p, 0) / (p[1] + p[3] + p[4])
    # Just past the share of the two likeliest: a third token is needed.
    for settings in ({"top_k": 3}, {"top_p": float(p[1] + p[3] + 0.2 * p[4])}):
        got = frequencies(**settings)
        assert got[0] == got[2] == 0
        np.testing.assert_allclose(got, want, atol=0.02)
    assert frequencies(top_p=1e-9)[1] == 1
    assert frequencies(temperature=0.0)[1] == 1


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"group": 0}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        decode.sample(TEXT, PARAMS, text([1]), KEY, max_new_tokens=2, stop_id=0, **bad)


def test_join_by_hand():
    prompt = text([1, 2, 3], [4], total=3)
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
    """Two writings per prompt: every copy reads its prompt as the prompt alone is read."""
    prompt = qwen.prompt("two_images")
    rows, length = prompt.ids.shape
    ids = jnp.full((2 * rows, 4), 2)
    joined = decode.join(prompt, Decoded(ids, jnp.ones_like(ids), jnp.zeros(2 * rows, bool)))
    want, _ = read(MODEL, qwen.params(), prompt)
    got = read(MODEL, qwen.params(), joined)[0][:, :length]
    keep = np.repeat(np.asarray(prompt.segments) > 0, 2, axis=0)
    np.testing.assert_allclose(np.asarray(got)[keep], np.repeat(want, 2, axis=0)[keep], atol=3e-5)
    assert int(joined.positions[0, 0, -1]) == int(jnp.max(prompt.positions[:, 0])) + 4
    dropped = np.repeat(np.asarray(prompt.patches.slots) >= length, 2, axis=0)
    assert dropped.any() and (np.asarray(joined.patches.slots)[dropped] >= length + 4).all()


def test_logprobs_by_definition():
    prompt, temperature = text([1, 2, 3, 4, 5], [6, 7, 8]), 0.7
    got = jax.jit(lambda p: decode.scores(TEXT, p, prompt, temperature=temperature))(PARAMS)
    logits = np.asarray(read(TEXT, PARAMS, prompt)[1], np.float64)
    for b, count in enumerate((5, 3)):
        for t in range(6):
            if t == 0 or t >= count:
                assert got.logprobs[b, t] == 0 and got.entropy[b, t] == 0
                continue
            p = softmax(logits[b, t - 1] / temperature)
            np.testing.assert_allclose(
                got.logprobs[b, t], np.log(p[int(prompt.ids[b, t])]), atol=1e-5
            )
            np.testing.assert_allclose(got.entropy[b, t], -(p * np.log(p)).sum(), atol=1e-5)


@partial(jax.jit, static_argnums=1)
def summed_scores(params, chunk):
    """Sums with their gradients, and the scores."""
    prompt = text([1, 2, 3, 4, 5, 6, 7, 8], [6, 7, 8], total=8)

    def loss(params):
        got = decode.scores(TEXT, params, prompt, chunk=chunk)
        return jnp.sum(got.logprobs) + jnp.sum(got.entropy), got

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunked_logprobs_equal_whole_and_so_do_gradients(chunk):
    want, got = summed_scores(PARAMS, 100), summed_scores(PARAMS, chunk)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5, rtol=1e-4), got, want)


def test_memory_of_logprobs_does_not_grow_with_the_vocabulary():
    """The compiler's word; of all logits at once the larger vocabulary would need 260 MiB more."""
    found = []
    for vocab in (2**16, 2**17):
        mllm = Mllm(replace(TEXT.cfg, vocab_size=vocab))
        params = jax.eval_shape(lambda cfg=mllm.cfg: init_params(cfg, KEY))
        prompt = text(list(range(1, 513)), [1], total=512)
        program = jax.jit(lambda p, prompt, mllm=mllm: decode.logprobs(mllm, p, prompt))
        found.append(program.lower(params, prompt).compile().memory_analysis().temp_size_in_bytes)
    assert 2**26 < found[0] and abs(found[1] - found[0]) < 2**22, found


def test_sampled_tokens_have_the_probability_they_were_drawn_with():
    """The mean of -log p over many samples is the entropy."""
    prompt = text([1, 2, 3])
    out = decode.sample(
        TEXT, PARAMS, prompt, KEY, max_new_tokens=2, stop_id=-1, group=4000, temperature=1.0
    )
    joined = decode.join(prompt, out)
    got = jax.jit(lambda p: decode.scores(TEXT, p, joined))(PARAMS)
    gap = np.asarray(got.logprobs + got.entropy)[:, 3:5]
    assert abs(gap.mean()) < 5 * gap.std() / np.sqrt(gap.size)
