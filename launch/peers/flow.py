# SPDX-License-Identifier: Apache-2.0
"""The guided Euler sampler, as the release writes it: two calls of the network a step.

The release runs prompt and negative prompt one after the other and refines the text anew in every
call. One batched call would save nothing on CPU where the batch is large, and pad the shorter text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from launch.peers.dit import Dit, Pictures, Text


def velocity(dit: Dit, target: Pictures, t: Tensor, text: Text, away: Text | None, scale: float):
    """u = negative + scale · (prompt - negative); the negative branch carries no gradient."""
    u = dit(target, t, text)
    if away is None or scale <= 1:
        return u
    with torch.no_grad():
        bare = dit(target, t, away)
    return bare + scale * (u - bare)


@torch.inference_mode()
def sample(
    dit: Dit, target: Pictures, text: Text, away: Text | None, grid: Sequence[float], scale: float
) -> Tensor:
    """Integrates from noise, t = 0, to data, t = 1."""
    x = target.tokens
    for now, after in zip(grid[:-1], grid[1:], strict=True):
        t = x.new_full((x.shape[0],), float(now))
        u = velocity(dit, target._replace(tokens=x), t, text, away, scale)
        x = x + (float(after) - float(now)) * u
    return x
