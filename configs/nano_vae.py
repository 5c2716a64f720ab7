# SPDX-License-Identifier: Apache-2.0
"""Preparation of the nano system: its autoencoder learns to reconstruct rendered pictures.

The released system gets a FLUX autoencoder ready-made. Most steps see 32-pixel cut-outs around an
object or a sign, where the information is. Two short runs follow, in
`launch/nano.sh`: one makes the latents softer, one on whole pictures settles the statistics of the
group norms, which differ between cut-outs and pictures.
"""

from configs import common


def get_config(arg=None):
    """No argument trains the nano autoencoder; `:tiny` takes two steps."""
    config = common.base(arg, name="nano_vae", presets=common.SMALL)
    config.steps = 11_000
    config.phases = (("vae_sft", 1),)
    config.start.vae = "random"
    scenarios = dict(composition=0.25, text=0.6, reasoning=0.1, edit=0.1)
    config.plans = dict(
        vae_sft=dict(
            workers=0,
            batch=16,
            streams=dict(a=common.stream(1.0, scenarios)),
            loss=dict(mse=0.5, edge=2.0, kl=2e-3),
            crop=32,
        )
    )
    config.optim = dict(
        vae=common.optim(
            lr=2e-3,
            schedule="cosine",
            warmup_steps=200,
            total_steps=config.steps,
            final_fraction=0.05,
            b2=0.99,
            weight_decay=0.0,
        )
    )
    return common.shrink(config) if config.model == "tiny" else config
