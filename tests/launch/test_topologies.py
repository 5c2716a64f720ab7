# SPDX-License-Identifier: Apache-2.0
"""What was compiled for real slices and is kept: everything fits, and what learns can be fast."""

import pytest

from launch import topologies
from thinkgen_jax.aot import build, slices

KNOWN = topologies.load()
# Where what learns was compiled at full effort.
FULL = ("v5e-256", "v5p-64", "v6e-64")
LEARN = ("mllm_step", "text_step", "dit_step", "flow_step")
MIB, GIB = 2**20, 2**30
WRITE = {"prefill", "think", "read", "encode", "draw", "pixels", "logprobs", "mllm_step"}
PATHS = {"think_once", "paths", "paint", "path_logprobs", "dit_step"}
PROGRAMS = WRITE | PATHS | {"text_step", "flow_step"}
# Stage 3 has no recipe for one host of GPUs; libtpu 0.0.42 aborts over the other.
MISSING = {"h100-8": {"flow_step"}, "h200-8": {"flow_step"}, "tpu7x-32": {"dit_step"}}


def programs(name):
    return {one["program"]: one for record in KNOWN[name] for one in record["programs"]}


@pytest.mark.parametrize("name", [name for name in topologies.SLICES if KNOWN[name]])
def test_every_program_fits_with_a_tenth_to_spare(name):
    found = programs(name)
    assert set(found) == PROGRAMS - MISSING.get(name, set())
    for program, one in found.items():
        assert one["verdict"] == build.FITS, program
        assert 0 < one["need"] <= 0.9 * slices.parse(name).chip.hbm, program


@pytest.mark.parametrize("name", FULL)
def test_what_learns_can_reach_half_of_the_peak_and_attends_by_the_kernel(name):
    machine, found = slices.parse(name), programs(name)
    for program in LEARN:
        one = found[program]
        assert not one["quick"], program
        assert machine.share(one["flops"], one["bound"]["total"]) >= 0.5, program
        assert one["text"]["attention_kernels"] >= 8, program


@pytest.mark.parametrize("name", FULL)
def test_no_layer_waits_for_a_kernel_on_the_way_back(name):
    """What is below a MiB is activations or a few rows of a kernel."""
    for program in LEARN:
        gathers = programs(name)[program]["text"]["backward_gathers"]
        assert not [source for size, source in gathers if size >= MIB], program


@pytest.mark.parametrize("name", [*FULL, "v5p-128", "v6e-256"])
def test_writing_copies_no_cache(name):
    """Neither whole before the loop nor a layer of it in every step; those had 0.1 to 9 GiB."""
    for program in ("think", "think_once"):
        for size, source in programs(name)[program]["text"]["copies"]:
            assert "dynamic_slice" not in source and size < 0.1 * GIB, (program, source)


def test_the_document_shows_what_is_kept():
    text = (topologies.FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert topologies.programs(KNOWN) in text
    assert topologies.learning(KNOWN) in text
