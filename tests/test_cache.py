# SPDX-License-Identifier: Apache-2.0
"""Compiled programs: kept where the user says, apart by version and processor."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from thinkgen_jax import cache


@pytest.fixture
def _restored():
    """Leaves the other tests with the cache they share."""
    names = ("dir", "min_compile_time_secs", "min_entry_size_bytes")
    keys = ["jax_compilation_cache_dir", *(f"jax_persistent_cache_{n}" for n in names[1:])]
    before = {key: getattr(jax.config, key) for key in keys}
    yield
    for key, value in before.items():
        jax.config.update(key, value)
    compilation_cache.reset_cache()


@pytest.mark.usefixtures("_restored")
def test_small_programs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation_cache.reset_cache()
    path = cache.enable()
    assert path.parent == tmp_path / "thinkgen_jax" and jax.__version__ in path.name
    assert jax.jit(lambda x: 3 * x + 1)(jnp.float32(2)) == 7
    assert any(path.iterdir())


def test_processors_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(cache, "CPUINFO", info)
    names = []
    for flags in ("avx2", "avx512f", "avx2"):
        info.write_text(f"processor : 0\nflags : {flags}\ncpu MHz : {len(names)}\n")
        names.append(cache.folder().name)
    assert names[0] == names[2] != names[1]


def test_an_unwritable_place_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache.enable() is None


def test_programs_are_counted_once_a_shape():
    f = jax.jit(lambda x: 5 * x + 7)
    short, long = jnp.ones(3), jnp.ones(4)
    with cache.Programs() as programs:
        for x in (short, short, long, short):
            f(x)
        assert programs.count == 2
    f(jnp.ones(5))
    assert programs.count == 2
