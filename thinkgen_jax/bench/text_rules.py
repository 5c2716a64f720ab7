# SPDX-License-Identifier: Apache-2.0
"""Text in pictures as two further benchmarks count it: OneIG-Bench (English) and TIIF-Bench.

Rules alone: neither benchmark is drawn here, for their prompts have no licence; lines may come from
any reader.
  OneIG  edit distance ED of the whole text, whether it is complete CR, words that match WAC
  TIIF   recall of words that are nearly right, and GNED, a distance over the best pairing

Source: OneIG-Benchmark@41b4983 scripts/text; TIIF-Bench@3aae750.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from thinkgen_jax.rewards import words

HALLUCINATED = ("addCriterion", "No text recognized.")  # what OneIG's reader says of itself
LONGEST = 100  # edit distance that counts as everything wrong, of English prompts
NEAR = 0.3  # normalized edit distance up to which TIIF takes a word for read


class Text(NamedTuple):
    """OneIG's counts of one picture: edit distance, words that match, words wanted."""

    distance: int
    matched: int
    wanted: int


def plain(text: str) -> str:
    """What OneIG compares: letters, digits and single spaces; case is kept."""
    return " ".join(re.sub(r"[^\w\s]|_", "", text).split())


def without_hallucinations(text: str) -> str:
    """A reader's answer without what it says where it reads nothing."""
    for phrase in HALLUCINATED:
        text = text.replace(phrase, "")
    return text


def oneig(wanted: str, read: str) -> Text:
    """OneIG's counts of one picture.

    Args:
      wanted: the text that should stand there, a list of pieces in brackets or not.
      read: what a reader said.
    """
    wanted, read = plain(wanted), plain(without_hallucinations(read))
    asked, found = Counter(wanted.split()), Counter(read.split())
    return Text(words.distance(wanted, read), (asked & found).total(), asked.total())


def oneig_score(pictures: Sequence[Text]) -> float:
    """OneIG's text score in [0, 1], of means over pictures and, for WAC, over all words.

    Raises:
      ValueError: for no picture, or no word that was wanted.
    """
    total = sum(one.wanted for one in pictures)
    if not total:
        raise ValueError(f"OneIG: {len(pictures)} pictures want no word")
    distance = float(np.mean([one.distance for one in pictures]))
    complete = float(np.mean([one.distance == 0 for one in pictures]))
    share = sum(one.matched for one in pictures) / total
    return 1 - min(LONGEST, distance) * (1 - complete) * (1 - share) / LONGEST


def tiif(wanted: Sequence[str], lines: Sequence[str]) -> tuple[float, float]:
    """TIIF's GNED in [0, 1], lower being better, and recall of the wanted words.

    Raises:
      ValueError: when no word was wanted.
    """
    wanted, found = words.split(wanted), words.split(lines)
    if not wanted:
        raise ValueError("TIIF: no word is wanted")
    cost = np.asarray(
        [[words.distance(a, b) / max(len(a), len(b)) for b in found] for a in wanted]
    ).reshape(len(wanted), len(found))
    total = cost[linear_sum_assignment(cost)].sum() + abs(len(wanted) - len(found))
    # One read word stands for one wanted word: as many near pairs as there can be.
    near = (cost <= NEAR).astype(int)
    recalled = near[linear_sum_assignment(near, maximize=True)].sum()
    return float(total) / max(len(wanted), len(found)), float(recalled) / len(wanted)
