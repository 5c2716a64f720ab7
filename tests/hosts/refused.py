# SPDX-License-Identifier: Apache-2.0
"""What several hosts are refused, and how a cause on one of them reaches the other."""

import importlib

import numpy as np
from jax.experimental import multihost_utils

from thinkgen_jax import hosts, recipe, sharding


def fails(act, words):
    """Runs something that must be refused with these words."""
    try:
        act()
    except ValueError as err:
        assert words in str(err), err
    else:
        raise AssertionError(f"nothing was refused: {words}")


def run(index):
    """On host 1 a cause, on host 0 what it hears of it; ends both."""
    fails(lambda: sharding.make_mesh(data=2), "takes 2 of 8 devices; on 2 hosts it must take all")
    config = importlib.import_module("configs.mllm_grpo").get_config("tiny")
    recipe.check_evaluation(config)
    config.evaluate.count = 3
    fails(lambda: recipe.check_evaluation(config), "config.evaluate.count = 3: 2 hosts cannot")
    with hosts.together():
        pass  # all of them got through
    fails(lambda: one_fails(index == 0), "no room here" if index == 0 else "host 0: no room here")
    fails(lambda: one_fails(index == 1), "no room here" if index == 1 else "host 1: no room here")
    # The other one is in a sum over the devices when this one leaves.
    with hosts.together():
        if index == 1:
            raise OSError("no such weights")
        multihost_utils.process_allgather(np.ones(3))


def one_fails(is_here):
    """Fails together, for a cause that lies here or there."""
    with hosts.together():
        if is_here:
            raise ValueError("no room here")
