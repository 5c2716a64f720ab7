# SPDX-License-Identifier: Apache-2.0
"""One optimizer for every stage: clipped AdamW, or Muon, over the parameters a stage trains.

- What trains is a table of patterns over `/`-joined parameter paths; the rest gets neither update
  nor moments, and a pattern that matches nothing is an error, not a silent no-op.
- Moments are float32 also for bfloat16 parameters.
- Steps are counted in updates: a skipped step (`finite_or_skip`) advances neither schedule nor
  moments when the caller keeps the old state.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from thinkgen_jax.structs import Tree

# Factor on the peak rate by progress in [0, 1] after warm-up and the floor it ends on.
SCHEDULES: dict[str, Callable] = {
    "constant": lambda progress, floor: jnp.ones_like(progress),
    "cosine": lambda progress, floor: floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress)),
}

# Rows and columns of the kernels that Muon makes orthogonal, axes counted from the end; axes before
# them are stacks. First match wins; whatever matches nothing (tables, ends, vectors) keeps AdamW,
# here with Nesterov momentum and without decay.
BLOCK = r"(layers|refiner|decoder|blocks)/.*"
MATRICES: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (
    (BLOCK + r"(to_out|o_proj)/kernel$", (-3, -2), (-1,)),
    (BLOCK + r"(to_[qkv]|[qkv]_proj)/kernel$", (-3,), (-2, -1)),
    (BLOCK + r"qkv/kernel$", (-4,), (-3, -2, -1)),
    (BLOCK + r"kernel$", (-2,), (-1,)),
)
MUON_RMS = 0.2  # update size per value that lets one learning rate serve Muon and AdamW


@dataclass(frozen=True)
class OptimConfig:
    """How one parameter tree learns.

    Attributes:
      method: Key of `METHODS`; "muon" treats the matrices of the blocks (`MATRICES`) by Muon.
      lr: Peak learning rate, >= 0.
      schedule: Key of `SCHEDULES`.
      warmup_steps: Updates of linear warm-up; the first update has lr / warmup_steps. 0 for none.
      total_steps: Updates at which "cosine" reaches its floor; unused by "constant".
      final_fraction: Floor of "cosine" as a fraction of `lr`, in [0, 1].
      b1: Decay of the first moment, in [0, 1).
      b2: Decay of the second moment, in [0, 1).
      eps: Added to the root of the second moment, > 0.
      weight_decay: Decoupled decay, multiplied by the learning rate, >= 0.
      no_decay: Patterns of parameters without weight decay.
      clip_norm: Largest global norm of the trained gradients, > 0; None for no clipping.
      trainable: Patterns of parameters that train; searched in the `/`-joined path.
      frozen: Patterns of parameters that do not; `trainable` wins. Every parameter must match one
        of the two tables.
      ema_decay: Decay of the running average, in [0, 1); None for none.

    Source: defaults of OmniGen2's fine-tuning (AdamW 0.9/0.95, decay 0.01, clip 1, 500 steps of
    warm-up, no average); Muon with the update size of Moonlight (arXiv 2502.16982).
    """

    method: str = "adamw"
    lr: float = 1e-4
    schedule: str = "constant"
    warmup_steps: int = 500
    total_steps: int = 0
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.01
    no_decay: tuple[str, ...] = ()
    clip_norm: float | None = 1.0
    trainable: tuple[str, ...] = (r".",)
    frozen: tuple[str, ...] = (r".",)
    ema_decay: float | None = None


def make(cfg: OptimConfig, *, name: str = "optim") -> optax.GradientTransformation:
    """Builds clip → AdamW or Muon on the trained parameters and nothing on the others.

    Args:
      cfg: What to build.
      name: Config block, for error messages: "optim.dit" when the user wrote `config.optim.dit`.

    Raises:
      ValueError: a field is out of its range; or, at `init`, a pattern matches no parameter or a
        parameter no pattern.
    """
    check(cfg, name)
    core = METHODS[cfg.method](cfg, name)
    clip = optax.identity() if cfg.clip_norm is None else optax.clip_by_global_norm(cfg.clip_norm)

    def labels(params: Tree) -> Tree:
        mask = trainable_mask(params, cfg, name=name)
        return jax.tree.map(lambda train: "train" if train else "freeze", mask)

    branches = {"train": _in_float32(optax.chain(clip, core)), "freeze": optax.set_to_zero()}
    return optax.multi_transform(branches, labels)


def _adamw(cfg: OptimConfig, name: str) -> optax.GradientTransformation:
    return optax.adamw(
        schedule(cfg),
        b1=cfg.b1,
        b2=cfg.b2,
        eps=cfg.eps,
        weight_decay=cfg.weight_decay,
        mask=_decay_mask(cfg, name),
    )


def _muon(cfg: OptimConfig, name: str) -> optax.GradientTransformation:
    return optax.contrib.muon(
        schedule(cfg),
        eps=cfg.eps,
        weight_decay=cfg.weight_decay,
        weight_decay_mask=_decay_mask(cfg, name),
        adam_b1=cfg.b1,
        adam_b2=cfg.b2,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=MUON_RMS,
    )


METHODS: dict[str, Callable] = {"adamw": _adamw, "muon": _muon}


def _decay_mask(cfg: OptimConfig, name: str) -> Callable[[Tree], Tree]:
    return lambda params: _matches(params, cfg.no_decay, name=f"{name}.no_decay", keep=False)


def _matrices(params: Tree) -> Tree:
    """Rows and columns of every kernel in `MATRICES`, None for the others."""

    def axes(path: str) -> optax.contrib.MuonDimensionNumbers | None:
        for pattern, rows, columns in MATRICES:
            if re.search(pattern, path):
                return optax.contrib.MuonDimensionNumbers(rows, columns)
        return None

    found = [axes(path) for path, _ in _paths(params)]
    return jax.tree.unflatten(jax.tree.structure(params), found)


def schedule(cfg: OptimConfig) -> Callable[[int | Int[Array, ""]], Float[Array, ""]]:
    """The learning rate by number of finished updates, counted from 0."""

    def rate(count: int | Int[Array, ""]) -> Float[Array, ""]:
        done = jnp.asarray(count, jnp.float32)
        warmup = jnp.minimum(1.0, (done + 1) / max(cfg.warmup_steps, 1))
        span = max(cfg.total_steps - cfg.warmup_steps, 1)
        progress = jnp.clip((done - cfg.warmup_steps) / span, 0.0, 1.0)
        return cfg.lr * warmup * SCHEDULES[cfg.schedule](progress, cfg.final_fraction)

    return rate


def trainable_mask(params: Tree, cfg: OptimConfig, *, name: str = "optim") -> Tree:
    """Which parameters train: a tree of bools, True where they do.

    Raises:
      ValueError: a pattern matches no parameter, or a parameter matches no pattern.
    """
    train = _matches(params, cfg.trainable, name=f"{name}.trainable")
    freeze = _matches(params, cfg.frozen, name=f"{name}.frozen")
    decided = jax.tree.map(lambda a, b: a or b, train, freeze)
    undecided = [path for path, is_decided in _paths(decided) if not is_decided]
    if undecided:
        raise ValueError(
            f"config.{name}: {len(undecided)} parameters match neither trainable={cfg.trainable} "
            f"nor frozen={cfg.frozen}, e.g. {', '.join(undecided[:3])}"
        )
    return train


def stop_frozen(params: Tree, mask: Tree) -> Tree:
    """Cuts the gradient of frozen parameters, so that the compiler does not compute it.

    Args:
      params: Parameters as the loss takes them.
      mask: From `trainable_mask`.
    """
    return jax.tree.map(lambda p, train: p if train else jax.lax.stop_gradient(p), params, mask)


def finite_or_skip(grads: Tree, loss: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether loss and all gradients are finite: False means that this step must be skipped.

    The caller keeps old or new state with `select` and counts; under `jit` nothing is read back.
    """
    flags = [jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]
    return jnp.all(jnp.stack([jnp.isfinite(loss), *flags]))


def select(flag: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    """`new` where `flag` holds, else `old`, leaf by leaf and bit for bit."""
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), new, old)


def ema_update(ema: Tree, params: Tree, decay: float, step: int | Int[Array, ""]) -> Tree:
    """Moves the running average towards `params`; a young average moves faster.

    Args:
      ema: The average, in its own dtype (float32); None stays None.
      params: Parameters after the update.
      decay: Wanted decay, in [0, 1).
      step: Updates before this one, n; the decay used is min(decay, (1 + n) / (10 + n)).
    """
    if ema is None:
        return None
    count = jnp.asarray(step, jnp.float32)
    used = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda e, p: (e + (1 - used) * (p - e)).astype(e.dtype), ema, params)


def _in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Shows the transformation float32 arrays: moments otherwise take the parameters' dtype."""

    def wide(tree: Tree) -> Tree:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params: Tree) -> Tree:
        return tx.init(wide(params))

    def update(grads: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        return tx.update(wide(grads), state, wide(params))

    return optax.GradientTransformation(init, update)


def _matches(tree: Tree, patterns: tuple[str, ...], *, name: str, keep: bool = True) -> Tree:
    """`keep` where any pattern is found in the leaf's path, else `not keep`."""
    paths = [path for path, _ in _paths(tree)]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"config.{name}: {pattern!r} matches no parameter, e.g. not {', '.join(paths[:3])}"
            )
    found = [keep == any(re.search(pattern, path) for pattern in patterns) for path in paths]
    return jax.tree.unflatten(jax.tree.structure(tree), found)


def _paths(tree: Tree) -> list[tuple[str, object]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def check(cfg: OptimConfig, name: str) -> None:
    """Refuses values out of range.

    Raises:
      ValueError: naming `config.<name>.<field>`, its value and its bound.
    """
    bounds = {
        "method": (cfg.method in METHODS, f"one of {', '.join(METHODS)}"),
        "lr": (cfg.lr >= 0, ">= 0"),
        "schedule": (cfg.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
        "warmup_steps": (cfg.warmup_steps >= 0, ">= 0"),
        "final_fraction": (0 <= cfg.final_fraction <= 1, "in [0, 1]"),
        "b1": (0 <= cfg.b1 < 1, "in [0, 1)"),
        "b2": (0 <= cfg.b2 < 1, "in [0, 1)"),
        "eps": (cfg.eps > 0, "> 0"),
        "weight_decay": (cfg.weight_decay >= 0, ">= 0"),
        "clip_norm": (cfg.clip_norm is None or cfg.clip_norm > 0, "> 0 or None"),
        "ema_decay": (cfg.ema_decay is None or 0 <= cfg.ema_decay < 1, "in [0, 1) or None"),
        "total_steps": (
            cfg.schedule != "cosine" or cfg.total_steps > cfg.warmup_steps,
            f"> warmup_steps={cfg.warmup_steps}",
        ),
    }
    for field, (is_fine, bound) in bounds.items():
        if not is_fine:
            raise ValueError(f"config.{name}.{field}={getattr(cfg, field)!r}: must be {bound}")
