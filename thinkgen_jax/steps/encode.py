# SPDX-License-Identifier: Apache-2.0
"""The frozen side of every drawing step: pictures to latent tokens, prompts to conditions.

Training, rollout and inference all condition the DiT through these functions, so they cannot
disagree about what it sees.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from thinkgen_jax import sharding
from thinkgen_jax.models import vgi
from thinkgen_jax.models.mllm import Mllm
from thinkgen_jax.models.packing import grid, pack, unpack
from thinkgen_jax.models.vae import Vae
from thinkgen_jax.sampling.rows import in_parts, rows_first, rows_last
from thinkgen_jax.sharding import shard
from thinkgen_jax.structs import Condition, Key, Packed, Prompt, References, Tree

AT_ONCE = 2**15  # tokens of a frozen pass whose activations exist on a device


@dataclass(frozen=True)
class Encoder:
    """Frozen networks and static lengths that turn a request into what the DiT reads.

    Attributes:
      patch: DiT patch size in latent cells.
      close_id: token behind which the instruction stands.
      max_len: longest instruction in tokens.
    """

    mllm: Mllm | None
    vae: Vae
    patch: int
    close_id: int
    max_len: int

    def condition(self, params: Tree, prompt: Prompt, *, drop_last: bool = False) -> Condition:
        """States behind the marker, from one teacher-forced pass."""

        def read(part: Prompt) -> Condition:
            part = rows_last(part)
            taps = self.mllm.apply({"params": params}, part).taps
            return vgi.refine(
                taps,
                part.ids,
                part.segments,
                close_id=self.close_id,
                max_len=self.max_len,
                drop_last=drop_last,
            )

        found = in_parts(read, rows_first(prompt), pieces(*prompt.ids.shape))
        states = shard(found.states, "rows", None, None)
        return Condition(states, shard(found.segments, "rows", None))

    def pixels_to_tokens(
        self, params: Tree, pixels: UInt8[Array, "B y x 3"], key: Key | None = None
    ) -> Packed:
        """Latent tokens of uint8 pictures: a posterior sample with a key, else its mode."""
        x = to_signed(pixels)
        latents = self.vae.apply({"params": params}, x, key, method="encode")
        return pack(latents, patch=self.patch)

    def references_to_tokens(
        self, params: Tree, references: References | None, key: Key | None = None
    ) -> Packed | None:
        """Tokens of all references of a row, one behind the other; absent ones get segment 0.

        Args:
          key: draws them from the posterior; None takes its mode.
        """
        if references is None:
            return None
        rows, count = references.present.shape
        flat = references.pixels.reshape(rows * count, *references.pixels.shape[2:])
        packed = self.pixels_to_tokens(params, flat, key)
        length = packed.tokens.shape[1]
        number = (jnp.arange(count) + 1)[None] * (references.present > 0)
        return Packed(
            packed.tokens.reshape(rows, count * length, -1),
            packed.positions.reshape(rows, count * length, 2),
            jnp.repeat(number, length, axis=1),
        )

    def tokens_to_pixels(
        self, params: Tree, tokens: Float[Array, "B T C"], *, h: int, w: int
    ) -> Float[Array, "B y x 3"]:
        """Decodes latent tokens of an h x w latent grid to pixels, about [-1, 1]."""
        latents = unpack(tokens, patch=self.patch, h=h, w=w)
        return self.vae.apply({"params": params}, latents, method="decode")


def pieces(rows: int, length: int) -> int:
    """Fewest parts of a batch of which each device reads `AT_ONCE` tokens at most, or one row."""
    ways = sharding.parts(("batch",))
    fitting = (
        n
        for n in range(1, rows + 1)
        if rows % n == 0 and (rows // n * length <= AT_ONCE * ways or rows // n <= ways)
    )
    return next(fitting)


def to_signed(pixels: UInt8[Array, "... 3"]) -> Float[Array, "... 3"]:
    """uint8 to float32 in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(pixels: Float[Array, "... 3"]) -> UInt8[Array, "... 3"]:
    """[-1, 1] to uint8, rounded and clipped."""
    return jnp.clip(jnp.round((pixels + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def blank(rows: int, h: int, w: int, *, patch: int, values: int) -> Packed:
    """Places for `rows` pictures of an h x w latent grid, tokens 0."""
    places = jnp.asarray(grid(h // patch, w // patch), jnp.int32)
    count = places.shape[0]
    return Packed(
        jnp.zeros((rows, count, values), jnp.float32),
        jnp.broadcast_to(places, (rows, count, 2)),
        jnp.ones((rows, count), jnp.int32),
    )
