# SPDX-License-Identifier: Apache-2.0
"""Optimizers that sleep on the host: what lies where, and that nothing is lost by it."""

import gc
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from thinkgen_jax import cache, checkpoint, sharding
from thinkgen_jax.optim import OptimConfig
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps import turns
from thinkgen_jax.steps.state import Learner

LEARNER = Learner(OptimConfig(lr=1e-2, warmup_steps=0, ema_decay=0.9))
MLLM, DIT = 256, 128  # sides of the one kernel of each


def states():
    def one(side):
        params = {"lm_head": {"kernel": jnp.ones((side, side))}}
        where = jax.sharding.get_mesh()
        if not where.empty:
            params = jax.device_put(params, sharding.infer(params, where))
        return learning.create(params, LEARNER)

    return {"mllm": one(MLLM), "dit": one(DIT)}


def on_devices():
    """Bytes of all live arrays that are in the devices' own memory."""
    gc.collect()
    usual = jax.devices()[0].default_memory().kind
    return sum(x.nbytes for x in jax.live_arrays() if x.sharding.memory_kind == usual)


def test_only_the_learning_tree_has_its_optimizer_on_the_devices():
    """Of each: parameters, two moments and an average, all of four bytes a value."""
    before = on_devices()
    with jax.set_mesh(sharding.make_mesh(fsdp=4, tensor=2)):
        found = states()
        mllm, dit = 4 * MLLM**2, 4 * DIT**2
        slack = 1024  # counters
        assert abs(on_devices() - before - 4 * (mllm + dit)) < slack
        for learns, want in (("mllm", 4 * mllm + dit), ("dit", mllm + 4 * dit), ("mllm", None)):
            found = turns.turn(found, learns)
            want = want or 4 * mllm + dit
            assert abs(on_devices() - before - want) < slack
            again = turns.turn(found, learns)
            assert all(a is b for a, b in zip(*map(jax.tree.leaves, (found, again)), strict=True))
            del again  # or what it holds would count
        asleep = jax.tree.leaves((found["dit"].opt_state, found["dit"].ema))
        assert {x.sharding.memory_kind for x in asleep} == {turns.HOST}
        kernel = found["dit"].ema["lm_head"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (DIT // 4, DIT // 2)


def test_taking_turns_builds_no_program_anew():
    def loss(params, part):
        return jnp.sum(params["lm_head"]["kernel"] * part), jnp.float32(1), {}

    @partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        return learning.learn(state, loss, batch, LEARNER)[0]

    counts = []
    with jax.set_mesh(sharding.make_mesh(fsdp=4, tensor=2)):
        found, batch = states(), jnp.ones((1, 1))
        for _ in range(3):
            with cache.Programs() as programs:
                for learns in ("mllm", "dit"):
                    found = turns.turn(found, learns)
                    found[learns] = jax.block_until_ready(step(found[learns], batch))
            counts.append(programs.count)
    assert counts[0] >= 2 and counts[1] <= 2 and counts[2] == 0, counts


def test_a_tree_learns_as_if_it_had_never_slept_and_sleeping_trees_are_committed(tmp_path):
    def loss(params, part):
        return jnp.sum(params["lm_head"]["kernel"] * part), jnp.float32(1), {}

    @jax.jit
    def step(state, batch):
        return learning.learn(state, loss, batch, LEARNER)[0]

    batch = jnp.ones((1, MLLM))
    awake = tired = states()
    for learns in ("dit", "mllm", "mllm"):
        tired = turns.turn(tired, learns)
    for _ in range(2):
        awake = {**awake, "mllm": step(awake["mllm"], batch)}
        tired = {**tired, "mllm": step(tired["mllm"], batch)}
    tired = turns.turn(tired, "dit")
    with checkpoint.Checkpoints(tmp_path) as saves:
        saves.save(1, tired, data={}, meta={})
        saves.wait()
        fresh = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), states()
        )
        read = saves.restore(1, fresh).state
    for got in (turns.turn(tired, "mllm"), read):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(awake), strict=True):
            np.testing.assert_array_equal(a, b)
    assert float(awake["mllm"].opt_state.inner_states["train"].inner_state[1][0].count) == 2
