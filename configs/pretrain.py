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
    if config.model == "thinkgen":
        released(config)
    return common.shrink(config) if config.model == "tiny" else config


def released(config) -> None:
    """Stage 2 at released size."""
    config.steps = 60_000  # 60 M pictures (paper) once, by the batch
    config.image_size = 512  # side of what `compile` takes every picture for
    # 1024: a guess. 512 x 512 pixels: a guess, nobody tells; 54 M captions and 6 M edits: paper.
    config.plans = common.released_flow(1024, common.paper(512 * 512))
    config.optim.dit = common.optim(
        lr=1e-4,  # a guess
        schedule="cosine",  # a guess; OmniGen2 fine-tunes at a constant rate
        total_steps=config.steps,
        final_fraction=0.1,  # a guess: down to 1e-5
        # 256 rows of 512 x 512 at a time, a quarter of stage 3's tokens, which launch/README.md
        # shows to fit; this stage itself was not compiled.
        accumulate=4,
    )
