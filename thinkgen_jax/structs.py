# SPDX-License-Identifier: Apache-2.0
"""The records that travel between floors: the vocabulary of the repository.

Letters in shapes mean the same everywhere:
  B batch · T query or text length · S key length · D MLLM width · E condition width (2 D, two
  tapped layers) · W DiT width · N heads · K key/value heads · H head dim · F feed-forward width · V
  vocabulary · L layers · P patches · R reference images · G group size · J denoising steps · h w
  latent grid · c latent channels · C values of one DiT token (patch · patch · c).

Host records are frozen dataclasses of numpy arrays and are never traced. Device records are
NamedTuples of arrays: pytrees that can be jitted, donated and saved. Conventions: pictures are
NHWC, uint8 on the host and float32 in [-1, 1] on the device; flow time runs from 0 (noise) to 1
(data); latents are always shifted and scaled; segments are 0 at padding.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

Tree = Any  # nested dicts of arrays
Key = jax.Array


# --- host ---


@dataclass(frozen=True)
class Request:
    """One thing a user asks for.

    Attributes:
      prompt: what the user says.
      images: reference pictures, uint8 [height, width, 3] each, at most five.
      task: "draw" (text-to-image, editing, in-context: by the number of images), "reflect" or
        "understand".
      think: whether the MLLM reasons before it draws.
      size: (height, width) of the answer in pixels; None takes the model's default or, with exactly
        one image, that image's size.
      seed: seed of the sampled thought and of the initial noise.
      meta: anything a benchmark wants to find again beside the result.
    """

    prompt: str
    images: tuple[np.ndarray, ...] = ()
    task: str = "draw"
    think: bool = False
    size: tuple[int, int] | None = None
    seed: int = 0
    meta: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What came of a request.

    Attributes:
      image: uint8 [height, width, 3], None for understanding.
      thought: text between the think marks, "" without thinking.
      instruction: text that conditioned the DiT.
      text: the MLLM's whole response, special tokens kept.
      warning: "" or one line, e.g. that the response had no `</think>`.
      valid: False where a response has no `</think>` or nothing after it.
    """

    image: np.ndarray | None
    thought: str
    instruction: str
    text: str = ""
    warning: str = ""
    valid: bool = True


@dataclass(frozen=True)
class Sample:
    """One rollout as a reward sees it: the request, what was written and what was drawn.

    `valid` is False where the response has no `</think>` or nothing after it; `here` is False where
    another host has the picture, and this one neither picture nor words.
    """

    request: Request
    instruction: str
    image: np.ndarray | None
    valid: bool = True
    here: bool = True


# --- device ---


class Patches(NamedTuple):
    """Pictures of a batch cut for the vision tower, padded to P patches a row.

    `slots` gives for each merged token (merge² patches) the place in the prompt it fills; places
    past the prompt's end are dropped.
    """

    pixels: Float[Array, "B P X"]  # X = channels · temporal · patch · patch values in [-1, 1]
    positions: Int[Array, "B P 2"]  # (row, column) in patches
    grids: Int[Array, "B P 2"]  # (rows, columns) of the picture the patch belongs to
    segments: Int[Array, "B P"]  # number of the picture in its row from 1, 0 at padding
    slots: Int[Array, "B M"]  # M = P / merge²; >= T at padding


class Prompt(NamedTuple):
    """Token ids of a batch, right-padded, with their rotary positions and pictures."""

    ids: Int[Array, "B T"]
    segments: Int[Array, "B T"]  # 1 at tokens, 0 at padding
    positions: Int[Array, "3 B T"]  # (time, row, column)
    patches: Patches | None = None


class Decoded(NamedTuple):
    """What decoding wrote after the prompt; padding behind the end token."""

    ids: Int[Array, "B T"]
    segments: Int[Array, "B T"]  # 1 up to and including the end token
    stopped: Bool[Array, "B"]  # whether the end token was written


class Condition(NamedTuple):
    """The states the DiT obeys, right-padded."""

    states: Float[Array, "B S E"]
    segments: Int[Array, "B S"]


class Packed(NamedTuple):
    """Latents cut into DiT tokens: targets of any size, or references one behind the other.

    For references `segments` is the number of the picture in its row from 1 (at most 5), for
    targets 1; 0 at padding.
    """

    tokens: Float[Array, "B T C"]
    positions: Int[Array, "B T 2"]  # (row, column) in the picture's token grid
    segments: Int[Array, "B T"]


class References(NamedTuple):
    """Reference pictures of a batch, all of one size; `present` is 0 where a row has fewer."""

    pixels: UInt8[Array, "B R y x 3"]
    present: Int[Array, "B R"]


class FlowBatch(NamedTuple):
    """One supervised flow-matching batch: the pseudo-CoT rows, what to draw, what to look at."""

    prompt: Prompt
    pixels: UInt8[Array, "B y x 3"]
    references: References | None


class EncodedBatch(NamedTuple):
    """A flow-matching batch whose frozen networks have run already; see `precompute.py`."""

    target: Packed
    condition: Condition | None  # None where a learned text embedding conditions
    references: Packed | None


class TextBatch(NamedTuple):
    """One supervised next-token batch; `weights` > 0 where a token is to be learnt."""

    prompt: Prompt
    weights: Float[Array, "B T"]


class Thoughts(NamedTuple):
    """Sampled responses of an MLLM-GRPO update; `prompt` holds prompt and response in one row."""

    prompt: Prompt
    mask: Bool[Array, "B T"]  # True at response tokens, the end token included
    old: Float[Array, "B T"]  # log-probabilities under the policy that sampled
    ref: Float[Array, "B T"] | None  # under the reference, None without a KL term
    advantages: Float[Array, "B"]


class Trajectory(NamedTuple):
    """The trained steps of sampled denoising paths, J of them in a row."""

    latents: Float[Array, "J1 B T C"]  # J1 = J + 1 states: before the first step and behind each
    times: Float[Array, "J1"]
    second: Float[Array, ""]  # second time of the whole grid, stands for t where t = 0
    noise: Float[Array, ""]  # noise level of the steps
    old: Float[Array, "J B"]
    target: Packed  # its tokens are unused; positions and segments of the picture
    condition: Condition
    references: Packed | None
    advantages: Float[Array, "B"]
    weights: Float[Array, "B"]  # 0 for rows that are not learned from


class TrainState(NamedTuple):
    """One parameter tree that learns, with its optimizer and, optionally, its running average."""

    step: Int[Array, ""]
    params: Tree
    opt_state: Tree
    ema: Tree | None


States = dict[str, TrainState]  # the trees that learn, by name: "mllm", "dit" or "vae"


class Params(NamedTuple):
    """Parameters of the whole system as inference needs them."""

    mllm: Tree
    dit: Tree
    vae: Tree
