# SPDX-License-Identifier: Apache-2.0
"""DPM-Solver++ of order 2 (midpoint, multistep) as three weights a step.

A step mixes the latents, the data that the velocity predicts now and those it predicted before:

    x' = w0 · x + w1 · data + w2 · data before,   data = x + (1 - t) · u

* With sigma = 1 - t (noise), alpha = t, lambda = ln(alpha / sigma) and h = lambda' - lambda,
  order 1 is x' = sigma' / sigma · x - alpha' · (exp(-h) - 1) · data; order 2 moves data by half
  of (data - data before) / r, where r is the ratio of the last h to this one.
* At t = 0 lambda is -inf: the first step is of order 1, and the second has 1 / r = 0, as have the
  official numbers. The last step returns the data.

Source: ThinkGen@7388ad5 schedulers (dpmsolver++, midpoint, flow prediction); arXiv 2211.01095.
"""

import numpy as np
from jaxtyping import Float


def weights(grid: Float[np.ndarray, "J1"]) -> Float[np.ndarray, "J 3"]:
    """The three weights of each step, computed in float64.

    Args:
      grid: times from 0 (noise) to 1 (data), rising, see `flow.times`.
    """
    alpha = np.asarray(grid, np.float64)
    sigma = 1 - alpha
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    out = []
    for i in range(len(grid) - 1):
        h = lam[i + 1] - lam[i]
        gain = -alpha[i + 1] * np.expm1(-h)
        first_order = i in (0, len(grid) - 2)
        half = 0.0 if first_order else 0.5 * h / (lam[i] - lam[i - 1])
        out.append((sigma[i + 1] / sigma[i], gain * (1 + half), -gain * half))
    return np.asarray(out, np.float32)
