# SPDX-License-Identifier: Apache-2.0
"""Machines by name: how their devices lie, what each has, and how to describe them to the compiler.

A TPU slice is named as Google Cloud names it (v5p-64 and tpu7x-32 count cores, two a chip; v5e-64
and v6e-64 count chips) or by its shape (v5p:2x4x4). One JAX device is a chip, but half a chip of
tpu7x. Descriptions of TPUs need libtpu, those of GPUs the CUDA plugin; neither needs a device.

Source: usable memory is what the compiler of libtpu 0.0.42 enforces, of GPUs what the driver
leaves; arithmetic (dense bfloat16), memory and interconnect rates are the vendors' published ones,
a direction of the links each.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import jax

QUIET = {  # settings of libtpu on a machine without a TPU; the target does not depend on them
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}


@dataclass(frozen=True)
class Chip:
    """What one JAX device has.

    Attributes:
      hbm: memory that programs may use, GiB.
      flops: dense bfloat16 operations a second.
      memory, links: bytes a second to and from memory, and out to other devices.
    """

    hbm: float
    flops: float
    memory: float
    links: float


CHIPS = {
    "v5e": Chip(15.75, 197e12, 819e9, 200e9),
    "v5p": Chip(95.74, 459e12, 2765e9, 600e9),
    "v6e": Chip(31.25, 918e12, 1640e9, 448e9),
    "tpu7x": Chip(94.75, 1153e12, 3690e9, 600e9),
    "h100": Chip(79.0, 989e12, 3350e9, 450e9),
    "h200": Chip(139.0, 989e12, 4800e9, 450e9),
}
FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}
SHAPES = {"v5e": FLAT, "v6e": FLAT, "v5p": CUBES, "tpu7x": CUBES}  # real slices by chips
CHIP_CORES = {"v5p": 2, "tpu7x": 2, "v5e": 1, "v6e": 1}
# What the compiler for GPUs must know, as its `GpuTargetConfigProto` in text. Both cards have one
# chip and differ in their memory: bytes a second, and bytes. Source: specs of openxla/xla@4336d12.
GPUS = {
    "h100": (3352320000000, 84929347584, "NVIDIA H100 80GB HBM3"),
    "h200": (4800000000000, 151397597184, "NVIDIA H200 141GB HBM3e"),
}
GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {rate} l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: {size} shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{name}"
"""
QUICK = {"exec_time_optimization_effort": -1.0}


@dataclass(frozen=True)
class Slice:
    """One machine.

    Attributes:
      name: as the user says it.
      kind: what its programs are compiled for: a key of `SHAPES`, or h100 for all GPUs.
      shape: chips along each axis, "2x4x4"; for GPUs "hosts x GPUs".
      card: key of `CHIPS`.
    """

    name: str
    kind: str
    shape: str
    card: str

    @property
    def chip(self) -> Chip:
        """What each of its devices has."""
        return CHIPS[self.card]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(int(side) for side in self.shape.split("x"))

    @property
    def count(self) -> int:
        """Number of JAX devices."""
        return self.chips * (2 if self.kind == "tpu7x" else 1)

    def share(self, flops: float, seconds: float) -> float:
        """The part of its peak that so many operations in these seconds are; 0 for no time."""
        return flops / (self.chip.flops * self.count) / seconds if seconds else 0.0


def parse(name: str) -> Slice:
    """Finds a machine by its name or shape.

    Raises:
      ValueError: for one that does not exist, listing those of its kind.
    """
    kind, colon, shape = name.partition(":")
    kind, dash, number = (kind, "", "") if colon else name.partition("-")
    if kind in SHAPES:
        by_cores = {chips * CHIP_CORES[kind]: s for chips, s in SHAPES[kind].items()}
        if colon and shape in SHAPES[kind].values():
            return Slice(name, kind, shape, kind)
        if dash and number.isdigit() and int(number) in by_cores:
            return Slice(name, kind, by_cores[int(number)], kind)
        known = [f"{kind}-{cores}" for cores in by_cores]
    elif kind in GPUS and number.isdigit() and (int(number) % 8 == 0 or int(number) in (1, 2, 4)):
        per_host = min(int(number), 8)
        return Slice(name, "h100", f"{int(number) // per_host}x{per_host}", kind)
    else:
        known = [f"{kind}-..." for kind in CHIPS]
    raise ValueError(f"--topology={name}: no such machine; known are {', '.join(known)}")


def mesh_of(machine: Slice) -> dict[str, int]:
    """The mesh a machine gets where a config names none: see `configs.common.MESHES`."""
    fsdp = min(8, machine.count)
    # v6e has slow links beside its arithmetic; 4 halves the sums that a decoder layer waits for. On
    # more chips there are too few rows of a micro-batch for the data axes that this leaves.
    most = {"h100": 1, "v6e": 4 if machine.count <= 64 else 8}.get(machine.kind, 8)
    tensor = min(most, machine.count // fsdp)
    return dict(data=machine.count // (fsdp * tensor), fsdp=fsdp, tensor=tensor, context=1)


def devices(machine: Slice) -> Sequence[jax.Device]:
    """The devices of a machine that is not there.

    Raises:
      ValueError: where the compiler for it is not installed.
    """
    if machine.kind == "h100":
        return _gpus(machine)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # A whole cube, or a whole pod of a flat kind, is a torus.
    torus = machine.chips >= 64 if machine.shape.count("x") == 2 else machine.shape == "16x16"
    how = {"wrap": (True,) * 3} if torus else {}
    return _describe("tpu", f"{machine.kind}:{machine.shape}", "tpu", **how)


def _gpus(machine: Slice) -> Sequence[jax.Device]:
    hosts, each = machine.shape.split("x")
    rate, size, name = GPUS[machine.card]
    target = GPU.format(rate=rate, size=size, name=name)
    return _describe("cuda", "", "cuda", target_config=target, topology=f"1x{hosts}x{each}")


def _describe(platform: str, name: str, extra: str, **how) -> Sequence[jax.Device]:
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform=platform, topology_name=name, **how)
    except (RuntimeError, NotImplementedError, ModuleNotFoundError, ValueError) as err:
        line = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise ValueError(
            f"the compiler for {platform} did not start; install launch/requirements-{extra}.txt "
            f"({line})"
        ) from None
    return list(found.devices)
