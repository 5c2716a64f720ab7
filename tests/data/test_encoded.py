# SPDX-License-Identifier: Apache-2.0
"""Encodings on disk: elements and folders; what makes them: test_precompute.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from thinkgen_jax.data import encoded, packed
from thinkgen_jax.data.encoded import Element
from thinkgen_jax.structs import Packed


def element(seed=0, *, references=True):
    rng = np.random.default_rng(seed)

    def group(count):
        places = rng.integers(0, 9, (count, 2), dtype=np.int32)
        ones = np.ones(count, np.int32)
        return Packed(rng.normal(size=(count, 6)).astype(np.float32), places, ones)

    states = rng.normal(size=(3, 8)).astype(np.float32)
    return Element(group(4), group(5) if references else None, states)


@pytest.mark.parametrize("references", [True, False])
def test_elements_come_back(references):
    one = element(references=references)
    other = encoded.unpack(encoded.pack(one, name="a", dtype="float32"))
    assert (other.references is None) != references
    for a, b in zip(one[0::2], other[0::2], strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_bfloat16_is_that_of_jax():
    """Ordinary numbers, halves between two, the smallest and the largest."""
    values = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    halves = (np.arange(256, dtype=np.uint32) << 16 | 0x3F808000).view(np.float32)
    values = np.concatenate([values, halves, np.float32([0, -0.0, 1e-40, 3e38, -3e38])])
    expected = np.asarray(jnp.asarray(values).astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(encoded.from_bfloat16(encoded.to_bfloat16(values)), expected)


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d[:3], lambda d: b"\xff" * 9])
def test_damaged_elements_are_refused(change):
    data = encoded.pack(element(), name="a", dtype="bfloat16")
    with pytest.raises(ValueError, match="packed record"):
        encoded.unpack(change(data))
    with pytest.raises(ValueError, match="lacks a part"):
        encoded.unpack(packed.join({"id": "x"}, [b""]))


def folder(path, elements, groups, **meta):
    encoded.begin(path, {"states": 5, "weights": [0.75, 0.25], "tokens": [4, 8], **meta})
    names = [f"{n:04}" for n in range(len(elements))]
    for name, some in zip(names, elements, strict=True):
        packs = [encoded.pack(e, name="e", dtype="float32") for e in some]
        count = packed.write_shard(path / f"{name}.array_record", packs)
        encoded.write_json(path / f"{name}.json", {"count": count, "skipped": []})
    null = [element(90 + n)._replace(references=None) for n in range(6)]
    packs = [encoded.pack(e, name="null", dtype="float32") for e in null]
    packed.write_shard(path / encoded.NULL, packs)
    assert encoded.finish(path, names, groups) == sum(map(len, elements))
    return encoded.Encodings(str(path)), [e.states for e in null]


def test_batches_of_encodings(tmp_path):
    """Two shards of one group and one of another; words are padded, some of them dropped."""
    some = [element(n) for n in range(4)]
    other = [element(n, references=False) for n in range(10, 12)]
    found, null = folder(tmp_path, [some[:3], some[3:], other], [0, 0, 1])
    assert encoded.mean_tokens(found) == 5.0
    data, weights = encoded.streams(found, size=2, drop=0.0, seed=1)
    assert weights == [0.75, 0.25]
    epoch = [data[0][n] for n in range(2)]
    got = np.concatenate([b.condition.states for b in epoch])
    assert sorted(got[:, :3].sum((1, 2))) == sorted(np.float32(e.states.sum()) for e in some)
    assert got.shape == (4, 5, 8) and not got[:, 3:].any()
    assert epoch[0].condition.segments.tolist() == [[1, 1, 1, 0, 0]] * 2
    assert epoch[0].references.tokens.shape == (2, 5, 6) and data[1][0].references is None
    halves = [encoded.streams(found, size=2, drop=0.0, seed=1, host=(n, 2))[0][0] for n in (0, 1)]
    pair = np.concatenate([half[1].target.tokens for half in halves])
    np.testing.assert_array_equal(epoch[1].target.tokens, pair)
    data, _ = encoded.streams(found, size=2, drop=1.0, seed=1)
    shown = set()
    for batch in (data[0][n] for n in range(20)):
        for states, segments in zip(batch.condition.states, batch.references.segments, strict=True):
            # All references are those of one picture, or none is left.
            np.testing.assert_array_equal(states[:3], null[segments.max()])
            shown.add(int(segments.max()))
    assert shown == {0, 1}


def test_encodings_know_who_made_them(tmp_path):
    made = {"mllm": "a1", "vae": "b2"}
    folder(tmp_path, [[element()]], [0], made=made)
    encoded.check_made(tmp_path, made)
    encoded.check_made(tmp_path, {"vae": "b2"})
    with pytest.raises(ValueError, match=r"another vae \(b2\) than config.start.vae names \(b3\)"):
        encoded.check_made(tmp_path, {**made, "vae": "b3"})
    with pytest.raises(ValueError, match="is no finished folder of encodings"):
        encoded.check_made(tmp_path / "none", made)


def test_folders_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is no finished folder of encodings"):
        encoded.Encodings(str(tmp_path))
    found, _ = folder(tmp_path / "a", [[element()]], [0], seed=1)
    encoded.check(found, width=8, plain=False)
    for width, plain in ((9, False), (8, True)):
        with pytest.raises(ValueError, match="has states of width 8, the DiT reads"):
            encoded.check(found, width=width, plain=plain)
    with pytest.raises(ValueError, match=r"something else:\n  seed: 1 -> 2"):
        meta = {**encoded.read_json(tmp_path / "a" / encoded.META), "seed": 2}
        encoded.begin(tmp_path / "a", meta)
