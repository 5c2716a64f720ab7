# SPDX-License-Identifier: Apache-2.0
"""Scores of a picture against what it had to show. The world is closed: extras cost like omissions.

* `score` compares a picture with a `Spec`; `score_edit` with the picture an edit should have made.
* Required and found objects are paired by the Hungarian method; a pair earns .5 for the shape, .3
  for the colour, .2 for texture and .2 for size, over the attributes that are asked for.
* `strict` means that everything is exact and clean; `soft` leads there; reward is their mean, in
  [0, 1]. Pictures of words alone are rewarded by .7 F1 + .3 similarity, times the share of words
  that stand on the right colour.
* For reinforcement learning take the `_robust` forms: a picture counts as much as its worse of two
  copies, one of them lightly disturbed.
* Signs are always read by the world's own glyph reader.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from . import pixels
from .parse import UNKNOWN, Found, FoundSign, Parsed, parse
from .render import boxes, render
from .scenes import BIGGER, Object, Scene, Sign, Spec, Want

READER = "glyphs"  # how signs were read; to be stated beside every text score
_WEIGHTS = {"shape": 0.5, "color": 0.3, "tex": 0.2, "size": 0.2, "cell": 0.3}
_WRONG_SHAPE = 0.25  # at most this share of the other attributes counts under a wrong shape
_RELATION_SHARE = 0.3
_MAX_OFF = 0.12  # share of pixels off the palette
_POSITION_SLACK = 0.1  # GenEval: share of both sides by which centres must differ
_LEAST_BIGGER = 2.0  # pixels of diameter by which a bigger object is bigger
_NEAR = 3.5  # pixels between centres that count as the same place
_MAX_MAE, _MAE_FROM, _MAE_SPAN = 8.0, 2.0, 14.0  # grey levels
_HALO = 3  # pixels around a changed box that are not compared


@dataclass(frozen=True)
class Score:
    """How well a picture shows what was asked.

    Attributes:
      strict: everything is exact and clean.
      soft: partial credit in [0, 1].
      reward: what reinforcement learning sees, in [0, 1].
      attr: credit of the paired objects over the larger of wanted and found, in [0, 1].
      rel: share of relations that hold, 1 where none is asked.
      text: F1 and similarity of the words times colour and order, 1 where none is asked.
      details: `expected`, `found`, `f1`, `ned`, `carrier`, `word_accuracy`, `specks`, `clipped`,
        `off_palette`, `quality`, `reader`.
    """

    strict: bool
    soft: float
    reward: float
    attr: float
    rel: float
    text: float
    details: dict = field(default_factory=dict)


@dataclass(frozen=True)
class EditScore:
    """How well a picture carries out an edit.

    Attributes:
      compliance: whether what had to change has changed, in [0, 1].
      preservation: whether the rest is as before, in [0, 1].
      quality: cleanliness, in [0, 1].
      strict: everything is exact, and the rest differs by less than 8 grey levels.
      reward: mean of strict and of the three 1-5 ratings brought to [0, 1].
      ratings: 1 + 4 x of the three values; the last two never exceed the first.
      details: `changed`, `kept`, `extra`, `mae`.
    """

    compliance: float
    preservation: float
    quality: float
    strict: bool
    reward: float
    ratings: tuple[float, float, float]
    details: dict = field(default_factory=dict)


# --- attributes and relations ---------------------------------------------------------------------


def _is_right(want: Want, found: Found, name: str) -> bool:
    """Whether one asked-for attribute is as wanted."""
    value, got = getattr(want, name), getattr(found, name)
    return got in value if isinstance(value, tuple) else got == value


def pair_credit(want: Want, found: Found) -> float:
    """Credit in [0, 1] of a found object for a wanted one."""
    asked = {name: w for name, w in _WEIGHTS.items() if getattr(want, name) is not None}
    if found.shape == UNKNOWN:
        asked.setdefault("shape", _WEIGHTS["shape"])  # no legal shape is never a free shape
    if not asked:
        return 1.0
    right = {name: w for name, w in asked.items() if _is_right(want, found, name)}
    if "shape" in asked and "shape" not in right:
        return _WRONG_SHAPE * sum(right.values()) / sum(asked.values())
    return sum(right.values()) / sum(asked.values())


def holds(relation: str, a: Found, b: Found) -> bool:
    """GenEval's rule: centres differ by more than a tenth of both boxes, mainly in that direction.

    "Bigger" means a size bucket above, and two pixels at least.

    Raises:
      ValueError: If the relation is not one of `RELATIONS` or `BIGGER`.
    """
    if relation == BIGGER:
        return bool(a.size != b.size and a.d >= b.d + _LEAST_BIGGER)
    sides = np.array([f.box[2:] for f in (a, b)]) - np.array([f.box[:2] for f in (a, b)])
    offset = np.subtract(a.center, b.center)
    offset = np.maximum(abs(offset) - _POSITION_SLACK * sides.sum(0), 0) * np.sign(offset)
    length = np.linalg.norm(offset)
    if length < 1e-3:
        return False
    dx, dy = offset / length
    table = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    if relation not in table:
        raise ValueError(f"relation {relation!r} is not one of {', '.join((*table, BIGGER))}")
    return bool(table[relation])


def _assign(credit: np.ndarray) -> list[tuple[int, int]]:
    rows, columns = linear_sum_assignment(-credit)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _relations(spec: Spec, found, credit) -> tuple[float, list[tuple[int, int]]]:
    """Share of relations that hold between fully matched objects, and the pairing.

    Wanted objects that look alike may be exchanged; pairs that fulfil relations break such ties.
    """
    pairs = _assign(credit)
    if not spec.relations:
        return 1.0, pairs
    best = 0.0
    bonus = credit.copy()
    for i, relation, j in spec.relations:
        for a in np.flatnonzero(credit[i] >= 1):
            for b in np.flatnonzero(credit[j] >= 1):
                if a != b and holds(relation, found[a], found[b]):
                    bonus[i, a] += 1e-3
                    bonus[j, b] += 1e-3
    for candidate in (pairs, _assign(bonus)):
        match = {i: a for i, a in candidate if credit[i, a] >= 1}
        good = sum(
            i in match and j in match and holds(r, found[match[i]], found[match[j]])
            for i, r, j in spec.relations
        )
        if good / len(spec.relations) > best:
            best, pairs = good / len(spec.relations), candidate
    return best, pairs


# --- words ----------------------------------------------------------------------------------------


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def similarity(a: str, b: str) -> float:
    """1 - edit distance over the longer length; 1 for two empty strings."""
    return 1 - edit_distance(a, b) / max(len(a), len(b), 1)


@dataclass(frozen=True)
class _Words:
    strict: bool
    value: float
    f1: float
    ned: float
    carrier: float
    accuracy: float


def _words(wanted, found: tuple[FoundSign, ...], others: int) -> _Words:
    """Compares the words in a picture with those asked for.

    Args:
      wanted: (word, colour or None) from top to bottom.
      found: Signs from top to bottom.
      others: Number of other things that must not be there; each counts as a false word.
    """
    if not found:
        return _Words(False, 0.0, 0.0, 0.0, 0.0, 0.0)
    near = np.array([[similarity(word, s.word) for s in found] for word, _ in wanted])
    colored = np.array([[c is None or s.color == c for s in found] for _, c in wanted])
    place = np.subtract.outer(np.arange(len(wanted)), np.arange(len(found)))
    # a whole word outweighs everything; then its colour, then its place, decide between equals
    pairs = _assign(near + (near >= 1) + 1e-2 * colored - 1e-4 * abs(place))
    exact = sum(near[i, j] >= 1 for i, j in pairs)
    total = len(wanted) + len(found) + others
    f1, ned = 2 * exact / total, sum(near[i, j] for i, j in pairs) / max(len(wanted), 1)
    carrier = float(np.mean([colored[i, j] for i, j in pairs]))
    match = dict(pairs)
    steps = [(match[i], match[i + 1]) for i in match if i + 1 in match]
    order = float(np.mean([a < b for a, b in steps])) if steps else 1.0
    clean = exact == len(wanted) == len(found) and others == 0
    value = (0.7 * f1 + 0.3 * ned) * carrier * (1 - _RELATION_SHARE * (1 - order))
    return _Words(
        bool(clean and carrier == 1 and order == 1),
        float(value),
        float(f1),
        float(ned),
        carrier,
        exact / len(wanted),
    )


# --- pictures against specifications --------------------------------------------------------------


def quality(parsed: Parsed) -> float:
    """Cleanliness in [0, 1]: specks, foreign colours and noise cost; 1 for an empty canvas."""
    penalty = 0.25 * parsed.specks + 3 * parsed.off_palette + 0.03 * max(0.0, parsed.noise - 4)
    return float(np.clip(1 - penalty, 0, 1))


def _is_clean(parsed: Parsed) -> bool:
    return not parsed.specks and not parsed.clipped and parsed.off_palette <= _MAX_OFF


def _objects(spec: Spec, parsed: Parsed) -> tuple[bool, float, float]:
    """(exact, attr, rel) of the objects; signs are extras where none is asked."""
    found = parsed.objects
    extras = 0 if spec.signs else len(parsed.signs)
    size = max(len(spec.objects), len(found) + extras)
    if not spec.objects or not found:
        return size == 0, float(size == 0), float(not spec.relations)
    credit = np.array([[pair_credit(want, f) for f in found] for want in spec.objects])
    rel, pairs = _relations(spec, found, credit)
    attr = sum(credit[i, j] for i, j in pairs) / size
    return bool(attr >= 1 - 1e-9 and rel == 1), float(attr), rel


def score_parsed(parsed: Parsed, spec: Spec) -> Score:
    """`score` of a picture that has been parsed."""
    asks_objects = bool(spec.objects) or not spec.signs
    exact, attr, rel = _objects(spec, parsed) if asks_objects else (True, 1.0, 1.0)
    soft = attr
    if spec.relations:
        soft = (1 - _RELATION_SHARE) * attr + _RELATION_SHARE * rel
    words = _Words(True, 1.0, 1.0, 1.0, 1.0, 1.0)
    if spec.signs:
        others = 0 if spec.objects else len(parsed.objects)
        words = _words(spec.signs, parsed.signs, others)
        share = len(spec.objects) / (len(spec.objects) + len(spec.signs))
        soft = share * soft + (1 - share) * words.value
    background = spec.bg is None or parsed.bg == spec.bg
    if not background:
        soft *= 1 - _RELATION_SHARE
    if not _is_clean(parsed):
        soft *= 0.5
    strict = bool(exact and words.strict and background and _is_clean(parsed))
    only_words = bool(spec.signs) and not spec.objects
    soft = float(np.clip(soft, 0, 1))
    details = {
        "expected": len(spec.objects) + len(spec.signs),
        "found": len(parsed.objects) + len(parsed.signs),
        "f1": words.f1,
        "ned": words.ned,
        "carrier": words.carrier,
        "word_accuracy": words.accuracy,
        "specks": parsed.specks,
        "clipped": parsed.clipped,
        "off_palette": parsed.off_palette,
        "quality": quality(parsed),
        "reader": READER,
    }
    reward = soft if only_words else 0.5 * strict + 0.5 * soft
    return Score(strict, soft, reward, attr, rel, words.value, details)


def score(image: np.ndarray, spec: Spec) -> Score:
    """Scores a picture against a specification.

    Objects without signs: attr, or .7 attr + .3 rel. Signs without objects: the word score. Both:
    each weighs by how many of its kind are asked. A wrong background takes 30 %; specks, foreign
    colours and things cut by the edge halve what is left.

    Raises:
      ValueError: If the picture is not 64 x 64 RGB bytes.
    """
    return score_parsed(parse(image), spec)


def disturb(image: np.ndarray, seed: int) -> np.ndarray:
    """One light nuisance, by seed: noise of 4 grey levels, blur of .3 pixels, or a shift of 6."""
    choice = int(np.random.default_rng(seed).integers(3))
    if choice == 0:
        return pixels.add_noise(image, 4.0, seed)
    return pixels.blur(image, 0.3) if choice == 1 else pixels.shift_color(image, 6.0, seed)


def score_robust(image: np.ndarray, spec: Spec, seed: int) -> Score:
    """The lower of the scores of a picture and of a lightly disturbed copy of it.

    Nothing on the edge of a limit survives both; this is what reinforcement learning should see.
    """
    first, second = score(image, spec), score(disturb(image, seed), spec)
    return min(first, second, key=lambda s: (s.reward, s.strict))


# --- edits ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """What an edit changes, by comparison of two scenes."""

    changed: tuple[Object | Sign, ...]  # in the target, not in the source
    kept: tuple[Object | Sign, ...]
    gone: tuple[Object | Sign, ...]  # in the source, without a successor in the target
    background: bool
    mask: np.ndarray  # pixels that must be as in the target


def _middle(item: Object | Sign) -> tuple[float, float]:
    if isinstance(item, Object):
        return float(item.x), float(item.y)
    x0, y0, x1, y1 = boxes(Scene(signs=(item,)))[0]
    return (x0 + x1) / 2, (y0 + y1) / 2


def _is_near(a, b) -> bool:
    return float(np.hypot(a[0] - b[0], a[1] - b[1])) <= _NEAR


def _succeeds(new, old) -> bool:
    """Whether a changed thing stands for a vanished one: same place, or moved."""
    if type(new) is not type(old):
        return False
    if _is_near(_middle(new), _middle(old)):
        return True
    if isinstance(new, Sign):
        return new.word == old.word and new.color == old.color
    return (new.shape, new.color, new.tex) == (old.shape, old.color, old.tex)


def _plan(source: Scene, target: Scene) -> _Plan:
    before, after = [*source.objects, *source.signs], [*target.objects, *target.signs]
    kept = []
    for item in list(after):
        if item in before:
            before.remove(item)
            after.remove(item)
            kept.append(item)
    touched = boxes(
        Scene(
            objects=tuple(o for o in before + after if isinstance(o, Object)),
            signs=tuple(s for s in before + after if isinstance(s, Sign)),
        )
    )
    mask = np.ones((64, 64), bool)
    for x0, y0, x1, y1 in touched:
        mask[max(y0 - _HALO, 0) : y1 + _HALO, max(x0 - _HALO, 0) : x1 + _HALO] = False
    gone = list(before)
    for new in after:
        old = next((o for o in gone if _succeeds(new, o)), None)
        if old is not None:
            gone.remove(old)
    background = source.bg != target.bg
    return _Plan(tuple(after), tuple(kept), tuple(gone), background, mask)


def _matches(item: Object | Sign, found: Found | FoundSign) -> bool:
    """Whether a found thing is the wanted one in every attribute (its place is known to fit)."""
    if isinstance(item, Sign):
        return isinstance(found, FoundSign) and (found.word, found.color) == (item.word, item.color)
    return isinstance(found, Found) and (found.shape, found.color, found.tex, found.size) == (
        item.shape,
        item.color,
        item.tex,
        item.size,
    )


def _spot(found: Found | FoundSign) -> tuple[float, float]:
    x0, y0, x1, y1 = found.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def _claims(items, found) -> dict[int, int]:
    """Pairs wanted things with found ones at the same place, right ones first."""
    if not items or not found:
        return {}
    value = np.array(
        [[_is_near(_middle(i), _spot(f)) * (1 + 9 * _matches(i, f)) for f in found] for i in items]
    )
    return {i: j for i, j in _assign(value) if value[i, j] > 0}


def _rating(value: float) -> float:
    return 1 + 4 * float(np.clip(value, 0, 1))


def score_edit(image: np.ndarray, source: Scene, target: Scene) -> EditScore:
    """Scores an edited picture; what had to change is what differs between the two scenes.

    Compliance is the share of fulfilled assertions (each changed thing right in every attribute
    and within 3.5 pixels, each removed one gone, the background changed), a quarter of it unless
    all are fulfilled, times the share of kept things intact, halved by extra blobs. Preservation
    compares 3 x 3 means with the target outside the changed boxes.

    Raises:
      ValueError: If the picture is not 64 x 64 RGB bytes, or a scene holds unknown names.
    """
    parsed, plan = parse(image), _plan(source, target)
    found = [*parsed.objects, *parsed.signs]
    wanted = [*plan.changed, *plan.kept]
    claims = _claims(wanted, found)
    right = [i in claims and _matches(item, found[claims[i]]) for i, item in enumerate(wanted)]
    free = [f for j, f in enumerate(found) if j not in claims.values()]
    asserted = right[: len(plan.changed)]
    asserted += [not any(_is_near(_middle(o), _spot(f)) for f in free) for o in plan.gone]
    if plan.background:
        asserted.append(parsed.bg == target.bg)
    intact = right[len(plan.changed) :]
    kept = float(np.mean(intact)) if intact else 1.0
    if not plan.background:
        kept *= float(parsed.bg == target.bg)
    done = float(np.mean(asserted)) if asserted else 1.0
    compliance = done * (1 if done == 1 else 0.25) * kept * (0.5 if free else 1)
    difference = abs(pixels.box3(image) - pixels.box3(render(target))).mean(-1)
    mae = float(difference[plan.mask].mean()) if plan.mask.any() else 0.0
    same = float(np.clip(1 - max(mae - _MAE_FROM, 0) / _MAE_SPAN, 0, 1)) * (0.5 + 0.5 * kept)
    clean = quality(parsed) * 0.75**parsed.clipped
    first = _rating(compliance)
    ratings = (first, min(first, _rating(same)), min(first, _rating(clean)))
    strict = bool(done == 1 and kept == 1 and not free and mae < _MAX_MAE and _is_clean(parsed))
    reward = 0.5 * strict + 0.5 * (sum(ratings) / 3 - 1) / 4
    details = {
        "changed": asserted,
        "kept": intact,
        "extra": len(free),
        "mae": mae,
        "reader": READER,
    }
    return EditScore(compliance, same, clean, strict, reward, ratings, details)


def score_edit_robust(image: np.ndarray, source: Scene, target: Scene, seed: int) -> EditScore:
    """The lower of the scores of an edited picture and of a lightly disturbed copy of it."""
    first = score_edit(image, source, target)
    second = score_edit(disturb(image, seed), source, target)
    return min(first, second, key=lambda s: (s.reward, s.strict))


def judge_text(result: EditScore) -> str:
    """The three ratings in the form in which a judge model answers."""
    names = ("Prompt Compliance", "Visual Seamlessness", "Physical & Detail Fidelity")
    lines = (f"{name}: {round(r)}" for name, r in zip(names, result.ratings, strict=True))
    return "\n".join(lines)
