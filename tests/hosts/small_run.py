# SPDX-License-Identifier: Apache-2.0
"""A small MLLM-GRPO update that one device, eight devices or two hosts can take."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.steps import small
from thinkgen_jax import sharding
from thinkgen_jax.steps import mllm_grpo
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps.mllm_grpo import MllmGrpoConfig
from thinkgen_jax.structs import Thoughts

ROWS, STEPS = 8, 3


def begin(mesh=None):
    """The state, the update, and the batch as host arrays."""
    model, params = small.mllm()
    params = jax.tree.map(np.asarray, params)
    if mesh is not None:
        params = jax.device_put(params, sharding.infer(params, mesh))
    state = learning.create(jax.tree.map(jnp.copy, params), small.LEARNER)
    prompt = jax.tree.map(np.asarray, small.prompt(rows=ROWS))
    mask = (np.arange(10)[None] >= 4) & (prompt.segments > 0)
    old = np.where(mask, -3.0, 0.0).astype(np.float32)
    advantage = np.linspace(-1.5, 1.5, ROWS, dtype=np.float32)
    batch = Thoughts(prompt, mask, old, old + np.float32(0.1), advantage)
    return state, mllm_grpo.make_step(model, small.LEARNER, MllmGrpoConfig()), batch
