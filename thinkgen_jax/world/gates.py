# SPDX-License-Identifier: Apache-2.0
"""Accuracy of the verifier on drawn truth: `python -m thinkgen_jax.world.gates --scenes 100`.

For every nuisance and family: the share of pictures that are rejected although they are right. For
the near misses: the share that is accepted although one attribute is wrong.
"""

import argparse
import logging
import time
from typing import NamedTuple

from . import pixels
from .probes import FAMILIES, near_miss, probe
from .render import render
from .verify import score

MAX_CLEAN_REJECTS, MAX_ENVELOPE_REJECTS, MAX_FALSE_ACCEPTS = 0.005, 0.05, 0.003
MISS_NUISANCES = ("clean", "noise 16", "blur .8")


class Rejects(NamedTuple):
    """Rejected and judged pictures of one family under one nuisance, and seconds spent."""

    bad: int
    count: int
    seconds: float

    @property
    def rate(self) -> float:
        """Share of right pictures that were rejected."""
        return self.bad / max(self.count, 1)


def false_rejects(nuisance: str, family: str, scenes: int) -> Rejects:
    """Judges right pictures of a family under a nuisance."""
    bad, start = 0, time.perf_counter()
    for index in range(scenes):
        scene, spec = probe(family, index)
        bad += not score(pixels.NUISANCES[nuisance](render(scene), index), spec).strict
    return Rejects(bad, scenes, time.perf_counter() - start)


def false_accepts(nuisance: str, family: str, scenes: int) -> tuple[int, int]:
    """(accepted, judged) pictures whose specification differs in one attribute."""
    bad = 0
    for index in range(scenes):
        scene, spec = probe(family, index)
        image = pixels.NUISANCES[nuisance](render(scene), index)
        bad += score(image, near_miss(spec, index)).strict
    return bad, scenes


def main() -> None:
    """Logs the table and says which gates hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=100, help="per family and nuisance")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    heads = "".join(f"{family[:7]:>8}" for family in FAMILIES)
    logging.info("%-26s%7s%s", "rejected, %", "mean", heads)
    means = {}
    for name in pixels.NUISANCES:
        rows = [false_rejects(name, family, args.scenes) for family in FAMILIES]
        means[name] = sum(r.rate for r in rows) / len(rows)
        cells = "".join(f"{100 * r.rate:8.1f}" for r in rows)
        speed = 1e3 * sum(r.seconds for r in rows) / sum(r.count for r in rows)
        logging.info("%-26s%7.1f%s  %.1f ms", name, 100 * means[name], cells, speed)
        if name == "clean":
            text = rows[-1].rate
    accepted = [false_accepts(n, f, args.scenes) for n in MISS_NUISANCES for f in FAMILIES]
    misses, judged = (sum(column) for column in zip(*accepted, strict=True))
    envelope = max(means[name] for name in pixels.ENVELOPE)
    gates = {
        "clean": (means["clean"], MAX_CLEAN_REJECTS),
        "clean text": (text, 0.0),
        "worst of the envelope": (envelope, MAX_ENVELOPE_REJECTS),
        f"near misses, {misses} of {judged}": (misses / judged, MAX_FALSE_ACCEPTS),
    }
    for name, (value, bound) in gates.items():
        verdict = "holds" if value <= bound else "BROKEN"
        logging.info("%-26s%7.2f %%  (bound %.1f %%)  %s", name, 100 * value, 100 * bound, verdict)


if __name__ == "__main__":
    main()
