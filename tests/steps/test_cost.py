# SPDX-License-Identifier: Apache-2.0
"""Forwards by formula, against published counts and against the rows that a rollout computes."""

import jax
import jax.numpy as jnp
import pytest

from tests.steps import small
from thinkgen_jax.sampling import flow, sde
from thinkgen_jax.sampling.flow import Guidance
from thinkgen_jax.steps.cost import path_forwards

DEFAULT = dict(
    steps=10,
    begin=0,
    trained=9,
    group=24,
    shared=False,
    passes=2,
    inner=1,
    reference=True,
    recompute=True,
)


def test_default_of_flow_grpo():
    """20 in the rollout, 18 old, 9 · (2 + 2) learned, 18 of the reference."""
    assert path_forwards(**DEFAULT) == 20 + 18 + 36 + 18


def test_fast_recipe():
    """Window of 2 behind 2.5 shared steps, no guidance, nothing computed twice."""
    fast = dict(begin=2.5, trained=2, shared=True, passes=1, reference=False, recompute=False)
    assert path_forwards(**DEFAULT | fast) == pytest.approx(7.5 + 2.5 / 24 + 2 * 3)


@pytest.mark.parametrize("text", [1.0, 3.0])
def test_rollout_computes_as_many_rows_as_are_counted(text, monkeypatch):
    model, params = small.dit()
    rows, denoise = [], type(model).denoise

    def counted(self, target, *args, **kwargs):
        jax.debug.callback(lambda: rows.append(target.tokens.shape[0]))
        return denoise(self, target, *args, **kwargs)

    monkeypatch.setattr(type(model), "denoise", counted)
    jax.clear_caches()
    grid, guidance = jnp.asarray(flow.times(5)), Guidance(text=text)
    negative = small.condition(rows=1, seed=9) if text > 1 else None
    args = (small.target(rows=2), small.condition(rows=2), negative, None, grid, jnp.int32(2), 0.7)
    out = sde.rollout(model, params, *args, jax.random.key(0), width=2, group=4, guidance=guidance)
    jax.block_until_ready(out)
    jax.effects_barrier()
    none = dict(trained=0, inner=1, reference=False, recompute=False)
    passes = guidance.passes(0, 1, False)
    want = path_forwards(steps=5, begin=2, group=4, shared=True, passes=passes, **none)
    assert sum(rows) / 8 == want == passes * (3 + 2 / 4)
    jax.clear_caches()
