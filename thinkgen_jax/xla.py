# SPDX-License-Identifier: Apache-2.0
"""What compilers are told beyond their defaults, by `train` and by `compile` alike.

Without it the compilers for TPUs let the device wait for most gathers and all sums.
"""

import importlib.util
import os

import jax

# Gathers and sums beside arithmetic, several at a time, begun as early as memory allows. Not across
# the bodies of loops: there libtpu 0.0.42 dies over the DiT's update on v6e.
OVERLAP = {
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_enable_async_collective_fusion_while_loops": "false",
    "xla_tpu_async_collective_fusion_fuse_multiple_collectives": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
    "xla_enable_async_all_reduce": "true",
    "xla_lhs_prioritize_async_depth_over_stall": "ENABLED",
}
# Whatever the effort: libtpu 0.0.42 aborts where it gives tpu7x's sparse cores a sum over one ring.
NEEDED = {"tpu7x": {"xla_tpu_enable_sparse_core_collective_offload_all_reduce": "false"}}
ARGS, KIND = "LIBTPU_INIT_ARGS", "TPU_ACCELERATOR_TYPE"


def tell() -> None:
    """Writes them where libtpu reads them, before the process first meets its devices.

    What the environment says already comes last, and so wins. Nothing where there is no libtpu or
    jax is held to other platforms.
    """
    platforms = jax.config.jax_platforms
    if importlib.util.find_spec("libtpu") is None or (platforms and "tpu" not in platforms):
        return
    kind = os.environ.get(KIND, "").partition("-")[0]
    ours = (f"--{name}={value}" for name, value in (OVERLAP | NEEDED.get(kind, {})).items())
    os.environ[ARGS] = " ".join((*ours, os.environ.get(ARGS, ""))).strip()
