# SPDX-License-Identifier: Apache-2.0
"""A reward of the package itself, served: `--scorer=ours:word_f1`, `--scorer=ours:module:function`.

Worth it where a reward is slow, like reading words, and machines stand idle. Needs
`requirements-ours.txt` beside this file and what the reward needs.
"""

ABOUT = {"reward": "", "version": "", "floor": 0.0, "ceiling": 1.0, "sees": ""}


def load(args):
    """Finds the reward by its name."""
    from thinkgen_jax import rewards

    reward = rewards.find(args[0], {})
    ABOUT.update(reward=args[0], version=rewards.version_of(reward), sees=reward.sees)
    ABOUT.update(floor=reward.floor, ceiling=reward.ceiling)
    return reward


def score(reward, samples):
    """Scores as the reward does at home."""
    from thinkgen_jax.structs import Request, Sample

    found = [
        Sample(
            Request(s["prompt"], tuple(s["references"]), seed=s["seed"], meta=_meta(s["meta"])),
            s["instruction"],
            s["image"],
        )
        for s in samples
    ]
    return [float(x) for x in reward.function(found)]


def _meta(meta):
    """What was sent, with an exercise of the miniature world made again from its arguments."""
    from thinkgen_jax.world import tasks

    place = meta.get("item")
    return {**meta, "item": tasks.item(**place)} if isinstance(place, dict) else meta
