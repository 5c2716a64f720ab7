# SPDX-License-Identifier: Apache-2.0
"""Stage 2, pre-training: all of the DiT learns from many pictures; the MLLM is frozen."""

from configs import align, common


def get_config(arg=None):
    """No argument trains the nano system; `:thinkgen` the released sizes; `:tiny` two steps."""
    config = common.base(arg, name="pretrain")
    nano = config.model == "nano"
    config.steps = 4000 if nano else 60_000
    config.phases = (("flow_sft", 1),)
    if nano:
        config.start = dict(mllm="runs/nano_mllm-nano", dit="runs/align-nano", vae="assets")
    batch = 24 if nano else 1024
    config.plans = common.flow(batch, align.streams())
    if nano:
        # Where everything lies is decided near the noise, and that is what takes longest to learn.
        config.plans.flow_sft.update(draws=2, shift=4.0)
    config.optim = dict(
        dit=common.optim(
            method="muon" if nano else "adamw",
            lr=1.6e-3 if nano else 1e-4,
            schedule="cosine",
            warmup_steps=50 if nano else 500,
            total_steps=config.steps,
            ema_decay=0.998 if nano else None,
        )
    )
    common.longer(config, accumulate=4)
    return common.shrink(config) if config.model == "tiny" else config
