# SPDX-License-Identifier: Apache-2.0
"""Numbers computed with the official PyTorch code: the judge of every model."""

import json
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def golden_dir() -> Path:
    """Folder of the fixtures."""
    return Path(__file__).parent


@cache
def cases(stem: str) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays of a fixture and its description (config, cases, tolerances)."""
    arrays = load_file(golden_dir() / f"{stem}.safetensors")
    return arrays, json.loads((golden_dir() / f"{stem}.json").read_text())


def assert_golden(stem: str, key: str, got: np.ndarray) -> None:
    """Compares with one output array within its own `suggested_atol`."""
    arrays, meta = cases(stem)
    atol = meta["arrays"][key]["suggested_atol"]
    np.testing.assert_allclose(np.asarray(got), arrays[key], rtol=0, atol=atol, err_msg=key)
