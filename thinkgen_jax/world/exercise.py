# SPDX-License-Identifier: Apache-2.0
"""The record of one exercise, and what all kinds of exercises share."""

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from .grammar import TRAIN_FRAMES
from .scenes import BACKGROUNDS, Scene, Spec


class Place(NamedTuple):
    """Arguments of `tasks.item`: an exercise is a function of them, so they stand for it."""

    scenario: str
    index: int
    split: str
    tag: str | None
    tidy: bool


@dataclass(frozen=True)
class Item:
    """One exercise.

    Attributes:
      scenario: one of `SCENARIOS`.
      tag: kind within the scenario: single_object ... absent, all1 ... all4, text1 ... text4, a
        fact category, an edit operation, a puzzle kind, a flaw, a question.
      prompt: what the user says.
      thought: reference thought, without its tags.
      instruction: what stands behind the thought; for "understand" the answer.
      references: pictures given with the request.
      target: what a perfect answer draws; None for "understand".
      spec: what is checked; None for "understand".
      answer: exact answer for "understand", else None.
      explicit: a prompt for the same target that leaves nothing to infer.
      held_out: held-out combinations in it; empty in train.
      wrong: (thought, instruction) pairs of plausible wrong derivations.
      accepts: further instructions that are as right as `instruction`.
      place: what `tasks.item` makes it again from; None for one that was made by hand.
    """

    scenario: str
    tag: str
    prompt: str
    thought: str
    instruction: str
    references: tuple[Scene, ...]
    target: Scene | None
    spec: Spec | None
    answer: str | None
    explicit: str
    held_out: tuple[str, ...]
    wrong: tuple[tuple[str, str], ...] = ()
    accepts: tuple[str, ...] = ()
    place: Place | None = field(default=None, compare=False, repr=False)


class Draw(NamedTuple):
    """How an item is drawn.

    Attributes:
      legal: only combinations of looks and words that training may see.
      held: held-out surface forms and reserved pictures; train is (True, False).
      tidy: new pictures are drawn without jitter, see `layout.arrange`.
    """

    legal: bool
    held: bool
    tidy: bool = False

    @property
    def reserved(self) -> bool | None:
        """What `layout.arrange` has to look for; pictures with held-out looks need no reserve."""
        return self.held if self.legal else None


def pick_template(rng: random.Random, draw: Draw) -> int:
    """Index of a surface form; in the held-out split half of them are held-out forms."""
    if not draw.held or rng.random() < 0.5:
        return rng.randrange(TRAIN_FRAMES)
    return rng.randrange(TRAIN_FRAMES, 6)


def template_names(template: int) -> tuple[str, ...]:
    return (f"template:{template}",) if template >= TRAIN_FRAMES else ()


def pick_background(rng: random.Random, share: float = 0.2) -> str | None:
    """A background that the prompt names, or None for the default one."""
    return rng.choice(tuple(BACKGROUNDS)) if rng.random() < share else None
