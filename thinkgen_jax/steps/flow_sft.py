# SPDX-License-Identifier: Apache-2.0
"""Supervised flow matching: align, pretrain and finetune, and the DiT's preparation.

x_t = t · data + (1 - t) · noise, target u = data - noise, squared error summed over all latent
elements of the global batch and divided by their number: large pictures weigh more, as in the
release.

* The MLLM is frozen; its states behind an empty thought, or a written one, are the condition.
* Before a connector exists (`text_embed` in the tree) a plain learned text embedding conditions.

Source: OmniGen2 training code (loss, time sampling); stages: paper 4.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from thinkgen_jax.models import vgi
from thinkgen_jax.models.dit import Dit
from thinkgen_jax.sampling import flow
from thinkgen_jax.steps.encode import Encoder
from thinkgen_jax.steps.state import Learner, full, learn
from thinkgen_jax.structs import Condition, EncodedBatch, FlowBatch, Key, Packed, TrainState, Tree

EMBED = "text_embed"  # subtree of the plain conditioner
Batch = FlowBatch | EncodedBatch


def matching_loss(
    dit: Dit,
    params: Tree,
    target: Packed,
    condition: Condition,
    references: Packed | None,
    t,
    noise,
) -> tuple[jax.Array, jax.Array]:
    """Sum of squared velocity errors over the valid latent elements, and their number."""
    time = t[:, None, None]
    x = time * target.tokens + (1 - time) * noise
    u = dit.apply({"params": params}, target._replace(tokens=x), t, condition, references)
    mask = (target.segments > 0)[..., None].astype(jnp.float32)
    error = jnp.square(u.astype(jnp.float32) - (target.tokens - noise)) * mask
    return jnp.sum(error), jnp.sum(mask) * target.tokens.shape[-1]


def encode(
    encoder: Encoder,
    frozen: Tree,
    batch: FlowBatch,
    key: Key | None = None,
    *,
    frame: int = 0,
    words: bool = True,
) -> EncodedBatch:
    """What the frozen networks make of a batch; without `words` its condition is None.

    Args:
      key: draws latents from the posterior, as the release trains; None takes its mode.
    """
    keys = (None, None) if key is None else jax.random.split(key)
    target = encoder.pixels_to_tokens(frozen["vae"], batch.pixels, keys[0])
    references = encoder.references_to_tokens(frozen["vae"], batch.references, keys[1])
    short = shortened(encoder, batch.prompt.ids.shape[1], frame=frame)
    condition = short.condition(frozen["mllm"], batch.prompt) if words else None
    return EncodedBatch(target, condition, references)


def shortened(encoder: Encoder, length: int, *, frame: int) -> Encoder:
    """The encoder with no more room for words than rows of `length` tokens have.

    The pseudo-CoT form says everything twice: behind the marker stands half of the words, and less
    behind a thought. A row without words keeps its whole frame of `frame` tokens.
    """
    return replace(encoder, max_len=min(encoder.max_len, max(frame, (length - frame) // 2)))


def make_step(
    dit: Dit,
    encoder: Encoder,
    learner: Learner,
    *,
    shift: float | None,
    draws: int = 1,
    frame: int = 0,
    tokens: float | None = None,
    sample: bool = False,
):
    """Builds the jitted, donating update (state, frozen, batch, key, base) -> (state, metrics).

    `frozen` is {"mllm": params or None, "vae": params}; the state's tree is the DiT's, with a
    `text_embed` beside it where the plain conditioner is in use. Every picture is learned at
    `draws` times, each with its own noise: the frozen networks run once for all of them. `frame` is
    the number of tokens of a row without words.

    With `sample` latents are drawn from the posterior anew each time, as the release does. A batch
    may come encoded; then neither `frozen` nor `sample` is read. For `base` see `state.Learner`.

    Batches of different sizes come one after the other; `tokens`, the mean number of target tokens
    of a picture over all of them, makes their gradients add up as if they were one batch: each is
    divided by the mean number of latent elements instead of its own. The metric `error` is then
    what `loss` is without: the mean over the batch's own elements.
    """

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, frozen: Tree, batch: Batch, key: Key, base: Tree | None = None):
        text = None
        if isinstance(batch, EncodedBatch):
            target, condition, references = batch
        else:
            plain = EMBED in state.params
            how = dict(frame=frame, words=not plain)
            key, drawn = jax.random.split(key) if sample else (key, None)
            found = encode(encoder, frozen, batch, drawn, **how)
            target, condition, references = found
            text = (batch.prompt.ids, batch.prompt.segments) if plain else None
        target, condition, references, text = jax.tree.map(
            lambda x: jnp.repeat(x, draws, axis=0), (target, condition, references, text)
        )
        rows, own = target.tokens.shape[:2]
        time_key, noise_key = jax.random.split(key)
        t = flow.training_times(time_key, rows, tokens=own, shift=shift)
        noise = jax.random.normal(noise_key, target.tokens.shape)

        def loss(params: Tree, part: Tree):
            target, condition, references, t, noise, text = part
            if text is not None:
                condition = vgi.embed(params[EMBED], *text)
            params = {k: v for k, v in full(params, base, learner).items() if k != EMBED}
            total, count = matching_loss(dit, params, target, condition, references, t, noise)
            if tokens is None:
                return total, count, {}
            return total * (own / tokens), count, {"error": total}

        return learn(state, loss, (target, condition, references, t, noise, text), learner)

    return step
