# SPDX-License-Identifier: Apache-2.0
"""Preparation of the nano system: its DiT learns to draw behind a plain text embedding.

The released system starts from OmniGen2's DiT, which drew behind another conditioner. Connector and
prepadding states are made afresh in `align`.

Which words go with which place is learnt only where the picture does not show it yet, so training
begins near the noise (shift 16), and goes on towards the data in pretrain (4) and finetune (3).
"""

from configs import align, common

# Two objects with told places are the least picture in which words must find their place.
WORDS = {
    "arrangement/all1": 0.06,
    "arrangement/all2": 0.28,
    "arrangement/all3": 0.10,
    "arrangement/all4": 0.08,
    "composition": 0.24,
    "reasoning": 0.06,
    "text": 0.18,
}


def get_config(arg=None):
    """No argument trains the nano DiT; `:tiny` takes two steps."""
    config = common.base(arg, name="nano_dit", presets=common.SMALL)
    config.steps = 5000
    config.phases = (("flow_sft", 1),)
    config.start = dict(mllm="random", dit="random", vae="assets")
    config.dit_condition = 96  # width of the plain embedding
    config.plans = dict(
        flow_sft=dict(
            batch=24,
            streams=dict(
                a_words=common.stream(0.85, WORDS, length=56, tidy=True),
                b_edited=common.stream(0.15, align.EDITED, pictures=1, length=40),
            ),
            pool=4,
            workers=0,
            draws=2,
            shift=16.0,
            drop=0.1,
            plain=True,
        )
    )
    config.optim = dict(
        dit=common.optim(
            method="muon",
            lr=2e-3,
            schedule="cosine",
            warmup_steps=100,
            total_steps=config.steps,
            final_fraction=0.1,
            weight_decay=0.01,
            ema_decay=0.999,
        )
    )
    if config.model == "tiny":
        config.start.vae = "random"
    return common.shrink(config) if config.model == "tiny" else config
