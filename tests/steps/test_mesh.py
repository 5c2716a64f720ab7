# SPDX-License-Identifier: Apache-2.0
"""Both GRPO updates on eight devices, parameters and batch cut, end where one device ends."""

import contextlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from tests.steps import small
from thinkgen_jax import sharding
from thinkgen_jax.sampling import flow, sde
from thinkgen_jax.steps import dit_grpo, mllm_grpo
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps.dit_grpo import DitGrpoConfig
from thinkgen_jax.steps.mllm_grpo import MllmGrpoConfig
from thinkgen_jax.steps.state import Learner
from thinkgen_jax.structs import Thoughts, Trajectory

ROWS = 8
SIZES = dict(data=2, fsdp=4)
# Adam divides a gradient by its own size: with the usual eps one of 1e-8, all rounding, would move
# a parameter as far as a real one.
LEARNER = Learner(replace(small.LEARNER.config, eps=1e-4))


def state_of(params, mesh=None):
    state = learning.create(jax.tree.map(jnp.copy, params), LEARNER)
    return state if mesh is None else jax.device_put(state, sharding.infer(state, mesh))


def assert_same(one, other):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def places(mesh):
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def test_mllm_step():
    model, params = small.mllm()
    cfg = MllmGrpoConfig()
    prompt = small.prompt(rows=ROWS)
    mask = (jnp.arange(10)[None] >= 4) & (prompt.segments > 0)
    old = mllm_grpo.make_logprobs(model, cfg)(params, prompt, mask)
    advantage = jnp.linspace(-1.5, 1.5, ROWS)
    data = Thoughts(prompt, mask, old, old + 0.1, advantage)
    ends = []
    for mesh in (None, sharding.make_mesh(**SIZES)):
        with places(mesh):
            step = mllm_grpo.make_step(model, LEARNER, cfg)
            state, metrics = step(state_of(params, mesh), data)
        ends.append((jax.device_get(state.params), jax.device_get(metrics)))
    assert len(state.params["decoder"]["mlp"]["up_proj"]["kernel"].sharding.device_set) == 8
    assert_same(*ends)


def test_dit_step():
    model, params = small.dit()
    cfg = DitGrpoConfig()
    grid, noise = jnp.asarray(flow.times(4, shift=2.0)), jnp.float32(0.7)
    target, condition = small.target(rows=ROWS), small.condition(rows=ROWS)
    args = (target, condition, None, None, grid, 1, noise, jax.random.key(4))
    rolled = sde.rollout(model, params, *args, width=2, kernel=cfg.kernel)
    path = Trajectory(
        latents=rolled.latents,
        times=grid[1:4],
        second=grid[1],
        noise=noise,
        old=rolled.logprobs,
        target=target,
        condition=condition,
        references=None,
        advantages=jnp.linspace(-1.5, 1.5, ROWS),
        weights=jnp.ones(ROWS),
    )
    path = path._replace(old=dit_grpo.make_logprobs(model, cfg)(params, path, None))
    ends = []
    for mesh in (None, sharding.make_mesh(**SIZES)):
        with places(mesh):
            step = dit_grpo.make_step(model, LEARNER, cfg)
            reference = jax.tree.map(lambda x: x + 0.01, params)
            state, metrics = step(state_of(params, mesh), reference, path, None)
        ends.append((jax.device_get(state.params), jax.device_get(metrics)))
    assert len(state.params["layers"]["attn"]["to_q"]["kernel"].sharding.device_set) == 8
    assert_same(*ends)
