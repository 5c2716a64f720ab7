# SPDX-License-Identifier: Apache-2.0
"""DPM-Solver++ against official numbers and closed forms."""

import numpy as np
import pytest

from tests.golden import assert_golden, cases
from thinkgen_jax.sampling import dpm, flow

SCHEDULE, _ = cases("scheduler")


@pytest.mark.parametrize("key", [k for k in SCHEDULE if k.startswith("sigmas.")])
def test_noise_levels_equal_official(key):
    _, steps, tokens = key.split(".")
    grid = flow.times(int(steps), latent_pixels=None if tokens == "None" else int(tokens))
    assert_golden("scheduler", key, 1 - grid)


def test_constant_data_are_reached_from_anywhere():
    """Where the data never change, x stays on the straight line from the noise to them."""
    grid = flow.times(7, latent_pixels=1024)
    for t, after, (w0, w1, w2) in zip(grid[:-1], grid[1:], dpm.weights(grid), strict=True):
        noise, data = 2.0, -3.0
        x = t * data + (1 - t) * noise
        got = w0 * x + (w1 + w2) * data
        assert got == pytest.approx(after * data + (1 - after) * noise, abs=1e-5)


def test_first_and_last_steps_look_at_the_present_alone():
    w = dpm.weights(flow.times(6, latent_pixels=1024))
    assert not w[[0, 1, -1], 2].any() and w[2:-1, 2].all()
    np.testing.assert_allclose(w[-1], [0, 1, 0], atol=1e-7)
