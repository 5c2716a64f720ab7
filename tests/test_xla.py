# SPDX-License-Identifier: Apache-2.0
"""What compilers are told: a TPU's run what `compile` reckoned with, and nothing elsewhere."""

from types import SimpleNamespace

import pytest

from thinkgen_jax import xla


@pytest.fixture
def environment(monkeypatch):
    """As on a TPU VM: libtpu is there, and jax may use it."""
    monkeypatch.setattr(xla.importlib.util, "find_spec", lambda name: name == "libtpu")
    hold_to(monkeypatch, None)
    monkeypatch.delenv(xla.ARGS, raising=False)
    monkeypatch.delenv(xla.KIND, raising=False)
    return monkeypatch


def hold_to(monkeypatch, platforms):
    config = SimpleNamespace(jax_platforms=platforms)
    monkeypatch.setattr(xla, "jax", SimpleNamespace(config=config))


def told() -> list[str]:
    return xla.os.environ.get(xla.ARGS, "").split()


def test_a_run_is_told_what_compile_tells(environment):
    xla.tell()
    assert told() == [f"--{name}={value}" for name, value in xla.OVERLAP.items()]


def test_what_a_user_says_comes_last(environment):
    environment.setenv(xla.ARGS, "--xla_enable_async_all_gather=false")
    xla.tell()
    assert told()[-1] == "--xla_enable_async_all_gather=false"
    assert "--xla_enable_async_all_gather=true" in told()[:-1]


def test_tpu7x_needs_more(environment):
    environment.setenv(xla.KIND, "tpu7x-32")
    xla.tell()
    assert told()[len(xla.OVERLAP) :] == [
        "--xla_tpu_enable_sparse_core_collective_offload_all_reduce=false"
    ]


@pytest.mark.parametrize("platforms", ["cpu", "cuda,cpu"])
def test_other_platforms_are_told_nothing(environment, platforms):
    hold_to(environment, platforms)
    xla.tell()
    assert told() == []


def test_without_libtpu_nothing_is_told(environment):
    environment.setattr(xla.importlib.util, "find_spec", lambda name: None)
    xla.tell()
    assert told() == []
