# SPDX-License-Identifier: Apache-2.0
"""What others published, to stand beside our numbers, with where each was found.

Sources: (a) notes on the ThinkGen paper, to be checked against it before printing; (b) README of
Ovis-Image; (c) README of LongCat-Image; (d) leaderboard in the benchmark's repository; (e) tables
of later papers; (f) README of IRG. RW: prompts rewritten by a language model.
"""

from thinkgen_jax.bench.official import Published

_TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_WISE = ("culture", "time", "space", "biology", "physics", "chemistry")
_IMGEDIT = (
    *("add", "adjust", "extract", "replace", "remove"),
    *("background", "style", "compose", "action"),
)
_RISE = ("temporal", "causal", "spatial", "logical")
OLD = "script before 2026-04: beside 'accuracy, old'"


def _parts(columns: tuple[str, ...], values: str) -> dict[str, float]:
    return dict(zip(columns, map(float, values.split("/")), strict=True)) if values else {}


def _row(columns, name, overall, values="", source="", note="", think=False):
    return Published(name, overall, _parts(columns, values), source, note, think)


GENEVAL = (
    _row(_TAGS, "ThinkGen", 0.88, source="a"),
    _row(_TAGS, "ThinkGen", 0.89, source="a", think=True),
    _row(_TAGS, "FLUX.1-dev", 0.66, source="c"),
    _row(_TAGS, "OmniGen2", 0.80, "1.0/.95/.64/.88/.55/.76", "b", ".86 RW"),
    _row(_TAGS, "BAGEL", 0.82, ".99/.94/.81/.88/.64/.63", "b", ".88 RW"),
    _row(_TAGS, "GPT-4o", 0.84, ".99/.92/.85/.92/.75/.61", "b"),
    _row(_TAGS, "Qwen-Image", 0.87, ".99/.92/.89/.88/.76/.77", "b"),
)

WISE = (
    _row(_WISE, "ThinkGen", 0.55, source="a"),
    _row(_WISE, "ThinkGen", 0.76, source="a", think=True),
    _row(_WISE, "FLUX.1-dev", 0.50, ".48/.58/.62/.42/.51/.35", "e"),
    _row(_WISE, "BAGEL", 0.52, ".44/.55/.68/.44/.60/.39", "e"),
    _row(_WISE, "BAGEL", 0.70, ".76/.69/.75/.65/.75/.58", "e", think=True),
    _row(_WISE, "Qwen-Image", 0.62, ".62/.63/.77/.57/.75/.40", "e", ".61 elsewhere"),
    _row(_WISE, "GPT-4o", 0.80, ".81/.71/.89/.83/.79/.74", "e"),
)

_CVTG = ("NED",)
CVTG = (
    _row(_CVTG, "ThinkGen", 0.80, source="a"),
    _row(_CVTG, "ThinkGen", 0.84, source="a", think=True),
    _row(_CVTG, "FLUX.1-dev", 0.4965, ".6879", "b"),
    _row(_CVTG, "TextCrafter", 0.7370, ".8679", "b", ".76 in a"),
    _row(_CVTG, "Qwen-Image", 0.8288, ".9116", "b"),
    _row(_CVTG, "GPT-4o", 0.8569, ".9478", "b"),
)

IMGEDIT = (
    _row(_IMGEDIT, "ThinkGen", 4.14, source="a"),
    _row(_IMGEDIT, "ThinkGen", 4.21, source="a", think=True),
    _row(_IMGEDIT, "OmniGen2", 3.44, "3.57/3.06/1.77/3.74/3.20/3.57/4.81/2.52/4.68", "d"),
    _row(_IMGEDIT, "BAGEL", 3.20, source="d", note="3.42 later"),
    _row(_IMGEDIT, "GPT-4o", 4.20, "4.61/4.33/2.90/4.35/3.66/4.57/4.93/3.96/4.89", "d"),
    _row(_IMGEDIT, "Qwen-Image-Edit", 4.27, "4.38/4.16/3.43/4.66/4.14/4.38/4.81/3.82/4.69", "e"),
)

RISE = (
    _row(_RISE, "ThinkGen", 3.6, source="a", note=OLD),
    _row(_RISE, "ThinkGen", 13.0, source="a", note=OLD, think=True),
    _row(_RISE, "BAGEL", 11.9, source="d", note=OLD, think=True),
    _row(_RISE, "Gemini-2.0", 13.3, source="d", note=OLD),
    _row(_RISE, "BAGEL", 15.8, "11.8/27.8/21.0/1.2", "d", think=True),
    _row(_RISE, "GPT-Image-1", 30.0, source="d"),
    _row(_RISE, "GPT-Image-1.5", 51.4, "57.6/62.2/62.0/21.2", "d"),
)

DPG = (
    _row((), "ThinkGen", 85.14, source="a"),
    _row((), "ThinkGen", 85.87, source="a", think=True),
    _row((), "OmniGen2", 83.57, source="b"),
    _row((), "BAGEL", 85.07, source="b"),
    _row((), "GPT-4o", 85.15, source="b"),
    _row((), "Qwen-Image", 88.32, source="b"),
)
