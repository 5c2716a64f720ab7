# SPDX-License-Identifier: Apache-2.0
"""The device mesh and who lies where on it: one table for parameters, one for activations.

* One mesh of four Auto axes: `data` (replicas), `fsdp` (parameters cut, batch cut), `tensor` (heads
  and feed-forward cut), `context` (sequence cut).
* `PARAM_RULES` maps the `/`-joined path of a leaf to its `PartitionSpec`. Optimizer moments and EMA
  inherit the rule of their parameter because their path ends in it.
* `shard(x, "batch", ...)` names what an activation's axes mean; `ACT_RULES` says where they lie.
"""

import re
from collections.abc import Sequence

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from thinkgen_jax.structs import Tree

AXES = ("data", "fsdp", "tensor", "context")

ACT_RULES = {
    "batch": ("data", "fsdp"),
    "rows": ("data", "fsdp", "tensor"),  # of networks whose heads `tensor` does not cut
    "seq": "context",
    "heads": "tensor",
    "vocab": "tensor",
    "width": None,
    None: None,
}

# First match wins; `layers` stacks add a leading [L]. No power of two past 8 divides the DiT's
# width 2520, and none its 21 query heads and 7 key/value heads: its kernels are cut by `fsdp` along
# one axis and by `tensor` along the other, its activations by rows alone, so that both are FSDP.
# Its feed-forward width 10240 takes both at once: gathers along one axis alone run beside products.
PLANE = ("fsdp", "tensor")
PARAM_RULES: tuple[tuple[str, P], ...] = (
    # low-rank adapters: inputs of A and outputs of B lie as their kernel's, the rank is whole
    (r"decoder/(self_attn/[qkv]|mlp/(gate|up))_proj/lora_a$", P(None, "fsdp")),  # [L, D, r]
    (r"decoder/(self_attn/[qkv]|mlp/(gate|up))_proj/lora_b$", P(None, None, "tensor")),
    (r"decoder/(self_attn/o|mlp/down)_proj/lora_a$", P(None, "tensor")),  # [L, N, H, r], [L, F, r]
    (r"decoder/(self_attn/o|mlp/down)_proj/lora_b$", P(None, None, "fsdp")),  # [L, r, D]
    (r"(layers|refiner)/(attn/to_[qkv]|feed_forward/(gate|up))/lora_a$", P(None, "fsdp")),
    (r"(layers|refiner)/attn/to_[qkv]/lora_b$", P(None, None, None, "tensor")),  # [L, r, N, H]
    (r"(layers|refiner)/feed_forward/(gate|up)/lora_b$", P(None, None, "tensor")),  # [L, r, F]
    (r"(layers|refiner)/attn/to_out/lora_a$", P(None, None, "tensor")),  # [L, N, H, r]
    (r"(layers|refiner)/feed_forward/down/lora_a$", P(None, "tensor")),  # [L, F, r]
    (r"(layers|refiner)/(attn/to_out|feed_forward/down)/lora_b$", P(None, None, "fsdp")),
    # gains and biases, stacked or not
    (r"/(scale|bias|norm)$", P()),
    # mllm: decoder
    (r"embed_tokens/embedding$", P("tensor", "fsdp")),  # [V, D]
    (r"lm_head/kernel$", P("fsdp", "tensor")),  # [D, V]
    (r"decoder/self_attn/[qkv]_proj/kernel$", P(None, "fsdp", "tensor", None)),  # [L, D, N, H]
    (r"decoder/self_attn/o_proj/kernel$", P(None, "tensor", None, "fsdp")),  # [L, N, H, D]
    (r"decoder/mlp/(gate|up)_proj/kernel$", P(None, "fsdp", "tensor")),  # [L, D, F]
    (r"decoder/mlp/down_proj/kernel$", P(None, "tensor", "fsdp")),  # [L, F, D]
    # mllm: vision tower
    (r"visual/blocks/(attn|mlp)/(qkv|proj|linear_fc1)/kernel$", P(None, PLANE)),  # [L, W, ...]
    (r"visual/blocks/mlp/linear_fc2/kernel$", P(None, None, PLANE)),  # [L, F, W]
    (r"visual/deepstack_mergers/linear_fc[12]/kernel$", P(None, PLANE)),  # [Z, 4W, D]
    (r"visual/merger/linear_fc[12]/kernel$", P(PLANE)),  # [4W, D]
    (r"visual/(patch_embed/kernel|pos_embed/embedding)$", P()),
    # dit
    (r"(layers|refiner)/attn/to_[qkv]/kernel$", P(None, "fsdp", None, "tensor")),  # [L, W, N, H]
    (r"(layers|refiner)/attn/to_out/kernel$", P(None, None, "tensor", "fsdp")),  # [L, N, H, W]
    (r"(layers|refiner)/feed_forward/(gate|up)/kernel$", P(None, None, PLANE)),  # [L, W, F]
    (r"(layers|refiner)/feed_forward/down/kernel$", P(None, PLANE)),  # [L, F, W]
    (r"(layers|refiner)/modulation/kernel$", P(None, "fsdp", "tensor")),  # [L, Z, 4W]
    (r"caption_embedder/linear/kernel$", P(PLANE)),  # [E, W]
    (r"(text_embed/embedding|prepad_embed|image_index_embedding)$", P()),
    (r"(x_embedder|ref_image_patch_embedder|norm_out|timestep_embedder)/.*", P()),
    # vae: frozen and small
    (r"(encoder|decoder)/(conv_|mid_|down_|up_)\w+/.*", P()),
)
# Kernels that a step gathers once, before its loops, and the axes it undoes. TPU compilers gather
# beside products what is cut into whole tiles. The parts of these are none (315 of 2520, 144 of
# 1152) or too small, and every layer would wait for them, forth and back. The two layers of the
# context refiner are too few to begin in time. All are a third of the DiT and the vision tower.
AHEAD: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(layers|refiner)/(attn/to_(q|k|v|out)|modulation)/kernel$", PLANE),
    (r"context_refiner/feed_forward/(gate|up|down)/kernel$", PLANE),
    (r"caption_embedder/linear/kernel$", PLANE),
    (r"visual/(blocks|merger|deepstack_mergers)/.*kernel$", PLANE),
    (r"decoder/self_attn/[kv]_proj/kernel$", ("fsdp",)),
)


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    context: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Builds the mesh from the sizes of its four axes, over all devices or the given ones.

    Raises:
      ValueError: when the sizes do not multiply to at most the number of devices, or, on several
        hosts, to less than all of them: a host without a device could not take part.
    """
    shape = (data, fsdp, tensor, context)
    count = data * fsdp * tensor * context
    several = devices is None and jax.process_count() > 1
    devices = jax.devices() if devices is None else devices
    if min(shape) < 1 or count > len(devices):
        raise ValueError(
            f"config.mesh {dict(zip(AXES, shape, strict=True))} needs {count} devices, "
            f"{len(devices)} are there"
        )
    if several and count < len(devices):
        raise ValueError(
            f"config.mesh {dict(zip(AXES, shape, strict=True))} takes {count} of {len(devices)} "
            f"devices; on {jax.process_count()} hosts it must take all, see mesh= of the config"
        )
    # An axis of 8 may lie across two sides of a 4 x 4 x 4 slice.
    laid = create_device_mesh(shape, devices[:count], allow_split_physical_axes=True)
    return Mesh(laid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shard(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrains an activation whose axes are named by `ACT_RULES`; the identity without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(names, x.shape))


def laid(x: jax.Array, *names: str | None) -> jax.Array:
    """`shard`, and in memory the axes lie in their order, the last side by side.

    For what a loop carries: compilers choose another order to write it, and copy it to read it.
    """

    def straight(x: jax.Array) -> jax.Array:
        return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return straight(x)
    at = spec(names, x.shape)
    return jax.shard_map(straight, in_specs=at, out_specs=at)(x)


def spec(names: Sequence[str | None], shape: Sequence[int]) -> P:
    """Where an activation of this shape lies on the mesh in force, by the names of its axes.

    An axis whose length its mesh axes do not divide is cut by as many of them, from the first, as
    do: one rule serves every size.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return P(*(None for _ in names))
    rules = (ACT_RULES[name] for name in names)
    return P(*(_fitting(rule, size, mesh) for rule, size in zip(rules, shape, strict=True)))


def parts(names: Sequence[str | None]) -> int:
    """Number of parts that these names' mesh axes make on the mesh in force."""
    count = 1
    for name in names:
        count *= size_of(ACT_RULES[name])
    return count


def size_of(axes: str | Sequence[str] | None) -> int:
    """Number of parts that mesh axes make on the mesh in force; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else _axis_size(axes, mesh)


def keep(tree: Tree, *, without: tuple[str, ...] = ()) -> Tree:
    """Constrains parameters, or anything shaped like them, to where their rules put them.

    Inside a jitted function; the identity without a mesh. What is computed from parameters
    otherwise lies where the compiler likes, gradients and optimizer state on every device.

    Args:
      without: mesh axes that do not cut here: "fsdp" gathers for programs that read often.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree

    def place(path, leaf):
        return _placed(path_name(path), leaf, mesh, without)

    return jax.tree_util.tree_map_with_path(place, tree)


def ahead(tree: Tree, dtype: DTypeLike) -> Tree:
    """Inside a jitted function: gathers what `AHEAD` names, in the dtype it is multiplied in.

    Before the loops over micro-batches and layers, that is. The gradient of what is gathered is to
    be put back by `keep`. The identity without a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree

    def place(path, leaf):
        name = path_name(path)
        for pattern, axes in AHEAD:
            if re.search(pattern, name):
                return _placed(name, leaf.astype(dtype), mesh, axes)
        return leaf

    return jax.tree_util.tree_map_with_path(place, tree)


def whole(tree: Tree) -> Tree:
    """Inside a jitted function: puts arrays whole on every device, so that every host sees them."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P()), tree)


def infer(tree: Tree, mesh: Mesh | AbstractMesh) -> Tree:
    """Gives every leaf of a (possibly abstract) tree its `NamedSharding`.

    Raises:
      ValueError: when a leaf of rank >= 2 matches no rule, or a rule does not fit its shape; the
        message names path, shape, spec and mesh.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_of(path_name(path), leaf.shape, mesh)), tree
    )


def spec_of(path: str, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> P:
    """Looks up one leaf's spec by its `/`-joined path; see `infer`."""
    if len(shape) < 2:
        return P()
    for pattern, spec in PARAM_RULES:
        if re.search(pattern, path):
            _check_fit(path, shape, spec, mesh)
            return spec
    raise ValueError(f"no sharding rule for {path} of shape {tuple(shape)}")


def path_name(path: Sequence) -> str:
    """Joins a jax key path with `/`, without brackets and quotes."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _axis_size(axes: str | Sequence[str] | None, mesh: Mesh | AbstractMesh) -> int:
    size = 1
    for axis in (axes,) if isinstance(axes, str) else axes or ():
        size *= mesh.shape[axis]
    return size


def _placed(path: str, leaf: jax.Array, mesh: AbstractMesh, without: tuple[str, ...]) -> jax.Array:
    """Constrains one leaf to its rule, but for these axes."""
    rule = spec_of(path, leaf.shape, mesh)
    return jax.lax.with_sharding_constraint(leaf, P(*(_without(axes, without) for axes in rule)))


def _without(axes: str | Sequence[str] | None, dropped: tuple[str, ...]):
    names = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(name for name in names if name not in dropped) or None


def _fitting(axes: str | Sequence[str] | None, size: int, mesh: Mesh | AbstractMesh):
    names = (axes,) if isinstance(axes, str) else tuple(axes or ())
    while names and size % _axis_size(names, mesh):
        names = names[:-1]
    return names[0] if len(names) == 1 else names or None


def _check_fit(path: str, shape: Sequence[int], spec: P, mesh: Mesh | AbstractMesh) -> None:
    parts = tuple(spec)
    if len(parts) > len(shape):
        raise ValueError(f"{path}: shape {tuple(shape)} has fewer axes than its rule {spec}")
    for size, axes in zip(shape, parts, strict=False):
        if size % _axis_size(axes, mesh):
            raise ValueError(
                f"{path}: axis of {size} in shape {tuple(shape)} is not divisible by {axes} "
                f"in {spec} on mesh {dict(mesh.shape)}"
            )
