# SPDX-License-Identifier: Apache-2.0
"""What reading a released folder costs in memory: `python -m launch.reading [LAYERS]`.

Writes a Qwen3-VL folder of released widths with LAYERS decoder layers (2: 4.1 GiB) into a temporary
place, reads it to the devices in a process of its own, and prints the highest anonymous memory
beyond the parameters, in largest tensors; pages of files that are only mapped are not counted.
"""

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from thinkgen_jax import checkpoint, parts, sharding
from thinkgen_jax.hf import export, folders, streams
from thinkgen_jax.models import presets

GIB = 2**30
BOUND = 1.15  # of the largest tensor


def write(folder: Path, layers: int) -> None:
    """Writes the folder tensor by tensor; all weights are 0, so that none is held."""
    system = presets.get("thinkgen")
    system = replace(system, mllm=replace(system.mllm, num_hidden_layers=layers))
    shapes = parts.shapes(system, "mllm")
    params = jax.tree.map(lambda x: np.zeros(x.shape, jnp.bfloat16), shapes)  # untouched pages
    export.write_folder(folder, system, {"mllm": params}, plain=True, max_shard_bytes=2 * GIB)


def anonymous() -> int:
    """Bytes of memory of this process that belong to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@contextlib.contextmanager
def watched() -> Iterator[list[int]]:
    """Looks at anonymous memory every two milliseconds; the list holds the most there was."""
    peak, done = [anonymous()], threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def read(folder: Path) -> None:
    """Reads the folder to the devices and prints what it took.

    Raises:
      SystemExit: when it took more than it may.
    """
    system = folders.read_system(folder)
    shapes = parts.shapes(system, "mllm")
    entries, _ = streams.scan(folders.weights_of(folder, "mllm"))
    largest = max(entry.nbytes for entry in entries.values())
    with jax.set_mesh(sharding.make_mesh()):
        jnp.zeros(8).block_until_ready()  # the runtime's own memory is no part of it
        before, begun = anonymous(), time.monotonic()
        place = sharding.infer(shapes, jax.sharding.get_mesh())
        with watched() as peak:
            tree = folders.read_tree(folder, system, "mllm", shapes=shapes, place=place)
        seconds = time.monotonic() - begun
    placed = checkpoint.nbytes(tree)
    beyond = (peak[0] - before - placed) / largest
    print(
        f"{len(entries)} tensors, {placed / GIB:.2f} GiB in {seconds:.1f} s; the largest has "
        f"{largest / GIB:.2f} GiB; anonymous memory beyond the parameters at most {beyond:.2f} "
        "of it"
    )
    if beyond > BOUND:
        raise SystemExit(f"error: more than {BOUND}")


def main(words: Sequence[str]) -> None:
    """Writes and reads, or with `read FOLDER` reads alone.

    Raises:
      SystemExit: for other words, and with the result of the process that reads.
    """
    if len(words) == 2 and words[0] == "read" and Path(words[1]).is_dir():
        read(Path(words[1]))
        return
    layers = words[0] if words else "2"
    if len(words) > 1 or not layers.isdecimal() or int(layers) < 1:
        raise SystemExit(f"error: {' '.join(words)}: want a number of layers, or read FOLDER")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), int(layers))
        done = subprocess.run([sys.executable, "-m", "launch.reading", "read", folder])
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
