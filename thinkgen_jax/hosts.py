# SPDX-License-Identifier: Apache-2.0
"""Several hosts that run one program: how they find each other, share a batch, and end.

* On a Cloud TPU slice they find each other by themselves; elsewhere they are told by flags.
* A batch is the same on every host, and each hands its devices the rows that lie there; of real
  pictures every host makes its own rows alone.
* Drawn pictures stay where they were drawn: each host looks at its own (`rows_here`), and what it
  makes of them is told to all (`exchange`).
* Who is lost ends the others: a host that is silent for `SILENCE` seconds, or whose connection
  breaks, makes every other one stop and say so, instead of waiting for it for ever.
* Who cannot go on tells the others why (`together`) before they wait for it.
* The first host alone writes logs, the config and reports; all of them write commits.
"""

import contextlib
import hashlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # the notes that hosts leave each other have no public name
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from thinkgen_jax import sharding
from thinkgen_jax.structs import Prompt, Tree

SILENCE = 30  # seconds without a sign of life after which a host counts as lost
MEETING = 300  # seconds that hosts wait for each other at the start
FAREWELL = 60  # and at the end
WAITED = 5  # seconds after which a host that waits for one that failed is ended from outside
_ROOMS = itertools.count()  # of `together`; all hosts come to them in the same order


def start(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    gpus: Sequence[int] | None = None,
) -> None:
    """Joins this host to the others; before anything else is done with jax.

    Args:
      coordinator: "address:port" of the first host; None asks the environment.
      count, index: number of hosts and this one's from 0, with a coordinator.
      gpus: numbers of the machine's GPUs that this process takes; None takes all. Processes that
        share a machine count as hosts and need some of their own each.

    Raises:
      ValueError: when one of the first three is missing, the GPUs are not numbers from 0, each
        once, or the hosts do not find each other.
    """
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not all(given):
        raise ValueError("--coordinator, --hosts and --host are needed together")
    if count is not None and index is not None and not 0 <= index < count:
        raise ValueError(f"--host={index} must lie in [0, --hosts={count})")
    if gpus is not None and (not gpus or min(gpus) < 0 or len(set(gpus)) < len(gpus)):
        raise ValueError(f"--gpus={list(gpus)} must be numbers from 0, each once")
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            gpus,
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


def exchange(message: Any) -> list[Any]:
    """What every host says, in their order, on every host; also waits until all are here.

    Args:
      message: JSON-able.
    """
    if not several():
        return [message]
    mine = np.frombuffer(json.dumps(message).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(len(mine), np.int32))
    # Few sizes, for each is a program of its own.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: len(mine)] = mine
    found = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(found, sizes, strict=True)]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What every host does for itself and may fail at: who fails stops all, with its cause.

    Ends when all hosts are through. They tell each other by notes and not by their devices, which
    may be waiting for the one that failed: who does is ended with the cause and status 2.

    Raises:
      ValueError: on hosts that got through, with the cause of one that did not; there, what it was.
    """
    if not several():
        yield
        return
    notes, through = distributed.global_state.client, threading.Event()
    if notes is None:
        raise ValueError(f"this is one of {jax.process_count()} hosts: --distributed is needed")
    room = f"thinkgen_jax/{next(_ROOMS)}"
    threading.Thread(target=_watch, args=(notes, room, through), daemon=True).start()
    cause = "interrupted"
    try:
        yield
        cause = None
    except Exception as err:
        cause = (
            str(err) if isinstance(err, ValueError | OSError) else f"{type(err).__name__}: {err}"
        )
        raise
    finally:
        through.set()
        notes.key_value_set(f"{room}/{jax.process_index()}", json.dumps(cause))
    while True:
        said = notes.key_value_dir_get(room)
        if (line := _cause(said)) is not None:
            raise ValueError(line)
        if len(said) == jax.process_count():
            return
        time.sleep(0.2)


def _cause(said: Sequence[tuple[str, str]]) -> str | None:
    told = ((int(name.rsplit("/", 1)[1]), json.loads(note)) for name, note in said)
    return next((f"host {index}: {cause}" for index, cause in sorted(told) if cause), None)


def _watch(notes, room: str, through: threading.Event) -> None:
    """Ends this process where another host has failed and this one does not get through."""
    while not through.wait(1.0):
        line = _cause(notes.key_value_dir_get(room))
        if line is not None and not through.wait(WAITED):
            sys.stderr.write(f"error: {line}\n")
            sys.stderr.flush()
            os._exit(2)  # Python cannot interrupt a thread that waits for a device


def rows_here(x: jax.Array | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of an array that this host answers for, and their numbers; needs no other host.

    Every row belongs to exactly one host, also where several hold it.

    Raises:
      ValueError: when rows are cut apart.
    """
    if not several() or isinstance(x, np.ndarray):
        return np.arange(x.shape[0]), np.asarray(x)
    found = []
    for part in x.addressable_shards:
        if part.replica_id:
            continue
        if part.data.shape[1:] != x.shape[1:]:
            raise ValueError(f"rows of shape {x.shape[1:]} are cut apart: {x.sharding.spec}")
        begin, end, _ = part.index[0].indices(x.shape[0])
        found.append((np.arange(begin, end), np.asarray(part.data)))
    found.sort(key=lambda one: one[0][0])
    none = (np.arange(0), np.empty((0, *x.shape[1:]), x.dtype))
    return tuple(np.concatenate(many) for many in zip(none, *found, strict=True))


def same(what: str, content: str) -> None:
    """Makes sure that every host sees the same, by a short name of the content.

    Raises:
      ValueError: on all hosts, when one of them sees something else.
    """
    found = exchange(hashlib.sha256(content.encode()).hexdigest())
    others = [index for index, digest in enumerate(found) if digest != found[0]]
    if others:
        raise ValueError(f"{what}: hosts {others} see other files there than host 0")


def lay(batch: Tree, rows: str, *, sliced: bool = False) -> Tree:
    """A batch of host arrays as arrays over all hosts; without others, the batch itself.

    Args:
      rows: what its leading axis means, "batch" for the MLLM and "rows" for the other networks.
        What is no record of arrays, such as a list of requests, stays as it is.
      sliced: every host has made its own part of the batch; else each has made all of it.

    Raises:
      ValueError: when rows that one host has made alone would lie on another, too.
    """
    if not several() or isinstance(batch, list):
        return batch

    def put(leaf, *names):
        leaf = np.asarray(leaf)
        return _of_slices(leaf, names) if sliced else _of_whole(leaf, names)

    def place(part):
        if isinstance(part, Prompt):
            whole = jax.tree.map(lambda leaf: put(leaf, rows), part._replace(positions=None))
            return whole._replace(positions=put(part.positions, None, rows))
        return put(part, rows)

    return jax.tree.map(place, batch, is_leaf=lambda part: isinstance(part, Prompt))


def _of_whole(leaf: np.ndarray, names: tuple[str | None, ...]) -> jax.Array:
    where = NamedSharding(
        jax.sharding.get_mesh(), P(*sharding.spec(names, leaf.shape[: len(names)]))
    )
    return jax.make_array_from_callback(leaf.shape, where, lambda index: leaf[index])


def _of_slices(leaf: np.ndarray, names: tuple[str | None, ...]) -> jax.Array:
    axis, mesh = len(names) - 1, jax.sharding.get_mesh()
    shape = list(leaf.shape)
    shape[axis] *= jax.process_count()
    where = NamedSharding(mesh, P(*sharding.spec(names, shape[: len(names)])))
    here = {
        index[axis].indices(shape[axis])
        for index in where.addressable_devices_indices_map(tuple(shape)).values()
    }
    if sum(end - begin for begin, end, _ in here) != leaf.shape[axis]:
        raise ValueError(
            f"config.mesh {dict(mesh.shape)}: {shape[axis]} rows of a batch do not lie apart on "
            f"{jax.process_count()} hosts; data and fsdp must take them apart"
        )
    return jax.make_array_from_process_local_data(where, leaf, tuple(shape))


def settle(tree: Tree) -> None:
    """Waits for a step where there are several hosts: steps in flight could pass each other."""
    if several():
        jax.block_until_ready(tree)
