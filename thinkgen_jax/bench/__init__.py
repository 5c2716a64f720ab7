# SPDX-License-Identifier: Apache-2.0
"""Benchmarks by name: each draws its prompts with a loaded system and returns one `Outcome`."""

from thinkgen_jax.bench import miniature

# name: (model, count, think, scenarios, settings) -> Outcome
BENCHMARKS = {"miniature": miniature.run}

# What must stand beside every result.
ABOUT = {"miniature": miniature.ABOUT}
