# SPDX-License-Identifier: Apache-2.0
"""Names and layouts: released tensors to our parameter trees and back, every name accounted for.

A model's table is a tuple of `Rule`s. `{i}` in a released name runs over the layers that we stack
on a leading axis. Both directions refuse what they cannot place, listing every name.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from thinkgen_jax.structs import Tree

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


def to_jax(tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], shapes: Tree) -> Tree:
    """Builds our tree from released tensors.

    Args:
      tensors: released name to array; read one by one, so a lazy mapping keeps memory low.
      shapes: abstract tree of ours (anything with `.shape` at the leaves) to check against.

    Raises:
      ValueError: listing unmapped, missing and mis-shaped names.
    """
    expected = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
    out: dict[str, np.ndarray] = {}
    used: set[str] = set()
    problems: list[str] = []
    for rule in rules:
        names = _names(rule, expected.get(rule.ours))
        missing = [name for name in names if name not in tensors]
        if missing or rule.ours not in expected:
            problems += [f"missing {name}" for name in missing]
            problems += [] if rule.ours in expected else [f"no parameter {rule.ours}"]
            continue
        used.update(names)
        parts = [rule.to_ours(np.asarray(tensors[name])) for name in names]
        array = np.stack(parts) if "{i}" in rule.theirs else parts[0]
        if array.shape != expected[rule.ours]:
            problems.append(f"{rule.theirs} gives {array.shape}, not {expected[rule.ours]}")
        out[rule.ours] = np.ascontiguousarray(array)
    problems += [f"unmapped {name}" for name in tensors if name not in used]
    problems += [f"no rule fills {path}" for path in expected if path not in out]
    _refuse(problems)
    return unflatten(out)


def to_hf(params: Tree, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """Builds the released tensors from our tree; inverse of `to_jax`.

    Raises:
      ValueError: listing parameters without a rule and rules without a parameter.
    """
    leaves = flatten(params)
    out: dict[str, np.ndarray] = {}
    problems = [f"no parameter {rule.ours}" for rule in rules if rule.ours not in leaves]
    problems += [f"no rule for {path}" for path in leaves if path not in {r.ours for r in rules}]
    _refuse(problems)
    for rule in rules:
        array = np.asarray(leaves[rule.ours])
        names = _names(rule, array.shape)
        parts = list(array) if "{i}" in rule.theirs else [array]
        for name, part in zip(names, parts, strict=True):
            out[name] = np.ascontiguousarray(rule.to_theirs(part))
    return out


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


def _names(rule: Rule, shape: tuple[int, ...] | None) -> list[str]:
    if "{i}" not in rule.theirs:
        return [rule.theirs]
    return [rule.theirs.replace("{i}", str(i)) for i in range(shape[0] if shape else 1)]


def _refuse(problems: list[str]) -> None:
    if problems:
        shown = "\n  ".join(sorted(problems)[:40])
        more = f"\n  ... and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise ValueError(f"{len(problems)} tensors do not fit:\n  {shown}{more}")


def stacked_count(names: Sequence[str], pattern: str) -> int:
    """Counts the layers in a list of released names, e.g. pattern r"layers\\.(\\d+)\\."."""
    found = [int(m.group(1)) for name in names if (m := re.search(pattern, name))]
    return max(found) + 1 if found else 0
