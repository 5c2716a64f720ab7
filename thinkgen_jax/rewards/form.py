# SPDX-License-Identifier: Apache-2.0
"""Is a response well-formed: a thought that was closed, and words behind it that can be drawn."""

import re
from collections.abc import Sequence

import numpy as np

from thinkgen_jax.structs import Sample

MARK = re.compile(r"<[/|A-Za-z]")  # a second thought, marker or special token is no instruction


def is_well_formed(instruction: str) -> bool:
    """Whether an instruction has words and no marks."""
    return bool(instruction.strip()) and not MARK.search(instruction)


def rate(samples: Sequence[Sample]) -> np.ndarray:
    """1 for a closed thought with a clean instruction behind it, else 0; float32 [N]."""
    right = [s.valid and is_well_formed(s.instruction) for s in samples]
    return np.asarray(right, np.float32)
