# SPDX-License-Identifier: Apache-2.0
"""VGI-refine: of all that the MLLM wrote, the DiT obeys only what stands behind `</think>`.

The last two residual streams of the instruction's tokens, before the final norm, are the condition;
the learned prepadding states, which live in the DiT's tree, are put before them inside the DiT.

* Supervised stages and no-think inference put the prompt itself behind an empty thought; thinking
  puts the MLLM's own instruction there. Both pass the same function.
* `embed` is the plain conditioner behind which a DiT is pre-trained before a connector exists.

Source: paper 3.2; ThinkGen@7388ad5 pipelines/pipeline_thinkgen.py (cut rule, think path).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from thinkgen_jax.structs import Condition, Tree


def cut_index(
    ids: Int[Array, "B T"], segments: Int[Array, "B T"], *, close_id: int
) -> Int[Array, "B"]:
    """Index just behind the first `</think>`; 0 where there is none or nothing follows it."""
    valid = segments > 0
    marks = (ids == close_id) & valid
    cut = jnp.argmax(marks, axis=1) + 1
    follows = cut < jnp.sum(valid, axis=1)
    return jnp.where(jnp.any(marks, axis=1) & follows, cut, 0)


def has_instruction(
    ids: Int[Array, "B T"], segments: Int[Array, "B T"], *, close_id: int, drop_last: bool
) -> Bool[Array, "B"]:
    """Whether at least one token with a state stands behind `</think>`."""
    cut = cut_index(ids, segments, close_id=close_id)
    end = jnp.sum(segments > 0, axis=1) - int(drop_last)
    return (cut > 0) & (cut < end)


def refine(
    states: Float[Array, "B T E"],
    ids: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    *,
    close_id: int,
    max_len: int,
    drop_last: bool = False,
) -> Condition:
    """Keeps only the states behind the first `</think>`, left-aligned and right-padded.

    A row without the mark, or with the mark at its end, keeps every state, as the release does; use
    `has_instruction` to tell.

    Args:
      states: HF `hidden_states[-2]` and `[-1]` side by side.
      close_id: token id of `</think>` (151668 in Qwen3).
      max_len: longest instruction in tokens; longer ones are cut at the end.
      drop_last: leave out each row's last token; true for generated text, whose last token the
        release never ran through the model.

    Source: ThinkGen@7388ad5 pipelines/pipeline_thinkgen.py:55-69, 264-291.
    """
    cut = cut_index(ids, segments, close_id=close_id)
    end = jnp.sum(segments > 0, axis=1) - int(drop_last)
    places = cut[:, None] + jnp.arange(max_len)[None]
    kept = (places < end[:, None]).astype(jnp.int32)
    index = jnp.minimum(places, states.shape[1] - 1)
    gathered = jnp.take_along_axis(states, index[..., None], axis=1)
    return Condition(gathered * kept[..., None].astype(states.dtype), kept)


def embed(table: Tree, ids: Int[Array, "B S"], segments: Int[Array, "B S"]) -> Condition:
    """Plain learned text embedding, table {"embedding": [V, E]}; needs no MLLM."""
    return Condition(jnp.take(table["embedding"], ids, axis=0), (segments > 0).astype(jnp.int32))
