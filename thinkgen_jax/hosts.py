# SPDX-License-Identifier: Apache-2.0
"""Several hosts that run one program: how they find each other, share a batch, and end.

* On a Cloud TPU slice they find each other by themselves; elsewhere they are told by flags.
* A batch is the same on every host; each hands its devices the rows that lie there.
* Who is lost ends the others: a host that is silent for `SILENCE` seconds, or whose connection
  breaks, makes every other one stop and say so, instead of waiting for it for ever.
* The first host alone writes logs, the config and reports; all of them write commits.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from thinkgen_jax import sharding
from thinkgen_jax.structs import Prompt, Tree

SILENCE = 30  # seconds without a sign of life after which a host counts as lost
MEETING = 300  # seconds that hosts wait for each other at the start
FAREWELL = 60  # and at the end


def start(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Joins this host to the others; before anything else is done with jax.

    Args:
      coordinator: "address:port" of the first host; None asks the environment.
      count, index: number of hosts and this one's from 0, with a coordinator.

    Raises:
      ValueError: when one of the three is missing, or the hosts do not find each other.
    """
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not all(given):
        raise ValueError("--coordinator, --hosts and --host are needed together")
    if count is not None and index is not None and not 0 <= index < count:
        raise ValueError(f"--host={index} must lie in [0, --hosts={count})")
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=MEETING,
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=FAREWELL,
        )
    except (RuntimeError, ValueError) as err:
        line = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise ValueError(f"--distributed: the hosts did not find each other ({line})") from None


def several() -> bool:
    """Whether there is more than this host."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this host writes what is written once."""
    return jax.process_index() == 0


def agree(flag: bool) -> bool:
    """Whether any host says so; also waits until all are here. Without others, the flag itself."""
    if not several():
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def wait(name: str) -> None:
    """Waits until every host has come to this place."""
    if several():
        multihost_utils.sync_global_devices(name)


def lay(batch: Tree, rows: str) -> Tree:
    """A batch of host arrays as arrays over all hosts; without others, the batch itself.

    Args:
      rows: what its leading axis means, "batch" for the MLLM and "rows" for the other networks.
        What is no record of arrays, such as a list of requests, stays as it is.
    """
    if not several() or isinstance(batch, list):
        return batch
    mesh = jax.sharding.get_mesh()

    def put(leaf, *names):
        leaf = np.asarray(leaf)
        where = NamedSharding(mesh, P(*sharding.spec(names, leaf.shape[: len(names)])))
        return jax.make_array_from_callback(leaf.shape, where, lambda index: leaf[index])

    def place(part):
        if isinstance(part, Prompt):
            whole = jax.tree.map(lambda leaf: put(leaf, rows), part._replace(positions=None))
            return whole._replace(positions=put(part.positions, None, rows))
        return put(part, rows)

    return jax.tree.map(place, batch, is_leaf=lambda part: isinstance(part, Prompt))


def settle(tree: Tree) -> None:
    """Waits for a step where there are several hosts: steps in flight could pass each other."""
    if several():
        jax.block_until_ready(tree)
