# SPDX-License-Identifier: Apache-2.0
"""Is a response well-formed: a thought that was closed, and words behind it that can be drawn."""

from collections.abc import Sequence

import numpy as np

from thinkgen_jax.structs import Sample

MARKS = ("<think>", "</think>", "<|")  # a second thought or a special token is no instruction


def is_well_formed(instruction: str) -> bool:
    """Whether an instruction has words and no marks."""
    return bool(instruction.strip()) and not any(mark in instruction for mark in MARKS)


def rate(samples: Sequence[Sample]) -> np.ndarray:
    """1 for a closed thought with a clean instruction behind it, else 0; float32 [N]."""
    right = [s.valid and is_well_formed(s.instruction) for s in samples]
    return np.asarray(right, np.float32)
