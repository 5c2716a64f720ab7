# SPDX-License-Identifier: Apache-2.0
"""Whole released folders, read: what they hold, their sizes, their weights; `export` writes them.

    kind      what is there
    thinkgen  model_index.json, transformer/, vae/, mllm/ (Qwen3-VL), processor/, scheduler/
    omnigen2  the same with a DiT for another MLLM and without prepadding states: a start for the
              first stage, see `read_start`
    qwen3vl   a Qwen3-VL of any dense size, Instruct or Thinking, in a folder of its own

* Configs decide every size. What they do not know (prompts, limits) comes from a preset.
* Every tensor is accounted for by the tables of this room; pickles are refused.
* Nothing of a folder is run: `auto_map` and Python files beside the weights have no effect.

Source: ThinkGen@7388ad5 (components and class names of the pipeline, fields of the DiT's config).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from thinkgen_jax.hf import adapters, dit, files, mllm, streams, vae
from thinkgen_jax.hf.adapters import Adapter
from thinkgen_jax.hf.rules import flatten, unflatten
from thinkgen_jax.hf.streams import Entry, Lazy
from thinkgen_jax.models import presets
from thinkgen_jax.models.dit import DitConfig
from thinkgen_jax.models.mllm import MllmConfig
from thinkgen_jax.models.presets import System
from thinkgen_jax.models.vae import VaeConfig
from thinkgen_jax.structs import Tree

TABLES = {"mllm": mllm, "dit": dit, "vae": vae}
# Tree to its sub-folder and the stem of its weight files.
PLACES = {
    "mllm": ("mllm", "model"),
    "dit": ("transformer", "diffusion_pytorch_model"),
    "vae": ("vae", "diffusion_pytorch_model"),
}
KINDS = {"ThinkGenTransformer2DModel": "thinkgen", "OmniGen2Transformer2DModel": "omnigen2"}
QWEN = "qwen3_vl"
SCHEDULER = "scheduler_config.json"
# Parameters that a start from another system may have to make anew.
CONNECTOR = ("caption_embedder/", "prepad_embed")


def kind(folder: str | Path) -> str | None:
    """What a folder holds, see the table above; None for anything else.

    Raises:
      ValueError: when a config of it is damaged.
    """
    folder = Path(folder)
    if (folder / "transformer" / "config.json").is_file():
        config = files.read_config(folder / "transformer")
        if "_class_name" in config:
            return KINDS.get(config["_class_name"])
        ours = "n_prepad" in config or "prepad_embed" in _scan(folder, "dit")[0]
        return "thinkgen" if ours else "omnigen2"
    if (folder / "config.json").is_file() and is_qwen(folder):
        return "qwen3vl"
    return None


def words_folder(folder: str | Path) -> Path:
    """Where a folder's tokenizer lies."""
    inner = Path(folder) / "processor"
    return inner if inner.is_dir() else Path(folder)


def read_system(folder: str | Path, base: System | None = None) -> System:
    """Reads the sizes of a folder's networks.

    Args:
      base: everything the folder does not say: prompts and limits, and the networks it lacks; None
        takes the `thinkgen` preset. Of an OmniGen2 folder autoencoder and DiT are taken, the latter
        with a connector for the base's MLLM.

    Raises:
      ValueError: when the folder is missing or of no known kind, a config is damaged or asks for
        what our networks do not have, or the networks do not fit each other.
    """
    folder, base = Path(folder), base or presets.get("thinkgen")
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = kind(folder)
    if found is None:
        raise ValueError(
            f"{folder}: neither a ThinkGen or OmniGen2 pipeline nor a dense Qwen3-VL (config.json "
            f"with model_type {QWEN!r})"
        )
    if found == "qwen3vl":
        return _with_mllm(base, config_of(folder, "mllm"))
    system = replace(base, vae=config_of(folder, "vae"), dit=config_of(folder, "dit"))
    if found == "omnigen2":
        width, count = 2 * system.mllm.hidden_size, base.dit.num_prepad
        return replace(system, dit=replace(system.dit, condition_dim=width, num_prepad=count))
    system = replace(system, mllm=config_of(folder, "mllm"), shift=_shift(folder))
    _check(folder, system)
    return system


def read_tree(
    folder: str | Path,
    system: System,
    name: str,
    *,
    shapes: Tree,
    dtype: str | None = None,
    place: object = None,
    adapter: Adapter | None = None,
) -> Tree:
    """Reads one tree, tensor by tensor, straight where it shall lie.

    Args:
      name: "mllm", "dit" or "vae".
      shapes: the tree's abstract parameters.
      dtype: of the parameters; None keeps the file's.
      place: None for numpy arrays on the host, else shardings, see `streams.load`.
      adapter: merged into the weights as they are read.

    Raises:
      ValueError: when the folder lacks the tree; when its files are missing, damaged or pickles;
        listing all names that are unmapped, missing, doubled or mis-shaped.
    """
    entries, faults = _parameters(folder, system, name)
    try:
        if adapter is not None:
            entries = adapters.merge_adapter(Lazy(entries), adapter).entries
        table = TABLES[name].rules(getattr(system, name))
        return streams.load(entries, table, shapes, dtype=dtype, place=place, faults=faults)
    except ValueError as error:
        raise ValueError(f"{home_of(folder, name)}: {error}") from error


def read_start(
    folder: str | Path,
    system: System,
    *,
    shapes: Tree,
    fresh: Callable[[Sequence[str]], Mapping[str, jax.Array | np.ndarray]],
    dtype: str | None = None,
    place: object = None,
) -> tuple[Tree, tuple[str, ...]]:
    """Reads a DiT of another system as a start: what fits of the connector, and all the rest.

    Connector and prepadding states that are missing or of another shape are made anew. The
    connector's bias has the DiT's width, so that of the folder stays, as in the release's loaders.

    Args:
      shapes: the DiT's abstract parameters.
      fresh: gives the parameters of these paths, initialised.
      dtype: of the parameters; None keeps the file's and those of `fresh`.
      place: as in `read_tree`.

    Returns:
      (the tree, paths of the fresh parameters).

    Raises:
      ValueError: as `read_tree`, for all parameters but those.
    """
    entries, faults = _parameters(folder, system, "dit")
    want, table, new = flatten(shapes), [], []
    for rule in dit.rules(system.dit):
        shape = tuple(want[rule.ours].shape) if rule.ours in want else None
        if rule.ours.startswith(CONNECTOR) and streams.rule_misfits(rule, entries, shape):
            entries.pop(rule.theirs, None)
            new.append(rule.ours)
        else:
            table.append(rule)
    kept = unflatten({path: leaf for path, leaf in want.items() if path not in new})
    try:
        tree = streams.load(entries, table, kept, dtype=dtype, place=place, faults=faults)
    except ValueError as error:
        raise ValueError(f"{home_of(folder, 'dit')}: {error}") from error
    where = streams.placement(place)
    made = fresh(tuple(new)) if new else {}
    leaves = flatten(tree)
    for path in new:
        array = made[path] if dtype is None else made[path].astype(jnp.dtype(dtype))
        sharding = where(path)
        leaves[path] = np.asarray(array) if sharding is None else jax.device_put(array, sharding)
    return unflatten(leaves), tuple(new)


# --- what is there --------------------------------------------------------------------------------


def is_qwen(folder: Path) -> bool:
    """Whether a folder's config is a dense Qwen3-VL's."""
    return files.read_config(folder).get("model_type") == QWEN


def has_tree(folder: str | Path, name: str) -> bool:
    """Whether a released folder, one that `kind` knows, holds a tree as ours is."""
    return name in {"thinkgen": PLACES, "qwen3vl": ("mllm",), "omnigen2": ("vae",)}[kind(folder)]


def home_of(folder: str | Path, name: str) -> Path:
    """Where a tree's config and weights lie or should: its sub-folder, or a Qwen3-VL's own."""
    inner = Path(folder) / PLACES[name][0]
    alone = name == "mllm" and not inner.is_dir() and (Path(folder) / "config.json").is_file()
    return Path(folder) if alone else inner


def weights_of(home: Path, name: str) -> Path:
    """The index or the file that holds a tree."""
    if not home.is_dir():
        raise ValueError(f"{home}: no such folder")
    for suffix in (files.INDEX_SUFFIX, files.SUFFIX):
        file = home / (PLACES[name][1] + suffix)
        if file.is_file():
            return file
    return files.chosen(home)


def _scan(folder: str | Path, name: str) -> tuple[dict[str, Entry], list[str]]:
    return streams.scan(weights_of(home_of(folder, name), name))


def _parameters(
    folder: str | Path, system: System, name: str
) -> tuple[dict[str, Entry], list[str]]:
    """(entries, faults) as of `scan`, without what is no parameter, if it is as it should be."""
    if name not in PLACES:
        raise ValueError(f"{folder}: {name!r} is no tree; want one of {sorted(PLACES)}")
    home = home_of(folder, name)
    if name == "mllm" and home.is_dir() and not is_qwen(home):
        raise ValueError(f"{home}: no dense Qwen3-VL; take the MLLM from a folder of its own")
    entries, faults = _scan(folder, name)
    for buffer, want in buffers_of(system, name).items():
        if buffer in entries and not np.array_equal(entries.pop(buffer).read(), want):
            faults.append(f"buffer {buffer} is not the one this model has")
    for alias, other in aliases_of(system, name).items():
        if alias in entries and other in entries and not _equal(entries.pop(alias), entries[other]):
            faults.append(f"{alias} is tied to {other}, but not equal to it")
    return entries, faults


def buffers_of(system: System, name: str) -> dict[str, np.ndarray]:
    """Released tensors of a tree that are no parameters, by name."""
    return dit.buffers(system.dit) if name == "dit" else {}


def aliases_of(system: System, name: str) -> dict[str, str]:
    """Released tensors that may repeat another of the same tree, by name."""
    return mllm.aliases(system.mllm) if name == "mllm" else {}


def _equal(one: Entry, other: Entry, *, rows: int = 1024) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    a, b = one.read(), other.read()
    return all(np.array_equal(a[i : i + rows], b[i : i + rows]) for i in range(0, len(a), rows))


# --- configs --------------------------------------------------------------------------------------


def config_of(folder: Path, name: str) -> MllmConfig | DitConfig | VaeConfig:
    """Reads one network's sizes from its `config.json`.

    The number of prepadding states is the weights', unless the config says one.

    Raises:
      ValueError: as `read_system`, naming the folder.
    """
    home = home_of(folder, name)
    content = files.read_config(home)
    if name == "mllm" and content.get("model_type", QWEN) != QWEN:
        raise ValueError(f"{home}: model_type={content['model_type']!r}, only {QWEN!r} is known")
    given = {}
    if name == "dit" and "n_prepad" not in content:
        states = _scan(folder, name)[0].get("prepad_embed")
        given = {"num_prepad": states.shape[1]} if states and len(states.shape) == 3 else {}
    try:
        return TABLES[name].config_from_hf(content, **given)
    except KeyError as error:
        raise ValueError(f"{home}: config.json lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{home}: config.json: {error}") from error


def _with_mllm(base: System, cfg: MllmConfig) -> System:
    return replace(base, mllm=cfg, dit=replace(base.dit, condition_dim=2 * cfg.hidden_size))


def _shift(folder: Path) -> float | None:
    """The sampler's time shift: None for the released formula, 1 without any."""
    file = folder / "scheduler" / SCHEDULER
    content = files.read_config(file) if file.is_file() else {}
    return None if content.get("dynamic_time_shift", True) else 1.0


def _check(folder: Path, system: System) -> None:
    width, channels = 2 * system.mllm.hidden_size, system.vae.latent_channels
    if system.dit.condition_dim != width:
        raise ValueError(
            f"{folder}: the DiT reads states of width {system.dit.condition_dim} (text_feat_dim), "
            f"the MLLM's are {width}"
        )
    if system.dit.in_channels != channels:
        raise ValueError(
            f"{folder}: the DiT has in_channels={system.dit.in_channels}, the autoencoder "
            f"latent_channels={channels}"
        )
