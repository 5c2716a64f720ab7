# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of group-relative policy optimisation: arrays only, no models.

* Advantages compare a reward with the others of its group; the spread is the group's or the
  batch's.
* The clipped surrogate is per token for text and per denoising step for pictures.

Source: GRPO (token form: EasyR1 defaults); flow_grpo@ac4c86e stat tracking (batch spread).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SCOPES = ("group", "batch")
LOG_RATIO_LIMIT = 20.0  # keeps exp() finite for tokens that drifted far
DUAL_CLIP = 3.0


def advantages(
    rewards: Float[np.ndarray, "B G"], *, scope: str, ddof: int, eps: float
) -> Float[np.ndarray, "B G"]:
    """(r - group mean) / (std + eps), in float64 on the host.

    Args:
      scope: whose standard deviation divides, "group" or "batch".
      ddof: 1 for the sample, 0 for the population deviation.
      eps: added to the deviation; 1e-6 for text, 1e-4 for pictures.

    Raises:
      ValueError: for a group of one, an unknown scope or a reward that is not finite.
    """
    if scope not in SCOPES:
        raise ValueError(f"advantage scope {scope!r} is not one of {SCOPES}")
    if rewards.shape[1] < 2:
        raise ValueError(f"group size {rewards.shape[1]} has no advantage; it must be at least 2")
    if not np.isfinite(rewards).all():
        raise ValueError("a reward is not finite")
    wide = rewards.astype(np.float64)
    mean = wide.mean(axis=1, keepdims=True)
    spread = wide.std(axis=1, keepdims=True, ddof=ddof) if scope == "group" else wide.std(ddof=ddof)
    return ((wide - mean) / (spread + eps)).astype(np.float32)


def surrogate(
    new: Float[Array, "*B"],
    old: Float[Array, "*B"],
    advantage: Float[Array, "*B"],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[Float[Array, "*B"], Float[Array, "*B"], Float[Array, "*B"]]:
    """Negated clipped objective per element.

    Args:
      new, old: log-probabilities; `old` must carry no gradient.
      clip_low, clip_high: the ratio is clipped to [1 - low, 1 + high].
      dual_clip: for negative advantages the loss is at most -dual_clip · advantage.

    Returns:
      (loss, ratio, 1 where clipping took the gradient).
    """
    ratio = jnp.exp(jnp.clip(new - old, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    plain = -ratio * advantage
    clipped = -jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantage
    loss = jnp.maximum(plain, clipped)
    if dual_clip is not None:
        loss = jnp.where(advantage < 0, jnp.minimum(loss, -dual_clip * advantage), loss)
    return loss, ratio, (clipped > plain).astype(jnp.float32)


def kl_estimate(new: Float[Array, "*B"], ref: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Low-variance estimate e^d - d - 1 of KL(new || ref), d = ref - new; never negative."""
    gap = jnp.clip(ref - new, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return jnp.exp(gap) - gap - 1
