# SPDX-License-Identifier: Apache-2.0
"""Small parts that more than one network uses: RMSNorm, projections, time embedding, patches."""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from thinkgen_jax.structs import Key, Tree

Dtype = str  # name of a jax dtype, so that configs stay hashable and printable


# What the backward pass keeps of a block by name; None computes everything again from its input.
POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # matrix products
}


def rematerialized(module: type[nn.Module], remat: str | bool) -> type[nn.Module]:
    """A block under a scan whose activations are kept ("none"), or computed again by a policy.

    Args:
      remat: "none" or a key of `POLICIES`; False and True are "none" and "full".
    """
    if remat_name(remat) == "none":
        return module
    return nn.remat(module, prevent_cse=False, policy=POLICIES[remat_name(remat)])


def remat_name(remat: str | bool) -> str:
    """The policy's name.

    Raises:
      ValueError: for an unknown one.
    """
    name = ("full" if remat else "none") if isinstance(remat, bool) else remat
    if name not in ("none", *POLICIES):
        raise ValueError(f"remat {name!r} (config.remat) is not one of {('none', *POLICIES)}")
    return name


def rounded(x: Float[Array, "*shape"], dtype: Dtype) -> Float[Array, "*shape"]:
    """The values that x has in another dtype, in its own; compilers drop a cast there and back."""
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, exponent_bits=info.nexp, mantissa_bits=info.nmant)


def param(
    module: nn.Module, name: str, init: nn.initializers.Initializer, shape: Sequence[int]
) -> ArrayLike:
    """`module.param`, which traces `init` at every use, to compare shapes, with a mere comparison.

    That was a fifth of the time that tracing a network took.

    Raises:
      flax.errors.ScopeParamShapeError: where the parameter has another shape.
    """
    if module.has_variable("params", name):
        value = module.get_variable("params", name)
        if value.shape == tuple(shape):
            return value
    return module.param(name, init, tuple(shape))


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a learned gain.

    Statistics are float32; the result is cast to the input's dtype before the gain multiplies it,
    as the released weights expect in bfloat16.
    """

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*B X"]) -> Float[Array, "*B X"]:
        scale = param(self, "scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * lift(scale, x)


class Linear(nn.Module):
    """Linear map over the last `axes` axes onto `features`, kernel [inputs..., features...].

    Attributes:
      features: sizes of the output axes, e.g. (N, H) for a projection into heads.
      axes: number of trailing input axes that are contracted, e.g. 2 for heads back to the width.
    """

    features: Sequence[int]
    axes: int = 1
    bias: bool = True
    init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        features = tuple(self.features)
        inputs = x.shape[x.ndim - self.axes :]
        rows, columns = _product(inputs), _product(features)

        def init(key: Key, shape: Sequence[int]) -> Array:
            return self.init(key, (rows, columns)).reshape(shape)

        kernel = param(self, "kernel", init, (*inputs, *features))
        lead = x.shape[: x.ndim - self.axes]
        bias = param(self, "bias", nn.initializers.zeros, (columns,)) if self.bias else None
        if _is_cut():  # axes that lie apart cannot be merged without moving them
            ends = tuple(range(x.ndim - self.axes, x.ndim)), tuple(range(self.axes))
            y = jax.lax.dot_general(x, kernel.astype(x.dtype), (ends, ((), ())))
            if bias is not None:
                y = y + bias.astype(y.dtype).reshape((1,) * len(lead) + features)
            return y
        # As one flat product the kernel's gradient needs no transposed activations, which saves a
        # third of a training step on CPU.
        y = x.reshape(-1, rows) @ kernel.reshape(rows, columns).astype(x.dtype)
        if bias is not None:
            y = y + lift(bias, y)
        return y.reshape(*lead, *features)


def lift(vector: Float[Array, "X"], x: Float[Array, "*B X"]) -> Float[Array, "... X"]:
    """Gives a vector the rank and dtype of x, so that both broadcast over the last axis."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + vector.shape)


def _is_cut() -> bool:
    """Whether arrays lie on several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1


def _product(sizes: Sequence[int]) -> int:
    out = 1
    for size in sizes:
        out *= size
    return out


def apart(params: Tree, stacks: Mapping[str, int]) -> Tree:
    """Parameters with each named stack of layers as a dict of trees, one per layer.

    For loops: a turn that takes its layers out of a stack copies all their weights, which costs as
    much as what it does with them where it handles few rows.

    Args:
      stacks: number of layers, by the stack's name.
    """
    found = {name: each(params[name], count) for name, count in stacks.items()}
    return {**params, **{n: {_layer(i): x for i, x in enumerate(t)} for n, t in found.items()}}


def each(stack: Tree, count: int) -> list[Tree]:
    """The `count` layers of a stack, or of one that is apart already."""
    if is_apart(stack):
        return [stack[_layer(number)] for number in range(count)]
    leaves, tree = jax.tree.flatten(stack)
    # A split, unlike slices, has one concatenation as its gradient.
    parts = zip(*(jax.lax.split(leaf, (1,) * count) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(tree, [leaf[0] for leaf in part]) for part in parts]


def is_apart(stack: Tree) -> bool:
    """Whether `apart` made this tree."""
    return _layer(0) in stack


def _layer(number: int) -> str:
    return f"layer_{number}"


def sinusoid(t: Float[Array, "B"], *, dim: int, max_period: float = 10000.0) -> Float[Array, "B X"]:
    """Embeds scalars as [cos, sin] of geometrically spaced frequencies, cosines first.

    Args:
      t: the scalar, already multiplied by its scale.
      dim: width of the embedding, even.
    """
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def patchify(latents: Float[Array, "B h w c"], *, patch: int) -> Float[Array, "B T C"]:
    """Cuts latents into tokens, row-major; inside a token the order is (row, column, channel)."""
    b, h, w, c = latents.shape
    if h % patch or w % patch:
        raise ValueError(f"latent grid {h}x{w} is not a multiple of the patch size {patch}")
    x = latents.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, patch * patch * c)


def unpatchify(
    tokens: Float[Array, "B T C"], *, patch: int, h: int, w: int
) -> Float[Array, "B h w c"]:
    """Inverse of `patchify` for a latent grid of h x w."""
    b, _, values = tokens.shape
    c = values // (patch * patch)
    x = tokens.reshape(b, h // patch, w // patch, patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
