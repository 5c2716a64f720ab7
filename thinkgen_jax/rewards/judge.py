# SPDX-License-Identifier: Apache-2.0
"""A vision-language model as a judge: any OpenAI-compatible endpoint, asked for scores in words.

The reward `judge` asks for two numbers from 1 to 5, as pointwise judges of the UnifiedReward kind
give them: does the picture show what was asked, and is it well made. It is their mean, brought to
[0, 1].

* Every answer is read by strict rules; one that cannot be read is asked for again a few times and
  then is no score at all.
* Which judge spoke, and when, belongs to every number: judges disagree.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from thinkgen_jax.rewards import facts
from thinkgen_jax.rewards.remote import Client
from thinkgen_jax.structs import Sample

SYSTEM = "You are a careful, strict judge of generated pictures."
QUESTION = """Look at the picture, which was generated for this description:

{text}

Say in at most three sentences what of the description is there, what is missing or wrong, and what
is flawed in the picture itself. Then end with exactly these two lines, each a whole number from 1
(bad) to 5 (perfect):
Alignment Score: n
Quality Score: n"""
NAMES = ("Alignment Score", "Quality Score")
TOKENS = 512
SAID = 120  # characters of an answer that an error repeats


def rate(client: Client, samples: Sequence[Sample]) -> np.ndarray:
    """The judge's mean score of every picture, float32 [N] in [0, 1].

    Raises:
      Failed: when an answer could not be had or read.
      ValueError: for a sample without a picture.
    """
    out = []
    for sample in samples:
        if sample.image is None:
            raise ValueError("there is no picture to judge")
        text = QUESTION.format(text=facts.described(sample))
        how = dict(system=SYSTEM, temperature=0, max_tokens=TOKENS)
        scores = client.chat(text, [sample.image], named_scores(NAMES, 1, 5), **how)
        out.append((np.mean(scores) - 1) / 4)
    return np.asarray(out, np.float32)


def named_scores(names: Sequence[str], low: int, high: int) -> Callable[[str], tuple[int, ...]]:
    """Builds a reader of lines "name: n" or "name: n/high": one whole number in [low, high] each.

    Marks of emphasis and letter case do not matter; where a name stands more than once, the last
    counts, for judges repeat the form before they fill it in. A number on another scale, "7/10"
    where 5 is the most, is none.
    """
    number = rf"(-?\d+)(?!\d|\.\d)(?!\s*/\s*(?!{high}(?!\d|\.\d)))"

    def read(answer: str) -> tuple[int, ...]:
        plain, out = re.sub(r"[*_`#]", "", answer), []
        for name in names:
            found = re.findall(rf"{re.escape(name)}\s*:\s*{number}", plain, re.IGNORECASE)
            if not found or not low <= int(found[-1]) <= high:
                said = " ".join(answer.split())[:SAID]
                raise ValueError(f"the judge gave no {name!r} in [{low}, {high}]: {said!r}")
            out.append(int(found[-1]))
        return tuple(out)

    return read
