# SPDX-License-Identifier: Apache-2.0
"""Runs the frozen networks once over real pictures, for stages that read them again and again.

    python -m thinkgen_jax.precompute --config=configs/pretrain.py --config.data=photos --out=coded
    python -m thinkgen_jax.train --config=configs/pretrain.py \
        --config.plans.flow_sft.corpus.encoded=coded

`--config` is that of the stage; its corpus, shapes and start are taken. Each record becomes the
latents of its pictures and the MLLM's states behind its words. The same line again goes on with the
first shard that is missing. Training on it loads neither MLLM nor autoencoder.

* Which captions lose their preface is decided here, once, and where the stage learns draws from
  the autoencoder's posterior (`sample`) each picture has one; which words are dropped for guidance
  is decided anew in training.
* The folder knows the networks that made it by their files' content: a run that names others is
  refused.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from thinkgen_jax import cache, cli, logs, parts, recipe, sharding, starts
from thinkgen_jax.data import corpus, encoded, feeding, packed
from thinkgen_jax.data.buckets import Group
from thinkgen_jax.data.corpus import Opened
from thinkgen_jax.data.encoded import Element
from thinkgen_jax.data.feeding import Example
from thinkgen_jax.data.prompts import assemble
from thinkgen_jax.data.records import MAX_REFERENCES
from thinkgen_jax.data.sources import generator
from thinkgen_jax.data.text import TAKEN
from thinkgen_jax.hf import assets
from thinkgen_jax.parts import Parts
from thinkgen_jax.phases import SftPlan
from thinkgen_jax.steps import flow_sft
from thinkgen_jax.structs import EncodedBatch, FlowBatch, Key, Packed, Tree

FLAGS = cli.values()
CONFIG = config_flags.DEFINE_config_file("config", None, "Stage.", flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "Folder of the encodings.", flag_values=FLAGS)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Run or released folder, instead of config.start.", flag_values=FLAGS
)
BATCH = flags.DEFINE_integer("batch", 16, "Records encoded at once.", flag_values=FLAGS)
SHARD = flags.DEFINE_integer("shard", 1024, "Records of a file.", flag_values=FLAGS)
DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", encoded.DTYPES, "Of latents and states on disk.", flag_values=FLAGS
)


# Fields of a corpus that say nothing about an element; `content` stands for the sources.
FREE = ("sources", "broken", "small")


class Task(NamedTuple):
    """One shard to write: some records of one group and source."""

    name: str
    kind: int  # number of the group and source
    group: Group
    source: int
    rows: np.ndarray


def run() -> None:
    """Command line.

    Raises:
      ValueError: for anything a user can put right; shards already written are kept.
    """
    config = CONFIG.value
    if config is None or OUT.value is None:
        raise ValueError("--config and --out are needed, e.g. --config=configs/pretrain.py")
    if CHECKPOINT.value is not None:
        config.start.update(starts.of_checkpoint(CHECKPOINT.value))
    count = encode(config, Path(OUT.value), batch=BATCH.value, shard=SHARD.value, dtype=DTYPE.value)
    print(f"{count} records encoded in {OUT.value}")


def encode(config: ConfigDict, out: Path, *, batch: int, shard: int, dtype: str) -> int:
    """Encodes the corpus of a stage; returns how many records there are.

    Raises:
      ValueError: when the config has no corpus, the folder holds something else, or too many
        records cannot be used.
    """
    if batch < 1 or shard < 1:
        raise ValueError(f"--batch={batch}, --shard={shard}: must be at least 1")
    plan = dict(recipe.plans(config)).get("flow_sft")
    if plan is None or plan.corpus is None or plan.corpus.encoded or plan.plain:
        raise ValueError("the config has no pictures to encode; give --config.data=")
    cache.enable()
    out.mkdir(parents=True, exist_ok=True)
    log = logs.setup(out)
    with jax.set_mesh(sharding.make_mesh(**config.mesh)):
        system = starts.system_of(config)
        built = parts.build(system, assets.load_text(starts.words_folder(config), system))
        side = system.multiple
        opened = corpus.open_corpus(
            plan.corpus, multiple=corpus.multiple_of(side), batch=plan.batch
        )
        for line in corpus.left_out(opened):
            log.info(line)
        tasks, shares = _tasks(opened, shard)
        frame = len(built.text.pseudo(""))
        short = flow_sft.shortened(built.encoder, plan.corpus.length, frame=frame)
        areas = [t.group.target[0] * t.group.target[1] / side**2 for t in _firsts(tasks)]
        meta = {
            "content": feeding.content(opened),
            "made": starts.prints(config, recipe.ENCODERS),
            "sample": plan.sample,
            "marker": built.text.marker,
            "corpus": {k: v for k, v in dataclasses.asdict(plan.corpus).items() if k not in FREE},
            "seed": config.seed,
            "dtype": dtype,
            "shard": shard,
            "states": short.max_len,
            "weights": shares,
            "tokens": areas,
        }
        encoded.begin(out, meta)
        missing = [t for t in tasks if not (out / f"{t.name}.json").exists()]
        if missing or not (out / encoded.NULL).exists():
            frozen = {t: starts.tree_params(config, system, t, log) for t in recipe.ENCODERS}
            _null(built, frozen, plan.corpus.length, out / encoded.NULL, dtype)
            for task in missing:
                _write(task, built, frozen, opened, plan, out, batch, dtype, config.seed)
                log.info("%s: %d records", task.name, len(task.rows))
    _check(out, tasks, opened, plan.corpus.broken)
    return encoded.finish(out, [t.name for t in tasks], [t.kind for t in tasks])


def _tasks(opened: Opened, shard: int) -> tuple[list[Task], list[float]]:
    """All shards, and the share of every group and source."""
    tasks, shares = [], []
    for number, group in enumerate(opened.groups):
        for source, rows in enumerate(corpus.parts(opened.firsts, group)):
            if not len(rows):
                continue
            kind = len(shares)
            shares.append(float(opened.shares[number, source]))
            for part, first in enumerate(range(0, len(rows), shard)):
                name = f"{kind:04}-{part:05}"
                tasks.append(Task(name, kind, group, source, rows[first : first + shard]))
    return tasks, shares


def _firsts(tasks: Sequence[Task]) -> list[Task]:
    """One task of every kind."""
    return list({task.kind: task for task in reversed(tasks)}.values())[::-1]


def _write(
    task: Task,
    built: Parts,
    frozen: Tree,
    opened: Opened,
    plan: SftPlan,
    out: Path,
    batch: int,
    dtype: str,
    seed: int,
) -> None:
    """Writes one shard and, behind it, what was skipped."""
    skipped: list[tuple[str, str]] = []
    source = opened.sources[task.source]
    taken, made = (*TAKEN, built.text.marker), plan.corpus

    def examples() -> Iterator[tuple[str, Example]]:
        for row in task.rows.tolist():
            record = None
            try:
                record = source[row]
                image, shown = feeding.fitted(record, task.group, taken)
            except ValueError as err:
                skipped.append((corpus.label(source, row, record), str(err)))
                continue
            rng = generator(seed, f"precompute {task.source}", row)
            words = feeding.cleaned(record, rng, made.clean)
            yield record.id, Example(words, image, shown, ())

    def elements() -> Iterator[bytes]:
        for number, some in enumerate(_chunks(examples(), batch)):
            names, rows = zip(*some, strict=True)
            full = [*rows, *[rows[-1]] * (batch - len(rows))]  # one shape, one program
            data, _ = feeding.flow_batch(
                full, group=task.group, text=built.text, length=made.length, plain=False
            )
            key = _key(seed, task.name, number) if plan.sample else None
            found = _cut(_encode(built, frozen, data, key), len(rows))
            for name, element in zip(names, found, strict=True):
                yield encoded.pack(element, name=name, dtype=dtype)

    count = packed.write_shard(out / f"{task.name}.array_record", elements())
    encoded.write_json(out / f"{task.name}.json", {"count": count, "skipped": skipped})


def _chunks(items: Iterator, size: int) -> Iterator[list]:
    held = []
    for item in items:
        held.append(item)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def _key(seed: int, name: str, number: int) -> Key:
    """The draws of one batch of a shard, the same when it is made again."""
    return jax.random.key(int(generator(seed, f"posterior {name}", number).integers(2**31)))


def _encode(built: Parts, frozen: Tree, data: FlowBatch, key: Key | None) -> EncodedBatch:
    frame = len(built.text.pseudo(""))
    return jax.device_get(_jitted(frozen, data, key, encoder=built.encoder, frame=frame))


@partial(jax.jit, static_argnames=("encoder", "frame"))
def _jitted(frozen: Tree, data: FlowBatch, key, *, encoder, frame: int) -> EncodedBatch:
    return flow_sft.encode(encoder, frozen, data, key, frame=frame)


def _cut(found: EncodedBatch, count: int) -> Iterator[Element]:
    """The rows of a batch, their states without padding."""
    for row in range(count):
        target, shown = (
            None if group is None else Packed(*(np.asarray(a)[row] for a in group))
            for group in (found.target, found.references)
        )
        length = int(np.asarray(found.condition.segments)[row].sum())
        yield Element(target, shown, np.asarray(found.condition.states, np.float32)[row, :length])


def _null(built: Parts, frozen: Tree, length: int, path: Path, dtype: str) -> None:
    """Encodes the row without words, for 0 to 5 references."""
    counts = range(MAX_REFERENCES + 1)
    rows = [feeding.token_row(built.text, "", count, length, plain=False) for count in counts]
    frame = len(built.text.pseudo(""))
    short = flow_sft.shortened(built.encoder, length, frame=frame)
    prompt = assemble(rows, length=length)
    condition = jax.device_get(jax.jit(short.condition)(frozen["mllm"], prompt))
    blank = Packed(np.zeros((0, 1), np.float32), np.zeros((0, 2), np.int32), np.zeros(0, np.int32))
    found = _cut(EncodedBatch(None, condition, None), len(rows))
    elements = (element._replace(target=blank) for element in found)
    packed.write_shard(path, (encoded.pack(e, name="null", dtype=dtype) for e in elements))


def _check(out: Path, tasks: Sequence[Task], opened: Opened, limit: float) -> None:
    """Adds up what all shards skipped, and refuses too much of it."""
    broken = dict(opened.broken)
    for task in tasks:
        broken.update(encoded.read_json(out / f"{task.name}.json")["skipped"])
    encoded.write_json(out / "skipped.json", broken)
    corpus.check_broken(broken, opened.firsts[-1], limit)


if __name__ == "__main__":
    cli.start(FLAGS, run)
