# SPDX-License-Identifier: Apache-2.0
"""Stage 1, alignment: connector and prepadding states learn; DiT and MLLM are frozen.

The DiT comes from its preparation behind another conditioner; connector and prepadding states start
afresh. `--config.prepad=0` is the ablation without prepadding states.
"""

from configs import common

CONNECTOR = ("caption_embedder", "prepad_embed")
# Full arrangements teach most a picture, compositions and riddles are what is asked for.
WORDS = {
    "arrangement/all1": 0.07,
    "arrangement/all2": 0.11,
    "arrangement/all3": 0.08,
    "arrangement/all4": 0.08,
    "composition": 0.36,
    "reasoning": 0.08,
    "text": 0.22,
}
EDITED = dict(edit=0.6, reasoning_edit=0.25, reflection=0.15)


def streams() -> dict:
    """Kinds of supervised pictures, in the pseudo-CoT form.

    Pictures drawn from words alone are tidy: what the words leave open is then little, and a small
    network learns several times as fast what they say. Three streams, for each compiles once.
    """
    return dict(
        a_words=common.stream(0.80, WORDS, length=124, tidy=True),
        b_edited=common.stream(0.15, EDITED, pictures=1, length=92),
        c_context=common.stream(0.05, dict(in_context=1.0), pictures=3, length=112, tidy=True),
    )


def get_config(arg=None):
    """No argument trains the nano system; `:thinkgen` the released sizes; `:tiny` two steps."""
    config = common.base(arg, name="align")
    config.steps = 300
    config.phases = (("flow_sft", 1),)
    if config.model == "nano":
        config.start = dict(mllm="runs/nano_mllm-nano", dit="runs/nano_dit-nano", vae="assets")
    config.reinit = CONNECTOR  # learned from scratch. Paper: the connector; prepadding inferred
    config.plans = common.flow(32, streams())
    config.optim = dict(
        dit=common.optim(
            lr=3e-3 if config.model == "nano" else 1e-4,
            warmup_steps=50 if config.model == "nano" else 500,
            trainable=CONNECTOR,
            ema_decay=0.99,
        )
    )
    if config.model == "thinkgen":
        released(config)
    return common.shrink(config) if config.model == "tiny" else config


def released(config) -> None:
    """Stage 1 at released size."""
    config.steps = 15_000  # a guess: 10 to 20 thousand; nobody tells
    config.image_size = 512  # side of what `compile` takes every picture for
    # 512: a guess. 512 x 512 pixels at most: paper. The mix is not told and taken from stage 2.
    config.plans = common.released_flow(512, common.paper(512 * 512))
    config.optim.dit = common.optim(
        lr=1e-4,  # a guess: 21 M fresh parameters before a frozen network
        trainable=CONNECTOR,  # paper: the connector; prepadding states inferred from its ablation
        # 256 rows of 512 x 512 at a time, a quarter of stage 3's tokens, which launch/README.md
        # shows to fit; this stage itself was not compiled.
        accumulate=2,
    )
