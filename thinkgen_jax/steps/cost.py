# SPDX-License-Identifier: Apache-2.0
"""What reinforcement of the DiT costs, counted in forwards of the DiT per training picture.

A count does not depend on the machine: rollouts are compared by it where a clock lies. A backward
pass counts as two forwards, a guided velocity as one per branch. Flow-GRPO's default (10 steps, 9
of them trained, guidance, old log-probabilities computed anew, reference) comes to 92.
"""

from jaxtyping import Array, Float, Int


def path_forwards(
    *,
    steps: int,
    begin: int | float | Int[Array, ""],
    trained: int,
    group: int,
    shared: bool,
    passes: int,
    inner: int,
    reference: bool,
    recompute: bool,
) -> float | Float[Array, ""]:
    """Forwards of the DiT per picture of a DiT-GRPO iteration.

    Args:
      begin: steps before the stochastic ones; taken once a group where it is `shared`.
      trained: steps that are learned from.
      passes: branches of a velocity, 1 without guidance.
      inner: updates per rollout; only the prompt's branch has a backward pass.
      reference: whether there is a KL term.
      recompute: whether the training function computes the old log-probabilities.
    """
    rollout = passes * (steps - begin + begin / (group if shared else 1))
    old = passes * trained * recompute
    update = trained * (passes + 2 + passes * reference)
    return 1.0 * (rollout + old + inner * update)
