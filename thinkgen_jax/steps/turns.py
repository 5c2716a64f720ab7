# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is to learn: a tree that sleeps keeps its optimizer in the host's memory.

Parameters stay on the devices, for the sleeping tree is read all the time; its moments and running
average are not. Every host keeps the parts that its own devices had.
"""

from functools import partial

import jax
from jax.sharding import SingleDeviceSharding

from thinkgen_jax.structs import States, TrainState

HOST = "pinned_host"  # memory of the host that devices can copy from and to


def turn(states: States, learns: str) -> States:
    """Puts the optimizer of the tree that learns on the devices, and those of the others away.

    The others go first, so that both are never there at once; what lies right is not touched. Where
    devices know no such memory, all stay where they are.
    """
    moved = {tree: _move(state, away=True) for tree, state in states.items() if tree != learns}
    return {**states, **moved, learns: _move(states[learns], away=False)}


def _move(state: TrainState, *, away: bool) -> TrainState:
    rest = jax.tree.map(partial(_put, away=away), (state.opt_state, state.ema))
    opt_state, average = jax.block_until_ready(rest)
    return state._replace(opt_state=opt_state, ema=average)


def _put(x: jax.Array, away: bool) -> jax.Array:
    """The array in the other memory, part by part: no device and no host needs another one."""
    device = next(iter(x.sharding.addressable_devices))
    kinds = {memory.kind for memory in device.addressable_memories()}
    kind = HOST if away and HOST in kinds else device.default_memory().kind
    if x.sharding.memory_kind == kind:
        return x
    parts = [
        jax.device_put(part.data, SingleDeviceSharding(part.device, memory_kind=kind))
        for part in x.addressable_shards
    ]
    where = x.sharding.with_memory_kind(kind)
    return jax.make_array_from_single_device_arrays(x.shape, where, parts)
