# SPDX-License-Identifier: Apache-2.0
"""TeaCache and TaylorSeer against official numbers, closed forms and rows of other company."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import assert_golden, cases
from tests.models import test_vae
from tests.models.test_dit import CFG, hwc, official
from thinkgen_jax.models.dit import Dit, Joint
from thinkgen_jax.models.packing import pack, pack_ragged, unpack
from thinkgen_jax.models.vae import Vae
from thinkgen_jax.sampling import flow, reuse
from thinkgen_jax.sampling.flow import Guidance
from thinkgen_jax.sampling.reuse import TaylorSeer, TeaCache
from thinkgen_jax.structs import Condition

ARRAYS, META = cases("cache_tiny")
HOW = {"none": None, "teacache": TeaCache(threshold=4.0), "taylorseer": TaylorSeer()}


@pytest.fixture(scope="module")
def params():
    return official()


def condition(case, kind, rows=1):
    states = jnp.asarray(ARRAYS[f"{case}.{kind}_embeds"])
    states = jnp.concatenate([states] * rows)
    return Condition(states, jnp.ones(states.shape[:2], jnp.int32))


def draw(params, case, how, noise=None):
    """The fixture's run, or the same with other noise [B, h, w, c]."""
    about = META["cases"][case]
    noise = jnp.stack([hwc(x) for x in ARRAYS[f"{case}.latents"]]) if noise is None else noise
    rows, h, w, _ = noise.shape
    refs = [hwc(ARRAYS[k]) for k in sorted(ARRAYS) if k.startswith(f"{case}.ref.")]
    return flow.sample(
        Dit(CFG),
        params,
        pack(noise, patch=2),
        condition(case, "prompt", rows),
        condition(case, "negative", rows),
        pack_ragged([refs] * rows, patch=2) if refs else None,
        jnp.asarray(flow.times(about["steps"], latent_pixels=h * w)),
        guidance=Guidance(about["text_guidance_scale"], about["image_guidance_scale"]),
        how=how,
        keep_steps=True,
    )


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("case", ["text", "image"])
def test_runs_equal_official(params, case, how):
    """Latents after every step, the picture, and which calls passed the layers."""
    out = draw(params, case, HOW[how])
    h, w = ARRAYS[f"{case}.latents"].shape[2:]
    latents = [unpack(x, patch=2, h=h, w=w) for x in out.latents]
    got = np.stack([np.moveaxis(np.asarray(x), -1, 1) for x in latents])
    assert_golden("cache_tiny", f"{case}.{how}.latents_steps", got)
    (ran,) = out.ran
    np.testing.assert_array_equal(
        np.asarray(ran).ravel(), ARRAYS[f"{case}.{how}.calls_full"].astype(bool)
    )
    image = Vae(test_vae.CFG).apply({"params": test_vae.official()}, latents[-1], method="decode")
    assert_golden("cache_tiny", f"{case}.{how}.image", np.moveaxis(np.asarray(image), -1, 1))


@pytest.mark.parametrize("how", ["teacache", "taylorseer"])
def test_a_picture_does_not_depend_on_its_neighbours(params, how):
    """Two rows of which one passes the layers more often than the other."""
    noise = jnp.stack([hwc(x) for x in ARRAYS["text.latents"]])
    other = jax.random.normal(jax.random.key(3), noise.shape)
    both = draw(params, "text", HOW[how], jnp.concatenate([noise, other]))
    for row, alone in enumerate((noise, other)):
        single = draw(params, "text", HOW[how], alone)
        np.testing.assert_allclose(both.latents[:, row], single.latents[:, 0], rtol=0, atol=2e-5)
        np.testing.assert_array_equal(both.ran[0][..., row], single.ran[0][..., 0])


def test_threshold_zero_never_skips(params):
    got, want = draw(params, "text", TeaCache(threshold=-1e9)), draw(params, "text", None)
    assert np.asarray(got.ran[0]).all()
    np.testing.assert_allclose(got.latents, want.latents, rtol=0, atol=1e-5)


def test_full_steps_of_taylorseer():
    plan = reuse.turns(TaylorSeer(), 0, 17, 17)
    assert np.flatnonzero(plan.full).tolist() == [0, 1, 2, 3, 4, 7, 10, 13, 16]
    assert plan.known.sum(axis=1)[[3, 4, 7, 10, 13, 16]].tolist() == [1, 2, 3, 4, 5, 5]


def test_taylorseer_follows_a_polynomial():
    """Divided differences of a line are exact: the guess two steps on is the line itself."""
    how = TaylorSeer(first=1, interval=3, order=1)
    plan = reuse.turns(how, 0, 6, 6)
    assert np.flatnonzero(plan.full).tolist() == [0, 3]
    memory = reuse.Memory(jnp.zeros((2, 1, 1, 1)), None, jnp.zeros(1))
    flat = jnp.zeros((1, 1, 1))
    joint = Joint(flat, jnp.ones((1, 1), jnp.int32), jnp.zeros((1, 1, 1, 2)), flat[0])
    for i, turn in enumerate(zip(*plan, strict=True)):
        turn = reuse.Turns(*map(jnp.asarray, turn))
        line = lambda i=i: jnp.full((1, 1, 1), 2.0 + 5.0 * i)  # noqa: E731
        states, memory, _ = reuse._taylor(how, Dit(CFG), {}, memory, turn, joint, line)
        if i >= 3:  # before the second full step there is no slope
            assert float(states[0, 0, 0]) == pytest.approx(2.0 + 5.0 * i)


def test_teacache_runs_at_both_ends():
    plan = reuse.turns(TeaCache(), 0, 5, 5)
    assert plan.full.tolist() == [True, False, False, False, True]
    assert reuse.turns(TeaCache(), 1, 3, 5).full.tolist() == [True, False]
