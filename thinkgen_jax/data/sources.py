# SPDX-License-Identifier: Apache-2.0
"""Random access to training examples of the miniature world: index in, one example out.

An example is a pure function of (seed, split, index), so any of them can be looked at again, and
the position in a stream is one number.

* A `Drawing` is what the supervised DiT stages read: words, picture, references.
* A `Writing` is what the MLLM learns to write: prompt, response, pictures it looks at.
* A `Request` is what reinforcement starts from; its `meta["item"]` is what the rewards check.
"""

import random
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from thinkgen_jax.structs import Request
from thinkgen_jax.world import render, tasks

DRAWN = tuple(s for s in tasks.SCENARIOS if s != "understand")


class Drawing(NamedTuple):
    """One supervised picture.

    Attributes:
      prompt: the words it is drawn from; "" where they were dropped for guidance.
      asked, thought: the request and the thought that led to those words; "" without a thought.
    """

    prompt: str
    image: np.ndarray
    references: tuple[np.ndarray, ...]
    asked: str = ""
    thought: str = ""


class Writing(NamedTuple):
    """One supervised response; `form` is "think", "pseudo" (no thought) or "question"."""

    form: str
    prompt: str
    thought: str
    answer: str
    images: tuple[np.ndarray, ...]


def generator(seed: int, kind: str, index: int) -> np.random.Generator:
    """Random numbers that belong to one example."""
    return np.random.default_rng([seed, index, *kind.encode()])


def drawing(
    index: int,
    *,
    seed: int,
    split: str,
    weights: Mapping[str, float],
    drop: float,
    tidy: bool = False,
    thinking: bool = False,
) -> Drawing:
    """Makes one supervised picture.

    Half of the pictures are described in the user's explicit words, half in the instruction's, so
    that the DiT obeys both. With probability `drop` the words are dropped, and then, every second
    time, the references too: what guidance needs. Tidy pictures leave little to chance beside the
    words, so that each teaches more. With `thinking` the words are the instruction behind a perfect
    thought.
    """
    rng = generator(seed, "drawing", index)
    item = tasks.mixed(weights, _spread(index, seed), split, tidy=tidy)
    prompt = item.explicit if rng.random() < 0.5 and not thinking else item.instruction
    references = tuple(render.render(scene) for scene in item.references)
    if rng.random() < drop:
        prompt = ""
        if rng.random() < 0.5:
            references = ()
    led = (item.prompt, item.thought) if thinking and prompt else ("", "")
    return Drawing(prompt, render.render(item.target), references, *led)


def writing(
    index: int,
    *,
    seed: int,
    split: str,
    weights: Mapping[str, float],
    wrong: Mapping[str, float],
    silent: float,
) -> Writing:
    """Makes one supervised response.

    Args:
      wrong: by scenario, the share of thoughts that come to a wrong conclusion.
      silent: share without a thought.
    """
    rng = generator(seed, "writing", index)
    item = tasks.mixed(weights, _spread(index, seed), split)
    images = tuple(render.render(scene) for scene in item.references)
    if item.scenario == "understand":
        return Writing("question", item.prompt, "", item.answer, images)
    if rng.random() < silent:
        return Writing("pseudo", item.explicit, "", item.explicit, images)
    thought, answer = item.thought, item.instruction
    if rng.random() < wrong.get(item.scenario, 0.0):
        thought, answer = tasks.wrong_thought(item, random.Random(int(rng.integers(2**31))))
    return Writing("think", item.prompt, thought, answer, images)


def picture(
    index: int, *, seed: int, split: str, weights: Mapping[str, float], crop: int
) -> np.ndarray:
    """Makes one picture for the autoencoder: a target or one of its references.

    Args:
      crop: side of a cut-out around a random object or sign; 0 for the whole picture.
    """
    rng = generator(seed, "picture", index)
    item = tasks.mixed(weights, _spread(index, seed), split)
    scenes = [*item.references, *([item.target] if item.target is not None else [])]
    scene = scenes[int(rng.integers(len(scenes)))]
    image = render.render(scene)
    if not crop:
        return image
    boxes = render.boxes(scene)
    x0, y0, x1, y1 = boxes[int(rng.integers(len(boxes)))]
    middle = rng.uniform((y0, x0), (y1, x1)) + rng.integers(-crop // 4, crop // 4 + 1, 2)
    top, left = np.clip(middle - crop / 2, 0, np.subtract(image.shape[:2], crop)).astype(int)
    return image[top : top + crop, left : left + crop]


def request(
    index: int, *, seed: int, split: str, weights: Mapping[str, float], think: bool = True
) -> Request:
    """Makes one request for reinforcement or evaluation."""
    item = tasks.mixed(weights, _spread(index, seed), split)
    return from_item(item, think=think, seed=index)


def from_item(item: tasks.Item, *, think: bool, seed: int = 0) -> Request:
    """A request as a user would make it; without thinking of the user's own words too."""
    task = "understand" if item.scenario == "understand" else "draw"
    images = tuple(render.render(scene) for scene in item.references)
    return Request(item.prompt, images, task, think, None, seed, {"item": item})


def _spread(index: int, seed: int) -> int:
    """Keeps the streams of different seeds apart."""
    return index + seed * 10_000_019
