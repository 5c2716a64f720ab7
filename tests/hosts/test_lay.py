# SPDX-License-Identifier: Apache-2.0
"""Batches laid over hosts, here one that takes itself for several."""

import jax
import numpy as np
import pytest

from thinkgen_jax import hosts, sharding
from thinkgen_jax.structs import FlowBatch, Prompt


def batch(rows=8):
    ids = np.arange(rows * 3, dtype=np.int32).reshape(rows, 3)
    prompt = Prompt(ids, np.ones_like(ids), np.broadcast_to(ids, (3, rows, 3)))
    return FlowBatch(prompt, np.full((rows, 2, 2, 3), np.arange(rows)[:, None, None, None]), None)


@pytest.mark.parametrize("sliced", [False, True])
def test_rows_keep_their_places(monkeypatch, sliced):
    monkeypatch.setattr(hosts, "several", lambda: True)
    given = batch()
    with jax.set_mesh(sharding.make_mesh(fsdp=4, tensor=2)):
        laid = hosts.lay(given, "rows", sliced=sliced)
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(laid), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len({str(shard.index) for shard in laid.pixels.addressable_shards}) == 8


def test_slices_that_would_overlap_are_refused(monkeypatch):
    """Two hosts of 8 rows each, but the 8 devices here would hold all 16."""
    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with (
        jax.set_mesh(sharding.make_mesh(fsdp=4, tensor=2)),
        pytest.raises(ValueError, match="16 rows of a batch do not lie apart on 2 hosts"),
    ):
        hosts.lay(batch(), "rows", sliced=True)
