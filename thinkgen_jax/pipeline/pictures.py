# SPDX-License-Identifier: Apache-2.0
"""From what was read to pixels: sizes, references, noise, the sampler, the decoder.

* Jobs of one size share a batch; references of any number and size are packed one behind the other.
* Noise comes from each job's own seed: a picture does not depend on its neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from thinkgen_jax.data import images
from thinkgen_jax.models.dit import Dit
from thinkgen_jax.models.packing import pack, pack_ragged, unpack
from thinkgen_jax.models.presets import System
from thinkgen_jax.models.vae import Vae
from thinkgen_jax.parts import Parts
from thinkgen_jax.pipeline import words
from thinkgen_jax.pipeline.settings import (
    Settings,
    bucket,
    chunks,
    condition_room,
    filled,
    reuse_of,
)
from thinkgen_jax.pipeline.words import Reading
from thinkgen_jax.sampling import dpm, flow
from thinkgen_jax.sampling.flow import Guidance
from thinkgen_jax.sampling.reuse import Reuse
from thinkgen_jax.structs import Condition, Packed, Params, Request, Tree

LEAST_WORDS = 32  # shortest padded condition: the DiT pays for every token at every step


@dataclass(frozen=True)
class Job:
    """One picture to draw.

    Attributes:
      reading: what conditions it.
      references: pictures the DiT looks at, in their final size.
      drawn, wanted: (height, width) in which it is drawn and returned.
      seed: of the initial noise.
      notes: what was changed about sizes, one line each.
    """

    reading: Reading
    references: tuple[np.ndarray, ...]
    drawn: tuple[int, int]
    wanted: tuple[int, int]
    seed: int
    notes: tuple[str, ...] = ()


def plan(system: System, request: Request, reading: Reading) -> Job:
    """Settles sizes and references of one picture.

    Without a size, a single reference gives its own; otherwise the system's default holds.
    """
    references = tuple(
        images.fit_reference(
            image,
            max_pixels=system.max_pixels,
            max_side=max(system.image_size),
            multiple=system.multiple,
        )
        for image in request.images
    )
    wanted = request.size
    if wanted is None:
        wanted = references[0].shape[:2] if len(references) == 1 else system.image_size
    drawn = images.draw_size(*wanted, max_pixels=system.max_pixels, multiple=system.multiple)
    notes = [
        f"picture {i} resized from {a.shape[0]}x{a.shape[1]} to {b.shape[0]}x{b.shape[1]}"
        for i, (a, b) in enumerate(zip(request.images, references, strict=True), start=1)
        if a.shape != b.shape
    ]
    if drawn != tuple(wanted):
        notes.append(f"drawn at {drawn[0]}x{drawn[1]}, resized to {wanted[0]}x{wanted[1]}")
    return Job(reading, references, drawn, tuple(wanted), request.seed, tuple(notes))


def paint(
    parts: Parts, params: Params, jobs: Sequence[Job], settings: Settings
) -> list[np.ndarray]:
    """Draws pictures uint8 [height, width, 3], in the order of their jobs."""
    pictures = [image for job in jobs for image in job.references]
    seeds = None
    if parts.system.sample_references:
        seeds = [(job.seed, n) for job in jobs for n in range(len(job.references))]
    encoded = encode(parts, params.vae, pictures, settings, seeds)
    latents, place = [], 0
    for job in jobs:
        latents.append(encoded[place : place + len(job.references)])
        place += len(job.references)
    groups: dict[tuple, list[int]] = {}
    for i, job in enumerate(jobs):
        groups.setdefault((job.drawn, bool(job.references)), []).append(i)
    out: dict[int, np.ndarray] = {}
    for group in groups.values():
        for index in chunks(group, settings.batch):
            chosen, looked = [jobs[i] for i in index], [latents[i] for i in index]
            pixels = _paint_batch(parts, params, chosen, looked, settings)
            for i, picture in zip(index, pixels, strict=False):
                out[i] = images.from_pixels(images.resize_output(picture, jobs[i].wanted))
    return [out[i] for i in range(len(jobs))]


def _paint_batch(
    parts: Parts,
    params: Params,
    jobs: Sequence[Job],
    latents: Sequence[Sequence[np.ndarray]],
    settings: Settings,
) -> np.ndarray:
    """Draws jobs of one size, all with or all without references; float32 [rows, ...]."""
    system, jobs, latents = parts.system, filled(jobs), filled(latents)
    references, image = None, 1.0
    if any(latents):
        patch = system.dit.patch_size
        most = max(sum(x.shape[0] * x.shape[1] for x in row) for row in latents) // patch**2
        packed = [[jnp.asarray(x) for x in row] for row in latents]
        references = pack_ragged(packed, patch=patch, length=bucket(most))
        image = settings.image_guidance
    guidance = Guidance(settings.text_guidance, image, settings.start, settings.end)
    h, w = parts.grid(jobs[0].drawn)
    noise = np.stack([initial_noise(j.seed, (h, w, system.dit.in_channels)) for j in jobs])
    away = None
    if guidance.text > 1:
        away = words.negative(parts, params.mllm, settings.negative)
        away = stack_states([away] * len(jobs), most=condition_room(system))
    grid = flow.times(settings.steps, latent_pixels=h * w, shift=system.shift)
    pixels = draw(
        parts.dit,
        parts.vae,
        params.dit,
        params.vae,
        noise,
        stack_states([job.reading.states for job in jobs], most=condition_room(system)),
        away,
        references,
        grid,
        dpm.weights(grid) if settings.solver == "dpm" else None,
        guidance=guidance,
        how=reuse_of(settings),
    )
    return np.asarray(pixels)


@partial(jax.jit, static_argnames=("dit", "vae", "guidance", "how"))
def draw(
    dit: Dit,
    vae: Vae,
    dit_params: Tree,
    vae_params: Tree,
    noise: Float[Array, "B h w c"],
    condition: Condition,
    away: Condition | None,
    references: Packed | None,
    grid: Float[Array, "J1"],
    weights: Float[Array, "J 3"] | None,
    *,
    guidance: Guidance,
    how: Reuse | None,
) -> Float[Array, "B y x 3"]:
    """From noise to pixels, about [-1, 1], in one program.

    Args:
      condition: what to draw; `away` what guidance points away from, needed for text > 1.
      grid: times from 0 (noise) to 1 (data), see `flow.times`.
      weights, how: other steps than plain Euler ones, see `flow.sample`.
    """
    patch, (h, w) = dit.cfg.patch_size, noise.shape[1:3]
    target = pack(noise, patch=patch)
    tokens = flow.sample(
        dit,
        dit_params,
        target,
        condition,
        away,
        references,
        grid,
        weights,
        guidance=guidance,
        how=how,
    )
    latents = unpack(tokens, patch=patch, h=h, w=w)
    return vae.apply({"params": vae_params}, latents, method="decode")


def encode(
    parts: Parts,
    params: Tree,
    pictures: Sequence[np.ndarray],
    settings: Settings,
    seeds: Sequence[tuple[int, int]] | None = None,
) -> list[np.ndarray]:
    """Latents [h, w, c] of pictures of any sizes.

    Args:
      seeds: of each picture's draw from its posterior; None takes the modes.
    """
    sizes: dict[tuple, list[int]] = {}
    for i, picture in enumerate(pictures):
        sizes.setdefault(picture.shape, []).append(i)
    out: dict[int, np.ndarray] = {}
    for same in sizes.values():
        for index in chunks(same, settings.batch):
            batch = images.to_pixels(np.stack(filled([pictures[i] for i in index])))
            keys = None if seeds is None else _keys(filled([seeds[i] for i in index]))
            found = np.asarray(_encode(parts.vae, params, batch, keys))
            out.update(zip(index, found, strict=False))
    return [out[i] for i in range(len(pictures))]


@partial(jax.jit, static_argnames=("vae",))
def _encode(
    vae: Vae, params: Tree, pixels: Float[Array, "B y x 3"], keys: jax.Array | None
) -> Float[Array, "B h w c"]:
    return vae.apply({"params": params}, pixels, keys, method="encode")


def _keys(seeds: Sequence[tuple[int, int]]) -> jax.Array:
    """A key of its own for each (seed, number of the picture)."""
    return jnp.stack([jax.random.fold_in(jax.random.key(seed), n) for seed, n in seeds])


def initial_noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise float32 of one picture; the same on every machine."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stack_states(rows: Sequence[np.ndarray], *, most: int) -> Condition:
    """Pads condition states [S, E] of a batch, at most `most` long, to one length."""
    length = min(bucket(max(map(len, rows)), LEAST_WORDS), most)
    states = np.zeros((len(rows), length, rows[0].shape[-1]), np.float32)
    segments = np.zeros((len(rows), length), np.int32)
    for b, row in enumerate(rows):
        states[b, : len(row)] = row
        segments[b, : len(row)] = 1
    return Condition(states, segments)
