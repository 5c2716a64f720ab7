# SPDX-License-Identifier: Apache-2.0
"""Stage 3, fine-tuning: all of the DiT on a better set, at a lower rate.

More users' sentences, and words that stand behind a thought: states there differ from those behind
an empty one, and the DiT of the nano system is too small to obey them unseen.
"""

from configs import align, common

WEIGHTS = dict(a_words=0.50, b_edited=0.15, c_context=0.07)
THOUGHT = dict(composition=0.45, reasoning=0.20, text=0.35)


def streams() -> dict:
    """Quality mix: users' and instructions' words, some of them behind thoughts."""
    mix = align.streams()
    for name, weight in WEIGHTS.items():
        mix[name]["weight"] = weight
    thought = common.stream(0.28, THOUGHT, length=176, tidy=True, thinking=True)
    return dict(**mix, d_thought=thought)


def get_config(arg=None):
    """No argument trains the nano system; `:thinkgen` the released sizes; `:tiny` two steps."""
    config = common.base(arg, name="finetune")
    nano = config.model == "nano"
    config.steps = 800 if nano else 4_000
    config.phases = (("flow_sft", 1),)
    if nano:
        config.start = dict(mllm="runs/nano_mllm-nano", dit="runs/pretrain-nano", vae="assets")
    batch = 24 if nano else 256
    config.plans = common.flow(batch, streams())
    if nano:
        config.plans.flow_sft.update(draws=2, shift=3.0)
    config.optim = dict(
        dit=common.optim(
            method="muon" if nano else "adamw",
            lr=1e-3 if nano else 2e-5,
            schedule="cosine",
            final_fraction=0.03 if nano else 0.1,
            warmup_steps=20 if nano else 500,
            total_steps=config.steps,
            ema_decay=0.998 if nano else None,
        )
    )
    if config.model == "thinkgen":
        released(config)
    return common.shrink(config) if config.model == "tiny" else config


def released(config) -> None:
    """Stage 3 at released size."""
    config.steps = 4_000  # 0.7 M pictures (paper) one and a half times, by the batch; a guess
    # 256: a guess. 1024 x 1024 pixels at most, 0.7 M pictures of high quality: paper.
    config.plans = common.released_flow(256, common.paper(1024 * 1024, quality=True))
    config.optim.dit = common.optim(
        lr=2e-5,  # a guess: a fifth of stage 2's
        schedule="cosine",  # a guess
        total_steps=config.steps,
        final_fraction=0.1,  # a guess
    )
