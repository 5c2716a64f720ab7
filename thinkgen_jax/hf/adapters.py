# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`.

An adapter adds scale · B A to a weight W [out, in]; A is [r, in], B [out, r], scale is alpha / r,
or alpha / sqrt(r) where the config says `use_rslora`. Merging happens while weights are read.

* Only plain LoRA on linear weights is read: whatever would change the sum is refused.
* Tensors are called `base_model.model.<weight>.lora_A.weight` and `lora_B`.

Source: peft@0.17.0 tuners/lora (config fields, names, scaling).
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thinkgen_jax.hf import files
from thinkgen_jax.hf.streams import Entry, Lazy

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
ROWS = 256  # of a weight that are merged at once, in float32
# Fields that change what an adapter does, with the values under which they do not.
NEUTRAL = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    # Other starts change the base weights as well, unless the adapter was converted.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}


class AdapterSettings(NamedTuple):
    """What `adapter_config.json` says, under its names.

    Attributes:
      r: rank.
      lora_alpha: numerator of the scale.
      target_modules: ends of the adapted modules' names, or one regular expression.
      use_rslora: divide by the root of the rank.
      base_model_name_or_path: what was adapted; informative.
    """

    r: int
    lora_alpha: float
    target_modules: tuple[str, ...] | str = ()
    use_rslora: bool = False
    base_model_name_or_path: str | None = None

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


class Adapter(NamedTuple):
    """Settings, and (A [r, in], B [out, r]) by released weight name."""

    settings: AdapterSettings
    weights: dict[str, tuple[np.ndarray, np.ndarray]]


def read_adapter(folder: str | Path) -> Adapter:
    """Reads an adapter folder.

    Raises:
      ValueError: when a file is missing, damaged or a pickle; for options that plain LoRA does not
        have; listing tensors of unknown names, without their partner or of another rank.
    """
    folder = Path(folder)
    settings = _settings(files.read_config(folder / CONFIG), folder / CONFIG)
    file = folder / WEIGHTS
    tensors = files.open_tensors(file if file.is_file() else folder)
    halves: dict[str, dict[str, np.ndarray]] = {}
    faults = []
    for name in tensors:
        if match := NAME.fullmatch(name):
            halves.setdefault(f"{match[1]}.weight", {})[match[2]] = tensors[name]
        else:
            faults.append(f"{name}: no tensor of a LoRA adapter")
    for name, half in halves.items():
        faults += [f"{name}: no lora_{side}" for side in "AB" if side not in half]
    if faults or not halves:
        raise ValueError(f"{file}: " + ("; ".join(sorted(faults)[:40]) or "no tensors"))
    weights = {name: (half["A"], half["B"]) for name, half in sorted(halves.items())}
    _check(settings, weights, file)
    return Adapter(settings, weights)


def write_adapter(folder: str | Path, adapter: Adapter) -> list[Path]:
    """Writes an adapter folder that PEFT and `read_adapter` read.

    Returns:
      The files written.

    Raises:
      ValueError: for a weight that is none, or pairs of another rank than the settings'.
    """
    folder, settings = Path(folder), adapter.settings
    _check(settings, adapter.weights, folder / WEIGHTS)
    tensors = {}
    for name, pair in adapter.weights.items():
        module = name.removesuffix(".weight")
        if module == name:
            raise ValueError(f"{folder / WEIGHTS}: {name!r} is no weight of a linear map")
        for side, array in zip("AB", pair, strict=True):
            tensors[f"base_model.model.{module}.lora_{side}.weight"] = np.asarray(array)
    targets = settings.target_modules
    config = {
        **{field: values[0] for field, values in NEUTRAL.items()},
        **settings._asdict(),
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "inference_mode": True,
        "lora_dropout": 0.0,
        "rank_pattern": {},
        "alpha_pattern": {},
        "task_type": None,
    }
    written = files.save_tensors(folder / WEIGHTS, tensors)
    return [*written, files.write_config(folder / CONFIG, config)]


def merge_adapter(tensors: Mapping, adapter: Adapter) -> Lazy:
    """Adds an adapter to the weights it names, when they are read.

    The sum is formed in float32 and rounded once to the weight's dtype.

    Args:
      tensors: released name to array. Of a mapping that is not `Lazy`, every array is looked at.

    Raises:
      ValueError: listing weights that are not there or of another shape than the adapter's.
    """
    entries = dict(_entries(tensors))
    faults = []
    for name, (a, b) in adapter.weights.items():
        shape = (b.shape[0], a.shape[1])
        if name not in entries:
            faults.append(f"{name} is not there")
        elif entries[name].shape != shape:
            faults.append(f"{name} has shape {entries[name].shape}, the adapter's is {shape}")
        else:
            read = partial(_merged, entries[name], a, b, adapter.settings.scale)
            entries[name] = entries[name]._replace(read=read, file=None)
    if faults:
        raise ValueError("the adapter does not fit: " + "; ".join(faults[:40]))
    return Lazy(entries)


def _entries(tensors: Mapping) -> Mapping[str, Entry]:
    if isinstance(tensors, Lazy):
        return tensors.entries
    return {
        name: Entry(array.shape, array.dtype, partial(tensors.__getitem__, name))
        for name, array in tensors.items()
    }


def _merged(entry: Entry, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    weight, out = entry.read(), np.empty(entry.shape, entry.dtype)
    a = scale * np.asarray(a, np.float32)
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        out[rows] = np.asarray(weight[rows], np.float32) + np.asarray(b[rows], np.float32) @ a
    return out


def _settings(config: dict, file: Path) -> AdapterSettings:
    for field, values in NEUTRAL.items():
        if field in config and config[field] not in values:
            raise ValueError(f"{file}: {field}={config[field]!r}, only {values[0]!r} is supported")
    for field in ("r", "lora_alpha"):
        if not isinstance(config.get(field), int | float) or config[field] <= 0:
            raise ValueError(f"{file}: {field}={config.get(field)!r}, must be above 0")
    targets = config.get("target_modules") or ()
    return AdapterSettings(
        r=config["r"],
        lora_alpha=config["lora_alpha"],
        target_modules=targets if isinstance(targets, str) else tuple(targets),
        use_rslora=bool(config.get("use_rslora", False)),
        base_model_name_or_path=config.get("base_model_name_or_path"),
    )


def _check(settings: AdapterSettings, weights: Mapping[str, tuple], file: Path) -> None:
    for name, (a, b) in weights.items():
        if a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == settings.r:
            raise ValueError(
                f"{file}: {name}: A {tuple(a.shape)} and B {tuple(b.shape)} are not of rank "
                f"r={settings.r}"
            )
