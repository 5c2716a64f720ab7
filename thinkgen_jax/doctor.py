# SPDX-License-Identifier: Apache-2.0
"""Looks a run over before it starts: `python -m thinkgen_jax.doctor --config=configs/sepgrpo.py`.

  --check=rewards  scores a known set through every reward of the config: is it reachable, in its
                   range, fast enough, and does it tell right from wrong?
  --check=noise    draws one group at several noise levels of the stochastic sampler: what each does
                   to the pictures, how far log-probabilities are from the numbers that made them,
                   and which level to train with

* The noise table's dlogp is the distance of the rollout's log-probabilities from those that
  training computes of the same steps: rounding, which a change of the policy has to exceed. A clip
  range below it clips rounding.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from thinkgen_jax import cache, cli, logs, phases, recipe, report, rewards, rollout, sharding
from thinkgen_jax.data import files, images, sources
from thinkgen_jax.rewards.remote import Failed
from thinkgen_jax.steps import dit_grpo
from thinkgen_jax.structs import Params, Request, Sample
from thinkgen_jax.world import render, tasks

CHECKS = ("rewards", "noise")
SPECKS = 1.5  # a picture may have this many times the specks of one without noise
KNOWN = 4  # exercises of the known set

FLAGS = cli.values()
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe.", lock_config=True, flag_values=FLAGS
)
CHECK = flags.DEFINE_list("check", list(CHECKS), "What to look at.", flag_values=FLAGS)
SAMPLES = flags.DEFINE_string(
    "samples",
    None,
    'A known set of your own, JSON lines {"image", "prompt", "meta", "is_right"}.',
    flag_values=FLAGS,
)
LEVELS = flags.DEFINE_list(
    "levels", ["0.1", "0.3", "0.5", "0.7", "0.9"], "Noise levels.", flag_values=FLAGS
)
SHOWN = flags.DEFINE_integer("group", 4, "Pictures of the group.", flag_values=FLAGS)
OUT = flags.DEFINE_string("out", "doctor", "Folder of the pages.", flag_values=FLAGS)


class Level(NamedTuple):
    """One group drawn at one noise level; means over its pictures."""

    noise: float
    drift: float  # greatest absolute difference of a trained step's log-probabilities
    specks: float  # distance to the 3 x 3 median, in 8-bit steps
    saturated: float  # share of values at 0 or 255
    spread: float  # distance between pictures of the group, in 8-bit steps
    reward: float  # NaN where no reward can be had here
    reward_spread: float
    images: np.ndarray


def run() -> None:
    """Checks what was asked for, prints the tables and writes them.

    Raises:
      ValueError: for what a user can put right; a reward that failed is told last.
    """
    unknown = sorted(set(CHECK.value) - set(CHECKS))
    if CONFIG.value is None or unknown:
        raise ValueError(f"--config is needed, --check={unknown or CHECK.value} from {CHECKS}")
    if not CHECK.value:
        raise ValueError(f"--check is empty: want some of {CHECKS}")
    if SHOWN.value < 1:
        raise ValueError(f"--group={SHOWN.value}, must be at least 1")
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    cache.enable()
    plans = dict(recipe.plans(CONFIG.value))
    plans = {n: plan for n, plan in plans.items() if isinstance(plan, phases.RlPlan)}
    if not plans:
        raise ValueError(f"--config: {CONFIG.value.name} has no phase with rewards")
    if FLAGS["check"].present and "noise" in CHECK.value and "dit_grpo" not in plans:
        raise ValueError(f"--check=noise: {CONFIG.value.name} has no phase dit_grpo")
    faults = []
    if "rewards" in CHECK.value:
        known = known_set() if SAMPLES.value is None else read_set(Path(SAMPLES.value))
        for name, plan in plans.items():
            page, bad = check_rewards(plan, known)
            _tell(out / f"rewards-{name}.md", f"Rewards of {name}", page)
            faults += [f"{name}: {fault}" for fault in bad]
    if "noise" in CHECK.value and "dit_grpo" in plans:
        levels = [_number(x) for x in LEVELS.value]
        with jax.set_mesh(sharding.make_mesh(**CONFIG.value.mesh)):
            page = check_noise(plans["dit_grpo"], levels, SHOWN.value, out)
        _tell(out / "noise.md", "Noise levels", page)
    if faults:
        raise ValueError("; ".join(faults))


# --- rewards ---


def known_set() -> list[tuple[bool, Sample]]:
    """Right and wrong pictures of the miniature world, with all that any reward reads."""
    items = [tasks.item("text", n, "heldout", "text1") for n in range(KNOWN)]
    words = {item.spec.signs[0][0] for item in items}
    others = (tasks.item("text", n, "heldout", "text1") for n in count(KNOWN))
    others = [next(o for o in others if o.spec.signs[0][0] not in words) for _ in items]
    out = []
    for item, other in zip(items, others, strict=True):
        right, wrong = render.render(item.target), render.render(other.target)
        said = item.spec.signs[0][0]
        meta = {
            **{"item": item, "target": right, "repairs": (item.instruction,)},
            **{"tag": "single_object", "include": [{"class": "stop sign", "count": 1}]},
        }
        request = replace(
            sources.from_item(item, think=False), prompt=f"a sign '{said}', \"{said}\"", meta=meta
        )
        out.append((True, Sample(request, item.instruction, right)))
        out.append((False, Sample(request, "<nothing", wrong)))
    return out


def read_set(path: Path) -> list[tuple[bool, Sample]]:
    """A user's known set; picture paths are relative to the file.

    Raises:
      ValueError: naming the line that cannot be read, or when it has not both right and wrong.
    """
    out = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ValueError(f"--samples={path} cannot be read: {err}") from err
    for number, row in files.objects(text, f"--samples={path}"):
        try:
            image = images.open_picture(path.parent / row["image"]).image
            request = Request(row["prompt"], meta=row.get("meta", {}))
            said = row.get("instruction", row["prompt"])
            if not isinstance(row["is_right"], bool):
                raise ValueError(f"is_right = {row['is_right']!r}, want true or false")
            out.append((row["is_right"], Sample(request, said, image)))
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise ValueError(f"--samples={path}, line {number}: {err!r}") from err
    told = {right for right, _ in out}
    if told != {True, False}:
        raise ValueError(f"--samples={path}: is_right must be true in some lines, false in others")
    return out


def check_rewards(
    plan: phases.RlPlan, known: Sequence[tuple[bool, Sample]]
) -> tuple[str, list[str]]:
    """Scores the known set through every reward of a plan; a page, and what failed."""
    samples, is_right = [s for _, s in known], np.asarray([right for right, _ in known])
    rows, lines, faults = [], [], []
    for name in rewards.names(plan.rewards, plan.scenario_rewards):
        servers = {name: plan.servers[name]} if name in plan.servers else {}
        with rewards.Scorer({name: 1.0}, servers, drop_limit=1.0) as scorer:
            begun = time.monotonic()
            try:
                lines += scorer.describe()
                rated = scorer.rate(samples, 1)
                if rated.failed.any():
                    raise Failed(rated.causes[0])
            except (Failed, ValueError) as err:
                faults.append(str(err))
                rows.append((name, "", "", "", "failed"))
                continue
            seconds = (time.monotonic() - begun) / len(samples)
        right, wrong = rated.parts[name][is_right].mean(), rated.parts[name][~is_right].mean()
        told = "tells right from wrong" if right > wrong else "does not tell right from wrong"
        rows.append((name, float(right), float(wrong), seconds, told))
    head = ("reward", "right", "wrong", "seconds each", "verdict")
    return "\n\n".join([report.table(head, rows), *lines, *faults]), faults


# --- noise ---


def check_noise(plan: phases.RlPlan, levels: Sequence[float], group: int, out: Path) -> str:
    """Draws one group at every level; a page with table, picture and advice."""
    log = logs.setup()
    setup, states = recipe.load(CONFIG.value, log)
    bare = dict(rewards={"form": 1.0}, scenario_rewards={}, servers={})
    small = replace(plan, group=group, chunks=1, **bare)
    phase = phases.build("dit_grpo", small, setup)
    requests = list(next(phase.data))[:1]
    weights = rewards.weights_of(requests[0], plan.rewards, plan.scenario_rewards)
    local = {n: w for n, w in weights.items() if n not in plan.servers}
    plan = replace(small, rewards=local or small.rewards)
    found = [draw_level(plan, setup, states, requests, x, bool(local)) for x in (0.0, *levels)]
    pictures = [image for one in found for image in one.images]
    captions = [f"noise {one.noise:g}" for one in found for _ in one.images]
    logs.save_png(out / "noise.png", logs.grid(pictures, captions, columns=group))
    head = ("noise", "dlogp", "specks", "saturated", "spread", "reward", "its spread")
    rows = [(f"{one.noise:g}", f"{one.drift:.1e}", *one[2:7]) for one in found]
    told = advise(found[0], found[1:], clip=plan.path.clip, kernel=plan.path.kernel)
    asked = f"{requests[0].prompt!r}, {plan.draw.steps} steps, {plan.path.kernel}, first row: none"
    return "\n\n".join([asked, report.table(head, rows), "![noise](noise.png)", told])


def draw_level(plan, setup, states, requests, noise: float, is_scored: bool) -> Level:
    """One group at one noise level; the same noise to start from and the same draws at all."""
    parts = setup.parts
    params = Params(*(phases.params_of(setup, states, tree) for tree in Params._fields))
    stream = phases.stream_of(requests, plan.streams)
    condition, thought = rollout.shared_condition(parts, params.mllm, requests, stream, silent=0)
    references = rollout.reference_tokens(parts, params.vae, requests, stream)
    first, second = jax.random.split(jax.random.key(CONFIG.value.seed))
    span, trained = phases.span_of(replace(plan, noise=noise), first)
    how = dict(group=plan.group, how=plan.draw, span=span, kernel=plan.path.kernel)
    paths = rollout.path_group(parts, params, condition, references, second, **how)
    pictures = np.asarray(rollout.decode_pixels(parts, params.vae, paths.end))
    drift = 0.0
    if noise:
        path, negative = rollout.learned([paths], trained)
        read = dit_grpo.make_logprobs(parts.dit, plan.path)(params.dit, path, negative)
        drift = float(jnp.abs(read - path.old).max())
    scores = np.full(plan.group, np.nan)
    if is_scored:
        samples = rollout.samples(parts, requests, plan.group, pictures, thought)
        scores = rewards.score(samples, plan.rewards)
    told = float(np.mean(scores)), float(np.std(scores))
    return Level(noise, drift, *statistics(pictures), *told, pictures)


def statistics(pictures: np.ndarray) -> tuple[float, float, float]:
    """Specks, share of saturated values, and spread of a group of pictures."""
    wide = pictures.astype(np.float64)
    padded = np.pad(wide, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    specks = np.abs(wide - np.median(windows, axis=(-2, -1))).mean()
    saturated = np.mean((pictures == 0) | (pictures == 255))
    pairs = np.abs(wide[:, None] - wide[None]).mean(axis=(2, 3, 4))
    count = len(pictures)
    spread = pairs.sum() / (count * (count - 1)) if count > 1 else 0.0
    return float(specks), float(saturated), float(spread)


def advise(still: Level, found: Sequence[Level], *, clip: float, kernel: str) -> str:
    """Which level to train with: the one whose pictures differ most among those that are clean.

    Args:
      still: the group without noise.
    """
    clean = [one for one in found if one.specks <= SPECKS * max(still.specks, 0.5)]
    sharp = [one for one in clean if one.drift <= clip]
    if not clean:
        other = "" if kernel == "cps" else ", or path.kernel='cps', which keeps pictures clean"
        return f"No level leaves the pictures clean: take lower levels{other}."
    if not sharp:
        least = min(one.drift for one in clean)
        return (
            f"Rounding of log-probabilities ({least:.1e}) exceeds path.clip = {clip:g}: raise it."
        )
    best = max(sharp, key=lambda one: one.spread)
    return (
        f"Train with noise = {best.noise:g}: of the levels with at most {SPECKS:g} times the "
        f"specks of no noise and dlogp within path.clip = {clip:g}, its pictures differ most."
    )


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 10:
        raise ValueError(f"--levels={text}: want numbers above 0, at most 10")
    return value


def _tell(path: Path, title: str, text: str) -> None:
    page = report.page(title, [(path.stem, text)])
    logs.write_text(path, page)
    print(page)


if __name__ == "__main__":
    cli.start(FLAGS, run)
