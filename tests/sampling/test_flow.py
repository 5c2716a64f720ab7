# SPDX-License-Identifier: Apache-2.0
"""Time grid, Euler and guidance against official numbers and closed forms."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import assert_golden, cases
from tests.models.test_dit import CFG, hwc, official
from thinkgen_jax.models.dit import Dit
from thinkgen_jax.models.packing import pack, pack_ragged, unpack
from thinkgen_jax.sampling import dpm, flow
from thinkgen_jax.sampling.flow import Guidance
from thinkgen_jax.structs import Condition, Packed

SCHEDULE, _ = cases("scheduler")
PIPELINE, PIPELINE_META = cases("pipeline_tiny")


@pytest.mark.parametrize("key", [k for k in SCHEDULE if k.startswith("timesteps.")])
def test_times_equal_official(key):
    _, steps, tokens = key.split(".")
    got = flow.times(int(steps), latent_pixels=None if tokens == "None" else int(tokens))
    assert_golden("scheduler", key, got)


def test_times_without_shift():
    np.testing.assert_allclose(flow.times(7), SCHEDULE["timesteps_noshift.7"], rtol=0, atol=2e-6)


class Field(Dit):
    """Stands for the DiT: the fixture's velocity field, whose constants are its parameters."""

    def apply(self, tree, *inputs, method):
        if method is Dit.context:
            return inputs[0]
        (target, t, _, _), (a, b) = inputs, tree["params"]
        x, t = target.tokens, t[:, None, None]
        return a - (0.5 + 0.3 * jnp.cos(2 * jnp.pi * t)) * x + 0.25 * jnp.sin(b * x + 3 * t)


@pytest.mark.parametrize(
    "key", [k for k in SCHEDULE if k.startswith("traj.") and k.count(".") == 3]
)
def test_solvers_equal_official(key):
    """The fixture's field goes through the sampler itself."""
    _, solver, steps, tokens = key.split(".")
    grid = flow.times(int(steps), latent_pixels=int(tokens))
    a, b, x = (SCHEDULE[f"traj.{n}"].reshape(1, 1, -1) for n in ("A", "B", "x0"))
    ones = jnp.ones((1, 1), jnp.int32)
    out = flow.sample(
        Field(replace(CFG, scan_unroll=1)),
        (a, b),
        Packed(jnp.asarray(x), jnp.zeros((1, 1, 3), jnp.int32), ones),
        Condition(jnp.zeros((1, 1, 1)), ones),
        None,
        None,
        jnp.asarray(grid),
        jnp.asarray(dpm.weights(grid)) if solver == "dpm" else None,
        keep_steps=True,
    )
    assert_golden("scheduler", key, np.asarray(out.latents).reshape(SCHEDULE[key].shape))


def test_training_times_follow_the_shifted_logistic_normal():
    """The median of sigmoid(z) is 1/2, which the shift m moves to 1 / (m + 1)."""
    key = jax.random.key(0)
    for tokens, m in ((256, np.exp(0.5)), (4096, np.exp(1.15))):
        t = flow.training_times(key, 20001, tokens=tokens, shift=None)
        assert abs(float(jnp.median(t)) - 1 / (m + 1)) < 0.01
    t = flow.training_times(key, 20001, tokens=64, shift=3.0)
    assert abs(float(jnp.median(t)) - 0.25) < 0.01


@pytest.fixture(scope="module")
def params():
    return official()


RUNS = [n for n in PIPELINE_META["cases"] if f"{n}.latents_steps" in PIPELINE]


@pytest.mark.parametrize("name", RUNS)
def test_guided_runs_equal_official(params, name):
    """Latents after every step, from the fixture's own embeddings, by the solver it names."""
    a, case = PIPELINE, PIPELINE_META["cases"][name]
    noise = jnp.stack([hwc(x) for x in a[f"{name}.latents"]])
    rows, h, w, _ = noise.shape

    def condition(kind):
        states, mask = a[f"{name}.{kind}_embeds"], a[f"{name}.{kind}_mask"]
        return Condition(jnp.asarray(states), jnp.asarray(mask, jnp.int32))

    refs = [hwc(a[k][0]) for k in sorted(a) if k.startswith(f"{name}.ref_latents.")]
    references = pack_ragged([refs] * rows, patch=2) if refs else None
    guidance = Guidance(**_scales(case))
    grid = flow.times(len(a[f"{name}.latents_steps"]), latent_pixels=h * w)
    out = flow.sample(
        Dit(CFG),
        params,
        pack(noise, patch=2),
        condition("prompt"),
        condition("negative"),
        references,
        jnp.asarray(grid),
        jnp.asarray(dpm.weights(grid)) if "dpm" in name else None,
        guidance=guidance,
        keep_steps=True,
    )
    got = np.stack(
        [np.moveaxis(np.asarray(unpack(x, patch=2, h=h, w=w)), -1, 1) for x in out.latents]
    )
    assert_golden("pipeline_tiny", f"{name}.latents_steps", got)


def _scales(case):
    low, high = case.get("cfg_range", (0.0, 1.0))
    image = case.get("image_guidance_scale", 1.0)
    return dict(text=case["text_guidance_scale"], image=image, start=low, end=high)


def test_latents_are_rounded_where_the_release_is_followed(params):
    """Every state of a run is a bfloat16 number, or none is."""
    target = pack(jax.random.normal(jax.random.key(1), (1, 4, 6, 4)), patch=2)
    text = jax.random.normal(jax.random.key(6), (1, 6, CFG.condition_dim))
    condition = Condition(text, jnp.ones((1, 6), jnp.int32))
    for told in (True, False):
        dit = Dit(replace(CFG, dtype="bfloat16", round_latents=told))
        grid = jnp.asarray(flow.times(3))
        path = flow.sample(dit, params, target, condition, None, None, grid, keep_steps=True)
        same = path.latents == path.latents.astype(jnp.bfloat16).astype(jnp.float32)
        assert bool(same.all()) == told


def test_combine_is_linear_in_its_parts():
    c, r, u = (jnp.full((1, 1, 1), x) for x in (5.0, 3.0, 2.0))
    assert float(flow.combine([c], Guidance(text=4.0))[0, 0, 0]) == 5
    assert float(flow.combine([c, u], Guidance(text=4.0))[0, 0, 0]) == 2 + 4 * 3
    assert (
        float(flow.combine([c, r, u], Guidance(text=4.0, image=2.0))[0, 0, 0]) == 2 + 2 * 1 + 4 * 2
    )


def test_guidance_range_is_inclusive():
    runs = flow.phases_of(Guidance(text=4.0, image=2.0, start=0.25, end=0.5), 4, references=True)
    assert runs == [(0, 1, 1), (1, 3, 3), (3, 4, 1)]


def test_refuses_zero_steps():
    with pytest.raises(ValueError, match="steps = 0"):
        flow.times(0)
