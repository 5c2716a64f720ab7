# SPDX-License-Identifier: Apache-2.0
"""SepGRPO, the main job: stages 4 and 5 in turn, each policy rewarded by rules on its pictures.

  mllm_grpo   G thoughts per prompt, drawn from one initial noise by the frozen DiT
  dit_grpo    G denoising paths per prompt under one shared thought, or under the bare words for
              half of the prompts, the MLLM frozen

Each phase has its own data, rewards, optimizer and group shape. `mllm_grpo.py` and `dit_grpo.py`
run one phase alone. Prompts are the miniature world's, or with `:thinkgen,prompts=sets` the user's.
"""

from configs import common

SIDE, PROMPT, THOUGHT = 512, 2048, 2048  # pixels and tokens of the released system's rollouts

PARTS = dict(mllm=32, dit=6)  # micro-batches of a step on a slice
# Prompts and micro-batches on one host, where the cache of keys and values fills the memory.
HOST = dict(mllm=(16, 16), dit=(8, 24))


def longest(config) -> None:
    """Rollouts of the released system draw smaller and think shorter than inference may."""
    if config.model == "thinkgen":
        config.image_size, config.thought_tokens = SIDE, THOUGHT
        for plan in config.plans.values():
            for stream in plan.streams.values():
                stream.length = PROMPT
        for tree, optim in config.optim.items():
            optim.accumulate = PARTS[tree]
            if "mesh=gpu-8" in config.arg.split(","):
                config.plans[f"{tree}_grpo"].prompts, optim.accumulate = HOST[tree]


# What rewards each scenario of `data.prompt_sets.MIX`: the paper's rules, paired in the order that
# it names them in. Words by F1 instead of accuracy, which rewards spraying words.
RULES = dict(
    composition=dict(geneval=1.0),
    reasoning=dict(hpsv3=1.0),
    text=dict(word_f1=1.0),
    edit=dict(siglip2=1.0),
    reflection=dict(reflection_ned=1.0),
)
PORTS = dict(geneval=8111, hpsv3=8112, siglip2=8113)  # of rules that servers alone can apply
DRAWN, EDITED = ("composition", "reasoning", "text"), ("edit", "reflection")


def prompted(config) -> None:
    """Asks prompt sets instead of the miniature world, if the config's argument says prompts=sets.

    Each phase reads one file that `python -m launch.prompts` wrote, `plans.<phase>.sets.mix.path`:
    the MLLM's of all five scenarios, the DiT's of those without pictures.
    """
    if "prompts=sets" not in config.arg.split(","):
        return
    for name, plan in config.plans.items():
        streams = dict(a_drawn=common.stream(1.0, dict.fromkeys(DRAWN, 1.0), length=112))
        if name == "mllm_grpo":
            edits = dict.fromkeys(EDITED, 1.0)
            streams.update(b_edited=common.stream(1.0, edits, pictures=1, length=112))
        plan.streams, plan.sets = streams, dict(mix=common.prompt_set("jsonl"))
        rules = {s: RULES[s] for one in streams.values() for s in one["scenarios"]}
        servers = {
            reward: dict(urls=(f"http://127.0.0.1:{port}",))
            for reward, port in PORTS.items()
            if any(reward in own for own in rules.values())
        }
        for key, value in common.scoring(servers, rules).items():
            plan[key] = value  # `update` would keep the world's rewards beside these


def token_plan(nano: bool) -> dict:
    """Stage 4; constants without a size are EasyR1's, sizes of the released system are guesses."""
    # Of compositions the nano MLLM writes mostly the same sentence: their groups tell little.
    words = dict(composition=0.2, reasoning=0.8) if nano else dict(composition=0.4, reasoning=0.6)
    streams = dict(a_drawn=common.stream(0.85, words, length=48))
    if not nano:  # the nano DiT edits too poorly to tell one thought from another
        edits = dict(reasoning_edit=1.0)
        streams.update(b_edited=common.stream(0.15, edits, pictures=1, length=112))
    return dict(
        prompts=8 if nano else 128,
        group=8,
        inner=1,
        chunks=1,
        streams=streams,
        sets={},  # of `data.prompt_sets`, instead of the miniature world
        against=(),  # prompt files of evaluations, whose prompts are taken out of the sets
        draw=common.draw(6 if nano else 20, text=2.0 if nano else 4.0, halvings=2 if nano else 0),
        **common.scoring(miniature_robust=1.0),
        token=dict(clip_low=0.2, clip_high=0.3, kl=1e-2, per_sequence=False, temperature=1.0),
    )


# Two stochastic steps, behind none to five that a group shares; nothing is computed twice, and
# nothing is guided but the evaluation. In 10 steps and groups of 24 that is 13.6 forwards of the
# DiT a picture, of Flow-GRPO's default 92 (thinkgen_jax/steps/cost.py). Source: Flow-GRPO-Fast.
FAST = dict(width=2, shared=True, keep_old=True)
# What the nano DiT learns from: the first two steps, where it is decided what is drawn, and the
# parameters whose gradients agree most from one batch of 96 pictures to the next: their cosine is
# 0.02, over all steps and parameters 0.005; the rate can be several times as high.
TELLING = (r"^layers/attn/(norm|to_[qkv])", r"^noise_refiner/")


def fast(config) -> None:
    """Reinforces the DiT in the cheaper of two ways, if the config's argument says so."""
    if config.rl != "fast":
        return
    plan = config.plans.dit_grpo
    nano = config.model == "nano"
    plan.update(FAST, window=(0, 2) if nano else (0, 7))
    plan.draw.steps = 8 if nano else 10
    plan.draw.guidance.text = 1.0
    plan.path.kl = 0.0
    if nano:
        config.optim.dit.update(lr=3e-4, trainable=TELLING)


def path_plan(nano: bool) -> dict:
    """Stage 5; constants are Flow-GRPO's."""
    # No sign of the nano DiT can be read yet: their rewards are all near 0 and tell nothing.
    drawn = dict(composition=0.75, reasoning=0.25) if nano else dict(composition=0.7, text=0.3)
    return dict(
        prompts=12 if nano else 64,  # 64 groups of 24 lie evenly on up to 256 devices
        group=8 if nano else 24,
        inner=1,
        chunks=2 if nano else 1,  # the first half is scored while the second is drawn
        streams=dict(a_drawn=common.stream(1.0, drawn, length=112)),
        sets={},
        against=(),
        draw=common.draw(8 if nano else 20, text=2.0 if nano else 4.0),
        **common.scoring(miniature_robust=1.0),
        path=dict(clip=1e-4, kl=0.04, advantage_limit=5.0, kernel="flow_sde"),
        noise=0.7,
        window=(0, 0),
        width=0,
        shared=False,
        keep_old=False,
        silent=0.5,
    )


def optims(nano: bool) -> dict:
    """One optimizer per policy; the nano MLLM's rate falls over its 42 steps."""
    falling = dict(schedule="cosine", total_steps=42) if nano else {}
    return dict(
        mllm=common.optim(
            lr=2e-4 if nano else 1e-6, warmup_steps=2 if nano else 10, b2=0.999, **falling
        ),
        dit=common.optim(
            lr=4e-5 if nano else 1e-5, warmup_steps=2 if nano else 10, b2=0.999, weight_decay=1e-4
        ),
    )


def get_config(arg=None):
    """No argument trains the nano system; `:thinkgen` the released sizes; `:tiny` two steps."""
    config = common.base(arg, name="sepgrpo")
    nano = config.model == "nano"
    config.steps = 78 if nano else 2000
    config.phases = (("mllm_grpo", 14), ("dit_grpo", 12 if nano else 8))
    config.plans = dict(mllm_grpo=token_plan(nano), dit_grpo=path_plan(nano))
    config.optim = optims(nano)
    config.checkpoint.every = 10
    config.log.images = 10
    config.evaluate.count = 384 if nano else 0
    prompted(config)
    longest(config)
    fast(config)
    return common.shrink(config) if config.model == "tiny" else config
