# SPDX-License-Identifier: Apache-2.0
"""Stage 5 alone: DiT-GRPO (Flow-GRPO), the MLLM frozen."""

from configs import common, sepgrpo


def get_config(arg=None):
    """No argument trains the nano system; `:thinkgen` the released sizes; `:tiny` two steps."""
    config = common.base(arg, name="dit_grpo")
    nano = config.model == "nano"
    config.steps = 40 if nano else 1000
    config.phases = (("dit_grpo", 1),)
    config.plans = dict(dit_grpo=sepgrpo.path_plan(nano))
    config.optim = dict(dit=sepgrpo.optims(nano)["dit"])
    config.checkpoint.every = 10
    config.log.images = 10
    config.evaluate.count = 256 if nano else 0
    sepgrpo.prompted(config)
    sepgrpo.longest(config)
    sepgrpo.fast(config)
    return common.shrink(config) if config.model == "tiny" else config
