# SPDX-License-Identifier: Apache-2.0
"""Names and layouts: released tensors to our parameter trees and back, every name accounted for.

A model's table is a tuple of `Rule`s. `{i}` in a released name runs over the layers that we stack
on a leading axis. `streams` applies the tables both ways and refuses what has no place.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from thinkgen_jax.structs import Tree

SHOWN = 8  # problems an error lists

Transform = Callable[[np.ndarray], np.ndarray]


class Rule(NamedTuple):
    """One parameter: our `/`-joined path, the released name, and the two layout changes.

    Attributes:
      ours: e.g. "decoder/self_attn/q_proj/kernel".
      theirs: e.g. "model.language_model.layers.{i}.self_attn.q_proj.weight".
      to_ours: layout change of one (unstacked) tensor, exact.
      to_theirs: its inverse.
    """

    ours: str
    theirs: str
    to_ours: Transform
    to_theirs: Transform


def keep(ours: str, theirs: str) -> Rule:
    """The same layout on both sides."""
    return Rule(ours, theirs, lambda x: x, lambda x: x)


def linear(ours: str, theirs: str) -> Rule:
    """[out, in] there, [in, out] here."""
    return Rule(ours, theirs, np.transpose, np.transpose)


def heads_in(ours: str, theirs: str, *, heads: int) -> Rule:
    """[heads · H, in] there, [in, heads, H] here."""
    return Rule(
        ours,
        theirs,
        lambda x: x.T.reshape(x.shape[1], heads, -1),
        lambda x: x.reshape(x.shape[0], -1).T,
    )


def heads_out(ours: str, theirs: str, *, heads: int) -> Rule:
    """[out, heads · H] there, [heads, H, out] here."""
    return Rule(
        ours,
        theirs,
        lambda x: x.T.reshape(heads, -1, x.shape[0]),
        lambda x: x.reshape(-1, x.shape[-1]).T,
    )


def conv(ours: str, theirs: str) -> Rule:
    """[out, in, kh, kw] there, [kh, kw, in, out] here."""
    return Rule(ours, theirs, lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))


def flat(ours: str, theirs: str, *, shape: Sequence[int]) -> Rule:
    """[out, *shape] there, [prod(shape), out] here: a convolution that is a linear map."""
    return Rule(
        ours,
        theirs,
        lambda x: x.reshape(x.shape[0], -1).T,
        lambda x: x.T.reshape(x.shape[1], *shape),
    )


def flatten(tree: Tree, prefix: str = "") -> dict[str, object]:
    """Nested dicts to `/`-joined paths."""
    out: dict[str, object] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        out.update(flatten(value, path + "/") if isinstance(value, Mapping) else {path: value})
    return out


def unflatten(leaves: Mapping[str, object]) -> Tree:
    """Inverse of `flatten`."""
    tree: Tree = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def names_of(rule: Rule, shape: tuple[int, ...] | None) -> list[str]:
    """Released names of a parameter of this shape, one per layer where they are stacked."""
    if "{i}" not in rule.theirs:
        return [rule.theirs]
    return [rule.theirs.replace("{i}", str(i)) for i in range(shape[0] if shape else 1)]


def refuse(problems: Sequence[str]) -> None:
    """Tells what does not fit, if anything does not.

    Raises:
      ValueError: with their number and the first of them, in one line.
    """
    if problems:
        shown = "; ".join(sorted(problems)[:SHOWN])
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(f"{len(problems)} tensors do not fit: {shown}{more}")


def stacked_count(names: Sequence[str], pattern: str) -> int:
    """Counts the layers in a list of released names, e.g. pattern r"layers\\.(\\d+)\\."."""
    found = [int(m.group(1)) for name in names if (m := re.search(pattern, name))]
    return max(found) + 1 if found else 0
