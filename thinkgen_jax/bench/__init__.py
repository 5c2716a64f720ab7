# SPDX-License-Identifier: Apache-2.0
"""Benchmarks by name: the miniature world's own, and those that are drawn from official prompts."""

from thinkgen_jax.bench import cvtg, dpg, geneval, imgedit, miniature, risebench, wise

# name: (model, count, think, scenarios, settings) -> Outcome
BENCHMARKS = {"miniature": miniature.run}

# name: rules; prompts, pictures and scores are files, see `official.run`
OFFICIAL = {
    "geneval": geneval.BENCHMARK,
    "dpg": dpg.BENCHMARK,
    "wise": wise.BENCHMARK,
    "cvtg": cvtg.BENCHMARK,
    "imgedit": imgedit.BENCHMARK,
    "risebench": risebench.BENCHMARK,
}

# What must stand beside every result.
ABOUT = {"miniature": miniature.ABOUT}
