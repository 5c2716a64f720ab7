# SPDX-License-Identifier: Apache-2.0
"""One folder that holds a whole system: dimensions, words and weights, small enough to ship.

    config.json                          the `System`, every field
    tokenizer.json, ...                  the tokenizer
    mllm | dit | vae .safetensors        weights in bfloat16 under the released names

* Weights are read through the tables of this folder, like the released ones; nothing is pickled.
* Trees may be saved one at a time; a loader asks for those it needs.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

from thinkgen_jax.data import text as words
from thinkgen_jax.data.text import Text
from thinkgen_jax.hf import dit, files, mllm, streams, vae
from thinkgen_jax.models.dit import DitConfig
from thinkgen_jax.models.mllm import MllmConfig
from thinkgen_jax.models.presets import System
from thinkgen_jax.models.vae import VaeConfig
from thinkgen_jax.models.vision import VisionConfig
from thinkgen_jax.structs import Tree

FORMAT = "thinkgen_jax/assets/1"
TABLES = {"mllm": mllm.rules, "dit": dit.rules, "vae": vae.rules}
NESTED = {"mllm": MllmConfig, "dit": DitConfig, "vae": VaeConfig, "vision": VisionConfig}


def save(
    folder: str | Path,
    system: System,
    trees: Mapping[str, Tree],
    text: Text | None = None,
    *,
    dtype: str = "bfloat16",
) -> None:
    """Writes a system; files of trees and words that are not given stay as they are.

    Args:
      trees: "mllm", "dit" or "vae" to parameters.
      text: its tokenizer is saved.
      dtype: of the saved weights.

    Raises:
      ValueError: for another tree, or parameters that do not fit the system.
    """
    folder = Path(folder)
    unknown = sorted(set(trees) - set(TABLES))
    if unknown:
        raise ValueError(f"{folder}: {unknown} are no trees; want {sorted(TABLES)}")
    folder.mkdir(parents=True, exist_ok=True)
    if text is not None:
        text.tokenizer.save_pretrained(folder)
    for name, params in trees.items():
        table = TABLES[name](getattr(system, name))
        tensors = streams.Lazy(streams.released(params, table, dtype=dtype))
        files.save_tensors(_weights(folder, name), tensors)
    config = {"format": FORMAT, "preset": system.name, "system": asdict(system)}
    files.write_config(folder, config)


def check_kept(folder: str | Path, system: System, shapes: Mapping[str, Tree]) -> None:
    """Refuses a folder whose trees would not fit the system that `save` writes; reads none.

    Args:
      shapes: abstract parameters of the trees that stay as they are, where the folder has them.

    Raises:
      ValueError: for a config.json that is not ours, or a tree of another preset or other dims.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        return
    if not is_assets(folder):
        raise ValueError(f"has a config.json that is not of the format {FORMAT!r}")
    preset = files.read_config(folder).get("preset")
    for name, wanted in shapes.items():
        file = _weights(folder, name)
        if not file.exists():
            continue
        if preset != system.name:
            raise ValueError(f"has the {name} of preset {preset!r}, not {system.name!r}")
        entries, faults = streams.scan(file)
        faults += streams.misfits(entries, TABLES[name](getattr(system, name)), wanted)
        if faults:
            raise ValueError(f"has a {name} of other dimensions: {faults[0]}")


def is_assets(folder: str | Path) -> bool:
    """Whether a folder is one of ours."""
    try:
        return files.read_config(folder).get("format") == FORMAT
    except ValueError:
        return False


def load_system(folder: str | Path) -> System:
    """Reads the dimensions.

    Raises:
      ValueError: when the folder is missing, foreign, or of another version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    config = files.read_config(folder)
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder}: config.json is not of the format {FORMAT!r}")
    return system_from(config.get("system", {}), f"{folder}/config.json: system")


def system_from(content: Mapping, where: str) -> System:
    """Dimensions from what `dataclasses.asdict` made of them, lists or tuples.

    Raises:
      ValueError: for a name that this version does not know, with where it stands.
    """
    return _build(System, content, where)


def load_text(folder: str | Path, system: System) -> Text:
    """Reads the tokenizer.

    Raises:
      ValueError: when it is missing or lacks a special token.
    """
    return words.load(folder, system=system.system_prompt, marker=system.marker)


def load_tree(
    folder: str | Path, system: System, name: str, *, shapes: Tree, dtype: str = "float32"
) -> Tree:
    """Reads one tree as numpy arrays.

    Args:
      name: "mllm", "dit" or "vae".
      shapes: the tree's abstract parameters.
      dtype: of the arrays.

    Raises:
      ValueError: when the file is missing or damaged, or does not fit.
    """
    file, table = _weights(folder, name), TABLES[name](getattr(system, name))
    entries, faults = streams.scan(file)
    try:
        return streams.load(entries, table, shapes, dtype=dtype, faults=faults)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _weights(folder: str | Path, name: str) -> Path:
    return Path(folder) / f"{name}{files.SUFFIX}"


def _build(kind: type, content: object, where: str):
    """A config dataclass from parsed JSON; unknown names are refused, absent ones keep defaults."""
    known = {field.name for field in fields(kind)}
    if not isinstance(content, dict) or set(content) - known:
        extra = sorted(set(content) - known) if isinstance(content, dict) else content
        raise ValueError(f"{where}: {extra} is not known to this version")
    values = {}
    for name, value in content.items():
        if name in NESTED and value is not None:
            value = _build(NESTED[name], value, f"{where}.{name}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
