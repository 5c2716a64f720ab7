# SPDX-License-Identifier: Apache-2.0
"""The DiT against the official network's numbers, and its invariants."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.golden import cases, golden_dir
from tests.hf.reference import to_hf, to_jax
from thinkgen_jax.hf import dit as table
from thinkgen_jax.hf.rules import flatten
from thinkgen_jax.models.dit import Dit, DitConfig, layered
from thinkgen_jax.models.layers import is_apart
from thinkgen_jax.models.packing import pack, pack_ragged, unpack
from thinkgen_jax.structs import Condition

ARRAYS, META = cases("dit_tiny.cases")
CFG = table.config_from_hf(META["config"])


def abstract(cfg):
    """Shapes of the parameters, without allocating them."""
    model = Dit(cfg)
    latents = jnp.zeros((1, 4, 4, cfg.in_channels))
    target = pack(latents, patch=cfg.patch_size)
    condition = Condition(jnp.zeros((1, 3, cfg.condition_dim)), jnp.ones((1, 3), jnp.int32))
    init = lambda key: model.init(key, target, jnp.zeros(1), condition, target)  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))["params"]


def official():
    """The fixture's parameters."""
    tensors = load_file(golden_dir() / "dit_tiny.weights.safetensors")
    tensors.pop("prepad_mask")
    return jax.tree.map(jnp.asarray, to_jax(tensors, table.rules(CFG), abstract(CFG)))


@pytest.fixture(scope="module")
def params():
    return official()


def hwc(x):
    return jnp.asarray(np.moveaxis(x, 0, -1))


def case_inputs(name):
    """Latents and references of a case as lists per sample, NHWC."""
    if f"{name}.latents" in ARRAYS:
        latents = [hwc(x) for x in ARRAYS[f"{name}.latents"]]
    else:
        count = len(META["cases"][name]["latent_sizes"])
        latents = [hwc(ARRAYS[f"{name}.latents.{i}"]) for i in range(count)]
    references = []
    for i in range(len(latents)):
        keys = [k for k in ARRAYS if k.startswith(f"{name}.ref.{i}.")]
        references.append([hwc(ARRAYS[k]) for k in sorted(keys)])
    return latents, references


@pytest.mark.parametrize("name", "abcdef")
def test_velocity_equals_official(params, name):
    latents, references = case_inputs(name)
    target = pack_ragged([[x] for x in latents], patch=2)
    refs = pack_ragged(references, patch=2) if any(references) else None
    condition = Condition(
        jnp.asarray(ARRAYS[f"{name}.text"]), jnp.asarray(ARRAYS[f"{name}.text_mask"], jnp.int32)
    )
    t = jnp.asarray(ARRAYS[f"{name}.timestep"])
    out = jax.jit(Dit(CFG).apply)({"params": params}, target, t, condition, refs)
    for i, x in enumerate(latents):
        key = f"{name}.output" if f"{name}.output" in ARRAYS else f"{name}.output.{i}"
        want = ARRAYS[key][i] if key == f"{name}.output" else ARRAYS[key]
        got = np.moveaxis(
            np.asarray(unpack(out[i : i + 1], patch=2, h=x.shape[0], w=x.shape[1])[0]), -1, 0
        )
        np.testing.assert_allclose(got, want, rtol=0, atol=META["arrays"][key]["suggested_atol"])


def test_round_trip_keeps_every_byte(params):
    tensors = load_file(golden_dir() / "dit_tiny.weights.safetensors")
    back = {**to_hf(params, table.rules(CFG)), **table.buffers(CFG)}
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_config_round_trip():
    assert table.config_from_hf(table.config_to_hf(CFG)) == CFG


def test_released_size():
    cfg = DitConfig()
    leaves = flatten(abstract(cfg))
    assert sum(int(np.prod(x.shape)) for x in leaves.values()) == 3_982_838_840
    names = 0
    for rule in table.rules(cfg):
        names += leaves[rule.ours].shape[0] if "{i}" in rule.theirs else 1
    assert names + len(table.buffers(cfg)) == 584


def test_fresh_model_outputs_zero():
    model = Dit(CFG)
    target = pack(jax.random.normal(jax.random.key(1), (2, 4, 6, 4)), patch=2)
    condition = Condition(jnp.ones((2, 3, CFG.condition_dim)), jnp.ones((2, 3), jnp.int32))
    fresh = jax.jit(model.init)(jax.random.key(0), target, jnp.zeros(2), condition, target)
    out = jax.jit(model.apply)(fresh, target, jnp.array([0.2, 0.9]), condition, target)
    assert np.all(np.asarray(out) == 0)


def test_layers_taken_apart_compute_the_same(params):
    """Loops take layers out of their stacks first; a scan over layers leaves them there."""
    cfg = replace(CFG, scan_unroll=CFG.num_layers)
    apart = layered(cfg, params)
    assert apart["context_refiner"] is params["context_refiner"] and layered(CFG, params) is params
    for name in ("layers", "noise_refiner", "ref_image_refiner"):
        assert is_apart(apart[name]) and not is_apart(params[name])
    target = pack(jax.random.normal(jax.random.key(1), (2, 4, 6, 4)), patch=2)
    condition = Condition(jnp.ones((2, 3, CFG.condition_dim)), jnp.ones((2, 3), jnp.int32))
    inputs = target, jnp.array([0.2, 0.9]), condition, target
    want, got = (Dit(cfg).apply({"params": tree}, *inputs) for tree in (params, apart))
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=0, atol=2e-5)


def test_time_is_rounded_where_the_release_is_followed(params):
    """In bfloat16 0.9387 is 0.9375: 1000 t moves by 1.2, and the velocity with it."""
    target = pack(jax.random.normal(jax.random.key(1), (1, 4, 6, 4)), patch=2)
    text = jax.random.normal(jax.random.key(6), (1, 6, CFG.condition_dim))
    condition = Condition(text, jnp.ones((1, 6), jnp.int32))

    def run(t, **changes):
        cfg = replace(CFG, dtype="bfloat16", **changes)
        return np.asarray(Dit(cfg).apply({"params": params}, target, jnp.array([t]), condition))

    exact, rounded = run(0.9387), run(0.9387, round_time=True)
    np.testing.assert_array_equal(rounded, run(0.9375))
    assert (exact != rounded).any()


def test_reference_order_matters_and_text_padding_does_not(params):
    key = jax.random.key(3)
    a, b = jax.random.normal(key, (4, 4, 4)), jax.random.normal(jax.random.key(4), (4, 6, 4))
    target = pack(jax.random.normal(jax.random.key(5), (1, 4, 4, 4)), patch=2)
    text = jax.random.normal(jax.random.key(6), (1, 6, CFG.condition_dim))
    run = jax.jit(Dit(CFG).apply)

    def apply(s, seg, refs):
        return run({"params": params}, target, jnp.array([0.5]), Condition(s, seg), refs)

    ones = jnp.ones((1, 6), jnp.int32)
    forward = apply(text, ones, pack_ragged([[a, b]], patch=2))
    swapped = apply(text, ones, pack_ragged([[b, a]], patch=2))
    assert np.abs(np.asarray(forward - swapped)).max() > 1e-3
    padded = apply(
        jnp.pad(text, ((0, 0), (0, 5), (0, 0)), constant_values=9.0),
        jnp.pad(ones, ((0, 0), (0, 5))),
        pack_ragged([[a, b]], patch=2, length=40),
    )
    np.testing.assert_allclose(np.asarray(padded), np.asarray(forward), rtol=0, atol=1e-4)
