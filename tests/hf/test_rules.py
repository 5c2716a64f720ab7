# SPDX-License-Identifier: Apache-2.0
"""Layout changes and the accounting of names."""

import numpy as np
import pytest

from tests.hf import reference
from thinkgen_jax.hf import rules


def values(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def abstract(**shapes):
    return rules.unflatten({k.replace("__", "/"): np.empty(v) for k, v in shapes.items()})


@pytest.mark.parametrize(
    ("rule", "theirs", "ours"),
    [
        (rules.keep("a", "b"), (3, 2), (3, 2)),
        (rules.linear("a", "b"), (3, 2), (2, 3)),
        (rules.heads_in("a", "b", heads=2), (6, 5), (5, 2, 3)),
        (rules.heads_out("a", "b", heads=2), (5, 6), (2, 3, 5)),
        (rules.conv("a", "b"), (4, 3, 2, 5), (2, 5, 3, 4)),
        (rules.flat("a", "b", shape=(3, 2, 2)), (4, 3, 2, 2), (12, 4)),
    ],
)
def test_layouts_invert(rule, theirs, ours):
    array = values(*theirs)
    there = rule.to_ours(array)
    assert there.shape == ours
    np.testing.assert_array_equal(rule.to_theirs(there), array)


def test_elements_land_where_they_belong():
    # Output row 4 of 6 is head 1, place 1 of three.
    array = values(6, 5)
    assert rules.heads_in("a", "b", heads=2).to_ours(array)[2, 1, 1] == array[4, 2]
    array = values(5, 6)
    assert rules.heads_out("a", "b", heads=2).to_ours(array)[1, 1, 2] == array[2, 4]
    array = values(4, 3, 2, 5)
    assert rules.conv("a", "b").to_ours(array)[1, 4, 2, 3] == array[3, 2, 1, 4]
    array = values(4, 3, 2, 2)
    assert (
        rules.flat("a", "b", shape=(3, 2, 2)).to_ours(array)[1 * 4 + 0 * 2 + 1, 3]
        == (array[3, 1, 0, 1])
    )


TABLE = (rules.linear("layers/w/kernel", "blocks.{i}.w.weight"), rules.keep("norm/scale", "norm"))
THEIRS = {"blocks.0.w.weight": values(2, 3), "blocks.1.w.weight": -values(2, 3), "norm": values(4)}
SHAPES = abstract(layers__w__kernel=(2, 3, 2), norm__scale=(4,))


def test_layers_are_stacked_in_order_and_back():
    params = reference.read(THEIRS, TABLE, SHAPES)
    np.testing.assert_array_equal(params["layers"]["w"]["kernel"][1], -values(2, 3).T)
    back = reference.written(params, TABLE)
    assert back.keys() == THEIRS.keys()
    for name, array in THEIRS.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({**THEIRS, "blocks.2.w.weight": values(2, 3)}, "unmapped blocks.2.w.weight"),
        ({k: v for k, v in THEIRS.items() if "1" not in k}, "missing blocks.1.w.weight"),
        ({**THEIRS, "norm": values(5)}, r"norm of shape \(5,\) does not give norm/scale of \(4,\)"),
    ],
)
def test_what_does_not_fit_is_refused(tensors, message):
    with pytest.raises(ValueError, match=message):
        reference.read(tensors, TABLE, SHAPES)


def test_parameters_and_rules_must_match_one_to_one():
    with pytest.raises(ValueError, match="no rule fills norm/scale"):
        reference.read({k: v for k, v in THEIRS.items() if k != "norm"}, TABLE[:1], SHAPES)
    with pytest.raises(ValueError, match="no parameter layers/w/kernel"):
        reference.read(THEIRS, TABLE, abstract(norm__scale=(4,)))
    with pytest.raises(ValueError, match="no rule for extra"):
        reference.written({"norm": {"scale": values(4)}, "extra": values(1)}, TABLE[1:])


def test_long_lists_are_cut():
    many = {f"x{i:03}": values(1) for i in range(50)} | THEIRS
    with pytest.raises(ValueError, match="50 tensors do not fit") as error:
        reference.read(many, TABLE, SHAPES)
    assert "x007" in str(error.value) and "x008" not in str(error.value)
    assert "; and 42 more" in str(error.value) and "\n" not in str(error.value)


def test_flatten_and_back():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert rules.flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert rules.unflatten(rules.flatten(tree)) == tree


def test_stacked_count():
    names = ["layers.0.a", "layers.11.a", "other.40.a"]
    assert rules.stacked_count(names, r"layers\.(\d+)\.") == 12
    assert rules.stacked_count(names, r"blocks\.(\d+)\.") == 0
