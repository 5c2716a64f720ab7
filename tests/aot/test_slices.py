# SPDX-License-Identifier: Apache-2.0
"""Machines by name, and what a missing compiler says."""

import pytest
from jax.experimental import topologies

from configs import common
from thinkgen_jax import sharding
from thinkgen_jax.aot import slices


@pytest.mark.parametrize(
    ("name", "shape", "chips", "devices"),
    [
        ("v5p-64", "2x4x4", 32, 32),
        ("v5p:2x4x4", "2x4x4", 32, 32),
        ("v5e-256", "16x16", 256, 256),
        ("v6e-64", "8x8", 64, 64),
        ("tpu7x-32", "2x2x4", 16, 32),
        ("h100-16", "2x8", 16, 16),
        ("h200-8", "1x8", 8, 8),
    ],
)
def test_names_and_shapes(name, shape, chips, devices):
    machine = slices.parse(name)
    assert (machine.shape, machine.chips, machine.count) == (shape, chips, devices)


@pytest.mark.parametrize("name", ["v5p-65", "v5e:3x3", "v9-8", "h100-12", "h200-12", "v5p"])
def test_what_does_not_exist_is_refused(name):
    with pytest.raises(ValueError, match=f"--topology={name}: no such machine"):
        slices.parse(name)


def test_an_h200_is_an_h100_with_more_memory(monkeypatch):
    """As published by the compiler's own project for both cards."""
    told = []
    monkeypatch.setattr(slices, "_describe", lambda *_, **how: told.append(how) or [])
    machines = [slices.parse(name) for name in ("h100-8", "h200-8")]
    for machine in machines:
        slices.devices(machine)
    h100, h200 = (how["target_config"].splitlines() for how in told)
    assert [how["topology"] for how in told] == ["1x1x8"] * 2
    other = [new.split() for old, new in zip(h100, h200, strict=True) if old != new]
    assert "4800000000000" in other[0] and "151397597184" in other[1] and len(other) == 3
    assert [(m.kind, m.chip.hbm, slices.mesh_of(m)["fsdp"]) for m in machines] == [
        ("h100", 79.0, 8),
        ("h100", 139.0, 8),
    ]


@pytest.mark.parametrize("name", [name for name in common.MESHES if name[:1] in "vt" and name])
def test_usual_meshes_are_those_of_the_configs(name):
    sizes = slices.mesh_of(slices.parse(name))
    assert tuple(sizes[axis] for axis in sharding.AXES) == common.MESHES[name]


@pytest.mark.parametrize("name", [name for name in common.MESHES if name[:1] in "vt" and name])
def test_usual_meshes_lie_on_their_slices(name, monkeypatch):
    """Axes of 8 on a 4 x 4 x 4 slice of v5p, too."""
    pytest.importorskip("libtpu", reason="launch/requirements-tpu.txt is not installed")
    for key, value in slices.QUIET.items():
        monkeypatch.setenv(key, value)
    machine = slices.parse(name)
    mesh = sharding.make_mesh(*common.MESHES[name], devices=slices.devices(machine))
    assert mesh.size == machine.count and len(set(mesh.devices.flat)) == machine.count


def test_a_missing_compiler_is_one_line(monkeypatch):
    def absent(**_):
        raise RuntimeError("Unable to load libtpu\nmany more lines")

    monkeypatch.setattr(topologies, "get_topology_desc", absent)
    with pytest.raises(ValueError, match="install launch/requirements-tpu.txt") as err:
        slices.devices(slices.parse("v5e-4"))
    assert "\n" not in str(err.value)
