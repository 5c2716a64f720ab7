# SPDX-License-Identifier: Apache-2.0
"""Compiled programs kept between processes, so that only the first one on a machine compiles.

They lie in the user's cache folder, apart by version of jax and by the processor's features: a
program compiled for another processor is never run. `Programs` counts what was built, so that a
run shows that its steps meet no new shapes.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax

CPUINFO = Path("/proc/cpuinfo")


def folder() -> Path:
    """Where this machine's compiled programs lie: `$XDG_CACHE_HOME/thinkgen_jax/<key>`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "thinkgen_jax" / f"jax-{jax.__version__}-{_features()}"


def enable() -> Path | None:
    """Turns the cache on, for programs of every size; None where its folder cannot be made."""
    path = folder()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # a run without a cache is slow at first, not wrong
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return path


class Programs:
    """Counts the programs that this process has built since, compiled or read from the cache."""

    EVENT = "/jax/core/compile/backend_compile_duration"

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._see)

    def __enter__(self) -> "Programs":
        return self

    def __exit__(self, *_) -> None:
        jax.monitoring.unregister_event_duration_listener(self._see)

    def _see(self, event: str, *_, **__) -> None:
        self.count += event == self.EVENT


def _features() -> str:
    """Short name of the processor's kind and features."""
    text = platform.machine() + platform.processor()
    if CPUINFO.is_file():
        lines = CPUINFO.read_text(errors="replace").splitlines()
        names = ("flags", "Features", "model name", "CPU part")
        text += "".join(sorted({line for line in lines if line.startswith(names)}))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
