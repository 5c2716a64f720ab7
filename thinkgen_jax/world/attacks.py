# SPDX-License-Identifier: Apache-2.0
"""Attempts to please the verifier without drawing what was asked.

* Static attacks: fixed tricks, such as an empty canvas, a collage, the object's name on a sign.
* A search attack: greedy drawing with simple primitives that sees nothing but the reward.

`python -m thinkgen_jax.world.attacks --out FOLDER` runs both and saves the search's best pictures.
Those that reached strict are to be judged by eye: what looks right is no hack. A search that finds
nothing is evidence over its prompts, not a proof.
"""

import argparse
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from .pixels import add_noise
from .probes import FAMILIES, generator, place, probe
from .render import render
from .scenes import BACKGROUNDS, CANVAS, COLORS, SHAPES, Object, Scene, Sign, Spec
from .verify import score

DRAWN = tuple(family for family in FAMILIES if family != "text")


# --- static attacks -------------------------------------------------------------------------------


def _collage(scene: Scene, rng) -> Scene:
    """Sixteen random objects on a grid."""
    cells = [(9.0 + 15 * i, 9.0 + 15 * j) for i in range(4) for j in range(4)]
    objects = tuple(
        Object(str(rng.choice(SHAPES)), str(rng.choice(list(COLORS))), 12, x, y) for x, y in cells
    )
    return Scene(scene.bg, objects)


def _giant(scene: Scene, rng):
    image = np.empty((CANVAS, CANVAS, 3), np.uint8)
    image[:] = BACKGROUNDS[scene.bg]
    image[8:56, 8:56] = COLORS[scene.objects[0].color]
    return image


def _named(scene: Scene, rng) -> Scene:
    """The name of the shape on a sign in its colour."""
    item = scene.objects[0]
    word = item.shape.replace("-", "").upper()[:9]
    return Scene(scene.bg, signs=(Sign(word, item.color, 3, 26),))


def _other(rng, options, current: str) -> str:
    return str(rng.choice([o for o in options if o != current]))


def _wrong_shapes(scene: Scene, rng) -> Scene:
    used = {o.shape for o in scene.objects}
    shape = str(rng.choice([s for s in SHAPES if s not in used and s != "star"]))
    return replace(
        scene, objects=tuple(replace(o, shape=shape, tex="solid") for o in scene.objects)
    )


def _wrong_colors(scene: Scene, rng) -> Scene:
    return replace(
        scene,
        objects=tuple(replace(o, color=_other(rng, COLORS, o.color)) for o in scene.objects),
    )


def _duplicate(scene: Scene, rng) -> Scene | None:
    """One object more than there should be; None if no room is left."""
    first = scene.objects[0]
    for _ in range(100):
        spot = place(rng, [first.d])[0]
        gaps = (
            max(abs(spot[0] - o.x), abs(spot[1] - o.y)) - (first.d + o.d) / 2 for o in scene.objects
        )
        if min(gaps) > 4:
            extra = replace(first, x=spot[0], y=spot[1], tex="solid")
            return replace(scene, objects=(*scene.objects, extra))
    return None


def _washed(scene: Scene, rng):
    """Everything half as strong against the background."""
    image = render(scene)
    return ((image.astype(np.uint16) + np.array(BACKGROUNDS[scene.bg])) // 2).astype(np.uint8)


def _static_noise(scene: Scene, rng):
    return add_noise(np.full((CANVAS, CANVAS, 3), 128, np.uint8), 80.0, int(rng.integers(1 << 30)))


STATIC = {
    "truth": lambda scene, rng: scene,
    "blank": lambda scene, rng: Scene(scene.bg),
    "noise": _static_noise,
    "collage": _collage,
    "giant square": _giant,
    "name on a sign": _named,
    "wrong shapes": _wrong_shapes,
    "wrong colours": _wrong_colors,
    "only the first": lambda scene, rng: replace(scene, objects=scene.objects[:1]),
    "one more": _duplicate,
    "washed out": _washed,
}


def static_attack(name: str, family: str, scenes: int) -> tuple[float, float]:
    """Mean reward and share of strict pictures of one trick on a family.

    Specifications that the trick happens to satisfy by construction are left out: "wrong colours"
    where no colour is asked, "only the first" where there is but one.
    """
    rewards, strict = [], []
    for index in range(scenes):
        scene, spec = probe(family, index)
        if name == "wrong colours" and spec.objects[0].color is None:
            continue
        if name == "only the first" and len(scene.objects) == 1:
            continue
        made = STATIC[name](scene, generator("attack", name, index))
        if made is None:
            continue
        result = score(render(made) if isinstance(made, Scene) else made, spec)
        rewards.append(result.reward)
        strict.append(result.strict)
    return (float(np.mean(rewards)), float(np.mean(strict))) if rewards else (0.0, 0.0)


# --- search attack --------------------------------------------------------------------------------

_KINDS = ("rectangle", "ellipse", "triangle", "diamond", "line")
_FINE = 4  # supersampling of the attacker's pencil
_PATIENCE = 250  # evaluations without improvement before a restart


@dataclass(frozen=True)
class Stroke:
    """One primitive: kind, colour, box in pixels."""

    kind: str
    color: str
    box: tuple[float, float, float, float]


def draw(strokes, bg: str = "gray") -> UInt8[np.ndarray, "64 64 3"]:
    """The picture of a list of primitives, anti-aliased."""
    image = Image.new("RGB", (CANVAS * _FINE, CANVAS * _FINE), BACKGROUNDS[bg])
    pencil = ImageDraw.Draw(image)
    for stroke in strokes:
        x0, y0, x1, y1 = (v * _FINE for v in stroke.box)
        x1, y1, fill = x1 - 1, y1 - 1, COLORS[stroke.color]
        if stroke.kind == "rectangle":
            pencil.rectangle((x0, y0, x1, y1), fill)
        elif stroke.kind == "ellipse":
            pencil.ellipse((x0, y0, x1, y1), fill)
        elif stroke.kind == "triangle":
            pencil.polygon([((x0 + x1) / 2, y0), (x1, y1), (x0, y1)], fill)
        elif stroke.kind == "diamond":
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            pencil.polygon([(x, y0), (x1, y), (x, y1), (x0, y)], fill)
        else:
            pencil.line((x0, y0, x1, y1), fill, width=2 * _FINE)
    return np.asarray(image.resize((CANVAS, CANVAS), Image.Resampling.BOX))


def _stroke(rng, colors) -> Stroke:
    w, h = (int(v) for v in rng.integers(3, 26, 2))
    if rng.random() < 0.6:
        h = w
    x, y = int(rng.integers(2, CANVAS - 2 - w)), int(rng.integers(2, CANVAS - 2 - h))
    box = (float(x), float(y), float(x + w), float(y + h))
    return Stroke(str(rng.choice(_KINDS)), str(rng.choice(colors)), box)


def _changed(rng, strokes: tuple[Stroke, ...], colors) -> tuple[Stroke, ...]:
    """A list with one primitive added, moved, reshaped or taken away."""
    action = rng.random()
    if not strokes or action < 0.5:
        return (*strokes, _stroke(rng, colors))
    index = int(rng.integers(len(strokes)))
    if action < 0.6:
        return strokes[:index] + strokes[index + 1 :]
    old = strokes[index]
    if action < 0.7:
        new = replace(old, kind=str(rng.choice(_KINDS)))
    else:
        box = np.array(old.box) + rng.integers(-4, 5, 4) / 2
        box[2:] = np.maximum(box[2:], box[:2] + 2)
        new = replace(old, box=tuple(float(v) for v in np.clip(box, 0, CANVAS)))
    return strokes[:index] + (new,) + strokes[index + 1 :]


def _palette(spec: Spec) -> list[str]:
    """Colours that the attacker draws with: mostly those of the prompt."""
    asked = []
    for want in spec.objects:
        asked += [want.color] if isinstance(want.color, str) else list(want.color or ())
    return asked * 6 + list(COLORS)


@dataclass(frozen=True)
class Haul:
    """What a search brought home: best reward, whether strict, the picture, evaluations used."""

    reward: float
    strict: bool
    image: np.ndarray
    evaluations: int


def search(spec: Spec, rng, evaluations: int) -> Haul:
    """Greedy drawing against the reward, with restarts, strict improvement only."""
    colors, best = _palette(spec), None
    strokes, reward, idle = (), -1.0, 0
    for step in range(1, evaluations + 1):
        if idle > _PATIENCE:
            strokes, reward, idle = (), -1.0, 0
        trial = _changed(rng, strokes, colors)
        image = draw(trial)
        result = score(image, spec)
        idle += 1
        if result.reward > reward:
            strokes, reward, idle = trial, result.reward, 0
        if best is None or result.reward > best.reward:
            best = Haul(result.reward, result.strict, image, step)
        if best.strict:
            break
    return best


def _asked(spec: Spec) -> str:
    """A specification in a few words, for file names."""
    parts = [
        "-".join(str(v) for v in (w.size, w.color, w.tex, w.shape) if v and v != "solid")
        for w in spec.objects
    ]
    return "_".join(parts)[:80]


def _report_static(scenes: int) -> None:
    heads = "".join(f"{family[:8]:>9}" for family in DRAWN)
    logging.info("%-16s%s%12s", "mean reward", heads, "strict, %")
    for name in STATIC:
        rows = [static_attack(name, family, scenes) for family in DRAWN]
        cells = "".join(f"{reward:9.2f}" for reward, _ in rows)
        logging.info("%-16s%s%12.1f", name, cells, 100 * np.mean([s for _, s in rows]))


def _report_search(prompts: int, evaluations: int, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    reached, rewards, start = 0, [], time.perf_counter()
    for index in range(prompts):
        family = DRAWN[index % len(DRAWN)]
        _, spec = probe(family, index // len(DRAWN), split="search")
        haul = search(spec, generator("search", family, index), evaluations)
        rewards.append(haul.reward)
        reached += haul.strict
        kind, asked = "strict" if haul.strict else "best", _asked(spec)
        logging.info("%-12s %.3f %5d %-6s %s", family, haul.reward, haul.evaluations, kind, asked)
        picture = Image.fromarray(haul.image).resize((256, 256), Image.Resampling.NEAREST)
        picture.save(out / f"{kind}_{index:03}_{asked}.png")
    mean, seconds = float(np.mean(rewards)), time.perf_counter() - start
    logging.info("%d of %d prompts reached strict, best rewards %.3f", reached, prompts, mean)
    logging.info("%.0f s; judge the pictures in %s by eye", seconds, out)


def main() -> None:
    """Runs the static attacks and the search, and logs both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=40, help="of the static attacks, per family")
    parser.add_argument("--prompts", type=int, default=24, help="of the search")
    parser.add_argument("--evaluations", type=int, default=2200, help="of the search, per prompt")
    parser.add_argument("--out", type=Path, default=Path("outputs/attacks"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    _report_static(args.scenes)
    if args.prompts:
        _report_search(args.prompts, args.evaluations, args.out)


if __name__ == "__main__":
    main()
