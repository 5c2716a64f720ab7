# SPDX-License-Identifier: Apache-2.0
"""Preparation of the nano system: its MLLM learns to think, to look and to write.

The released system gets Qwen3-VL-8B-Thinking ready-made. It is left imperfect on purpose: a share
of its reasoning thoughts come to a wrong conclusion, so that reinforcement has something to teach.
"""

from configs import common

SEEN = dict(edit=0.25, reasoning_edit=0.3, reflection=0.3, understand=0.15)
SIGNS = dict(text=0.75, arrangement=0.25)  # copying letters and places


def get_config(arg=None):
    """No argument trains the nano MLLM; `:tiny` takes two steps."""
    config = common.base(arg, name="nano_mllm", presets=common.SMALL)
    config.steps = 4200
    config.phases = (("text_sft", 1),)
    config.start.mllm = "random"
    words = dict(composition=0.4, reasoning=0.6)
    config.plans = dict(
        text_sft=dict(
            workers=0,
            batch=16,
            streams=dict(
                a_words=common.stream(0.36, words, length=112),
                b_signs=common.stream(0.26, SIGNS, length=176),
                c_one=common.stream(0.32, SEEN, pictures=1, length=208),
                d_three=common.stream(0.06, dict(in_context=1.0), pictures=3, length=336),
            ),
            wrong=dict(reasoning=0.3),
            silent=0.15,
        )
    )
    config.optim = dict(
        mllm=common.optim(
            method="muon",
            lr=2e-3,
            schedule="cosine",
            warmup_steps=100,
            total_steps=config.steps,
            final_fraction=0.05,
            weight_decay=0.05,
        )
    )
    return common.shrink(config) if config.model == "tiny" else config
