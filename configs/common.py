# SPDX-License-Identifier: Apache-2.0
"""Blocks that every recipe shares, and the config argument.

The argument is a comma list, preset first: `:tiny`, `:thinkgen`, `:thinkgen,mesh=v5p-64,rl=fast`,
`:thinkgen,prompts=sets`.
Everything else is `--config.key=value`. A config file is Python and is executed: load only files
you trust.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

PRESETS = ("nano", "tiny", "mid", "thinkgen")
SMALL = ("nano", "tiny")  # of recipes that the released system has no use for
# Sizes of (data, fsdp, tensor, context). fsdp and tensor stop at 8, which is what divides the DiT.
MESHES = {
    "": (1, 1, 1, 1),
    "v5e-256": (4, 8, 8, 1),
    "v5p-64": (1, 8, 4, 1),
    "v5p-128": (1, 8, 8, 1),
    "v6e-64": (2, 8, 4, 1),
    "v6e-256": (4, 8, 8, 1),
    "tpu7x-32": (1, 8, 4, 1),
    "gpu-8": (1, 8, 1, 1),
}


RL = ("plain", "fast")  # how the DiT is reinforced, see configs/sepgrpo.py
PROMPTS = ("world", "sets")  # where the prompts of reinforcement come from, see configs/sepgrpo.py


def parse_arg(arg: str | None, presets: tuple[str, ...] = PRESETS) -> tuple[str, dict[str, str]]:
    """Splits `preset,key=value,...`; no argument means the nano system.

    Raises:
      ValueError: for an unknown preset or key.
    """
    first, *rest = (arg or "nano").split(",")
    if first not in presets:
        raise ValueError(f"config argument {first!r} is not one of {presets}")
    options = dict(part.partition("=")[::2] for part in rest)
    known = dict(mesh=tuple(sorted(MESHES)), rl=RL, prompts=PROMPTS)
    if any(value not in known.get(name, ()) for name, value in options.items()):
        told = ", ".join(f"{name}= one of {values}" for name, values in known.items())
        raise ValueError(f"config argument {rest}: known are {told}")
    return first, options


def base(arg: str | None, *, name: str, presets: tuple[str, ...] = PRESETS) -> ConfigDict:
    """What every recipe has; `config.model` is the preset's name, one of `presets`."""
    preset, options = parse_arg(arg, presets)
    data, fsdp, tensor, context = MESHES[options.get("mesh", "")]
    config = ConfigDict()
    config.name = name
    config.arg = arg or "nano"
    config.model = preset
    config.rl = options.get("rl", "fast" if preset == "nano" else "plain")
    config.prepad = placeholder(int)  # number of prepadding states; None takes the preset's
    config.marker = placeholder(str)  # token before the instruction; None takes the preset's
    config.dtype = "bfloat16" if preset == "thinkgen" else "float32"  # of activations
    # Of MLLM and DiT where they do not learn, references too; None keeps float32. The released
    # weights are bfloat16, so nothing is lost of those.
    config.frozen_dtype = placeholder(str)
    config.remat = "full" if preset == "thinkgen" else "none"  # see models/layers.py
    config.image_size = placeholder(int)  # side of drawn pictures; None takes the preset's
    config.thought_tokens = placeholder(int)  # longest response; None takes the preset's
    config.seed = 0
    config.mesh = dict(data=data, fsdp=fsdp, tensor=tensor, context=context)
    config.steps = 0  # optimizer steps of the whole run
    config.phases = ()  # ((phase, steps), ...), walked round and round
    # Where each tree comes from: "random", "assets" (shipped nano weights), or a run's directory.
    config.start = dict(mllm="assets", dit="assets", vae="assets")
    config.reinit = ()  # patterns of DiT parameters that start fresh whatever `start` says
    # Pictures to learn from instead of what the plan says: "photos", "a.jsonl@3,shards/*.tar@1".
    config.data = placeholder(str)
    config.optim = {}
    # Adapters that learn in a tree's place; without a rank the tree itself learns. See
    # thinkgen_jax/models/lora.py; alpha is the rank where it is None, targets all kernels.
    config.lora = {
        tree: dict(rank=placeholder(int), alpha=placeholder(float), targets=placeholder(str))
        for tree in ("mllm", "dit")
    }
    config.checkpoint = dict(every=200, keep=2)
    # wandb: a project of Weights & Biases to log to as well; None tells nobody.
    config.log = dict(images=20, wandb=placeholder(str))
    config.limit_skipped = 20  # steps with NaN in a row before the run stops
    config.evaluate = dict(count=0, steps=10, scenarios=("composition", "reasoning"))
    if preset in ("tiny", "mid"):
        config.start = dict(mllm="random", dit="random", vae="random")
    if preset == "tiny":
        config.checkpoint.every = 1
        config.log.images = 1
    return config


def optim(**changes) -> ConfigDict:
    """AdamW, or Muon; see thinkgen_jax/optim.py for every field.

    Schedule, warm-up, betas, epsilon, decay, clipping and no running average are OmniGen2's.
    """
    block = ConfigDict(
        dict(
            method="adamw",
            lr=1e-4,
            schedule="constant",
            warmup_steps=500,
            total_steps=0,
            final_fraction=0.1,
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.01,
            no_decay=(),
            clip_norm=1.0,
            trainable=(".",),
            frozen=(".",),
            ema_decay=placeholder(float),
            accumulate=1,
        )
    )
    block.update(changes)
    return block


def stream(
    weight: float,
    scenarios: dict[str, float],
    *,
    pictures: int = 0,
    length: int = 64,
    tidy: bool = False,
    thinking: bool = False,
) -> dict:
    """One kind of batch: its share, its scenarios, most references, tokens of a row."""
    return dict(
        weight=weight,
        scenarios=scenarios,
        pictures=pictures,
        length=length,
        tidy=tidy,
        thinking=thinking,
    )


def source(kind: str, *, weight: float = 1.0) -> dict:
    """One source of real pictures; its path is the user's. Kinds: thinkgen_jax/data/corpus.py."""
    return dict(
        kind=kind,
        path=placeholder(str),
        weight=weight,
        root=placeholder(str),  # folder that paths in records are below; None is the file's own
        split="train",  # of a TFDS data set
        columns={},  # names that a Parquet table has for our fields
    )


def corpus(pixels: int, *, length: int, sources: dict[str, dict] | None = None) -> dict:
    """Real pictures instead of streams, or with `config.data`; without sources there are none."""
    return dict(
        sources=sources or {},
        pixels=pixels,  # area budget of a picture to draw
        # Budgets of each of 1, 2, 3, 4 and more references, never above `pixels`. OmniGen2.
        references=(1024**2, 1024**2, 768**2, 512**2),
        scales=(1.0, 0.75, 0.5),  # of sides, for pictures that do not fill the first; a guess
        length=length,  # tokens of a row
        clean=0.5,  # share of captions without "The image shows " and its like. OmniGen2
        broken=0.01,  # share of records that may be unusable; a guess
        small=0.5,  # share that may be left out as smaller than every shape; a guess
        encoded=placeholder(str),  # folder made by thinkgen_jax/precompute.py, read instead of all
    )


def paper(pixels: int, *, quality: bool = False) -> dict:
    """The released system's pictures: two sources whose paths are the user's.

    The paper's data is not released; numbers are those of public summaries of it.
    """
    if quality:  # stage 3: 0.7 M pictures of high quality, of kinds that nobody tells
        sources = dict(quality=source("webdataset", weight=0.7))
    else:  # stages 1 and 2: 60 M in all, read as 54 M with captions and 6 M edits
        sources = dict(
            captions=source("webdataset", weight=54.0), edits=source("webdataset", weight=6.0)
        )
    return corpus(pixels, length=888, sources=sources)  # 888: OmniGen2's longest row


def flow(batch: int, streams: dict[str, dict], pictures: dict | None = None) -> dict:
    """Plans of a supervised stage of the DiT, behind the MLLM.

    Args:
      pictures: see `corpus`; None is the nano system's.
    """
    return dict(
        flow_sft=dict(
            batch=batch,
            streams=streams,
            corpus=pictures or corpus(64 * 64, length=128),
            drop=0.1,
            plain=False,
            workers=0,
            sample=False,  # the mode of the posterior: the nano autoencoder's is wide
        )
    )


def released_flow(batch: int, pictures: dict) -> dict:
    """Plans of a supervised stage at released size."""
    plans = flow(batch, {}, pictures)
    plans["flow_sft"]["drop"] = 0.1  # a guess; OmniGen2 fine-tunes with 1e-4
    plans["flow_sft"]["sample"] = True  # OmniGen2
    plans["flow_sft"]["workers"] = 32  # a guess; `python -m launch.feeding` measures the need
    return plans


def prompt_set(kind: str) -> dict:
    """One prompt set; its path is the user's. Kinds: thinkgen_jax/data/prompt_sets.py."""
    return dict(
        kind=kind,
        path=placeholder(str),
        scenario=placeholder(str),  # of all its prompts; None where they say it themselves
        root=placeholder(str),  # folder that paths of pictures are below; None is the file's own
    )


def draw(
    steps: int,
    *,
    text: float = 1.0,
    image: float = 1.0,
    temperature: float = 1.0,
    halvings: int = 0,
) -> dict:
    """How rollouts draw; `halvings`: how often finished thoughts leave the batch."""
    guidance = dict(text=text, image=image, start=0.0, end=1.0)
    return dict(steps=steps, guidance=guidance, temperature=temperature, halvings=halvings)


def scoring(
    servers: dict[str, dict] | None = None,
    scenarios: dict[str, dict[str, float]] | None = None,
    **weights: float,
) -> dict:
    """Rewards by weight; `servers` has the fields of `remote.Service` of those scored elsewhere.

    E.g. scoring({"hpsv3": dict(urls=("http://127.0.0.1:8100",))}, form=0.1, hpsv3=1.0); with
    scenarios=dict(text=dict(word_f1=1.0)) texts are rewarded by their words alone.
    """
    scored = dict(rewards=weights, scenario_rewards=scenarios or {}, servers=servers or {})
    return dict(**scored, combine="sum", drop_limit=0.5)


def shrink(config: ConfigDict) -> ConfigDict:
    """What `:tiny` means: two steps, a batch of two."""
    config.steps = 2
    config.evaluate.count = 0
    config.checkpoint.every = config.log.images = 1
    for plan in config.plans.values():
        if "batch" in plan:
            plan.batch = 2
            if "pool" in plan:
                plan.pool = 1  # one shape of batch
        else:
            plan.prompts, plan.group = 2, 2
            plan.draw.steps = 3
            if "window" in plan:
                plan.window = (0, 0)
    config.phases = tuple((name, 1) for name, _ in config.phases)
    for block in config.optim.values():
        block.warmup_steps = 1
    return config
