# SPDX-License-Identifier: Apache-2.0
"""Every test sees one machine: eight simulated CPU devices, exact products, one cache a run."""

import gc
import os
import tempfile
from types import SimpleNamespace

import jax
import pytest

from thinkgen_jax import cache, cli

# Compiled programs and font lists of a test run must neither come from nor go to the user's cache.
# The workers of a run share them, and inherit where they are.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="thinkgen_jax_tests_")
    os.environ["XDG_CACHE_HOME"] = _CACHE.name
    os.environ["MPLCONFIGDIR"] = os.path.join(_CACHE.name, "matplotlib")

# Compiling is what the suite spends its time on. Without optimization, in one piece and by the
# older emitters, which jax 0.11 no longer has, it takes a third of the time. An environment that
# says how far to optimize has none of it.
_QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):
    _QUICK += " --xla_cpu_use_fusion_emitters=false"

if "JAX_PLATFORMS" not in os.environ:  # name a platform to run the tests marked `device`
    if "optimization_level" not in (flags := os.environ.get("XLA_FLAGS", "")):
        os.environ["XLA_FLAGS"] = f"{_QUICK} {flags}".strip()
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
cache.enable()


# Files whose few tests take minutes: begun last, they would keep one worker while the others idle.
LONG = ("test_hosts.py", "test_recipes.py", "test_served.py", "test_compile.py", "test_main_job.py")


def pytest_collection_finish():
    """Collecting garbage took a twentieth of the time: nothing of what is imported ever is any."""
    gc.collect()
    cli.collect_rarely()


def pytest_collection_modifyitems(items):
    """Long files first; skips tests marked `device` where there is only a CPU."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    if jax.default_backend() == "cpu":
        for item in items:
            if item.get_closest_marker("device"):
                item.add_marker(pytest.mark.skip(reason="needs an accelerator"))


@pytest.fixture(scope="session")
def golden():
    """Loads a golden fixture by its stem: `arrays`, `info` (its JSON), `check(key, got)`."""
    from tests.golden import assert_golden, cases

    def load(stem: str) -> SimpleNamespace:
        arrays, info = cases(stem)
        return SimpleNamespace(
            arrays=arrays, info=info, check=lambda key, got: assert_golden(stem, key, got)
        )

    return load
