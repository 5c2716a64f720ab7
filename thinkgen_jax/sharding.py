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
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from thinkgen_jax.structs import Tree

AXES = ("data", "fsdp", "tensor", "context")

ACT_RULES = {
    "batch": ("data", "fsdp"),
    "seq": "context",
    "heads": "tensor",
    "width": None,
    None: None,
}

# First match wins; `layers` stacks add a leading [L]. `PLANE` is the two-axis FSDP of the DiT,
# whose 21 query heads, 7 key/value heads and width 2520 no power of two past 8 divides.
PLANE = ("fsdp", "tensor")
PARAM_RULES: tuple[tuple[str, P], ...] = (
    # gains and biases, stacked or not
    (r"/(scale|bias|norm)$", P()),
    # mllm: decoder
    (r"embed_tokens/embedding$", P("tensor", "fsdp")),  # [V, D]
    (r"lm_head/kernel$", P("fsdp", "tensor")),  # [D, V]
    (r"decoder/self_attn/[qkv]_proj/kernel$", P(None, "fsdp", "tensor", None)),  # [L, D, N, H]
    (r"decoder/self_attn/o_proj/kernel$", P(None, "tensor", None, "fsdp")),  # [L, N, H, D]
    (r"decoder/mlp/(gate|up)_proj/kernel$", P(None, "fsdp", "tensor")),  # [L, D, F]
    (r"decoder/mlp/down_proj/kernel$", P(None, "tensor", "fsdp")),  # [L, F, D]
    (r"decoder/.*norm/scale$", P()),  # [L, D] or [L, H]
    # mllm: vision tower, small beside the decoder
    (r"visual/.*", P()),
    # dit: blocks are stacked [L, ...]; the plane lies over the input width
    (r"(layers|refiner)/attn/to_[qkv]/kernel$", P(None, PLANE, None, None)),  # [L, W, N, H]
    (r"(layers|refiner)/attn/to_out/kernel$", P(None, None, None, PLANE)),  # [L, N, H, W]
    (r"(layers|refiner)/feed_forward/(gate|up)/kernel$", P(None, None, PLANE)),  # [L, W, F]
    (r"(layers|refiner)/feed_forward/down/kernel$", P(None, PLANE, None)),  # [L, F, W]
    (r"(layers|refiner)/modulation/kernel$", P(None, PLANE, None)),  # [L, T, 4W]
    (r"caption_embedder/linear/kernel$", P(PLANE, None)),  # [E, W]
    (r"(text_embed/embedding|prepad_embed|image_index_embedding)$", P()),
    (r"(x_embedder|ref_image_patch_embedder|norm_out|timestep_embedder)/.*", P()),
    (r"caption_embedder/.*", P()),
    # vae: frozen and small
    (r"(encoder|decoder)/.*", P()),
)


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, context: int = 1) -> Mesh:
    """Builds the mesh from the sizes of its four axes.

    Raises:
      ValueError: when the sizes do not multiply to at most the number of devices.
    """
    shape = (data, fsdp, tensor, context)
    count = data * fsdp * tensor * context
    if min(shape) < 1 or count > jax.device_count():
        raise ValueError(
            f"config.mesh {dict(zip(AXES, shape, strict=True))} needs {count} devices, "
            f"{jax.device_count()} are there"
        )
    devices = jax.devices()[:count]
    return jax.make_mesh(shape, AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def batch_ways(mesh: Mesh | AbstractMesh) -> int:
    """Number of parts a batch is cut into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def shard(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrains an activation whose axes are named by `ACT_RULES`; the identity without a mesh.

    An axis whose length its mesh axes do not divide stays whole: one rule serves every size.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = [
        _fitting(ACT_RULES[name], size, mesh) for name, size in zip(names, x.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, P(*spec))


def infer(tree: Tree, mesh: Mesh) -> Tree:
    """Gives every leaf of a (possibly abstract) tree its `NamedSharding`.

    Raises:
      ValueError: when a leaf of rank >= 2 matches no rule, or a rule does not fit its shape; the
        message names path, shape, spec and mesh.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_of(path_name(path), leaf.shape, mesh)), tree
    )


def spec_of(path: str, shape: Sequence[int], mesh: Mesh) -> P:
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


def _fitting(axes: str | Sequence[str] | None, size: int, mesh: Mesh | AbstractMesh):
    return axes if size % _axis_size(axes, mesh) == 0 else None


def _check_fit(path: str, shape: Sequence[int], spec: P, mesh: Mesh) -> None:
    parts = tuple(spec)
    if len(parts) > len(shape):
        raise ValueError(f"{path}: shape {tuple(shape)} has fewer axes than its rule {spec}")
    for size, axes in zip(shape, parts, strict=False):
        if size % _axis_size(axes, mesh):
            raise ValueError(
                f"{path}: axis of {size} in shape {tuple(shape)} is not divisible by {axes} "
                f"in {spec} on mesh {dict(mesh.shape)}"
            )
