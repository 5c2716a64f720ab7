# SPDX-License-Identifier: Apache-2.0
"""Stage 3, fine-tuning: all of the DiT on a better set, low rate.

More users' sentences, and words that stand behind a thought: states there differ from those behind
an empty one, and the DiT of the nano system is too small to obey them unseen.
"""

from configs import align, common

WEIGHTS = dict(
    a_placed=0.09, b_arranged=0.07, c_drawn=0.38, d_signs=0.10, e_edited=0.10, f_context=0.04
)
THOUGHT = dict(composition=0.7, reasoning=0.3)


def streams() -> dict:
    """Quality mix: what stage 2 is weakest at weighs more."""
    mix = align.streams()
    for name, weight in WEIGHTS.items():
        mix[name]["weight"] = weight
    return dict(
        **mix,
        g_thought=common.stream(0.15, THOUGHT, length=112, tidy=True, thinking=True),
        h_thought_signs=common.stream(0.07, dict(text=1.0), length=176, thinking=True),
    )


def get_config(arg=None):
    """No argument trains the nano system; `:thinkgen` the released sizes; `:tiny` two steps."""
    config = common.base(arg, name="finetune")
    nano = config.model == "nano"
    config.steps = 800 if nano else 4_000
    config.phases = (("flow_sft", 1),)
    if nano:
        config.start = dict(mllm="runs/nano_mllm-nano", dit="runs/pretrain-nano", vae="assets")
    batch = 24 if nano else 256
    config.plans = dict(flow_sft=dict(batch=batch, streams=streams(), drop=0.1, plain=False))
    if nano:
        config.plans.flow_sft.draws = 2
    config.optim = dict(
        dit=common.optim(
            method="muon" if nano else "adamw",
            lr=3e-4 if nano else 2e-5,
            schedule="cosine",
            warmup_steps=20 if nano else 500,
            total_steps=config.steps,
            ema_decay=0.998 if nano else None,
        )
    )
    return common.shrink(config) if config.model == "tiny" else config
