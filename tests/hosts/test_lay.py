# SPDX-License-Identifier: Apache-2.0
"""Batches laid over hosts, here one that takes itself for several."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

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


@pytest.mark.parametrize("axes", [("data", "fsdp", "tensor"), ("data",), ()])
def test_every_row_belongs_to_one_device_also_where_several_hold_it(monkeypatch, axes):
    monkeypatch.setattr(hosts, "several", lambda: True)
    given = np.arange(24).reshape(8, 3)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        laid = jax.device_put(given, NamedSharding(mesh, P(axes or None)))
        numbers, rows = hosts.rows_here(laid)
        assert numbers.tolist() == list(range(8))
        np.testing.assert_array_equal(rows, given)
        cut = jax.device_put(given[:, :2], NamedSharding(mesh, P(None, "data")))
        with pytest.raises(ValueError, match=r"rows of shape \(2,\) are cut apart"):
            hosts.rows_here(cut)


def test_slices_that_would_overlap_are_refused(monkeypatch):
    """Two hosts of 8 rows each, but the 8 devices here would hold all 16."""
    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with (
        jax.set_mesh(sharding.make_mesh(fsdp=4, tensor=2)),
        pytest.raises(ValueError, match="16 rows of a batch do not lie apart on 2 hosts"),
    ):
        hosts.lay(batch(), "rows", sliced=True)
