# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters: nothing at first, then a product of two factors; each has a place."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from configs import common
from tests.steps import small
from thinkgen_jax import parts, sharding
from thinkgen_jax.models import lora, presets
from thinkgen_jax.models.lora import LoraConfig

CFG = LoraConfig(rank=2, alpha=3.0)


@pytest.mark.parametrize("made", [small.mllm, small.dit])
def test_a_fresh_adapter_changes_no_bit(made):
    params = made()[1]
    adapters = lora.init(params, CFG, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params, adapters, CFG), params)
    assert any(np.any(np.asarray(x)) for x in jax.tree.leaves(adapters))


def test_an_adapted_kernel_is_the_sum_by_hand():
    """Two blocks, one with two input axes and one with two output axes; scale 3 / 2."""
    rng = np.random.default_rng(0)
    shapes = {"q_proj": (2, 3, 4, 5), "o_proj": (2, 4, 5, 3)}
    kernels = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    base = {"decoder": {"self_attn": {k: {"kernel": v} for k, v in kernels.items()}}}
    adapters = lora.init(base, CFG, jax.random.key(0))
    adapters = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), adapters)
    got = lora.merge(base, adapters, CFG)["decoder"]["self_attn"]
    a, b = (adapters["decoder"]["self_attn"][k] for k in ("q_proj", "o_proj"))
    want = kernels["q_proj"] + 1.5 * np.einsum("ldr,lrnh->ldnh", a[lora.A], a[lora.B])
    np.testing.assert_allclose(got["q_proj"]["kernel"], want, rtol=1e-5, atol=1e-5)
    want = kernels["o_proj"] + 1.5 * np.einsum("lnhr,lrd->lnhd", b[lora.A], b[lora.B])
    np.testing.assert_allclose(got["o_proj"]["kernel"], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tree", ["mllm", "dit"])
@pytest.mark.parametrize("name", [name for name in common.MESHES if name])
def test_every_adapter_of_the_released_system_is_cut_on_every_mesh(tree, name):
    sizes = common.MESHES[name]
    mesh = AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * 4)
    shapes = parts.shapes(presets.get("thinkgen"), tree)
    cfg = LoraConfig(rank=16, alpha=16.0)
    adapters = jax.eval_shape(lambda: lora.init(shapes, cfg, jax.random.key(0)))
    stacks = {"mllm": 1, "dit": 4}[tree]  # each with seven kernels of attention and feed-forward
    assert len(jax.tree.leaves(adapters)) == 2 * 7 * stacks
    places = sharding.infer(adapters, mesh)
    for path, leaf in jax.tree_util.tree_leaves_with_path(adapters):
        where = places
        for key in path:
            where = where[key.key]
        ways = leaf.size / math.prod(where.shard_shape(leaf.shape))
        cut = [axis for part in where.spec for axis in (part,) if axis is not None]
        assert len(cut) == 1 and ways == mesh.shape[cut[0]], sharding.path_name(path)


def test_targets_choose_and_mistakes_are_refused():
    params = small.mllm()[1]
    some = lora.init(params, LoraConfig(2, 2.0, "(q|v)_proj"), jax.random.key(0))
    assert some["decoder"]["self_attn"].keys() == {"q_proj", "v_proj"}
    assert some["decoder"].keys() == {"self_attn"}
    with pytest.raises(ValueError, match="'head' matches no kernel"):
        lora.init(params, LoraConfig(2, 2.0, "head"), jax.random.key(0))
    with pytest.raises(ValueError, match="rank = 0"):
        LoraConfig(0, 1.0)
    with pytest.raises(ValueError, match="nothing is called 'decoder'"):
        lora.merge({"x": {}}, some, CFG)
    wide = jax.tree.map(lambda x: jnp.concatenate([x, x]), some)
    with pytest.raises(ValueError, match=r"q_proj: no kernel of shape \(4, "):
        lora.merge(params, wide, CFG)
