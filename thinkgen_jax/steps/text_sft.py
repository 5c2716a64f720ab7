# SPDX-License-Identifier: Apache-2.0
"""Supervised next-token learning: what gives a small MLLM its manners, with or without pictures.

The loss is cross-entropy summed over the weighted tokens of the global batch and divided by the sum
of their weights. Log-probabilities come from the function that reinforcement uses.
"""

from functools import partial

import jax
import jax.numpy as jnp

from thinkgen_jax.models.mllm import Mllm
from thinkgen_jax.sampling import decode
from thinkgen_jax.sampling.rows import rows_first, rows_last
from thinkgen_jax.steps.state import Learner, full, learn
from thinkgen_jax.structs import TextBatch, TrainState, Tree


def make_step(mllm: Mllm, learner: Learner):
    """Builds the jitted, donating update (state, batch, base) -> (state, metrics).

    `base` is the frozen tree below adapters, see `state.Learner`.
    """

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: TextBatch, base: Tree | None = None):
        def loss(params: Tree, part):
            prompt, weights = rows_last(part[0]), part[1]
            logprobs = decode.logprobs(mllm, full(params, base, learner), prompt)
            count = jnp.sum(weights)
            return -jnp.sum(logprobs * weights), count, {}

        return learn(state, loss, (rows_first(batch.prompt), batch.weights), learner)

    return step
