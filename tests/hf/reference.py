# SPDX-License-Identifier: Apache-2.0
"""Tables applied the plain way, a whole model at once: what the streams are compared with."""

from collections.abc import Mapping, Sequence

import numpy as np

from thinkgen_jax.hf import streams
from thinkgen_jax.hf.rules import Rule, flatten, names_of, unflatten
from thinkgen_jax.structs import Tree


def to_jax(tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], shapes: Tree) -> Tree:
    """Our tree of released tensors."""
    want, out = flatten(shapes), {}
    for rule in rules:
        parts = [rule.to_ours(tensors[name]) for name in names_of(rule, want[rule.ours].shape)]
        out[rule.ours] = np.stack(parts) if "{i}" in rule.theirs else parts[0]
    return unflatten(out)


def to_hf(params: Tree, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """Released tensors of our tree; inverse of `to_jax`."""
    leaves, out = flatten(params), {}
    for rule in rules:
        array = np.asarray(leaves[rule.ours])
        parts = array if "{i}" in rule.theirs else [array]
        for name, part in zip(names_of(rule, array.shape), parts, strict=True):
            out[name] = rule.to_theirs(part)
    return out


def read(tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], shapes: Tree) -> Tree:
    """The same tree from the streams, which refuse what does not fit."""
    entries = {name: streams.entry_of(array) for name, array in tensors.items()}
    return streams.load(entries, rules, shapes)


def written(params: Tree, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """The same tensors from the streams."""
    return dict(streams.Lazy(streams.released(params, rules)))
