# SPDX-License-Identifier: Apache-2.0
"""Exercises with given pictures: edits, reasoning edits, in-context, reflection, understanding.

* Edits come with truth: source and target are both plans, nothing is judged by eye.
* In-context prompts name a shape only; its colour has to be looked up in its picture.
* Reflection gives a caption and a picture that may not satisfy it; the instruction repairs it.
* Understanding asks closed questions with one exact answer.
"""

import random
from dataclasses import replace

from . import edits, flaws, grammar, layout, prompted, puzzles, questions
from .exercise import Draw, Item, pick_background, pick_template, template_names
from .grammar import noun
from .layout import Look
from .scenes import Scene, Spec, Want

# --- edits --------------------------------------------------------------------------------------

EDIT_THOUGHTS = (
    "the target is {target}. {outcome}. nothing else changes.",
    "i see {target}. {outcome}. the rest stays.",
    "only {target} matters: {outcome}.",
)


def _where(change: edits.Change, step: edits.Step, before: Scene) -> str:
    """The object that a step is about, with its place; whole pictures are named as such."""
    words = dict(step.words)
    if step.op == "add":
        return f"the place {words['at']}"
    if step.op in ("style", "background"):
        return "the whole picture"
    gone = [o for o in before.objects if o not in step.target.objects]
    if step.op == "extract":
        gone = list(step.target.objects)
    return f"{words['the']} {grammar.at(layout.cell(gone[0]))}" if gone else words["the"]


def _edit_thought(rng: random.Random, change: edits.Change) -> str:
    if len(change.steps) == 1:
        step = change.steps[0]
        target = _where(change, step, change.source)
        return rng.choice(EDIT_THOUGHTS).format(target=target, outcome=edits.outcome(step))
    said, before = [], change.source
    for step in change.steps:
        said.append(f"{_where(change, step, before)}: {edits.outcome(step)}")
        before = step.target
    return rng.choice(
        ("two steps. {}. {}.", "first, {}. then, {}.", "{}. {}. that is all.")
    ).format(*said)


def edit(rng: random.Random, draw: Draw, tag: str) -> Item | None:
    """One operation on a picture, or two."""
    template = pick_template(rng, draw)
    # Held-out pairs of operations make a held-out item by themselves.
    held = tag == "compose" and draw.held and rng.random() < 0.5
    change = edits.random_edit(rng, tag, legal=draw.legal, held=held)
    if change is None:
        return None
    short = rng.random() < 0.5
    asked = [edits.ask(s, template, short=short and len(change.steps) == 1) for s in change.steps]
    names = layout.held_out(change.source) + layout.held_out(change.target)
    if held:
        names += ("compose:" + "+".join(s.op for s in change.steps),)
    prompt = " and ".join(asked).replace(" and please ", " and ")
    return Item(
        "edit",
        tag,
        prompt,
        _edit_thought(rng, change),
        change.instruction,
        (change.source,),
        change.target,
        grammar.spec_of(change.target),
        None,
        prompt,
        tuple(dict.fromkeys(names)) + template_names(template),
        (),
        _reordered(change),
    )


def _reordered(change: edits.Change) -> tuple[str, ...]:
    sentences = [edits.instruct(s) for s in change.steps]
    return (" and ".join(reversed(sentences)),) if len(sentences) > 1 else ()


# --- reasoning edits ----------------------------------------------------------------------------

PUZZLE_THOUGHTS = (
    "{seen}. {rule}. so {outcome}.",
    "i see that {seen}. {rule}. then {outcome}.",
    "state: {seen}. rule: {rule}. result: {outcome}.",
)


def reasoning_edit(rng: random.Random, draw: Draw, tag: str) -> Item | None:
    """A picture that time, causes, space or logic changes."""
    template = pick_template(rng, draw)
    made = puzzles.puzzle(rng, tag, template, legal=draw.legal)
    if made is None:
        return None

    def solve(rule: str, steps: tuple[edits.Step, ...]) -> tuple[str, str]:
        text = rng.choice(PUZZLE_THOUGHTS)
        result = " and ".join(map(edits.outcome, steps))
        thought = text.format(seen=made.seen.removeprefix("i see "), rule=rule, outcome=result)
        return thought, " and ".join(map(edits.instruct, steps))

    thought, instruction = solve(made.rule, made.steps)
    target = made.steps[-1].target
    names = layout.held_out(made.source) + layout.held_out(target)
    return Item(
        "reasoning_edit",
        tag,
        made.prompt,
        thought,
        instruction,
        (made.source,),
        target,
        grammar.spec_of(target),
        None,
        " and ".join(edits.ask(s, template) for s in made.steps),
        tuple(dict.fromkeys(names)) + template_names(template),
        tuple(solve(rule, steps) for rule, steps in made.wrong),
    )


# --- in context ---------------------------------------------------------------------------------

PICTURES = ("picture one", "picture two", "picture three")
LOOKUPS = (
    "{}. both are kept in a new picture.",
    "i look: {}. the rest is left out.",
    "{}. nothing else is kept.",
)


def in_context(rng: random.Random, draw: Draw, tag: str) -> Item | None:
    """Keeps one object of each of one to three pictures in one new picture."""
    n, template = int(tag[4:]), pick_template(rng, draw)
    kept = layout.draw_looks(rng, n, legal=draw.legal)
    references = []
    for look in kept:
        others = [s for s in grammar.SHAPES if s != look.shape]
        pool = [s for s in others if not draw.legal or (s, look.shape) not in layout.HELD_PAIRS]
        crowd = [look]
        if n == 1 or rng.random() < 0.5:
            crowd += layout.draw_looks(rng, 1, legal=draw.legal, shapes=pool)
        references.append(layout.arrange(rng, crowd))
    bg = pick_background(rng, 0.3)
    scene = layout.arrange(rng, kept, bg=bg or "gray", reserved=draw.reserved, tidy=draw.tidy)
    named = [f"the {noun(k.shape)} from {p}" for k, p in zip(kept, PICTURES[:n], strict=True)]
    prompt = grammar.frame("scene", template, " and ".join(named) + grammar.on(bg))
    spec = Spec(tuple(Want(k.shape, k.color) for k in kept), (), (), bg)
    cells = [layout.cell(o) for o in scene.objects] if n > 1 else None
    seen = [f"{p} has {grammar.phrase(w)}" for w, p in zip(spec.objects, PICTURES, strict=False)]
    lookup = LOOKUPS[rng.randrange(3) if n == 2 else rng.randrange(1, 3)]
    names = layout.held_out(scene) + sum((layout.held_out(r) for r in references), ())
    return Item(
        "in_context",
        tag,
        prompt,
        lookup.format(", ".join(seen)),
        grammar.instruction(spec, cells),
        tuple(references),
        scene,
        spec,
        None,
        prompt,
        tuple(dict.fromkeys(names)) + template_names(template),
        _wrong_colors(rng, kept, spec, cells),
    )


def _wrong_colors(rng, kept: list[Look], spec: Spec, cells) -> tuple[tuple[str, str], ...]:
    """One colour misread."""
    i = rng.randrange(len(kept))
    color = rng.choice([c for c in layout.COLOR_NAMES if c != kept[i].color])
    wants = tuple(replace(w, color=color) if j == i else w for j, w in enumerate(spec.objects))
    seen = [f"{p} has {grammar.phrase(w)}" for w, p in zip(wants, PICTURES, strict=False)]
    thought = LOOKUPS[1].format(", ".join(seen))
    return ((thought, grammar.instruction(replace(spec, objects=wants), cells)),)


# --- reflection ---------------------------------------------------------------------------------

CHECKS = (
    "{}. check the picture",
    "does the picture show {}",
    "compare the picture with: {}",
    "fix the picture: {}",
    "check the picture: {}",
    "compare: {}. fix the picture",
)
REFLECTIONS = (
    "required: {want}. seen: {seen}. {verdict}.",
    "the picture shows {seen}. {verdict}.",
    "i see {seen}. {verdict}.",
)
LONG = 26  # words; beyond, a thought does not repeat what is required
SOUND = "all is right"
# Captions that a flaw is possible for.
_CAPTIONS = {
    "color": ("colors", "color_attr", "size"),
    "shape": ("colors", "two_object", "color_attr", "position", "single_object"),
    "missing": ("color_attr", "color_attr", "counting"),
    "extra": ("colors", "color_attr", "two_object", "counting"),
    "swap": ("position",),
    "size": ("size",),
    "letter": ("text1", "text1", "text2"),
    "none": ("colors", "two_object", "color_attr", "position", "counting", "size", "text1"),
}
_PAIRS = (("color", "shape"), ("color", "extra"), ("shape", "extra"), ("missing", "shape"))
_HELD_PAIRS = (("color", "swap"), ("shape", "swap"))


def _flawed_kinds(rng: random.Random, draw: Draw, tag: str) -> tuple[str, ...]:
    if tag == "none":
        return ()
    if tag != "two":
        return (tag,)
    return rng.choice(_HELD_PAIRS if draw.held and rng.random() < 0.5 else _PAIRS)


def _seen(scene: Scene, spec: Spec) -> str:
    """What the picture shows; where places were asked for, with places."""
    return grammar.describe(scene) if spec.relations else flaws.inventory(scene)


def reflection(rng: random.Random, draw: Draw, tag: str) -> Item | None:
    """A caption, a picture that may fail it, and the repair."""
    template = pick_template(rng, draw)
    kinds = _flawed_kinds(rng, draw, tag)
    caption = rng.choice(_CAPTIONS[kinds[-1] if kinds else "none"])
    if len(kinds) == 2:
        caption = "position" if "swap" in kinds else "color_attr"
    make = prompted.text if caption.startswith("text") else prompted.composition
    base = make(rng, draw, caption)
    change = flaws.damage(rng, base.target, base.spec, kinds, legal=draw.legal)
    if change is None:
        return None
    want = grammar.body(base.spec)
    seen = _seen(change.source, base.spec)
    verdict = " and ".join(flaws.VERDICTS[k] for k in kinds) or SOUND
    brief = len(f"{want} {seen}".split()) > LONG
    thought = rng.choice(REFLECTIONS[1:] if brief else REFLECTIONS).format(
        want=want, seen=seen, verdict=verdict
    )
    # The caption's own surface form is not used.
    names = tuple(n for n in base.held_out if not n.startswith("template:"))
    names += layout.held_out(change.source)
    if kinds in _HELD_PAIRS:
        names += ("flaws:" + "+".join(kinds),)
    missed = rng.choice(REFLECTIONS[1:]).format(seen=want, verdict=SOUND)
    return Item(
        "reflection",
        tag,
        CHECKS[template].format(want),
        thought,
        change.instruction,
        (change.source,),
        change.target,
        base.spec,
        None,
        change.instruction,
        tuple(dict.fromkeys(names)) + template_names(template),
        ((missed, edits.NO_CHANGE),) if kinds else (),
        flaws.repairs(change, base.spec) + _reordered(change),
    )


# --- understanding ------------------------------------------------------------------------------


def understand(rng: random.Random, draw: Draw, tag: str) -> Item | None:
    """A closed question about one picture."""
    template = pick_template(rng, draw)
    scene = questions.picture(rng, tag, legal=draw.legal, reserved=draw.reserved)
    asked = questions.question(rng, tag, scene, template)
    names = layout.held_out(scene)
    return Item(
        "understand",
        tag,
        asked.prompt,
        asked.thought,
        asked.answer,
        (scene,),
        None,
        None,
        asked.answer,
        asked.prompt,
        names + template_names(template),
    )
