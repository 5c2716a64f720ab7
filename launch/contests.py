# SPDX-License-Identifier: Apache-2.0
"""The networks beside PyTorch's: one forward, guided sampling, writing, painting.

Each row checks first that both sides give the same numbers, then times them in pairs.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from launch import measure
from launch.peers import dit as peer_dit
from launch.peers import flow as peer_flow
from launch.peers import models
from thinkgen_jax import parts
from thinkgen_jax.data import prompts
from thinkgen_jax.hf import assets
from thinkgen_jax.models import presets
from thinkgen_jax.models.dit import Dit
from thinkgen_jax.parts import Parts
from thinkgen_jax.pipeline.pictures import stack_states
from thinkgen_jax.sampling import decode, flow
from thinkgen_jax.sampling.flow import Guidance
from thinkgen_jax.steps.encode import blank
from thinkgen_jax.structs import Condition, Packed, Params, Tree

# Float32 on both sides, sums in another order: a few units in the last place of values near 1,
# grown by the depth of the network or the number of steps.
FORWARD_ATOL = 2e-4
SAMPLE_ATOL = 5e-3
PIXELS_ATOL = 1e-3
SPREAD = 0.02  # what is added to fresh weights, so that gates and heads that start at 0 count
COMPILERS = ("g++", "clang++", "c++")
ENDS = 0.03  # share of the end mark in what random weights write
WORDS = "a red circle left of a blue square"


class Outcome(NamedTuple):
    """What a row found."""

    pairs: list[measure.Pair]
    agreed: list[str]
    more: dict[str, Any]  # numbers that belong to the row


@lru_cache(maxsize=1)
def ours_of(size: str) -> tuple[Parts, Params]:
    """A system and its parameters: the shipped weights for nano, random ones else."""
    if size == presets.NANO.name:
        system = assets.load_system(parts.ASSETS)
        trees = {
            name: assets.load_tree(parts.ASSETS, system, name, shapes=parts.shapes(system, name))
            for name in parts.TREES
        }
    else:
        system = presets.get(size)
        trees = {name: random(system, name) for name in parts.TREES}
    built = parts.build(system, assets.load_text(parts.ASSETS, system))
    if size != presets.NANO.name:
        trees["mllm"] = with_ends(built, trees["mllm"])
    return built, Params(**jax.tree.map(jnp.asarray, trees))


def random(system: presets.System, name: str) -> Tree:
    """Fresh parameters of a tree, every one moved a little."""
    number = parts.TREES.index(name)
    leaves, tree = jax.tree.flatten(parts.random_params(system, name, jax.random.key(number)))
    keys = jax.random.split(jax.random.key(100 + number), len(leaves))
    moved = [x + SPREAD * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def with_ends(built: Parts, mllm: Tree) -> Tree:
    """The MLLM with a likely end mark: else random thoughts would hardly ever end.

    The mark's row of the head points along the mean state of a prompt, long enough to give it the
    share `ENDS` of the probability there.
    """
    ids = built.text.think(WORDS)
    prompt = jax.tree.map(jnp.asarray, prompts.assemble([ids], length=len(ids)))
    hidden = built.mllm.apply({"params": mllm}, prompt).hidden
    mean = built.mllm.apply({"params": mllm}, hidden, method="normed")[0].mean(axis=0)
    row = mean * (math.log(ENDS * built.system.mllm.vocab_size) / jnp.sum(jnp.square(mean)))
    if "lm_head" in mllm:
        kernel = mllm["lm_head"]["kernel"].at[:, built.text.close_id].set(row)
        return {**mllm, "lm_head": {"kernel": kernel}}
    table = mllm["embed_tokens"]["embedding"].at[built.text.close_id].set(row)
    return {**mllm, "embed_tokens": {"embedding": table}}


def noise_of(built: Parts, rows: int) -> Packed:
    """Places of a batch of pictures with initial noise in them."""
    cfg, (h, w) = built.system.dit, built.grid()
    places = blank(rows, h, w, patch=cfg.patch_size, values=cfg.token_dim)
    return places._replace(tokens=jax.random.normal(jax.random.key(7), places.tokens.shape))


def words_of(built: Parts, params: Params, text: str, rows: int) -> Condition:
    """A prompt's condition as the pipeline pads it."""
    ids = built.text.pseudo(text)
    prompt = prompts.assemble([ids], length=len(ids))
    found = jax.jit(built.encoder.condition)(params.mllm, prompt)
    states = np.asarray(found.states[0])[np.asarray(found.segments[0]) > 0]
    padded = stack_states([states] * rows, most=built.system.instruction_tokens)
    return jax.tree.map(jnp.asarray, padded)


def _both(ours: Callable, theirs: Callable, how: Mapping, count: int) -> list[measure.Pair]:
    return measure.pairs(ours, theirs, count, repeat=how.get("repeat", 1))


def forward(size: str, how: Mapping, count: int) -> Outcome:
    """One forward pass of the DiT, text refiner included."""
    built, params = ours_of(size)
    model, rows = Dit(built.system.dit), how["batch"]
    target, t = noise_of(built, rows), jnp.full((rows,), 0.3)
    shape = (rows, how["words"], built.system.dit.condition_dim)
    states = jax.random.normal(jax.random.key(8), shape)
    condition = Condition(states, jnp.ones(shape[:2], jnp.int32))
    apply = jax.jit(model.apply)

    def ours() -> jax.Array:
        return apply({"params": params.dit}, target, t, condition).block_until_ready()

    if how["compiled"] and not any(map(shutil.which, COMPILERS)):
        raise ValueError(f"torch.compile needs a C++ compiler, one of {COMPILERS}")
    eager = peer_dit.of_tree(built.system.dit, params.dit).eval()
    net = torch.compile(eager) if how["compiled"] else eager
    given = models.pictures_of(target), models.tensor(t), models.text_of(condition)

    def theirs() -> torch.Tensor:
        with torch.inference_mode():
            return net(*given)

    agreed = [measure.agree("velocity", measure.gap(ours(), theirs()), FORWARD_ATOL)]
    tokens = target.tokens.shape[1] + how["words"] + built.system.dit.num_prepad
    return Outcome(_both(ours, theirs, how, count), agreed, {"tokens": tokens})


def sampling(size: str, how: Mapping, count: int) -> Outcome:
    """Guided Euler sampling from noise to latents."""
    built, params = ours_of(size)
    model, rows = Dit(built.system.dit), how["batch"]
    target = noise_of(built, rows)
    condition = words_of(built, params, WORDS, rows)
    away = words_of(built, params, built.system.negative_prompt, rows)
    h, w = built.grid()
    grid = flow.times(how["steps"], latent_pixels=h * w, shift=built.system.shift)
    guidance = Guidance(text=built.system.text_guidance)

    def ours() -> jax.Array:
        return flow.sample(
            model,
            params.dit,
            target,
            condition,
            away,
            None,
            jnp.asarray(grid),
            guidance=guidance,
        ).block_until_ready()

    net = peer_dit.of_tree(built.system.dit, params.dit).eval()
    given = models.pictures_of(target), models.text_of(condition), models.text_of(away)

    def theirs() -> torch.Tensor:
        return peer_flow.sample(net, *given, grid.tolist(), guidance.text)

    agreed = [measure.agree("latents", measure.gap(ours(), theirs()), SAMPLE_ATOL)]
    words = [int(np.asarray(c.segments).sum(axis=1).max()) for c in (condition, away)]
    more = {"words": words, "padded": condition.states.shape[1]}
    return Outcome(_both(ours, theirs, how, count), agreed, more)


def writing(size: str, how: Mapping, count: int) -> Outcome:
    """Greedy decoding of a group behind one prompt, to a fixed number of tokens."""
    built, params = ours_of(size)
    ids, group, new = built.text.think(WORDS), how["group"], how["tokens"]
    prompt = jax.tree.map(jnp.asarray, prompts.assemble([ids], length=len(ids)))

    def ours() -> jax.Array:
        return decode.sample(
            built.mllm,
            params.mllm,
            prompt,
            jax.random.key(0),
            max_new_tokens=new,
            stop_id=-1,
            temperature=0.0,
            group=group,
        ).ids.block_until_ready()

    net = models.mllm_of(built.system, params.mllm)
    net.generation_config.eos_token_id = None
    given = torch.tensor([ids] * group)
    mask = torch.ones_like(given)

    def theirs() -> torch.Tensor:
        with torch.inference_mode():
            return net.generate(
                input_ids=given,
                attention_mask=mask,
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )[:, len(ids) :]

    agreed = [measure.agree("tokens that differ", differing(ours(), theirs()), 0)]
    return Outcome(_both(ours, theirs, how, count), agreed, {"prompt": len(ids)})


def differing(ours: object, theirs: object) -> int:
    """Number of tokens that differ, all of them if the shapes do."""
    a, b = np.asarray(ours), np.asarray(theirs)
    return int((a != b).sum()) if a.shape == b.shape else max(a.size, b.size)


def painting(size: str, how: Mapping, count: int) -> Outcome:
    """Decoding of latents to pixels."""
    built, params = ours_of(size)
    (h, w), cfg = built.grid(), built.system.vae
    latents = jax.random.normal(jax.random.key(9), (how["batch"], h, w, cfg.latent_channels))
    decode_ = jax.jit(lambda tree, x: built.vae.apply({"params": tree}, x, method="decode"))

    def ours() -> jax.Array:
        return decode_(params.vae, latents).block_until_ready()

    net = models.vae_of(built.system, params.vae)
    given = models.tensor(latents).permute(0, 3, 1, 2)  # channels-last in memory, as the network

    def theirs() -> torch.Tensor:
        with torch.inference_mode():
            return net.decode(given / cfg.scaling_factor + cfg.shift_factor).sample

    seen = theirs().permute(0, 2, 3, 1)
    agreed = [measure.agree("pixels", measure.gap(ours(), seen), PIXELS_ATOL)]
    return Outcome(_both(ours, theirs, how, count), agreed, {})
