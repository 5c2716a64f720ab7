# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on one's own pictures: `--config=configs/own.py --config.data=photos`.

`photos` is a folder of pictures, each with its caption in a text file of the same name, or any
source that `thinkgen_jax/data/corpus.py` knows. Without an argument the shipped nano weights learn
at 64 x 64 pixels; `:thinkgen` with `--checkpoint=` tunes a released folder.
"""

from configs import common


def get_config(arg=None):
    """No argument tunes the nano system; `:thinkgen` the released sizes; `:tiny` two steps."""
    config = common.base(arg, name="own")
    released = config.model == "thinkgen"
    config.steps = 4_000 if released else 200  # 4,000: OmniGen2's fine-tuning config
    config.phases = (("flow_sft", 1),)
    pictures = common.corpus(1024**2, length=888) if released else None  # both: OmniGen2
    config.plans = common.flow(16, {}, pictures)  # 16: OmniGen2's fine-tuning config
    config.optim = dict(
        dit=common.optim(
            lr=8e-7 if released else 2e-4,  # 8e-7: OmniGen2's; a 7 M model bears more
            warmup_steps=500 if released else 20,  # 500: OmniGen2's
        )
    )
    config.checkpoint.every = 100
    return common.shrink(config) if config.model == "tiny" else config
