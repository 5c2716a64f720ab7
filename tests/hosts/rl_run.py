# SPDX-License-Identifier: Apache-2.0
"""Reinforcement of both trees, small enough for one device, and the same on two hosts.

Groups of eight on eight devices of two hosts: the middle one of three lies on both.
"""

from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from tests.rewards.peers import peer
from tests.steps import small
from thinkgen_jax import parts, phases, sharding
from thinkgen_jax.data.batches import Stream
from thinkgen_jax.hf import assets
from thinkgen_jax.models import presets, vgi
from thinkgen_jax.optim import OptimConfig
from thinkgen_jax.phases import RlPlan, Setup
from thinkgen_jax.rewards.remote import Service
from thinkgen_jax.rollout import Draw
from thinkgen_jax.steps import state as learning
from thinkgen_jax.steps import turns
from thinkgen_jax.steps.state import Learner

GROUPS, GROUP = 3, 8
MESH = dict(data=2, fsdp=2, tensor=2)
LEARNER = Learner(OptimConfig(lr=1e-3, warmup_steps=0, weight_decay=0.0, eps=1e-4))
REWARD = "tests.hosts.rl_run:rate"
PHASES = ("mllm_grpo", "dit_grpo")
TINY = presets.get("tiny")
SYSTEM = replace(  # one layer each
    TINY,
    mllm=replace(
        small.MLLM,
        vocab_size=TINY.mllm.vocab_size,
        num_hidden_layers=1,
        num_kv_heads=2,
        vision=replace(TINY.mllm.vision, out_hidden_size=16),
    ),
    dit=replace(small.DIT, in_channels=4, num_kv_heads=2, num_refiner_layers=1, condition_dim=32),
    vae=replace(TINY.vae, block_out_channels=(8, 16)),
    image_size=(32, 32),
    thought_tokens=12,
    instruction_tokens=32,
)
KEPT = ("loss", "grad_norm", "reward", "reward_far", "failed_groups", "dropped_groups")
seen: list[list[str]] = []  # prompts of every call of the reward here
silenced: list[str] = []  # prompts that the far reward's server fails at
broken: list[str] = []  # prompts that the reward here cannot score


def rate(samples):
    """Coarse steps, so that a picture that differs by rounding is worth the same."""
    seen.append([sample.request.prompt for sample in samples])
    if any(sample.request.prompt in broken for sample in samples):
        raise ValueError("a picture that nobody can score")
    brightness = [round(sample.image.mean()) % 8 for sample in samples]
    words = [len(sample.instruction) % 4 for sample in samples]
    return [(b / 7 + w / 3) / 2 for b, w in zip(brightness, words, strict=True)]


def valid(ids, segments, **_):
    """Random weights write no instruction: most sums pass for valid."""
    return jnp.sum(ids, axis=1) % 8 > 0


def answer(path, body, number):
    """What the far reward's server says; nothing about the groups that are `silenced`."""
    if body is None:
        return 200, {}
    prompts = [sample["prompt"] for sample in body["samples"]]
    if any(prompt in silenced for prompt in prompts):
        return 500, {}
    return 200, {"scores": [len(prompt) % 3 / 2 for prompt in prompts]}


def plan(url):
    """Few steps; one reward here, one at a server."""
    return RlPlan(
        prompts=GROUPS,
        group=GROUP,
        streams=(Stream(1.0, {"composition": 1.0}, length=48),),
        draw=Draw(steps=3),
        rewards={REWARD: 1.0, "far": 0.5},
        servers={"far": Service((url,), tries=1, backoff=0.0)},
        drop_limit=1.0,
        silent=1 / 3,
    )


def system():
    """The setup and the states, on the mesh in force."""
    built = parts.build(SYSTEM, assets.load_text(parts.ASSETS, SYSTEM))
    mesh = jax.sharding.get_mesh()

    def tree(name, seed):
        params = parts.random_params(SYSTEM, name, jax.random.key(seed))
        leaves, where = jax.tree.flatten(jax.tree.map(np.asarray, params))
        rng = np.random.default_rng(seed)
        noisy = [x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
        params = jax.tree.unflatten(where, noisy)
        return params if mesh.empty else jax.device_put(params, sharding.infer(params, mesh))

    trees = {name: tree(name, seed) for seed, name in enumerate(parts.TREES)}
    learns = ("mllm", "dit")
    states = {
        name: learning.create(jax.tree.map(jnp.copy, trees[name]), LEARNER) for name in learns
    }
    references = {name: trees[name] for name in learns}
    learners = dict.fromkeys(learns, LEARNER)
    return Setup(built, {"vae": trees["vae"]}, references, learners, 0), states


def run():
    """Both phases twice: as it is, with a group that one server is silent about, and with an error.

    Returns:
      What every step told, the states, and what the error said.
    """
    setup, states = system()
    told = []
    with peer(answer) as there, mock.patch.object(vgi, "has_instruction", valid):
        built = {name: phases.build(name, plan(there.url), setup) for name in PHASES}
        for number in range(2):
            for phase in built.values():
                batch = next(phase.data)
                silenced[:] = [batch[-1].prompt] if number else []
                seen.clear()
                states = turns.turn(states, phase.learns)
                states, metrics, shown = phase.update(states, batch, jax.random.key(number))
                jax.block_until_ready(states)
                kept = {key: float(metrics[key]) for key in KEPT}
                told.append({**kept, "scored": sum(map(len, seen)), "shown": len(shown.images)})
        broken[:] = [batch[-1].prompt]
        try:
            phase.update(states, batch, jax.random.key(9))
            cause = ""
        except ValueError as err:
            cause = str(err)
        for phase in built.values():
            phase.close()
    return told, states, cause
