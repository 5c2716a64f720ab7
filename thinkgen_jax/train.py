# SPDX-License-Identifier: Apache-2.0
"""Trains: `python -m thinkgen_jax.train --config=configs/sepgrpo.py`.

The same line again goes on from the last commit; a finished run prints its report. Every stage is a
config; what a step does is in `phases.py`.

* One commit holds all learning trees, their optimizers and averages, the place in every data stream
  and the step; a run that is killed and resumed ends with the same bits as one that was not.
* The optimizer of a tree that does not learn in a phase waits in the host's memory.
* A step with NaN is skipped and counted; Ctrl-C commits and says how to go on.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from thinkgen_jax import (
    cache,
    checkpoint,
    cli,
    hosts,
    logs,
    phases,
    recipe,
    report,
    sharding,
    starts,
    xla,
)
from thinkgen_jax.phases import Phase, RlPlan, Setup, SftPlan
from thinkgen_jax.scoring import Gallery
from thinkgen_jax.steps import turns
from thinkgen_jax.structs import Key, States

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Run folder; default runs/<config>-<argument>.")
SEED = flags.DEFINE_integer("seed", None, "Overrides config.seed.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Run or released folder that is the start, instead of config.start."
)
FRESH = flags.DEFINE_bool("fresh", False, "Move an existing run aside and start over.")
PROFILE = flags.DEFINE_bool("profile", False, "Trace three steps into the run folder.")
PROFILE_FROM = flags.DEFINE_integer(
    "profile_from", None, "First of them, from 1; default the third after the start."
)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Run on several hosts, see hosts.py.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "address:port of host 0; off Cloud TPUs.")
HOSTS = flags.DEFINE_integer("hosts", None, "Number of hosts, with --coordinator.")
HOST = flags.DEFINE_integer("host", None, "This host's number from 0, with --coordinator.")
GPUS = flags.DEFINE_list(
    "gpus", None, "GPUs of this process where several share a machine, 0,1; default all."
)

CONFIG_FILE = "config.json"
SKIPPED = "skipped_row"  # in a commit's meta: steps in a row without an update, until it
PLACES = ("mesh.", "arg")  # where a run goes on may differ; its preset is in config.model
# What may change in a run that goes on: where rewards are asked and how patiently, who is told, and
# what a run that stops for it asks to be switched off.
MOVABLE = re.compile(
    r"plans\.\w+\.(drop_limit|keep_old|servers\..+\.(urls|key|timeout|tries|backoff|workers|limit))"
    r"|log\.wandb"
)
STOPPING = (
    "interrupted: this step is finished and committed, then the run stops; a second time stops it "
    "without that, as soon as the call under way returns"
)
SHOWN = ("loss", "reward", "kl", "skipped")  # numbers beside the progress bar


def main(argv: list[str]) -> None:
    """Command line."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    config = CONFIG.value
    if config is None:
        raise app.UsageError("--config is needed, e.g. --config=configs/sepgrpo.py")
    cli.collect_rarely()
    try:
        xla.tell()
        join()
        with hosts.together(), config.unlocked():
            config.seed = config.seed if SEED.value is None else SEED.value
            if CHECKPOINT.value is not None:
                config.start.update(starts.of_checkpoint(CHECKPOINT.value))
        profile = (PROFILE_FROM.value or 0) if PROFILE.value else None
        workdir = Path(WORKDIR.value or default_workdir(config))
        run(config, workdir, fresh=FRESH.value, profile=profile)
    except (ValueError, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last commit", file=sys.stderr)
        raise SystemExit(130) from None


def join() -> None:
    """Joins the other hosts if the flags say so.

    Raises:
      ValueError: for flags that do not go together, or hosts that do not find each other.
    """
    if DISTRIBUTED.value:
        try:
            gpus = None if GPUS.value is None else [int(number) for number in GPUS.value]
        except ValueError:
            raise ValueError(f"--gpus={','.join(GPUS.value)} must be numbers, e.g. 0,1") from None
        hosts.start(COORDINATOR.value, HOSTS.value, HOST.value, gpus)
        return
    given = [flag.name for flag in (COORDINATOR, HOSTS, HOST, GPUS) if flag.value is not None]
    if given:
        raise ValueError(f"--{given[0]} needs --distributed")


def run(
    config: ConfigDict, workdir: Path, *, fresh: bool = False, profile: int | None = None
) -> Path:
    """Trains one config to its end, or goes on with the run in its folder; returns the folder.

    Args:
      fresh: moves an existing run aside.
      profile: first step to trace, from 1; 0 is the third after the start, None traces nothing.

    Raises:
      ValueError: for anything a user can put right; what was learned is committed, see `failure`.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # the workers that make batches ask flags of their own
    with hosts.together():  # all of them before the first may move the folder aside
        checkpoint.ensure_space(workdir, 0)
    with hosts.together():
        plans = prepare(config, workdir, fresh=fresh)
    page = workdir / report.PAGE
    cache.enable()
    log = logs.setup(workdir) if hosts.is_first() else logging.getLogger("thinkgen_jax.host")
    mesh = sharding.make_mesh(**config.mesh)
    with (
        jax.set_mesh(mesh),
        checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep) as saves,
        contextlib.ExitStack() as opened,
    ):
        if (saves.latest_step or 0) >= config.steps and page.exists():
            log.info("finished: %s\n\n%s", page, page.read_text(encoding="utf-8"))
            return workdir
        with hosts.together():
            setup, states = recipe.load(config, log)
            room = checkpoint.nbytes(states) * (config.checkpoint.keep + 2)
            checkpoint.ensure_space(workdir, room)
        built = {name: phases.build(name, plan, setup) for name, plan in plans.items()}
        for phase in built.values():
            opened.callback(phase.close)
        if hosts.is_first():
            keep_config(workdir, config)
        start, skipped = 0, 0
        if saves.latest_step is not None:
            with hosts.together():
                latest = checkpoint.read_meta(saves.folder / str(saves.latest_step))
                starts.check_base(config, latest)
                start, states = resume(saves, states, built)
                skipped = latest.get(SKIPPED, 0)
            log.info("resumed at step %d of %d", start, config.steps)
        scores = {"before": recipe.evaluation(config, setup, states, workdir, "before")}
        states = loop(config, workdir, saves, setup, states, built, start, profile, skipped)
        # Trees get what they learned one by one, so that each policy's effect stands alone.
        trees = recipe.trained_trees(config)
        for n, tree in enumerate(trees, start=1):
            when = f"after_{tree}"
            scores[when] = recipe.evaluation(config, setup, states, workdir, when, start=trees[n:])
    if hosts.is_first():
        write_report(config, workdir, scores)
    log.info("report: %s", page)
    return workdir


def prepare(config: ConfigDict, workdir: Path, *, fresh: bool) -> dict[str, SftPlan | RlPlan]:
    """Refuses what can be refused before anything is read; returns the plans of the phases.

    Raises:
      ValueError: for a config that cannot be run, or not on several hosts, or is not that of the
        run in the folder.
    """
    if config.log.get("wandb"):
        logs.elsewhere(config.log.wandb)  # now, not behind the evaluation
    recipe.check_counts(config)
    recipe.check_phases(config)
    recipe.check_evaluation(config)
    plans = dict(recipe.plans(config))
    if hosts.is_first():
        check_config(workdir, config, fresh=fresh)
    return plans


def loop(
    config: ConfigDict,
    workdir: Path,
    saves: checkpoint.Checkpoints,
    setup: Setup,
    states: States,
    built: dict[str, Phase],
    start: int,
    profile: int | None = None,
    skipped: int = 0,
) -> States:
    """Steps `start` to `config.steps`, committing on the way and at the end.

    Args:
      skipped: steps in a row, until `start`, that had NaN or infinity.

    Raises:
      ValueError: for a batch or reward that failed, a commit, or too many skipped steps.
      SystemExit: when somebody asked for it, with everything committed.
    """
    guard, recent = Guard(config.limit_skipped, start, skipped), deque(maxlen=window(config))
    root, meta, awake = jax.random.key(config.seed), about(config, setup), None
    trace = logs.Trace(workdir, traced(config, start, profile))

    def commit(step: int) -> None:
        guard.settle()
        writer.flush()
        save(saves, step, states, built, {**meta, SKIPPED: guard.row}, standing(recent))

    bar = writer_of(config, workdir, start)
    with _interrupts() as stop, bar as writer, cache.Programs() as programs, trace:
        for step in range(start, config.steps):
            trace.before(step)
            name, begun = phases.at(step, config.phases), time.monotonic()
            phase = built[name]
            writer.describe(name)
            if phase.learns != awake:  # not every step: a move waits for the device
                states, awake = turns.turn(states, phase.learns), phase.learns
            key = jax.random.fold_in(root, step)
            told = partial(failure, step=step, is_new=step > start, commit=commit, saves=saves)
            states, metrics, gallery = updated(phase, states, key, told)
            hosts.settle(states)
            trace.after(step, states)
            done = step + 1
            spent = {"step_seconds": time.monotonic() - begun, "programs": programs.count}
            writer.scalars(done, {**metrics, **spent}, name)
            recent.append(metrics["reward"] if "reward" in metrics else -metrics["loss"])
            if gallery is not None and done % config.log.images == 0:
                writer.images(done, name, *gallery)
            guard.see(done, metrics)
            ended = hosts.agree(stop()) or guard.full
            if done % config.checkpoint.every == 0 or done == config.steps or ended:
                commit(done)
            if ended:
                saves.wait()
                guard.check()
                raise SystemExit(f"stopped at step {done}; the same command goes on from there")
    saves.wait()
    guard.check()
    return states


def updated(
    phase: Phase, states: States, key: Key, told: Callable[[ValueError, bool], ValueError]
) -> tuple[States, dict, Gallery | None]:
    """One step of a phase, what `Phase.update` returns.

    Raises:
      ValueError: what `told` makes of an error, and of whether all is as it was before the step.
    """
    place, batch = phase.data.get_state(), None
    rows = "batch" if phase.learns == "mllm" else "rows"
    try:
        batch = hosts.lay(next(phase.data), rows, sliced=phase.sliced)
        return phase.update(states, batch, key)
    except ValueError as err:  # all hosts meet it, but for one about a batch of their own
        phase.data.set_state(place)
        is_whole = not gone(states) and (batch is not None or not hosts.several())
        raise told(err, is_whole) from err


def failure(
    err: ValueError,
    is_whole: bool,
    *,
    step: int,
    is_new: bool,
    commit: Callable[[int], None],
    saves: checkpoint.Checkpoints,
) -> ValueError:
    """What to raise for an error in the step behind `step`, once what was learned is committed.

    Args:
      is_whole: whether states and data are what they were before the step.
      is_new: whether anything was learned since the last start.
    """
    words = f"step {step + 1}: {err}"
    if not is_new:
        return ValueError(words)
    if not is_whole:
        return ValueError(f"{words}; steps behind the last commit are lost")
    try:
        commit(step)
        saves.wait()
    except ValueError as other:
        return ValueError(f"{words}; and step {step} cannot be committed: {other}")
    return ValueError(f"{words}; step {step} is committed, and the run goes on from there")


def gone(states: States) -> bool:
    """Whether an update had given the states away to the device when it failed."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(states))


def about(config: ConfigDict, setup: Setup) -> dict:
    """What every commit says of its run: all that others need to read it."""
    learners = setup.learners.items()
    return {
        "config": recipe.plain(config),
        "preset": config.model,
        "system": dataclasses.asdict(setup.parts.system),
        "start": starts.sources(config),
        "lora": {tree: dataclasses.asdict(one.lora) for tree, one in learners if one.lora},
    }


class Guard:
    """Counts skipped steps in a row, one step late, so that the loop never waits for the device.

    Attributes:
      row: how many there are by now; a commit holds it, so that a restart does not forget them.
      full: whether this run has just met one too many and is to stop.
    """

    def __init__(self, limit: int, step: int = 0, row: int = 0):
        self.limit, self.step, self.row = limit, step, row
        self.full, self.pending = False, None

    def see(self, step: int, metrics: dict) -> None:
        """Takes a step's metrics and reads those of the step before."""
        self.settle()
        self.pending = (step, metrics.get("skipped", 0.0))

    def settle(self) -> None:
        """Reads what is pending."""
        if self.pending is not None and not self.full:
            (self.step, skipped), self.pending = self.pending, None
            self.row = self.row + 1 if float(skipped) > 0 else 0
            self.full = self.row >= self.limit

    def check(self) -> None:
        """Ends a run that cannot go on, or whose last steps taught it nothing.

        Raises:
          ValueError: after too many skipped steps in a row.
        """
        if self.row >= self.limit:
            raise ValueError(
                f"step {self.step}: {self.row} steps in a row had NaN or infinity in loss or "
                "gradient (config.limit_skipped); what was learned before them is committed"
            )


def writer_of(config: ConfigDict, workdir: Path, start: int) -> logs.Writer:
    """The logs of a run that goes on from a step; those of the first host alone."""
    return logs.Writer(
        workdir,
        start=start,
        total=config.steps,
        shown=SHOWN,
        active=hosts.is_first(),
        project=config.log.get("wandb"),
        config=recipe.plain(config),
    )


def traced(config: ConfigDict, start: int, profile: int | None) -> int | None:
    """The first step to trace, counted from 0, so that the run does not end before the last."""
    if profile is None or not hosts.is_first():
        return None
    first = profile - 1 if profile else start + 2  # the first two compile
    return max(start, min(first, config.steps - logs.PROFILED))


def window(config: ConfigDict) -> int:
    """Steps that commits are compared by: whole rounds of the schedule, for phases differ."""
    round_ = sum(count for _, count in config.phases)
    return round_ * -(-config.checkpoint.every // round_)


def standing(recent: deque) -> float | None:
    """Mean reward, or minus the mean loss, of a whole window; None before there is one."""
    values = [float(value) for value in recent]
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite and len(values) == recent.maxlen else None


def save(
    saves: checkpoint.Checkpoints,
    step: int,
    states: States,
    built: dict[str, Phase],
    meta: dict,
    score: float | None,
) -> None:
    """Starts one commit of everything that a resumed run needs."""
    data = {name: phase.data.get_state() for name, phase in built.items()}
    finite = checkpoint.is_finite({k: s.params for k, s in states.items()})
    saves.save(step, states, data=data, meta=meta, finite=finite, score=score)


def resume(
    saves: checkpoint.Checkpoints, states: States, built: dict[str, Phase]
) -> tuple[int, States]:
    """Reads the latest commit into the structure of fresh states and sets the data streams."""
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), states
    )
    commit = saves.restore(saves.latest_step, abstract)
    for name, phase in built.items():
        phase.data.set_state(commit.data[name])
    return commit.step, commit.state


def check_config(workdir: Path, config: ConfigDict, *, fresh: bool) -> None:
    """Checks that a run in this folder has the same config but for `MOVABLE`, or moves it aside.

    Without a commit there is nothing yet that another config could spoil.

    Raises:
      ValueError: when the config changed, listing what.
    """
    path = workdir / CONFIG_FILE
    if fresh and path.exists():
        aside = workdir.with_name(f"{workdir.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        shutil.move(workdir, aside)
        workdir.mkdir(parents=True)
    changed = changes(workdir, config) if checkpoint.has_commit(workdir) else []
    if changed:
        rows = "".join(f"\n  {row}" for row in changed[:20])
        raise ValueError(
            f"--workdir={workdir} holds a run of another config; choose another folder or "
            f"--fresh:{rows}"
        )


def changes(workdir: Path, config: ConfigDict) -> list[str]:
    """What differs from the config that the folder was last run with, but for `MOVABLE`."""
    path = workdir / CONFIG_FILE
    if not path.exists():
        return []
    old = report.flatten(json.loads(path.read_text()))
    now = report.flatten(json.loads(json.dumps(recipe.plain(config))))
    keys = [k for k in old.keys() | now.keys() if not k.startswith(PLACES)]
    # A field that came later and says nothing is none that changed.
    old, now = ({k: v for k, v in one.items() if v not in ([], {})} for one in (old, now))
    changed = [k for k in sorted(keys) if old.get(k) != now.get(k)]
    changed = [k for k in changed if not MOVABLE.fullmatch(k)]
    return [f"{k}: {old.get(k)!r} -> {now.get(k)!r}" for k in changed]


def keep_config(workdir: Path, config: ConfigDict) -> None:
    """Writes down the config; what was measured here under another one is no use any more."""
    if changes(workdir, config):
        for path in [*workdir.glob("before.*"), *workdir.glob("after_*.*")]:
            path.unlink()
    logs.write_text(workdir / CONFIG_FILE, json.dumps(recipe.plain(config), indent=2) + "\n")


def default_workdir(config: ConfigDict) -> Path:
    """runs/<config>-<argument>: no time stamp, so that the same line resumes."""
    return Path("runs") / f"{config.name}-{config.arg.replace(',', '-')}"


def write_report(config: ConfigDict, workdir: Path, scores: dict[str, tuple[dict, dict]]) -> None:
    """Writes report.md with curves and, for each tree that learned, a before/after table.

    Args:
      scores: by name, with clusters, at the start, then with one trained tree more each time; empty
        without evaluation.
    """
    rows = logs.read_metrics(workdir)
    names = sorted({k for row in rows for k in row if k.split("/")[-1] in recipe.CURVES})
    tables = [
        (f"Held-out prompts: what the {tree} learned", report.before_after(before, after, clusters))
        for tree, ((before, clusters), (after, _)) in zip(
            recipe.trained_trees(config), pairwise(scores.values()), strict=True
        )
        if before
    ]
    report.write(
        workdir,
        title=f"{config.name} ({config.model})",
        config=recipe.plain(config),
        rows=rows,
        names=names,
        tables=tables,
        pictures=[(f"Pictures {w}", f"{w}.png") for w in scores if (workdir / f"{w}.png").exists()],
    )


@contextlib.contextmanager
def _interrupts():
    """Turns Ctrl-C and SIGTERM into a question asked between steps; a second one ends the run."""
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)

    def handle(number, frame):
        if asked or len(heard) > 1:  # two during one call that does not return arrive here as one
            raise KeyboardInterrupt
        asked.append(number)

    with _ears(numbers) as heard:
        try:
            before = [signal.signal(number, handle) for number in numbers]
        except ValueError:  # not the main thread: the caller's handlers stay
            before = []
        try:
            yield lambda: bool(asked)
        finally:
            for number, handler in zip(numbers, before, strict=False):
                signal.signal(number, handler)
    if asked:  # behind the last question; the last commit is under way or written
        raise KeyboardInterrupt


@contextlib.contextmanager
def _ears(numbers: tuple[int, ...]):
    """Lists the signals as they arrive, and answers the first one with `STOPPING`.

    In a thread, for Python calls handlers only between two calls of the main one, and a call that
    compiles a program or waits for the device may take minutes.
    """
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)

    def listen() -> None:
        while told := os.read(ear, 1):
            if told[0] in numbers:
                heard.append(told[0])
                if len(heard) == 1:
                    print(f"\n{STOPPING}", file=sys.stderr, flush=True)  # off the bar's line

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    try:
        yield heard
    finally:
        signal.set_wakeup_fd(before)
        os.close(mouth)
        listener.join()
        os.close(ear)


if __name__ == "__main__":
    app.run(main, flags_parser=partial(cli.parse, flags.FLAGS))
