# SPDX-License-Identifier: Apache-2.0
"""What reading a released folder costs in memory: `python -m launch.reading [LAYERS]`.

Writes a Qwen3-VL folder of released widths with LAYERS decoder layers (2: 4.1 GiB) into a temporary
place, reads it to the devices in a process of its own, and prints the highest anonymous memory
beyond the parameters, in largest tensors; pages of files that are only mapped are not counted.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
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


class Peak(threading.Thread):
    """Watches anonymous memory until told to stop."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes, self.going = 0, True

    def run(self) -> None:
        """Looks every two milliseconds."""
        while self.going:
            self.bytes = max(self.bytes, anonymous())
            time.sleep(0.002)


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
        before, peak = anonymous(), Peak()
        peak.start()
        begun = time.monotonic()
        place = sharding.infer(shapes, jax.sharding.get_mesh())
        tree = folders.read_tree(folder, system, "mllm", shapes=shapes, place=place)
        seconds, peak.going = time.monotonic() - begun, False
    placed = checkpoint.nbytes(tree)
    beyond = (peak.bytes - before - placed) / largest
    print(
        f"{len(entries)} tensors, {placed / GIB:.2f} GiB in {seconds:.1f} s; the largest has "
        f"{largest / GIB:.2f} GiB; anonymous memory beyond the parameters at most {beyond:.2f} "
        "of it"
    )
    if beyond > BOUND:
        raise SystemExit(f"error: more than {BOUND}")


def main(words: Sequence[str]) -> None:
    """Writes and reads, or with `read FOLDER` reads alone."""
    if words[:1] == ["read"]:
        read(Path(words[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), int(words[0]) if words else 2)
        done = subprocess.run([sys.executable, "-m", "launch.reading", "read", folder])
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
