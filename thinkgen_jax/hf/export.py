# SPDX-License-Identifier: Apache-2.0
"""Whole released folders, written: what PyTorch code loads, from our trees.

* With a source, its file names, its assignment of tensors to shards, its tokenizer and all that we
  do not interpret are kept: reading a folder and writing it gives the same tensors, byte by byte.
* A config is copied where it says what our sizes say; where it does not, our values lie over it.
* Python files of a source are copied with the rest, for the code that wants them, and never run.

Source: ThinkGen@7388ad5 (components of the pipeline); diffusers@0.34.0 (model_index.json).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from shutil import copyfile

from thinkgen_jax.hf import files, mllm, streams
from thinkgen_jax.hf.folders import (
    PLACES,
    SCHEDULER,
    TABLES,
    aliases_of,
    buffers_of,
    config_of,
    home_of,
    is_qwen,
    kind,
    weights_of,
    words_folder,
)
from thinkgen_jax.hf.streams import Entry
from thinkgen_jax.models.presets import System
from thinkgen_jax.structs import Tree

INDEX = "model_index.json"
SHARD_BYTES = 5 * 10**9  # most bytes of tensors in one file, as the released MLLM has it
# Of a Qwen3-VL's own folder, what a pipeline keeps in processor/.
WORDS = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template.json", "chat_template.jinja"),
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
)
DIFFUSERS = {"_diffusers_version": "0.34.0"}
EULER = {
    **DIFFUSERS,
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
}
# Classes by the modules of the release's own code; a released folder may bring its own files.
PIPELINE = {
    **DIFFUSERS,
    "_class_name": "ThinkGenCoTPipeline",
    "mllm": ["transformers", "Qwen3VLForConditionalGeneration"],
    "processor": ["transformers", "Qwen3VLProcessor"],
    "scheduler": [
        "ThinkGen.schedulers.scheduling_flow_match_euler_discrete_time_shifting",
        "FlowMatchEulerDiscreteScheduler",
    ],
    "transformer": [
        "ThinkGen.models.transformers.transformer_thinkgen",
        "ThinkGenTransformer2DModel",
    ],
    "vae": ["diffusers", "AutoencoderKL"],
}

Jobs = dict[Path, Callable[[Path], object]]


def write_folder(
    folder: str | Path,
    system: System,
    trees: Mapping[str, Tree],
    source: str | Path | Sequence[str | Path] | None = None,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    plain: bool = False,
) -> list[Path]:
    """Writes a released folder; all files are complete before the first takes its place.

    Args:
      folder: may be the source.
      trees: "mllm", "dit" or "vae" to parameters; sub-folders of others stay as they are.
      source: one or more released folders to keep to; each tree and the tokenizer take the first
        that holds them. Without one there is neither tokenizer nor `generation_config.json`.
      dtype: of the weights; None keeps the trees', "source" takes each tensor's there.
      max_shard_bytes: most bytes in one file, where no source assigns tensors to files.
      plain: the folder is a Qwen3-VL of its own, not a pipeline.

    Returns:
      The files written.

    Raises:
      ValueError: for another tree, parameters that are none of the system's, a source of no known
        kind, or the dtype "source" where no source has the same tensors.
    """
    folder = Path(folder)
    given = (source,) if isinstance(source, str | Path) else source or ()
    sources = tuple(Path(path) for path in given)
    unknown = sorted(set(trees) - set(["mllm"] if plain else PLACES))
    if unknown or not trees or max_shard_bytes < 1:
        raise ValueError(
            f"{folder}: cannot write trees {unknown or sorted(trees)} with plain={plain}, "
            f"max_shard_bytes={max_shard_bytes}"
        )
    for path in sources:
        if kind(path) is None:
            raise ValueError(f"{path}: no released folder")
    jobs = {} if plain else _frame(folder, system, sources)
    jobs |= _words(folder if plain else folder / "processor", sources)
    stems = []
    for name, params in trees.items():
        home, stem = folder if plain else folder / PLACES[name][0], PLACES[name][1]
        entries, origin, there = _tensors(system, name, params, sources, dtype=dtype)
        jobs[home / "config.json"] = _config_job(system, name, entries, origin)
        jobs |= {home / file.name: partial(copyfile, file) for file in _beside(origin, name)}
        jobs |= _weight_jobs(home, stem, entries, there, max_shard_bytes)
        stems.append(home / (stem + files.SUFFIX))
    for parent in {file.parent for file in jobs}:
        parent.mkdir(parents=True, exist_ok=True)
    files.write_all(jobs)
    for old in (file for stem in stems for file in files.earlier(stem) if file not in jobs):
        old.unlink()
    return list(jobs)


# --- weights --------------------------------------------------------------------------------------


def _tensors(
    system: System, name: str, params: Tree, sources: Sequence[Path], *, dtype: str | None
) -> tuple[dict[str, Entry], Path | None, dict[str, Entry]]:
    """What is to be written, the source of that tree, and its tensors if they are the same."""
    origin = next((path for path in sources if _holds(path, name)), None)
    there = streams.scan(weights_of(home_of(origin, name), name))[0] if origin else {}
    buffers, aliases = buffers_of(system, name), aliases_of(system, name)
    table = TABLES[name].rules(getattr(system, name))
    entries = streams.released(params, table, dtype=None if dtype == "source" else dtype)
    if entries.keys() - there.keys() or there.keys() - entries.keys() - {*buffers, *aliases}:
        there = {}
    for buffer, array in buffers.items():
        if buffer in there or not there:
            entries[buffer] = there.get(buffer, streams.entry_of(array))
    for alias in aliases.keys() & there.keys():
        entries[alias] = entries[aliases[alias]]
    if dtype == "source":
        if not there:
            raise ValueError(f"dtype='source', but no source has the tensors of tree {name!r}")
        entries = {key: e._replace(dtype=there[key].dtype) for key, e in entries.items()}
    return entries, origin, there


def _holds(source: Path, name: str) -> bool:
    """Whether a source has a tree that ours could be."""
    home = home_of(source, name)
    return (home / "config.json").is_file() and (name != "mllm" or is_qwen(home))


def _weight_jobs(
    home: Path,
    stem: str,
    entries: Mapping[str, Entry],
    there: Mapping[str, Entry],
    max_shard_bytes: int,
) -> Jobs:
    """Weight files, then their index; files and index are those of `there`, if it holds any."""
    cut, about, original = {}, {}, None
    if there:
        for key in entries:
            cut.setdefault(there[key].file.name, []).append(key)
        places = {entry.file for entry in there.values()}
        about = {file.name: streams.metadata(file) for file in places}
        original = next(iter(places)).with_name(stem + files.INDEX_SUFFIX)
    else:
        cut = streams.shards(entries, stem, max_shard_bytes)
    jobs: Jobs = {}
    for file, keys in sorted(cut.items()):
        part = {key: entries[key] for key in keys}
        jobs[home / file] = streams.writer(part, about.get(file, files.METADATA))
    size = sum(entry.nbytes for entry in entries.values())
    index = {
        "metadata": {"total_size": size},
        "weight_map": {key: file for file, keys in cut.items() for key in keys},
    }
    if original is not None and original.is_file():
        old = files.read_config(original).get("metadata", {})
        is_as_large = size == sum(entry.nbytes for entry in there.values())
        index["metadata"] = old if is_as_large else {**old, "total_size": size}
        jobs[home / original.name] = _json_job(index, original)
    elif len(cut) > 1:
        jobs[home / (stem + files.INDEX_SUFFIX)] = files.json_writer(index)
    return jobs


# --- configs --------------------------------------------------------------------------------------


def _config_job(system: System, name: str, entries: Mapping[str, Entry], origin: Path | None):
    """The source's config where it says the same, else with our values over it."""
    ours = TABLES[name].config_to_hf(getattr(system, name))
    if origin is None:
        more = DIFFUSERS
        if name == "mllm":
            more = {"dtype": entries[f"{mllm.TEXT}.embed_tokens.weight"].dtype.name}
        return files.json_writer({**ours, **more})
    file = home_of(origin, name) / "config.json"
    old, was = files.read_config(file), TABLES[name].config_to_hf(config_of(origin, name))
    new = _overlaid(old, was, ours)
    if kind(origin) == "omnigen2" and "_class_name" in old:
        new["_class_name"] = ours["_class_name"]
    return _json_job(new, file)


def _overlaid(old: Mapping, was: Mapping, ours: Mapping) -> dict:
    """`old` with what differs between `was`, as we read it, and `ours`."""
    new = {key: value for key, value in old.items() if key in ours or key not in was}
    for key, value in ours.items():
        if isinstance(value, Mapping) and isinstance(old.get(key), Mapping):
            new[key] = _overlaid(old[key], was.get(key, {}), value)
        elif key not in was or was[key] != value:
            new[key] = value
            if key in ("rope_theta", "rope_scaling"):  # the newer spelling would win over these
                new |= {"rope_theta": ours["rope_theta"], "rope_scaling": ours["rope_scaling"]}
                new.pop("rope_parameters", None)
    return new


def _json_job(content: Mapping, original: Path) -> Callable[[Path], object]:
    """A file's copy, byte by byte, unless its content shall change."""
    if files.read_config(original) == content:
        return partial(copyfile, original)
    return files.json_writer(content)


# --- what else a folder has -----------------------------------------------------------------------


def _beside(origin: Path | None, name: str) -> list[Path]:
    """Small files next to a tree's weights, which go with it."""
    if origin is None or kind(origin) == "omnigen2":
        return []
    home = home_of(origin, name)
    if home == origin:  # a Qwen3-VL's own folder: the rest is words, or about the folder
        return [file for file in [home / "generation_config.json"] if file.is_file()]
    return [file for file in _small(home) if file.name != "config.json"]


def _small(folder: Path) -> list[Path]:
    """Files of a folder that are neither weights nor hidden."""
    heavy = (files.SUFFIX, ".index.json", *files.PICKLES)
    return [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.endswith(heavy) and not file.name.startswith(".")
    ]


def _words(folder: Path, sources: Sequence[Path]) -> Jobs:
    """Tokenizer, chat template and picture settings of the first source with a Qwen3-VL."""
    for source in sources:
        home = words_folder(source)
        found = [file for file in _small(home) if home != source or file.name in WORDS]
        if found and kind(source) != "omnigen2":
            return {folder / file.name: partial(copyfile, file) for file in found}
    return {}


def _frame(folder: Path, system: System, sources: Sequence[Path]) -> Jobs:
    """The pipeline's index and its scheduler, from a source or as the release has them."""
    euler = {**EULER, "dynamic_time_shift": system.shift is None}
    jobs: Jobs = {
        folder / INDEX: files.json_writer(PIPELINE),
        folder / "scheduler" / SCHEDULER: files.json_writer(euler),
    }
    for source in reversed(sources):  # the first has the last word
        if (source / "scheduler").is_dir():
            small = _small(source / "scheduler")
            jobs |= {folder / "scheduler" / file.name: partial(copyfile, file) for file in small}
        if (source / INDEX).is_file() and kind(source) == "thinkgen":
            jobs[folder / INDEX] = partial(copyfile, source / INDEX)
    return jobs
