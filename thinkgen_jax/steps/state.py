# SPDX-License-Identifier: Apache-2.0
"""One tree that learns: create it, sum gradients over micro-batches, apply them or skip.

* A loss returns a sum and a count. Gradients of the sums are added up over micro-batches and
  divided by the whole batch's count, so that one batch in N parts is N parts in one batch.
* A step whose loss or gradient is not finite leaves everything as it was and is counted.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from thinkgen_jax import optim, sharding
from thinkgen_jax.models import lora
from thinkgen_jax.models.lora import LoraConfig
from thinkgen_jax.optim import OptimConfig
from thinkgen_jax.sampling.rows import split
from thinkgen_jax.structs import TrainState, Tree

# (params, micro-batch) -> (sum, count, {name: sum over the same count})
Loss = Callable[[Tree, Tree], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]


@dataclass(frozen=True)
class Learner:
    """How one tree learns; hashable, so that it can be a static argument.

    Attributes:
      config: optimizer settings.
      name: config block named in errors.
      accumulate: micro-batches a step is cut into; must divide the batch.
      lora: adapters that learn in the tree's place; the state then holds them alone, and updates
        take the tree as their last argument.
      dtype: of activations; kernels that are gathered ahead travel in it.
    """

    config: OptimConfig
    name: str = "optim"
    accumulate: int = 1
    lora: LoraConfig | None = None
    dtype: str = "float32"

    @property
    def tx(self) -> optax.GradientTransformation:
        """The optimizer."""
        return optim.make(self.config, name=self.name)


def full(params: Tree, base: Tree | None, learner: Learner) -> Tree:
    """The whole tree that a network takes, of what learns and what, if anything, lies below it."""
    return params if learner.lora is None else lora.merge(base, params, learner.lora)


def create(params: Tree, learner: Learner) -> TrainState:
    """Makes the state of a tree at step 0; the running average starts at the parameters."""

    def rest(params: Tree) -> tuple[Tree, Tree | None]:
        average = None
        if learner.config.ema_decay is not None:
            average = jax.tree.map(lambda p: jnp.array(p, jnp.float32), params)
        return sharding.keep((learner.tx.init(params), average))

    # One program instead of one a shape, and nothing exists whole on any device.
    opt_state, average = jax.jit(rest)(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, average)


def learn(
    state: TrainState, loss: Loss, batch: Tree, learner: Learner
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from one batch; to be called inside a jitted step.

    Args:
      loss: see `Loss`; called once per micro-batch.
      batch: pytree whose leaves all lead with the batch axis.

    Returns:
      The new state and metrics: loss, grad_norm, lr, skipped (0 or 1) and the loss's own means.
    """
    return apply(state, *gradient(state.params, loss, batch, learner), learner)


def apply(
    state: TrainState, grads: Tree, value: jax.Array, extra: dict[str, jax.Array], learner: Learner
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Applies a gradient, or keeps the state bit for bit where it or the loss is not finite."""
    ok = optim.finite_or_skip(grads, value)
    updates, opt_state = learner.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.ema
    if average is not None:
        average = optim.ema_update(average, params, learner.config.ema_decay, state.step)
    new = sharding.keep(TrainState(state.step + 1, params, opt_state, average))
    metrics = {
        "loss": value,
        "grad_norm": optax.tree.norm(grads),
        "lr": optim.schedule(learner.config)(state.step),
        "skipped": 1.0 - ok.astype(jnp.float32),
        **extra,
    }
    return optim.select(ok, new, state), metrics


def gradient(
    params: Tree, loss: Loss, batch: Tree, learner: Learner
) -> tuple[Tree, jax.Array, dict[str, jax.Array]]:
    """Gradient and value of sum / count over the whole batch, micro-batch by micro-batch."""
    mask = optim.trainable_mask(params, learner.config, name=learner.name)

    def total(params: Tree, part: Tree):
        value, count, extra = loss(optim.stop_frozen(params, mask), part)
        return value, (count, extra)

    near = sharding.ahead(params, learner.dtype)

    def graded(near: Tree, part: Tree):
        near = sharding.ahead(near, learner.dtype)  # there already, and a loop is told so
        value, grads = jax.value_and_grad(total, has_aux=True)(near, part)
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
        return value, sharding.keep(grads)

    parts = jax.tree.map(lambda x: split(x, learner.accumulate), batch)
    if learner.accumulate == 1:
        sums = graded(near, jax.tree.map(lambda x: x[0], parts))
    else:  # one trace of the loss, whatever the number of parts
        like = jax.eval_shape(graded, near, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

        def add(sums, part):
            return jax.tree.map(jnp.add, sums, graded(near, part)), None

        sums, _ = jax.lax.scan(add, zeros, parts)
    (value, (count, extra)), grads = sums
    scale = 1.0 / jnp.maximum(count, 1.0)
    grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
    return grads, value * scale, {k: v * scale for k, v in extra.items()}
