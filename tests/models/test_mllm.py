# SPDX-License-Identifier: Apache-2.0
"""The MLLM against the official network's numbers, and its invariants."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import qwen
from thinkgen_jax.models.mllm import Mllm

FORWARD = ("text_left", "text_right", "image", "two_images", "image_token_no_pixels")
MODEL = Mllm(qwen.CFG)


def read(prompt, params=None, model=MODEL):
    """One plain forward pass."""
    return model.apply({"params": qwen.params() if params is None else params}, prompt)


@pytest.mark.parametrize("name", FORWARD)
def test_states_and_logits_equal_official(name):
    prompt = qwen.prompt(name)
    out = read(prompt)
    variables = {"params": qwen.params()}
    before, last = jnp.split(out.taps, 2, axis=-1)
    qwen.assert_valid(f"{name}.hs_m2", before, prompt.segments)
    qwen.assert_valid(f"{name}.hs_m1", last, prompt.segments)
    np.testing.assert_array_equal(last, out.hidden)
    normed = MODEL.apply(variables, out.hidden, method="normed")
    qwen.assert_valid(f"{name}.final_norm", normed, prompt.segments)
    logits = MODEL.apply(variables, out.hidden, method="logits")
    qwen.assert_valid(f"{name}.logits", logits, prompt.segments)
