# SPDX-License-Identifier: Apache-2.0
"""The table of places: total for every preset and tree, and strict about what does not fit."""

import importlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from configs import common
from thinkgen_jax import parts, sharding
from thinkgen_jax.models import presets
from thinkgen_jax.optim import OptimConfig
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps.state import Learner


def abstract(**sizes):
    sizes = dict.fromkeys(sharding.AXES, 1) | sizes
    axes = (AxisType.Auto,) * len(sharding.AXES)
    return AbstractMesh(tuple(sizes.values()), sharding.AXES, axis_types=axes)


@pytest.mark.parametrize("tree", parts.TREES)
@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_every_leaf_of_a_learning_tree_has_a_place(preset, tree, method):
    learner = Learner(OptimConfig(method=method, ema_decay=0.9))
    shapes = parts.shapes(presets.get(preset), tree)
    state = jax.eval_shape(lambda params: learning.create(params, learner), shapes)
    placed = sharding.infer(state, abstract(fsdp=4, tensor=2))
    assert jax.tree.structure(placed) == jax.tree.structure(state)


@pytest.mark.parametrize("name", [name for name in common.MESHES if name])
@pytest.mark.parametrize("tree", ["mllm", "dit"])
def test_released_trees_are_cut_on_every_mesh(tree, name):
    """What stays whole is a percent of a device's share at one device; the rest is divided."""
    mesh = abstract(**dict(zip(sharding.AXES, common.MESHES[name], strict=True)))
    shapes = parts.shapes(presets.get("thinkgen"), tree)
    places = jax.tree.leaves(sharding.infer(shapes, mesh))
    leaves = jax.tree.leaves(shapes)
    held = sum(math.prod(p.shard_shape(x.shape)) for x, p in zip(leaves, places, strict=True))
    total = sum(x.size for x in leaves)
    ways = mesh.shape["fsdp"] * mesh.shape["tensor"]
    assert total / ways <= held < total / ways + 0.002 * total


def test_a_leaf_without_a_rule_is_refused():
    with pytest.raises(ValueError, match=r"no sharding rule for attic/kernel of shape \(4, 4\)"):
        sharding.infer({"attic": {"kernel": jnp.zeros((4, 4))}}, abstract())


def test_a_size_that_does_not_divide_is_refused():
    """The width 2520 of the DiT is 8 x 315."""
    path, shape = "layers/attn/to_q/kernel", (32, 2520, 21, 120)
    spec = sharding.spec_of(path, shape, abstract(fsdp=8, tensor=8))
    assert spec == P(None, "fsdp", None, "tensor")
    with pytest.raises(ValueError, match="2520.*not divisible.*'fsdp': 16"):
        sharding.spec_of(path, shape, abstract(fsdp=16))


def test_what_no_loop_gathers_beside_products_is_gathered_ahead():
    """Half as wide on the way, where the step multiplies in bfloat16; the rest stays as it is."""
    tree = {
        "layers": {"attn": {"to_q": {"kernel": jnp.ones((2, 8, 3, 4))}}},
        "decoder": {"self_attn": {"k_proj": {"kernel": jnp.ones((2, 8, 2, 4))}}},
        "embed_tokens": {"embedding": jnp.ones((8, 8))},
    }
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    placed = jax.device_put(tree, sharding.infer(tree, mesh))
    with jax.set_mesh(mesh):
        got = jax.jit(lambda t: sharding.ahead(sharding.ahead(t, "bfloat16"), "bfloat16"))(placed)
    q, k = got["layers"]["attn"]["to_q"]["kernel"], got["decoder"]["self_attn"]["k_proj"]["kernel"]
    assert q.sharding.is_fully_replicated and q.dtype == k.dtype == jnp.bfloat16
    assert k.sharding.shard_shape(k.shape) == (2, 8, 1, 4)
    words = got["embed_tokens"]["embedding"]
    assert words.sharding.shard_shape(words.shape) == (4, 2) and words.dtype == jnp.float32
    assert sharding.ahead(tree, "bfloat16") is tree  # without a mesh


@pytest.mark.parametrize("tree", ["mllm", "dit"])
def test_every_kernel_gathered_ahead_is_there(tree):
    shapes = parts.shapes(presets.get("thinkgen"), tree)
    paths = [sharding.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    ahead = [pattern for pattern, _ in sharding.AHEAD]
    found = [p for p in ahead if any(re.search(p, path) for path in paths)]
    assert found == (ahead[:3] if tree == "dit" else ahead[3:])


def test_what_is_laid_in_order_lies_where_its_names_say():
    x = jnp.arange(2.0 * 8 * 4 * 3).reshape(2, 8, 4, 3)
    names = (None, "batch", "heads", None)
    np.testing.assert_array_equal(jax.jit(lambda x: sharding.laid(x, *names))(x), x)
    with jax.set_mesh(sharding.make_mesh(fsdp=4, tensor=2)):
        got = jax.jit(lambda x: sharding.laid(x, *names))(x)
    np.testing.assert_array_equal(got, x)
    assert got.sharding.shard_shape(got.shape) == (2, 2, 2, 3)


def test_activations_are_cut_as_far_as_they_divide():
    with jax.set_mesh(sharding.make_mesh(data=2, fsdp=2, tensor=2)):
        assert sharding.spec(("rows", "seq"), (8, 3)) == P(("data", "fsdp", "tensor"), "context")
        assert sharding.spec(("rows",), (4,)) == P(("data", "fsdp"))
        assert sharding.spec(("rows", "heads"), (2, 6)) == P("data", "tensor")
        assert sharding.spec(("rows", "heads"), (1, 7)) == P(None, None)
        assert sharding.parts(("rows",)) == 8
    assert sharding.spec(("rows",), (8,)) == P(None) and sharding.parts(("rows",)) == 1


def test_fresh_states_lie_as_their_parameters():
    """Moments and averages must not exist whole on a device, nor the gradients of a step."""
    from tests.steps import small

    model_params = small.dit()[1]
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(model_params, sharding.infer(model_params, mesh))
        made = learning.create(placed, Learner(OptimConfig(ema_decay=0.9)))
    for leaf, where in zip(
        jax.tree.leaves(made), jax.tree.leaves(sharding.infer(made, mesh)), strict=True
    ):
        if leaf.ndim > 1:
            assert leaf.sharding.is_equivalent_to(where, leaf.ndim)


@pytest.mark.parametrize("name", ["align", "pretrain", "finetune", "sepgrpo"])
def test_rows_of_the_released_recipes_lie_on_their_meshes(name):
    from thinkgen_jax import recipe

    for mesh in ("v5p-64", "v6e-64"):
        config = importlib.import_module(f"configs.{name}").get_config(f"thinkgen,mesh={mesh}")
        sizes = dict(config.mesh)
        with jax.sharding.use_abstract_mesh(abstract(**sizes)):
            recipe.check_rows(config)


def test_two_machines_of_gpus_take_twice_the_prompts():
    """As launch/README.md says."""
    from configs import sepgrpo
    from thinkgen_jax import recipe

    config = sepgrpo.get_config("thinkgen,mesh=gpu-8")
    config.mesh.data = 2
    with jax.sharding.use_abstract_mesh(abstract(**dict(config.mesh))):
        with pytest.raises(ValueError, match="is not divisible by 256"):
            recipe.check_rows(config)
        config.plans.mllm_grpo.prompts, config.plans.dit_grpo.prompts = 32, 16
        recipe.check_rows(config)
