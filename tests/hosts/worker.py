# SPDX-License-Identifier: Apache-2.0
"""One host of several, as a process: takes three steps, reinforces, steps until it is ended, or is
refused what several hosts cannot do and ends with a cause that lies on the other one.

python -m tests.hosts.worker COORDINATOR HOSTS HOST WORKDIR steps|rl|forever|refused
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_default_matmul_precision", "highest")

from jax.experimental import multihost_utils  # noqa: E402

from tests.hosts import refused, rl_run, small_run  # noqa: E402
from thinkgen_jax import checkpoint, hosts, sharding  # noqa: E402

coordinator, count, index, workdir, mode = sys.argv[1:]
hosts.SILENCE = 10  # the test should not wait longer than it must
gpus = [int(index), 7] if mode == "refused" else None
hosts.WAITED = 1
hosts.start(coordinator, int(count), int(index), gpus)
if mode == "refused":
    assert jax.config.values["jax_cuda_visible_devices"] == f"{index},7"
    refused.run(int(index))
    raise AssertionError("a host went on")
if mode == "rl":
    with jax.set_mesh(sharding.make_mesh(**rl_run.MESH)):
        told, states, cause = rl_run.run()
        found = multihost_utils.process_allgather(
            {name: state.params for name, state in states.items()}, tiled=True
        )
    Path(workdir, f"told-{index}.json").write_text(json.dumps([told, cause]))
    if index == "0":
        leaves = jax.tree.leaves(found)
        np.savez(Path(workdir, "params.npz"), **{str(i): x for i, x in enumerate(leaves)})
    sys.exit()
mesh = sharding.make_mesh(data=2, fsdp=4)
with jax.set_mesh(mesh), checkpoint.Checkpoints(workdir) as saves:
    state, step, batch = small_run.begin(mesh)
    batch = hosts.lay(batch, "batch")
    assert hosts.agree(int(index) == 1) and not hosts.agree(False)
    hosts.same("data", "the same")
    try:
        hosts.same("data", f"of host {index}")
    except ValueError as err:
        assert str(err) == "data: hosts [1] see other files there than host 0", err
    else:
        raise AssertionError("hosts with other files went on")
    losses = []
    while mode == "forever" or len(losses) < small_run.STEPS:
        state, metrics = step(state, batch)
        hosts.settle(state)
        losses.append(float(metrics["loss"]))
        if mode == "forever":
            Path(workdir, f"alive-{index}").touch()
            time.sleep(0.1)
    saves.save(small_run.STEPS, {"mllm": state}, data={}, meta={}, finite=True, score=None)
    saves.wait()
    with hosts.together():
        pass  # until all of it is written
    # What a later stage starts from: every host reads what lies on its own devices.
    again = checkpoint.restore_learned(workdir, "mllm", place=partial(sharding.infer, mesh=mesh))
    for old, new in zip(jax.tree.leaves(state.params), jax.tree.leaves(again), strict=True):
        assert new.sharding.is_equivalent_to(old.sharding, old.ndim), (new.sharding, old.sharding)
        for one, other in zip(old.addressable_shards, new.addressable_shards, strict=True):
            np.testing.assert_array_equal(one.data, other.data)
    own = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(state.params)}
    Path(workdir, f"losses-{index}.json").write_text(json.dumps(losses))
    assert any("fsdp" in spec for spec in own), own
