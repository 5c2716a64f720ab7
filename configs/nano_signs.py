# SPDX-License-Identifier: Apache-2.0
"""Practice of the nano system: its DiT learns to spell, behind what `finetune` taught it.

One sign a picture and nothing else: among other pictures signs are learnt as signs, with letters of
any word, for thousands of steps; alone, most letters of new words are right after a thousand. What
is forgotten meanwhile comes back slowly; the model card of the nano weights tells how far.
"""

from configs import common, finetune


def get_config(arg=None):
    """No argument goes on from a run of finetune; `:tiny` takes two steps."""
    common.base(arg, name="nano_signs", presets=common.SMALL)  # for its refusals
    config = finetune.get_config(arg)
    config.name = "nano_signs"
    flow = config.plans.flow_sft
    flow.streams = dict(a_signs=common.stream(1.0, {"text/text1": 1.0}, length=76, tidy=True))
    if config.model == "nano":
        config.start.dit = "runs/finetune-nano"
        config.steps = config.optim.dit.total_steps = 1600
        config.optim.dit.update(lr=1.6e-3, ema_decay=0.99)
        flow.batch = 32
    return config
