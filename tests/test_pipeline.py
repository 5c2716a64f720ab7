# SPDX-License-Identifier: Apache-2.0
"""Requests become the official pictures; batches may mix everything; odd input is told."""

import logging
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import assert_golden, cases
from tests.hf import released as released_folder
from tests.toy import SYSTEM, tiny, toy_text
from thinkgen_jax import checkpoint, pipeline
from thinkgen_jax import parts as putting
from thinkgen_jax.data import images
from thinkgen_jax.hf import assets
from thinkgen_jax.models import presets
from thinkgen_jax.models.packing import pack_ragged
from thinkgen_jax.pipeline import ThinkGen, loading, pictures, words
from thinkgen_jax.pipeline.settings import default
from thinkgen_jax.sampling import dpm, flow
from thinkgen_jax.sampling.flow import Guidance
from thinkgen_jax.structs import Decoded, Request, TrainState

ARRAYS, META = cases("pipeline_tiny")
CASES = {n: c for n, c in META["cases"].items() if "." not in n}
CASES = {n: c for n, c in CASES.items() if f"{n}.image" in ARRAYS}
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def released():
    """The tiny networks under the released system prompt, with room for its template."""
    _, params = tiny()
    system = replace(
        SYSTEM,
        system_prompt=presets.RELEASED_SYSTEM,
        max_pixels=1024**2,
        vision_pixels=(1024, 262_144),
        prompt_tokens=128,
    )
    return putting.build(system, toy_text(system)), params


def nhwc(x):
    return np.moveaxis(x, -3, -1)


def scales(case):
    low, high = case.get("cfg_range", (0.0, 1.0))
    image = case.get("image_guidance_scale", 1.0)
    return dict(text=case["text_guidance_scale"], image=image, start=low, end=high)


# --- official numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_pictures_equal_official(name):
    """Noise and embeddings to pixels: sampler, decoder, resizing and clamping."""
    parts, params = tiny()
    noise = nhwc(ARRAYS[f"{name}.latents"])
    rows, h, w, _ = noise.shape
    condition, away = (given(name, kind) for kind in ("prompt", "negative"))
    refs = [nhwc(ARRAYS[k][0]) for k in sorted(ARRAYS) if k.startswith(f"{name}.ref_latents.")]
    grid = flow.times(len(ARRAYS[f"{name}.latents_steps"]), latent_pixels=h * w)
    pixels = pictures.draw(
        parts.dit,
        parts.vae,
        params.dit,
        params.vae,
        noise,
        condition,
        away,
        pack_ragged([[jnp.asarray(x) for x in refs]] * rows, patch=2, length=128) if refs else None,
        grid,
        dpm.weights(grid) if "dpm" in name else None,
        guidance=Guidance(**scales(CASES[name])),
        how=None,
    )
    size = ARRAYS[f"{name}.image"].shape[-2:]
    resized = np.stack([images.resize_output(picture, size) for picture in np.asarray(pixels)])
    got = np.clip(resized / 2 + 0.5, 0, 1)
    assert_golden("pipeline_tiny", f"{name}.image", np.moveaxis(got, -1, 1))


def given(name, kind):
    """The fixture's embeddings of one kind, padded as ours are."""
    states, mask = ARRAYS[f"{name}.{kind}_embeds"], ARRAYS[f"{name}.{kind}_mask"]
    rows = [x[:n] for x, n in zip(states, mask.sum(1), strict=True)]
    return pictures.stack_states(rows, most=256)


def forced(name):
    """A sampler that writes the fixture's continuation, whatever the MLLM would."""
    prompt_ids, sequence = ARRAYS[f"{name}.prompt_ids"][0], ARRAYS[f"{name}.sequences"][0]

    def sample(mllm, params, prompt, key, *, max_new_tokens, **_):
        given = np.asarray(prompt.ids)[0][np.asarray(prompt.segments)[0] > 0]
        np.testing.assert_array_equal(given, prompt_ids)
        rest = sequence[len(prompt_ids) :]
        ids = np.zeros((1, max_new_tokens), np.int32)
        ids[0, : len(rest)] = rest
        segments = (np.arange(max_new_tokens) < len(rest))[None].astype(np.int32)
        return Decoded(jnp.asarray(ids), jnp.asarray(segments), jnp.ones(1, bool))

    return sample


def official_request(name):
    case = CASES[name]
    refs = tuple(ARRAYS[k] for k in sorted(ARRAYS) if k.startswith(f"{name}.ref_image."))
    size = None if refs else (case["height"], case["width"])
    return Request(case["prompt"], refs, think=bool(case.get("think")), size=size)


@pytest.mark.parametrize("name", CASES)
def test_conditions_equal_official(released, monkeypatch, name):
    """Prompt to embeddings: templates, pixels, forced thought, marker rule, dropped last token."""
    parts, params = released
    if CASES[name].get("think"):
        monkeypatch.setattr(words.decode, "sample", forced(name))
    request = official_request(name)
    (reading,) = words.read(parts, params.mllm, [request], default(parts.system))
    assert_golden("pipeline_tiny", f"{name}.prompt_embeds", _rows(name, "prompt", reading.states))
    away = words.negative(parts, params.mllm, CASES[name].get("negative_prompt") or "")
    assert_golden("pipeline_tiny", f"{name}.negative_embeds", _rows(name, "negative", away))


def _rows(name, kind, states):
    return np.stack([states] * len(ARRAYS[f"{name}.{kind}_embeds"]))


@pytest.mark.parametrize("name", ["edit1", "think_edit"])
def test_whole_requests_equal_official(released, monkeypatch, name):
    """Request to uint8, with the fixture's noise, posterior samples and continuation."""
    parts, params = released
    case, noise = CASES[name], nhwc(ARRAYS[f"{name}.latents"][0])
    monkeypatch.setattr(pictures, "initial_noise", lambda seed, shape: noise.reshape(shape))
    refs = [nhwc(ARRAYS[k][0]) for k in sorted(ARRAYS) if k.startswith(f"{name}.ref_latents.")]
    monkeypatch.setattr(pictures, "encode", lambda *_: refs)
    if case.get("think"):
        monkeypatch.setattr(words.decode, "sample", forced(name))
    how = scales(case)
    settings = default(
        parts.system,
        steps=case["num_inference_steps"],
        text_guidance=how["text"],
        image_guidance=how["image"],
        start=how["start"],
        end=how["end"],
        negative=case.get("negative_prompt") or "",
    )
    (result,) = pipeline.generate(parts, params, [official_request(name)], settings)
    want = np.round(ARRAYS[f"{name}.image"][0].transpose(1, 2, 0) * 255)
    assert np.abs(result.image.astype(int) - want).max() <= 1
    assert result.warning.startswith("picture 1 resized from")
    if case.get("think"):
        assert result.text == case["decoded_output"][0]
        assert result.thought == "replace the dog"
        assert result.instruction == "replace the dog with a bird"


# --- batches --------------------------------------------------------------------------------------


def picture(height, width):
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def quick():
    """The tiny system with two steps and short thoughts."""
    parts, params = tiny()
    system = replace(parts.system, steps=2, thought_tokens=6)
    return putting.build(system, parts.text), params


def writes(parts, *responses):
    """A sampler that writes the given texts, in turn for each call."""
    queue = list(responses)

    def sample(mllm, params, prompt, key, *, max_new_tokens, **_):
        ids = parts.text.encode(queue.pop(0))[:max_new_tokens]
        rows = prompt.ids.shape[0]
        out = np.zeros((rows, max_new_tokens), np.int32)
        out[:, : len(ids)] = ids
        segments = np.broadcast_to(np.arange(max_new_tokens) < len(ids), out.shape)
        stopped = jnp.full(rows, ids[-1] == parts.text.stop_id)
        return Decoded(jnp.asarray(out), jnp.asarray(segments.astype(np.int32)), stopped)

    return sample


@pytest.fixture
def wordy(quick, monkeypatch):
    """`quick` with room to write, and a hand on what is written."""
    parts, params = quick
    parts = putting.build(replace(parts.system, thought_tokens=40), parts.text)

    def script(*responses):
        monkeypatch.setattr(words.decode, "sample", writes(parts, *responses))
        return parts, params

    return script


def test_a_mixed_batch_equals_single_requests(wordy):
    """Lengths, numbers and sizes of references and tasks mixed; order kept, rows independent."""
    parts, params = wordy("hm</think>remove the dog<|im_end|>", "a dog<|im_end|>")
    seen = picture(16, 24)
    requests = [
        Request("a red cat", size=(24, 32), seed=1),
        Request("merge both", (seen, picture(20, 12)), size=(24, 32), seed=3),
        Request("what is this", (seen,), task="understand"),
        Request("a longer prompt about a red cat in the grass", (seen,), size=(24, 32), seed=4),
        Request("remove it", (seen,), think=True, size=(24, 32), seed=6),
    ]
    settings = default(parts.system, text_guidance=1.0)
    batch = pipeline.generate(parts, params, requests, settings)
    sizes = [None if r.image is None else r.image.shape[:2] for r in batch]
    assert sizes == [(24, 32), (24, 32), None, (24, 32), (24, 32)]
    assert [bool(r.text) for r in batch] == [False, False, True, False, True]
    assert (batch[2].instruction, batch[4].instruction) == ("a dog", "remove the dog")
    for n in (0, 1):
        (alone,) = pipeline.generate(parts, params, [requests[n]], settings)
        difference = np.abs(alone.image.astype(int) - batch[n].image.astype(int))
        assert difference.max() <= 1, requests[n]


def test_references_matter_and_seeds_repeat(quick):
    first = Request("make it blue", (picture(16, 16),), seed=1)
    asked = (first, replace(first, images=(picture(16, 16),)), first, replace(first, seed=2))
    a, b, c, d = (pipeline.generate(*quick, [request])[0].image for request in asked)
    assert (a == c).all() and (a != b).any() and (a != d).any()


def test_pictures_of_one_prompt_share_a_greedy_thought(wordy):
    """The script holds one response: with one row a batch, a second reading would find it empty."""
    parts, params = wordy("hm</think>a red cat<|im_end|>")
    model = ThinkGen(parts, params)
    how = dict(size=(16, 16), text_guidance=1.0, batch=1)
    several = model.generate_images("cat", count=3, seed=4, **how)
    assert [r.instruction for r in several] == ["a red cat"] * 3
    assert len({r.image.tobytes() for r in several}) == 3
    with pytest.raises(ValueError, match="count = 0"):
        model.generate_images("cat", count=0)


def test_sampled_thoughts_are_each_their_own(wordy):
    """Equal requests are read one by one above temperature 0, in their order."""
    parts, params = wordy("a</think>one<|im_end|>", "b</think>two<|im_end|>")
    asked = [Request("cat", think=True, size=(16, 16), seed=s) for s in (0, 1)]
    settings = default(parts.system, temperature=1.0, text_guidance=1.0, batch=1)
    results = pipeline.generate(parts, params, asked, settings)
    assert [r.instruction for r in results] == ["one", "two"]


# --- as the release does it ---------------------------------------------------------------------


def test_references_may_be_drawn_from_the_posterior(quick):
    """Each picture by its own seed: neighbours do not matter, and the mode is something else."""
    parts, params = quick
    shown, settings = [picture(16, 16), picture(16, 16)], default(parts.system)
    mode = pictures.encode(parts, params.vae, shown, settings)
    drawn = pictures.encode(parts, params.vae, shown, settings, [(3, 0), (3, 1)])
    (alone,) = pictures.encode(parts, params.vae, shown[1:], settings, [(3, 1)])
    np.testing.assert_allclose(alone, drawn[1], atol=1e-5)
    assert np.abs(drawn[0] - mode[0]).max() > 1e-3

    request = Request("make it blue", (shown[0],), seed=3)
    sampled = putting.build(replace(parts.system, sample_references=True), parts.text)
    one, other = (pipeline.generate(p, params, [request])[0].image for p in (parts, sampled))
    assert (one != other).any()


def test_parity_is_every_detail_and_nothing_else(tmp_path, quick):
    parts, params = quick
    assets.save(tmp_path, parts.system, params._asdict(), parts.text)
    plain = ThinkGen.from_pretrained(tmp_path).parts.system
    system = ThinkGen.from_pretrained(tmp_path, parity=True).parts.system
    assert system.dit == replace(plain.dit, round_time=True, round_latents=True)
    assert system.vision_pixels == (plain.vision_pixels[0], 16_777_216)
    assert replace(system, dit=plain.dit, vision_pixels=plain.vision_pixels) == replace(
        plain, sample_references=True
    )


def test_half_precision_draws_nearly_the_same(tmp_path, quick):
    parts, params = quick
    assets.save(tmp_path, parts.system, params._asdict(), parts.text, dtype="float32")
    exact = ThinkGen.from_pretrained(tmp_path)
    half = ThinkGen.from_pretrained(tmp_path, dtype="bfloat16", parity=True)
    assert {x.dtype for x in jax.tree.leaves(half.params.dit)} == {jnp.dtype("bfloat16")}
    one, other = (
        m.generate_image("a red cat", think=False, size=(16, 16)).image.astype(float)
        for m in (exact, half)
    )
    assert 0 < np.abs(one - other).mean() < 12
    with pytest.raises(ValueError, match="--dtype=float16"):
        ThinkGen.from_pretrained(tmp_path, dtype="float16")


# --- what the MLLM writes -------------------------------------------------------------------------


def test_a_missing_marker_is_told(wordy):
    """Prompt and thought without the last token condition the picture, as in the release."""
    parts, params = wordy("it never ends")
    request = Request("a red cat", think=True, size=(16, 16))
    (reading,) = words.read(parts, params.mllm, [request], default(parts.system))
    total = len(parts.text.think("a red cat")) + len(parts.text.encode("it never ends"))
    assert len(reading.states) == total - 1
    parts, params = wordy("it never ends")
    (result,) = pipeline.generate(parts, params, [request])
    assert "no words behind </think>" in result.warning
    assert (result.thought, result.instruction) == ("it never ends", "")


def test_a_whole_text_leaves_room_for_positions(wordy):
    """Rotary tables of 60 places, 5 prepadding states and 5 x 3 for references leave 39."""
    parts, params = wordy("it never ends")
    system = replace(
        parts.system,
        image_size=(12, 12),
        instruction_tokens=8,
        dit=replace(parts.system.dit, axes_lens=(60, 60, 60)),
    )
    parts = putting.build(system, parts.text)
    request = Request("a red cat", (picture(12, 12),), think=True)
    (reading,) = words.read(parts, params.mllm, [request], default(system))
    assert len(reading.states) == 39
    stacked = pictures.stack_states([reading.states], most=39)
    assert stacked.states.shape == (1, 39, 128)


def test_an_empty_instruction_is_told(wordy):
    parts, params = wordy("a thought</think><|im_end|>")
    (result,) = pipeline.generate(parts, params, [Request("a cat", think=True, size=(16, 16))])
    assert "nothing stands behind" in result.warning and result.instruction == ""
    assert result.image.shape == (16, 16, 3)


def test_a_long_instruction_is_cut_and_told(wordy):
    parts, params = wordy("a</think> a red cat on the green grass and a bird<|im_end|>")
    parts = putting.build(replace(parts.system, instruction_tokens=4), parts.text)
    request = Request("a cat", think=True)
    (reading,) = words.read(parts, params.mllm, [request], default(parts.system))
    assert reading.states.shape == (4, 128)
    assert "cut" in reading.warnings[0] and "4 fit" in reading.warnings[0]


def test_a_long_prompt_is_cut_and_told(wordy):
    parts, params = wordy("a</think>b<|im_end|>")
    long = "a red cat and " * 200
    for think in (False, True):
        (result,) = pipeline.generate(parts, params, [Request(long, think=think, size=(16, 16))])
        assert "the prompt was cut" in result.warning


def test_reflection_stops_when_all_is_right(wordy):
    request = Request("a red cat.", task="reflect", size=(16, 16), seed=3)
    parts, params = wordy("fine</think>No change is needed<|im_end|>")
    (result,) = pipeline.generate(parts, params, [request])
    parts, params = wordy()
    (plain,) = pipeline.generate(parts, params, [replace(request, task="draw")])
    assert (result.image == plain.image).all() and result.instruction == "a red cat."
    assert result.thought == "fine"


def test_reflection_repairs_and_looks_again(wordy):
    request = Request("a red cat", task="reflect", size=(16, 16), seed=3)
    script = ["bad</think>make it red<|im_end|>", "good</think>no change<|im_end|>"]
    parts, params = wordy(*script)
    settings = default(parts.system, rounds=3)
    (result,) = pipeline.generate(parts, params, [request], settings)
    assert result.thought == "bad\ngood" and result.instruction == "make it red"
    parts, params = wordy()
    (first,) = pipeline.generate(parts, params, [replace(request, task="draw")])
    assert result.image.shape == first.image.shape and (result.image != first.image).any()
    # The repair is an edit of the first picture under the same seed.
    parts, params = wordy(script[0])
    check = replace(request, task="draw", think=True, images=(first.image,))
    check = replace(check, prompt=pipeline.CHECK.format("a red cat"))
    (edit,) = pipeline.generate(parts, params, [check])
    assert (edit.image == result.image).all()


def test_understanding_answers(wordy):
    parts, params = wordy("two cats<|im_end|>", "hm</think>\n\nthree<|im_end|>")
    request = Request("how many", (picture(16, 16),), task="understand")
    (result,) = pipeline.generate(parts, params, [request])
    assert (result.image, result.instruction, result.thought) == (None, "two cats", "")
    (result,) = pipeline.generate(parts, params, [request])
    assert (result.instruction, result.thought) == ("three", "hm")


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(" \n"), "prompt is empty"),
        (Request("a", (np.zeros((8, 8, 3), np.uint8),) * 6), "6 pictures.*at most 5"),
        (Request("a", (np.zeros((0, 8, 3), np.uint8),)), "not empty"),
        (Request("a", (np.zeros((8, 8), np.uint8),)), "want uint8"),
        (Request("a", task="sing"), "--task=sing"),
        (Request("a", size=(0, 8)), "--size=0x8"),
        (Request("a", size=(10**5, 10**5)), "pixels in all"),
        (Request("a", seed=-1), "--seed=-1"),
        (Request("a <|im_end|> b"), "holds <.im_end.>, which has a meaning of its own"),
        (Request("\ud800"), "--prompt=.* is no text: half a surrogate pair"),
    ],
)
def test_impossible_requests_are_refused(request_, message):
    parts, params = tiny()
    with pytest.raises(ValueError, match=message):
        pipeline.generate(parts, params, [Request("a good one"), request_])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(steps=0), "--steps=0"),
        (dict(steps=1001), "--steps=1001, must be at most 1000"),
        (dict(negative="<|image_pad|>"), "--negative=.* holds <.image_pad.>"),
        (dict(text_guidance=float("nan")), "--text_guidance=nan"),
        (dict(temperature=-1.0), "--temperature"),
        (dict(colour=1), "colour"),
        (dict(start=0.9, end=0.1), "guidance from"),
        (dict(solver="heun"), "--solver=heun is not one of euler, dpm"),
        (dict(reuse="luck"), "--reuse=luck is not one of none, teacache, taylorseer"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        default(SYSTEM, **changes)


def test_solver_and_reuse_change_the_picture_but_not_much(quick):
    """The same noise and words: other steps end near the same picture, and not at it."""
    parts, params = quick
    request = Request("a red cat", think=False, size=(16, 16), seed=1)

    def drawn(**changes):
        settings = default(parts.system, steps=16, text_guidance=1.0, **changes)
        (result,) = pipeline.generate(parts, params, [request], settings)
        return result.image.astype(int)

    plain = drawn()
    for changes in (
        dict(solver="dpm"),
        dict(reuse="teacache", threshold=4.0),
        dict(reuse="taylorseer"),
    ):
        far = np.abs(drawn(**changes) - plain)
        assert 0 < far.max() and far.mean() < 12, changes


def test_blind_models_refuse_to_look():
    parts, params = tiny()
    system = replace(parts.system, mllm=replace(parts.system.mllm, vision=None))
    blind = putting.build(system, parts.text)
    with pytest.raises(ValueError, match="no eyes"):
        pipeline.generate(blind, params, [Request("a", task="understand")])


# --- the object -----------------------------------------------------------------------------------


def test_the_object_takes_messages_and_odd_pictures(quick):
    model = ThinkGen(*quick)
    gray = np.full((16, 16), 7, np.uint8)
    messages = [
        {"type": "image", "value": gray},
        {"type": "text", "value": "make it"},
        {"type": "text", "value": "blue"},
    ]
    result = model.generate_image(messages, think=False, seed=5, negative="cat")
    request = Request("make it blue", (np.repeat(gray[..., None], 3, -1),), seed=5)
    (want,), (other,) = model.generate([request], negative="cat"), model.generate([request])
    assert (result.image == want.image).all() and (result.image != other.image).any()
    assert "picture 1: converted from mode L" in result.warning
    assert isinstance(model.generate_text("what is it", [gray]), str)
    with pytest.raises(ValueError, match="'text' or 'image'"):
        model.generate_image([{"type": "video", "value": 1}])


def test_a_saved_system_draws_the_same(quick, tmp_path):
    parts, params = quick
    assets.save(tmp_path, parts.system, params._asdict(), parts.text, dtype="float32")
    model = ThinkGen.from_pretrained(tmp_path)
    assert model.parts.system == parts.system
    request = Request("a red cat", size=(16, 16), seed=1)
    (a,), (b,) = model.generate([request]), pipeline.generate(parts, params, [request])
    assert (a.image == b.image).all()


def test_a_run_is_read_with_what_it_lacks_from_the_assets(monkeypatch, tmp_path, caplog):
    """Running averages win over parameters; trees that the run does not hold are shipped ones."""
    parts, params = tiny()
    assets.save(tmp_path, parts.system, params._asdict(), parts.text, dtype="float32")
    monkeypatch.setattr(putting, "ASSETS", tmp_path)
    monkeypatch.setattr(logging.getLogger("thinkgen_jax"), "propagate", True)
    double = jax.tree.map(lambda x: 2 * x, params.dit)
    state = {"dit": TrainState(jnp.zeros((), jnp.int32), params.dit, {}, double)}
    meta = {"system": asdict(parts.system), "start": {"dit": "assets"}}
    with checkpoint.Checkpoints(tmp_path / "run") as saves:
        saves.save(1, state, data={}, meta=meta)
    model = ThinkGen.from_pretrained(tmp_path / "run")
    assert model.parts.system == parts.system
    jax.tree.map(np.testing.assert_array_equal, model.params, params._replace(dit=double))
    begun = ThinkGen.from_pretrained(tmp_path / "run", start=["dit"])
    jax.tree.map(np.testing.assert_array_equal, begun.params, params)
    assert not [r for r in caplog.records if r.name == loading.__name__]
    with checkpoint.Checkpoints(tmp_path / "random") as saves:
        saves.save(1, state, data={}, meta={**meta, "start": {"dit": "random", "mllm": "random"}})
    loading.load(tmp_path / "random")
    (told,) = {r.getMessage() for r in caplog.records if r.name == loading.__name__}
    assert "random: its mllm began random; the shipped one is taken" in told
    with checkpoint.Checkpoints(tmp_path / "other") as saves:
        other = {**asdict(parts.system), "name": "nano"}
        saves.save(1, state, data={}, meta={"system": other, "start": {"mllm": "random"}})
    with pytest.raises(ValueError, match="other: its mllm was random and is not in it"):
        loading.load(tmp_path / "other")
    with checkpoint.Checkpoints(tmp_path / "less") as saves:
        less = replace(parts.system, dit=replace(parts.system.dit, num_prepad=2))
        saves.save(1, state, data={}, meta={**meta, "system": asdict(less)})
    with pytest.raises(ValueError, match="prepad_embed"):
        ThinkGen.from_pretrained(tmp_path / "less")


def test_missing_assets_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(putting, "ASSETS", tmp_path)
    with pytest.raises(ValueError, match="no shipped weights"):
        ThinkGen.from_pretrained()


def test_a_released_folder_draws_as_its_parts_do(tmp_path):
    model = ThinkGen.from_pretrained(released_folder.thinkgen(tmp_path, shards=3))
    assert model.parts.system.system_prompt == presets.RELEASED_SYSTEM
    _, params = tiny()
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    settings = default(model.parts.system, steps=1, text_guidance=1.0)
    request = Request("a red cat", think=False, size=(16, 16), seed=1)
    parts = putting.build(model.parts.system, toy_text(model.parts.system))
    (a,), (b,) = (pipeline.generate(p, params, [request], settings) for p in (model.parts, parts))
    assert (a.image == b.image).all()


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no commit"):
        ThinkGen.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a qwen3vl folder has not all that draws"):
        ThinkGen.from_pretrained(released_folder.qwen(tmp_path / "qwen"))
    with pytest.raises(ValueError, match="no such directory"):
        ThinkGen.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="--start=dit needs the --checkpoint of a run"):
        ThinkGen.from_pretrained(start=["dit"])
    with pytest.raises(ValueError, match="'brain'"):
        ThinkGen.from_pretrained(start=["brain"])
