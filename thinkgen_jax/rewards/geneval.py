# SPDX-License-Identifier: Apache-2.0
"""GenEval's rules: from detected objects to right or wrong, and to the reward Flow-GRPO trains on.

A detector says what is where (`Detection`, by class name); what follows from that is arithmetic and
lives here. Three verdicts of one picture:
  correct  the benchmark's: at least the wanted number of each class, colours, relations, exclusions
  strict   every clause with exactly the wanted number
  score    mean over clauses, falling with every object too many, unbounded below

* `mixed` is what training should take: the score cut off at 0, blended with `strict`, because a
  mirrored relation costs the score only a quarter.
* Boxes are (left, top, right, bottom) in pixels.

Source: geneval@af4902f evaluation/evaluate_images.py; reward-server@92ac29f (score, strict).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from thinkgen_jax.rewards import facts
from thinkgen_jax.rewards.remote import Client
from thinkgen_jax.structs import Request, Sample

COLORS = (
    *("red", "orange", "yellow", "green", "blue"),
    *("purple", "pink", "brown", "black", "white"),
)
THRESHOLD = 0.3  # least confidence of a detection
COUNTING_THRESHOLD = 0.9  # where the task is counting
MOST = 16  # detections of a class
MARGIN = 0.1  # of the objects' sizes that a relation has to clear
LEAST_SCORE = 1.0 - (MOST - 1)  # of a picture with 16 objects where one is wanted
STRICT_WEIGHT = 0.5  # of `strict` in `mixed`


class Detection(NamedTuple):
    """One object: its box, the detector's confidence, its colour ("" where nobody asked)."""

    box: tuple[float, float, float, float]
    score: float = 1.0
    color: str = ""


class Verdict(NamedTuple):
    """What the rules say of one picture; reasons are "" where nothing is wrong."""

    correct: bool
    reason: str
    strict: bool
    score: float
    strict_reason: str


Detections = Mapping[str, Sequence[Detection]]


def keep(found: Sequence[Detection], *, tag: str) -> list[Detection]:
    """The detections of a class that count: confident ones, the best first, at most 16.

    Overlapping ones stay: the benchmark runs with suppression off.
    """
    least = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    ordered = sorted(found, key=lambda one: -one.score)
    return [one for one in ordered if one.score > least][:MOST]


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes, both edges being pixels inside."""

    def area(box: Sequence[float]) -> float:
        return max(box[2] - box[0] + 1, 0.0) * max(box[3] - box[1] + 1, 0.0)

    shared = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = area(a) + area(b) - shared
    return shared / union if union else 0.0


def relations(a: Sequence[float], b: Sequence[float]) -> set[str]:
    """Where box a lies as seen from b; two relations can hold at once, and none."""
    a, b = np.asarray(a, float).reshape(2, 2), np.asarray(b, float).reshape(2, 2)
    offset = a.mean(axis=0) - b.mean(axis=0)
    sizes = np.abs(np.diff(a, axis=0)[0]) + np.abs(np.diff(b, axis=0)[0])
    clear = np.sign(offset) * np.maximum(np.abs(offset) - MARGIN * sizes, 0)
    if np.all(np.abs(clear) < 1e-3):
        return set()
    dx, dy = clear / np.linalg.norm(offset)
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in held.items() if holds}


def judge(metadata: Mapping, found: Detections) -> Verdict:
    """Applies the rules to one picture.

    Args:
      metadata: a line of the prompt file: tag, include, exclude.
      found: kept detections by class name, the most confident first.
    """
    correct, reason = _correct(metadata, found)
    return Verdict(correct, reason, *_rewarded(metadata, found))


def mixed(
    verdict: Verdict, *, strict_weight: float = STRICT_WEIGHT, is_clipped: bool = True
) -> float:
    """The reward: (1 - w) · score + w · strict, the score not below 0 when clipped.

    Weight 0 without clipping is Flow-GRPO's own reward.
    """
    score = max(0.0, verdict.score) if is_clipped else verdict.score
    return (1 - strict_weight) * score + strict_weight * float(verdict.strict)


def overall(rows: Sequence[tuple[str, bool]]) -> tuple[float, dict[str, float]]:
    """The benchmark's number from (tag, correct) of every picture, and its parts.

    The mean over tags of the share of right pictures, each tag counting the same.

    Raises:
      ValueError: for no picture at all.
    """
    if not rows:
        raise ValueError("GenEval: no picture was judged")
    tags = dict.fromkeys(tag for tag, _ in rows)
    parts = {t: float(np.mean([correct for tag, correct in rows if tag == t])) for t in tags}
    return float(np.mean(list(parts.values()))), parts


# --- the two rule sets ---


def _correct(metadata: Mapping, found: Detections) -> tuple[bool, str]:
    """The benchmark's own rule: clauses in order, more objects than wanted being no fault."""
    correct, reasons, groups = True, [], []
    for clause in metadata.get("include", ()):
        name, want = clause["class"], clause["count"]
        objects = list(found.get(name, ()))[:want]
        faults = [] if len(objects) >= want else [f"expected {name}>={want}, found {len(objects)}"]
        if not faults:
            faults += _color_fault(clause, objects)
            # A relation is looked at only while nothing before it was wrong.
            faults += [] if faults else _position_fault(clause, objects, groups)
        reasons += faults
        correct &= not faults
        groups.append([] if faults else objects)
    for clause in metadata.get("exclude", ()):
        count = len(found.get(clause["class"], ()))
        if count >= clause["count"]:
            correct = False
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {count}")
    return correct, "\n".join(reasons)


def _rewarded(metadata: Mapping, found: Detections) -> tuple[bool, float, str]:
    """Strict correctness and the mean of the clauses' terms; exclusions are not looked at."""
    terms, reasons, groups = [], [], []
    for clause in metadata.get("include", ()):
        name, want = clause["class"], clause["count"]
        objects = list(found.get(name, ()))
        terms.append(1 - abs(want - len(objects)) / want)
        faults = []
        if len(objects) != want:
            faults.append(f"expected {name}=={want}, found {len(objects)}")
            terms += [0.0] if "color" in clause or "position" in clause else []
        else:
            faults += _color_fault(clause, objects)
            if "color" in clause:
                right = sum(one.color == clause["color"] for one in objects)
                terms.append(1 - abs(want - right) / want)
            if not faults and "position" in clause:
                faults += _position_fault(clause, objects, groups)
                terms += _position_terms(faults, groups[clause["position"][1]])
        reasons += faults
        groups.append([] if faults else objects)
    return not reasons, float(np.mean(terms)) if terms else 0.0, "\n".join(reasons)


def _color_fault(clause: Mapping, objects: Sequence[Detection]) -> list[str]:
    if "color" not in clause:
        return []
    want, color = clause["count"], clause["color"]
    colors = [one.color for one in objects]
    if colors.count(color) >= want:
        return []
    others = ", ".join(f"{colors.count(c)} {c}" for c in COLORS if c in colors)
    name = f"{color} {clause['class']}"
    return [f"expected {name}>={want}, found {colors.count(color)} {color}; and {others}"]


def _position_fault(
    clause: Mapping, objects: Sequence[Detection], groups: Sequence[Sequence[Detection]]
) -> list[str]:
    if "position" not in clause:
        return []
    relation, other = clause["position"]
    name = clause["class"]
    if not groups[other]:
        return [f"no target for {name} to be {relation}"]
    for one in objects:
        for target in groups[other]:
            held = relations(one.box, target.box)
            if relation not in held:
                named = " and ".join(
                    r for r in ("left of", "right of", "above", "below") if r in held
                )
                return [f"expected {name} {relation} target, found {named} target"]
    return []


def _position_terms(faults: Sequence[str], targets: Sequence[Detection]) -> list[float]:
    """0 without a target; otherwise 1, behind a 0 where a pair is placed wrongly."""
    if not targets:
        return [0.0]
    return [0.0, 1.0] if faults else [1.0]


# --- what a detector's server says ---


def lacks(request: Request) -> str:
    """What the rules miss in a request, "" for nothing."""
    missing = {"tag", "include"} - set(facts.of(request))
    return f"geneval needs meta {sorted(missing)}" if missing else ""


def rate(
    client: Client,
    samples: Sequence[Sample],
    *,
    strict_weight: float = STRICT_WEIGHT,
    is_clipped: bool = True,
) -> np.ndarray:
    """The mixed reward of every picture from a detector's server, float32 [N]; see `mixed`.

    Raises:
      Failed: when the server gives no usable answer.
      ValueError: for a sample without GenEval's metadata.
    """
    verdicts = [
        judge(facts.of(sample.request), found)
        for sample, found in zip(samples, detect(client, samples), strict=True)
    ]
    how = dict(strict_weight=strict_weight, is_clipped=is_clipped)
    return np.asarray([mixed(verdict, **how) for verdict in verdicts], np.float32)


def detect(client: Client, samples: Sequence[Sample]) -> list[dict[str, list[Detection]]]:
    """Kept detections of every picture, asked of a detector's server.

    Raises:
      Failed: when the server gives no usable answer.
      ValueError: for a sample without GenEval's metadata.
    """
    for sample in samples:
        if lack := lacks(sample.request):
            raise ValueError(f"{sample.request.prompt!r}: {lack}")
    tags = [facts.of(sample.request)["tag"] for sample in samples]

    def read_all(details: list) -> list[dict[str, list[Detection]]]:
        return [read(detail, tag=tag) for detail, tag in zip(details, tags, strict=True)]

    return client.score(samples, floor=0.0, ceiling=1.0, read=read_all)[1]


def read(detail: object, *, tag: str) -> dict[str, list[Detection]]:
    """Kept detections of one picture from what a server said of it.

    Args:
      detail: {class: [[left, top, right, bottom, confidence, color or ""], ...]}.

    Raises:
      ValueError: for anything else, a box that is not finite, a confidence outside [0, 1] or an
        unknown colour.
    """
    if not isinstance(detail, dict):
        raise ValueError(f"detections are no object but {detail!r:.80}")
    found = {}
    for name, rows in detail.items():
        try:
            ones = [Detection(tuple(map(float, r[:4])), float(r[4]), str(r[5])) for r in rows]
        except (TypeError, ValueError, IndexError, KeyError, OverflowError) as err:
            raise ValueError(f"detections of {name!r} cannot be read: {rows!r:.80}") from err
        for one in ones:
            usable = np.isfinite(one.box).all() and 0 <= one.score <= 1
            if not usable or one.color not in ("", *COLORS):
                raise ValueError(f"detection of {name!r} is not usable: {one}")
        found[name] = keep(ones, tag=tag)
    return found
