# SPDX-License-Identifier: Apache-2.0
"""Stage 4 alone: MLLM-GRPO, the DiT frozen."""

from configs import common, sepgrpo


def get_config(arg=None):
    """No argument trains the nano system; `:thinkgen` the released sizes; `:tiny` two steps."""
    config = common.base(arg, name="mllm_grpo")
    nano = config.model == "nano"
    config.steps = 42 if nano else 1000
    config.phases = (("mllm_grpo", 1),)
    config.plans = dict(mllm_grpo=sepgrpo.token_plan(nano))
    config.optim = dict(mllm=sepgrpo.optims(nano)["mllm"])
    config.checkpoint.every = 10
    config.log.images = 10
    config.evaluate.count = 256 if nano else 0
    sepgrpo.prompted(config)
    sepgrpo.longest(config)
    return common.shrink(config) if config.model == "tiny" else config
