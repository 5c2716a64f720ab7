# SPDX-License-Identifier: Apache-2.0
"""Prompts for reinforcement: readers of the field's formats, the mix, and what must not be in it.

  geneval    JSONL with `prompt`, `tag`, `include`, `exclude`: what a detector shall find
  flow_grpo  a prompt a line, or JSONL with `prompt` and anything a reward wants, `image` for edits
  verl       Parquet of verl (`prompt` as messages, `reward_model`, `extra_info`) or EasyR1
             (`problem`, `answer`), pictures in `images`
  jsonl      ours: `{"id", "scenario", "prompt", "images", "reward"}`

An item's `reward` holds everything its reward needs; readers pass it on and do not look into it,
but for `target`, the picture that would be right: a path as those of `images` are, which rewards
see opened in `meta["target"]`. Prompts that an evaluation asks as well are taken out, and a report
says which.

Source: formats: geneval, flow_grpo, verl and EasyR1 repositories; mix: the paper's five scenarios.
"""

import json
import random
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grain
import pyarrow as pa
import pyarrow.parquet as pq

from thinkgen_jax.data import files, images, records
from thinkgen_jax.data.batches import Stream, takes
from thinkgen_jax.data.records import Blob
from thinkgen_jax.structs import Request

# Prompts of each scenario. Source: paper, stage 4 (24 K in all).
MIX = {
    "composition": 5_000,
    "reasoning": 10_000,
    "text": 3_000,
    "edit": 3_000,
    "reflection": 3_000,
}
EXAMPLES = 5  # prompts that a report shows for each evaluation


@dataclass(frozen=True)
class PromptItem:
    """One prompt of a set.

    Attributes:
      id: file and line, or the set's own.
      scenario: what kind of task it is; decides the stream and the reward.
      prompt: what the user says.
      images: pictures that come with it.
      reward: what the rewards want to know; its `target`, if any, is a picture.
      tag: finer kind inside the scenario, "" without.
    """

    id: str
    scenario: str
    prompt: str
    images: tuple[Blob, ...] = ()
    reward: Mapping = field(default_factory=dict)
    tag: str = ""

    @property
    def pictures(self) -> tuple[Blob, ...]:
        """Every picture of the item: those that come with it, and the target."""
        target = self.reward.get("target")
        return self.images if target is None else (*self.images, target)


@dataclass(frozen=True)
class PromptSet:
    """Where prompts lie.

    Attributes:
      kind: a key of `READERS`.
      path: file; None, in a config that leaves it to the user, can be compiled but not read.
      scenario: of its items, any name that a stream has; None where they say it themselves (jsonl).
      root: folder that paths of pictures are below; None takes that of the file.
    """

    kind: str
    path: str | None
    scenario: str | None = None
    root: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in READERS:
            raise ValueError(f"kind = {self.kind!r} is not one of {sorted(READERS)}")
        if self.scenario is None and self.kind != "jsonl":
            raise ValueError(f"scenario of {self.path} is not set: a {self.kind} file has none")


# --- reading ---


def read(source: PromptSet) -> list[PromptItem]:
    """All prompts of a set, in its order.

    Raises:
      ValueError: when it is missing or empty, or an item is damaged, naming file and line.
      PermissionError: when a picture's path leaves the root.
    """
    if source.path is None:
        raise ValueError(f"a prompt set of kind {source.kind!r} has no path")
    path = Path(source.path)
    if not path.is_file():
        raise ValueError(f"prompt set {source.path} does not exist")
    root = Path(source.root) if source.root is not None else path.parent
    found = []
    for place, fields in READERS[source.kind](path):
        name = f"{path.name}:{place}"
        try:
            found.append(_item({"scenario": source.scenario, **fields}, name, root))
        except (ValueError, PermissionError) as err:
            # A UnicodeError is a ValueError that is not made of one string.
            kind = PermissionError if isinstance(err, PermissionError) else ValueError
            raise kind(f"prompt set {source.path}, item {place}: {err}") from err
    if not found:
        raise ValueError(f"prompt set {source.path} is empty")
    return found


def _item(fields: Mapping, name: str, root: Path) -> PromptItem:
    prompt, scenario = fields.get("prompt"), fields.get("scenario")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"prompt is {prompt!r}")
    if not isinstance(scenario, str):
        raise ValueError(f"scenario is {scenario!r}")
    pictures = fields.get("images") or ()
    if not isinstance(pictures, list | tuple) or len(pictures) > records.MAX_REFERENCES:
        raise ValueError(f"images must be a list of at most {records.MAX_REFERENCES}")
    reward = fields.get("reward") or {}
    if not isinstance(reward, Mapping):
        raise ValueError(f"reward is {reward!r}, want an object")
    blobs = tuple(_picture(value, root) for value in pictures)
    reward = {key: value for key, value in reward.items() if key != "target" or value is not None}
    if "target" in reward:
        reward["target"] = _picture(reward["target"], root)
    own = fields.get("id")
    return PromptItem(
        name if own is None else str(own),
        scenario,
        prompt.strip(),
        blobs,
        reward,
        str(fields.get("tag") or ""),
    )


def _picture(value, root: Path) -> Blob:
    value = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError(f"a picture is {type(value).__name__}, want a path or bytes")
    return records.inside(root, value)


Found = Iterator[tuple[int, dict]]  # number from 1, fields


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as err:
        raise ValueError(f"prompt set {path} is not UTF-8") from err


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(files.split(_text(path)), start=1):
        if line.strip():
            yield number, line.strip()


def _objects(path: Path) -> Found:
    return files.objects(_text(path), f"prompt set {path}")


def _geneval(path: Path) -> Found:
    for number, fields in _objects(path):
        if not isinstance(fields.get("include"), list):
            raise ValueError(f"prompt set {path}, line {number} has no list `include`")
        reward = {key: fields[key] for key in ("tag", "include", "exclude") if key in fields}
        yield number, {"prompt": fields.get("prompt"), "tag": fields.get("tag"), "reward": reward}


def _flow_grpo(path: Path) -> Found:
    if path.suffix != ".jsonl":
        for number, line in _lines(path):
            quoted = re.search(r'"(.+?)"', line)
            yield number, {"prompt": line, "reward": {"text": quoted[1]} if quoted else {}}
        return
    for number, fields in _objects(path):
        rest = {key: value for key, value in fields.items() if key not in ("prompt", "image")}
        shown = [fields["image"]] if fields.get("image") else []
        yield (
            number,
            {
                "prompt": fields.get("prompt"),
                "images": shown,
                "tag": fields.get("tag"),
                "reward": rest,
            },
        )


def _verl(path: Path) -> Found:
    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as err:
        raise ValueError(f"prompt set {path} is no Parquet file: {err}") from err
    for number, row in enumerate(rows, start=1):
        words = row.get("prompt", row.get("problem"))
        if isinstance(words, list):  # messages; what the user said last
            said = [turn.get("content") for turn in words if turn.get("role") == "user"]
            words = said[-1] if said else None
        if isinstance(words, str):
            words = words.replace("<image>", "").strip()
        reward = {
            key: row[key]
            for key in ("data_source", "reward_model", "extra_info", "answer", "ability")
            if row.get(key) is not None
        }
        yield number, {"prompt": words, "images": row.get("images"), "reward": reward}


READERS = {"geneval": _geneval, "flow_grpo": _flow_grpo, "verl": _verl, "jsonl": _objects}


# --- what an evaluation asks ---


def normal(prompt: str) -> str:
    """What is compared: letters and digits of the words, without case, width and accents' form.

    Signs are compared where there is nothing else.
    """
    words = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join(re.findall(r"\w+", words)) or words.strip()


def asked(path: str | Path) -> list[str]:
    """Prompts of an evaluation, which are one of
      lines of a text file
      every `prompt` or `instruction` of a JSON or JSONL file (RISEBench says the latter)
      a folder of .txt files, or one that has them in `prompts/`, a prompt a file (DPG-Bench)

    Raises:
      ValueError: when there is no such file or folder, or no prompt in it.
    """
    path = Path(path)
    if path.is_dir():
        files_ = sorted(path.glob("*.txt")) or sorted((path / "prompts").glob("*.txt"))
        found = [" ".join(line for _, line in _lines(file)) for file in files_]
        found = [prompt for prompt in found if prompt]
    elif not path.is_file():
        raise ValueError(f"evaluation prompts {path} do not exist")
    elif path.suffix == ".jsonl":
        found = [prompt for _, fields in _objects(path) for prompt in _prompts(fields)]
    elif path.suffix == ".json":
        found = list(_prompts(files.parse(path.read_bytes())))
    else:
        found = [line for _, line in _lines(path)]
    if not found:
        raise ValueError(f"evaluation prompts {path}: none found")
    return found


def _prompts(node) -> Iterator[str]:
    if isinstance(node, dict):
        for key, child in node.items():
            if key.lower() in ("prompt", "instruction") and isinstance(child, str):
                yield child
            else:
                yield from _prompts(child)
    elif isinstance(node, list):
        for child in node:
            yield from _prompts(child)


def separate(
    items: Sequence[PromptItem], evaluations: Mapping[str, Sequence[str]]
) -> tuple[list[PromptItem], dict]:
    """Takes out what an evaluation asks, and what was there before.

    Two prompts are the same when their words are, see `normal`. With pictures a prompt is asked of
    them, so only sets without pictures know doubles; an evaluation's prompt goes in any case.

    Returns:
      The items that are left, and a report that JSON can hold.
    """
    known = {name: {normal(p) for p in prompts} for name, prompts in evaluations.items()}
    kept, seen, doubles = [], set(), 0
    taken: dict[str, list[str]] = {name: [] for name in known}
    for item in items:
        words = normal(item.prompt)
        homes = [name for name, prompts in known.items() if words in prompts]
        for name in homes:
            taken[name].append(f"{item.id}: {item.prompt}")
        if homes:
            continue
        if not item.images:
            if words in seen:
                doubles += 1
                continue
            seen.add(words)
        kept.append(item)
    report = {
        "read": len(items),
        "kept": len(kept),
        "repeated": doubles,
        "evaluations": {
            name: {"prompts": len(known[name]), "removed": len(found), "first": found[:EXAMPLES]}
            for name, found in taken.items()
        },
    }
    return kept, report


def apart(
    items: Sequence[PromptItem], against: Sequence[str]
) -> tuple[list[PromptItem], list[str]]:
    """Takes out what the evaluations ask whose prompt files are named; the rest, and a report.

    Raises:
      ValueError: when a file cannot be read, or nothing is left.
    """
    if not against:
        return list(items), [f"prompt sets: {len(items)} prompts, compared with no evaluation"]
    kept, report = separate(items, {path: asked(path) for path in against})
    if not kept:
        raise ValueError(f"prompt sets: all {len(items)} prompts are asked by {list(against)}")
    lines = [
        f"prompt sets: {report['read']} prompts read, {report['kept']} kept, "
        f"{report['repeated']} repeated"
    ]
    for path, found in report["evaluations"].items():
        shown = "".join(f"; {prompt}" for prompt in found["first"])
        lines.append(
            f"prompt sets: {path} asks {found['prompts']}, {found['removed']} taken out{shown}"
        )
    return kept, lines


def check_pictures(items: Sequence[PromptItem], size: tuple[int, int] | None = None) -> None:
    """Measures every picture by its header, so that a run does not begin that would end at one.

    Args:
      size: (height, width) that pictures have to fill; None asks nothing.

    Raises:
      ValueError: listing the first items whose pictures cannot be used, and how many they are.
    """
    bad = []
    for item in items:
        try:
            for blob in item.pictures:
                found = records.measure(blob)
                if size is not None and (found[0] < size[0] or found[1] < size[1]):
                    raise ValueError(f"a picture of {found} is smaller than {size}")
        except ValueError as err:
            bad.append(f"\n  {item.id}: {err}")
    if bad:
        listed = "".join(bad[:EXAMPLES])
        raise ValueError(f"prompt sets: {len(bad)} prompts have pictures of no use:{listed}")


def check_streams(items: Sequence[PromptItem], streams: Sequence[Stream], key: str) -> None:
    """Refuses items that would come in batches which no stream takes.

    Args:
      key: config key of the streams.

    Raises:
      ValueError: for a scenario that no stream has as a whole, or pictures that its stream has no
        place for; with the key, the count and the first item.
    """
    groups: dict[str, list[PromptItem]] = {}
    for item in items:
        groups.setdefault(item.scenario, []).append(item)
    for name, some in groups.items():
        stream = next((s for s in streams if takes(s, some)), None)
        if stream is None:
            known = sorted({scenario for s in streams for scenario in s.scenarios})
            raise ValueError(
                f"{key}: none has the scenario {name!r} of {len(some)} prompts, first "
                f"{some[0].id}; they have {known}"
            )
        wide = [item for item in some if len(item.images) > stream.pictures]
        if wide:
            raise ValueError(
                f"{key}: that of scenario {name!r} has pictures = {stream.pictures}, "
                f"{len(wide)} prompts have more, first {wide[0].id}"
            )


# --- the mix ---


def mixed(
    items: Sequence[PromptItem], counts: Mapping[str, int] = MIX, *, seed: int = 0
) -> tuple[list[PromptItem], dict]:
    """Draws each scenario's number of prompts without repetition, and shuffles them together.

    Returns:
      The items, and by scenario how many were wanted, there and taken.

    Raises:
      ValueError: when a scenario that is wanted has no prompt, or one has no number.
    """
    groups: dict[str, list[PromptItem]] = {name: [] for name in counts}
    for item in items:
        if item.scenario not in groups:
            raise ValueError(f"{item.id}: scenario {item.scenario!r} is not in {sorted(counts)}")
        groups[item.scenario].append(item)
    rng, chosen, report = random.Random(seed), [], {}
    for name, found in groups.items():
        if counts[name] > 0 and not found:
            raise ValueError(f"no prompt of scenario {name!r}, {counts[name]} are wanted")
        part = rng.sample(found, min(counts[name], len(found)))
        report[name] = {"wanted": counts[name], "there": len(found), "taken": len(part)}
        chosen += part
    rng.shuffle(chosen)
    return chosen, report


def write(path: str | Path, items: Sequence[PromptItem]) -> None:
    """Writes items as our JSONL.

    Raises:
      ValueError: when a picture is no path below the folder of the file.
    """
    path = Path(path)
    lines = []
    for item in items:
        named = [_relative(blob, path.parent, item.id) for blob in item.pictures]
        shown, target = named[: len(item.images)], named[len(item.images) :]
        fields = {
            "id": item.id,
            "scenario": item.scenario,
            "tag": item.tag,
            "prompt": item.prompt,
            "images": shown,
            "reward": {**item.reward, **({"target": target[0]} if target else {})},
        }
        lines.append(json.dumps(fields, ensure_ascii=False))
    part = path.with_suffix(".part")
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.replace(path)


def _relative(blob: Blob, folder: Path, name: str) -> str:
    if not isinstance(blob, Path):
        raise ValueError(f"{name}: pictures inside a table cannot be written as paths")
    try:
        return str(blob.resolve().relative_to(folder.resolve()))
    except ValueError:
        raise ValueError(f"{name}: {blob} is not below {folder}") from None


# --- requests ---


def request(item: PromptItem, *, seed: int = 0, size: tuple[int, int] | None = None) -> Request:
    """A request as a user would make it; its item is in `meta`, and its target as a picture.

    Args:
      size: (height, width) that pictures are brought to, so that a batch has one; None leaves them.

    Raises:
      ValueError: when a picture cannot be opened, or is smaller than `size`.
    """
    try:
        opened = [
            images.open_picture(records.load(blob), near=size).image for blob in item.pictures
        ]
        if size is not None:
            opened = [images.fill(image, size) for image in opened]
    except ValueError as err:
        raise ValueError(f"prompt {item.id}: {err}") from err
    shown, target = opened[: len(item.images)], opened[len(item.images) :]
    meta = {"item": item, **({"target": target[0]} if target else {})}
    return Request(item.prompt, tuple(shown), "draw", True, None, seed, meta)


def streams(
    items: Sequence[PromptItem],
    *,
    size: int,
    seed: int,
    picture: tuple[int, int] | None = None,
    weights: Mapping[str, float] | None = None,
) -> tuple[list[grain.MapDataset], list[float]]:
    """A stream of batches of requests for every scenario, for `batches.mixed`, and its weight.

    Args:
      size: requests of a batch.
      picture: (height, width) of the pictures that come with them.
      weights: of scenarios; None takes how many items each has.
    """
    groups: dict[str, list[PromptItem]] = {}
    for item in items:
        groups.setdefault(item.scenario, []).append(item)
    found, shares = [], []
    for number, name in enumerate(sorted(groups)):
        order = grain.MapDataset.source(groups[name]).shuffle(seed=(seed + number) % 2**32)
        made = order.repeat().map_with_index(partial(_numbered, size=picture))
        found.append(made.batch(size, drop_remainder=True, batch_fn=list))
        shares.append(float(len(groups[name]) if weights is None else weights[name]))
    return found, shares


def _numbered(index: int, item: PromptItem, *, size: tuple[int, int] | None) -> Request:
    return request(item, seed=index, size=size)
