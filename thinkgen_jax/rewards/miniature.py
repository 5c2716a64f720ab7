# SPDX-License-Identifier: Apache-2.0
"""The miniature world's rules, one per scenario; they see the picture and the instruction alone.

`Request.meta["item"]` holds the exercise. What is judged:
  new pictures (`tasks.NEW`)   the picture against what must be in it
  edit, reasoning_edit         the picture against source and target
  reflection                   half how near the instruction is to a right repair, half the
                               repaired picture against its caption; where nothing was wrong,
                               that the picture was left alone
  understand                   the answer, exactly

* Training takes the lower score of a picture and of a slightly disturbed copy, so that nothing at
  the edge of what the verifier accepts is worth finding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thinkgen_jax.structs import Request, Sample
from thinkgen_jax.world import tasks, verify

EDITED = ("edit", "reasoning_edit")


@dataclass(frozen=True)
class Verdict:
    """How well a sample did: `strict` all or nothing, `soft` in parts, `reward` for training.

    All lie in [0, 1]; strict and soft speak of the picture (of the answer in "understand").
    """

    reward: float
    strict: float
    soft: float


def judge(sample: Sample, *, robust: bool = False) -> Verdict:
    """Judges one sample by the rule of its scenario; an invalid one has nothing right.

    Args:
      robust: the lower score of the picture and of a disturbed copy, see `verify.disturb`.

    Raises:
      ValueError: when the request carries no exercise, or the picture is missing or not of the
        world's size.
    """
    if not sample.valid:
        return _flat(False)
    if lack := lacks(sample.request):
        raise ValueError(lack)
    item = sample.request.meta["item"]
    if item.scenario == "understand":
        return _flat(_plain(sample.instruction) == _plain(item.answer))
    if sample.image is None:
        raise ValueError(f"a sample of scenario {item.scenario!r} has no picture")
    seed = sample.request.seed
    if item.scenario in tasks.NEW:
        return _shown(sample.image, item, seed, robust)
    if item.scenario in EDITED:
        return _edited(sample.image, item, seed, robust)
    if item.scenario == "reflection":
        image = _repaired(sample.image, item, seed, robust)
        reward = 0.5 * nearness(sample.instruction, item) + 0.5 * image.reward
        return Verdict(reward, image.strict, image.soft)
    raise ValueError(f"no rule for scenario {item.scenario!r}")


def lacks(request: Request) -> str:
    """What the rules miss in a request, "" for nothing."""
    is_ours = isinstance(request.meta.get("item"), tasks.Item)
    needs = "a miniature reward needs request.meta['item'] from the miniature world"
    return "" if is_ours else needs


def rate(samples: Sequence[Sample]) -> np.ndarray:
    """Rewards float32 [N] from the pictures as they are; for evaluation."""
    return np.asarray([judge(s).reward for s in samples], np.float32)


def rate_robust(samples: Sequence[Sample]) -> np.ndarray:
    """Rewards float32 [N] that survive a light disturbance; for training."""
    return np.asarray([judge(s, robust=True).reward for s in samples], np.float32)


def nearness(instruction: str, item: tasks.Item) -> float:
    """1 - normalised edit distance to the nearest of the right instructions, in [0, 1]."""
    said = _plain(instruction)
    return max(
        verify.similarity(said, _plain(right)) for right in (item.instruction, *item.accepts)
    )


def _shown(image: np.ndarray, item: tasks.Item, seed: int, robust: bool) -> Verdict:
    spec = item.spec
    found = verify.score_robust(image, spec, seed) if robust else verify.score(image, spec)
    return Verdict(found.reward, float(found.strict), found.soft)


def _edit_score(image: np.ndarray, item: tasks.Item, seed: int, robust: bool) -> verify.EditScore:
    scenes = item.references[0], item.target
    if robust:
        return verify.score_edit_robust(image, *scenes, seed)
    return verify.score_edit(image, *scenes)


def _edited(image: np.ndarray, item: tasks.Item, seed: int, robust: bool) -> Verdict:
    found = _edit_score(image, item, seed, robust)
    soft = (sum(found.ratings) / 3 - 1) / 4  # ratings run from 1 to 5
    return Verdict(found.reward, float(found.strict), soft)


def _repaired(image: np.ndarray, item: tasks.Item, seed: int, robust: bool) -> Verdict:
    if item.target != item.references[0]:
        return _shown(image, item, seed, robust)
    found = _edit_score(image, item, seed, robust)
    return Verdict(found.preservation, float(found.strict), found.preservation)


def _flat(right: bool) -> Verdict:
    return Verdict(float(right), float(right), float(right))


def _plain(words: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(words.lower().split()).rstrip(".")
