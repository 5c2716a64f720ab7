# SPDX-License-Identifier: Apache-2.0
"""Splash attention, the blocked TPU kernel, cut over the mesh by `jax.shard_map`.

* Sequences are padded to whole blocks with segment 0 and cut back; heads keep their width: the
  kernel fills its 128 lanes itself, which costs less than padding 120 to 128 in memory.
* Rows and heads are cut as the activations are; under context parallelism a device holds its part
  of the queries and all keys.
* The backward pass is two kernels: the fused one keeps a partial gradient of the queries for every
  block of keys.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from thinkgen_jax import sharding

LANES = 128  # shortest block
BLOCKS = ((1024, 512), (384, 256), (0, LANES))  # (least length, block) of the longest sequences


def block_of(length: int) -> int:
    """Edge of the square blocks for sequences of this length."""
    return next(block for least, block in BLOCKS if length >= least)


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    q_segments: Int[Array, "B T"],
    kv_segments: Int[Array, "B S"],
    *,
    causal: bool,
    names: tuple[str | None, ...],
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """See `attention.attend`.

    Args:
      names: what the axes of q mean, as in `sharding.shard`; queries' heads are cut only where the
        keys' heads can be, too.
      interpret: run the kernel step by step, on any backend; for tests.
    """
    length, width = q.shape[1], q.shape[-1]
    rows, seq, heads, _ = names
    batch = sharding.spec((rows,), q.shape[:1])[0]
    head = sharding.spec((heads,), k.shape[2:3])[0]
    parts = sharding.parts((seq,))
    block = block_of(max(length // parts, k.shape[1] // parts))
    q, q_segments = (_pad(x, block * parts) for x in (q, q_segments))
    k, v, kv_segments = (_pad(x, block) for x in (k, v, kv_segments))
    cut = sharding.spec((seq,), q.shape[1:2])[0]
    heads_cut, seq_cut = sharding.size_of(head), sharding.size_of(cut)
    shape = (q.shape[2], q.shape[1], k.shape[1])
    if causal:  # what a part of the queries sees depends on where it lies
        kernel = _kernel(
            masks.CausalMask(shape[1:]), shape[0], block, interpret, heads_cut, seq_cut
        )
    else:
        mask = masks.FullMask((shape[1] // seq_cut, shape[2]))
        kernel = _kernel(mask, shape[0] // heads_cut, block, interpret)

    def run(kernel, q, k, v, q_segments, kv_segments):
        one = jax.vmap(kernel, in_axes=(0, 0, 0, kernels.SegmentIds(0, 0)))
        return one(q, k, v, kernels.SegmentIds(q_segments, kv_segments))

    q, k, v = (x.swapaxes(1, 2) for x in (q * width**-0.5, k, v))
    args = (q, k, v, q_segments, kv_segments)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        whole = P(batch, head, None, None)
        mine = P(batch, head, cut, None)
        places = P(head, cut) if causal else P(None, None)
        spec = kernel.manual_sharding_spec(NamedSharding(mesh, places))
        run = jax.shard_map(
            run,
            in_specs=(spec, mine, whole, whole, P(batch, cut), P(batch, None)),
            out_specs=mine,
            check_vma=False,
        )
    return run(kernel, *args).swapaxes(1, 2)[:, :length]


def _pad(x: Array, multiple: int) -> Array:
    gap = -x.shape[1] % multiple
    return jnp.pad(x, ((0, 0), (0, gap), *((0, 0),) * (x.ndim - 2)))


def _kernel(mask, heads: int, block: int, interpret: bool, head_parts: int = 1, parts: int = 1):
    """The kernel for so many heads; what it knows of the mask can be cut into parts."""
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    return kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(**{f"block_{name}": block for name in names}),
        head_shards=head_parts,
        q_seq_shards=parts,
        interpret=interpret,
    )
