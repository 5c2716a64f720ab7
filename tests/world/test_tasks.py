# SPDX-License-Identifier: Apache-2.0
"""Items are deterministic, split without leaks, short, and right by the verifier."""

import random
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from thinkgen_jax.world import edits, facts, grammar, layout, puzzles, questions, tasks, verify
from thinkgen_jax.world.render import render
from thinkgen_jax.world.scenes import BIGGER, COLORS, SHAPES

COUNT = 25
WORD = re.compile(r"[a-z]+|[A-Z0-9]|[^\sa-zA-Z0-9]")


@cache
def items(scenario, split, start=0, count=COUNT):
    return tuple(tasks.item(scenario, i, split) for i in range(start, start + count))


def everything(split):
    return [made for scenario in tasks.SCENARIOS for made in items(scenario, split)]


@pytest.mark.parametrize("scenario", tasks.SCENARIOS)
@pytest.mark.parametrize("split", layout.SPLITS)
def test_items_are_pure(scenario, split):
    again = tasks.item(scenario, 7, split)
    assert again == items(scenario, split)[7]
    assert again != tasks.item(scenario, 8, split)
    assert again.scenario == scenario and again.tag in tasks.TAGS[scenario]


def test_known_items():
    """Frozen, so that data do not change unnoticed between versions."""
    assert tasks.item("composition", 0, "train").prompt == KNOWN["composition"]
    assert tasks.item("reasoning", 0, "train").prompt == KNOWN["reasoning"]
    assert tasks.item("edit", 0, "train").prompt == KNOWN["edit"]


KNOWN = {
    "composition": "draw a small yellow ring and a large red cross",
    "reasoning": "show one plus one circles",
    "edit": "put a green arrow pointing right in place of the black triangle",
}


def test_train_items_hold_nothing_back():
    for made in everything("train"):
        assert made.held_out == ()
        for scene in (*made.references, *([made.target] if made.target else [])):
            assert not layout.is_held_out(scene), made
        assert not re.search(r"\d{5}", made.prompt.replace(" ", ""))
        relations = made.spec.relations if made.spec else ()
        if relations and made.scenario == "composition":
            shapes = [want.shape for want in made.spec.objects]
            assert all(
                (shapes[i], r, shapes[j]) not in layout.HELD_TRIPLES for i, r, j in relations
            )


def test_held_out_items_say_what_is_held_out():
    for made in everything("heldout"):
        assert made.held_out
        shown = made.target or made.references[0]
        assert set(layout.held_out(shown)) <= set(made.held_out)
        # Known looks only: then the picture itself must be reserved.
        assert layout.is_held_out(shown) or layout.is_reserved(shown)
    kinds = {name.split(":")[0] for made in everything("heldout") for name in made.held_out}
    assert {"look", "count", "pair", "position", "word", "template", "fact"} <= kinds


@pytest.mark.parametrize("scenario", tasks.SCENARIOS)
def test_splits_share_no_picture(scenario):
    shown = [
        {layout.canonical(m.target or m.references[0]) for m in items(scenario, split, 0, 40)}
        for split in layout.SPLITS
    ]
    assert not shown[0] & shown[1]


def test_every_atom_occurs_in_train():
    made = items("composition", "train", 0, 300)
    objects = [o for m in made for o in m.target.objects]
    assert {o.shape for o in objects} == set(SHAPES)
    assert {o.color for o in objects} == set(COLORS)
    assert {o.size for o in objects} == {"small", "medium", "large"}
    assert {o.tex for o in objects} == {"solid", "hstripe", "vstripe"}
    assert {len(m.target.objects) for m in made} == {1, 2, 3, 4, 5, 6}
    assert {r for m in made for _, r, _ in m.spec.relations} == {*grammar.RELATIONS, BIGGER}
    counting = {m.tag for m in made}
    assert counting == set(tasks.TAGS["composition"])


@pytest.mark.parametrize("scenario", tasks.SCENARIOS[:-1])
@pytest.mark.parametrize("split", layout.SPLITS)
def test_targets_satisfy_the_verifier(scenario, split):
    """Headroom: a perfect painter scores (nearly) all; small striped or noisy cases may fail."""
    made = items(scenario, split)
    scores = [verify.score(render(m.target), m.spec) for m in made]
    assert sum(s.strict for s in scores) >= len(made) - 1
    assert sum(s.reward for s in scores) / len(made) > 0.98


@pytest.mark.parametrize("scenario", ["edit", "reasoning_edit"])
def test_targets_satisfy_the_edit_score_and_sources_do_not(scenario):
    made = items(scenario, "train")
    done = [verify.score_edit(render(m.target), m.references[0], m.target).strict for m in made]
    undone = [
        verify.score_edit(render(m.references[0]), m.references[0], m.target).strict for m in made
    ]
    assert sum(done) >= len(made) - 1 and not any(undone)


def test_flawed_pictures_fail_their_caption():
    for made in items("reflection", "train"):
        score = verify.score(render(made.references[0]), made.spec)
        assert score.strict == (made.tag == "none"), made


def test_tidy_signs_are_white_where_nobody_says_a_color():
    """Seven in ten of them, and those with told colours are as they are told."""
    made = [tasks.item("text", i, "train", tidy=True) for i in range(300)]
    free = [item for item in made if item.spec.signs[0][1] is None]
    white = [all(sign.color == "white" for sign in item.target.signs) for item in free]
    assert 0.6 < np.mean(white) < 0.85 and len(free) > 100
    for item in made:
        told = [(word, color) for word, color in item.spec.signs if color]
        shown = {(sign.word, sign.color) for sign in item.target.signs}
        assert set(told) <= shown


def test_a_tidy_picture_follows_from_looks_and_cells():
    """Two tidy pictures of the same objects at the same cells are one picture."""
    seen = {}
    for i in range(300):
        scenario = ("arrangement", "composition", "reasoning", "in_context")[i % 4]
        made = tasks.item(scenario, i, "train", tidy=True)
        assert not made.held_out and not layout.is_reserved(made.target)
        for obj in made.target.objects:
            look = (obj.shape, obj.size, obj.tex, layout.cell(obj))
            assert seen.setdefault(look, (obj.x, obj.y, obj.d)) == (obj.x, obj.y, obj.d)
        assert verify.score(render(made.target), made.spec).strict, made
    assert len(seen) > 150
    jittered = [tasks.item("arrangement", i, "train").target for i in range(50)]
    assert len({o.x for scene in jittered for o in scene.objects}) > 20


def test_no_arrangement_of_train_teaches_a_held_out_relation():
    """What cells say counts as said: "at the left ... at the right" is "left of"."""
    for i in range(60):
        made = tasks.item("arrangement", i, "train")
        placed = [(o, layout.cell(o)) for o in made.target.objects]
        for a, x in placed:
            for b, y in placed:
                if x // 3 == y // 3 and x % 3 < y % 3:
                    assert (a.shape, "left of", b.shape) not in layout.HELD_TRIPLES
                if x % 3 == y % 3 and x // 3 < y // 3:
                    assert (a.shape, "above", b.shape) not in layout.HELD_TRIPLES


def test_an_arrangement_is_judged_by_its_cells():
    plain = (tasks.item("arrangement", i, "train", "all1") for i in range(50))
    made = next(m for m in plain if m.target.objects[0].size == "medium")
    (want,) = made.spec.objects
    cells = [layout.ANCHORS[(want.cell + n) % 3] for n in (0, 1)]
    (good,) = made.target.objects
    for x, right in zip(cells, (True, False), strict=True):
        moved = replace(made.target, objects=(replace(good, x=x),))
        assert verify.score(render(moved), made.spec).strict == right


def test_mixed_takes_scenarios_or_tags():
    made = [tasks.mixed({"text/text3": 1.0, "edit": 1.0}, i, "train") for i in range(40)]
    assert {m.tag for m in made if m.scenario == "text"} == {"text3"}
    assert len({m.tag for m in made if m.scenario == "edit"}) > 3


def test_comparison_and_absence():
    """Prompts compare or rule out; instructions name sizes, and only what is to be drawn."""
    for i in range(40):
        made = tasks.item("composition", i, "train", "bigger")
        first, second = made.target.objects
        assert "bigger than" in made.prompt and first.d > second.d + 2
        assert "bigger" not in made.instruction and tasks.follows(made, made.instruction)
        assert not any(tasks.follows(made, wrong) for _, wrong in made.wrong)
        made = tasks.item("composition", i, "train", "absent")
        absent = re.search(r" and no ([a-z ]+?)(?: on a .*)?$", made.prompt)[1]
        assert made.target.objects[0].shape.split("-")[0] != absent.split()[0]
        assert absent not in made.instruction
        assert made.wrong and not any(tasks.follows(made, wrong) for _, wrong in made.wrong)


def test_sentences_are_short():
    for made in everything("train") + everything("heldout"):
        letters = re.compile(r"[A-Z0-9]")
        sizes = [len(WORD.findall(letters.sub("", t))) for t in vars_of(made)]
        prompt, thought, instruction, explicit = sizes
        most = 46 if made.scenario == "arrangement" else 34  # four objects with their places
        assert max(prompt, instruction, explicit) <= most and thought <= 45, made
    plain = [m for m in everything("train") if m.scenario in ("composition", "reasoning", "edit")]
    assert sum(len(m.prompt.split()) for m in plain) / len(plain) < 12
    assert sum(len(m.thought.split()) for m in plain) / len(plain) < 22


def vars_of(made):
    return made.prompt, made.thought, made.instruction, made.explicit


def test_sentences_are_lower_case_but_for_signs():
    for made in everything("train"):
        for text in vars_of(made):
            outside = re.sub(r"'[A-Z0-9]+'", "", text)
            if made.scenario == "text" or made.tag in ("word", "letter", "none"):
                outside = re.sub(r"\b[A-Z0-9]\b", "", outside)  # letters that a thought spells
            assert outside == outside.lower() and not re.search(r"\d", outside), text
            assert "  " not in text and text == text.strip() and "{" not in text


def test_vocabulary_is_small_and_complete():
    known = {word for text in tasks.corpus(30) for word in WORD.findall(text)}
    lower = {word for word in known if word[0].islower()}
    assert len(lower) <= 600
    assert set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") <= known
    for made in everything("heldout"):
        for text in vars_of(made) + tuple(t for pair in made.wrong for t in pair):
            assert set(WORD.findall(text)) <= known


def test_held_out_prompts_use_words_of_train():
    seen = set(WORD.findall(" ".join((*puzzles.premises(), *map(grammar.quoted, layout.WORDS)))))
    for fact in facts.FACTS:
        seen |= set(WORD.findall(" ".join(facts.riddle_forms(fact)[: grammar.TRAIN_FRAMES])))
    for scenario in tasks.SCENARIOS:
        for made in items(scenario, "train", 0, 80):
            seen |= set(WORD.findall(" ".join(vars_of(made))))
    for forms in questions.QUESTIONS.values():
        seen |= set(WORD.findall(" ".join(forms[: grammar.TRAIN_FRAMES])))
    for i in range(60):  # rules that are asked for now and then
        seen |= set(WORD.findall(tasks.item("reasoning", i, "train", "space").prompt))
    for made in everything("heldout"):
        assert set(WORD.findall(made.prompt)) <= seen, made.prompt


@pytest.mark.parametrize("split", layout.SPLITS)
def test_reference_instructions_follow_and_decoys_do_not(split):
    rng = random.Random(0)
    for made in everything(split):
        assert tasks.follows(made, made.instruction)
        assert tasks.follows(made, f" {made.instruction}. ")
        assert not tasks.follows(made, "a sky of words")
        for _, instruction in tasks.decoys(made, rng):
            assert not tasks.follows(made, instruction), made
        for other in made.accepts:
            assert tasks.follows(made, other)


@pytest.mark.parametrize("scenario", ["reasoning", "text"])
def test_every_item_that_hides_something_has_decoys(scenario):
    rng = random.Random(0)
    for made in items(scenario, "train"):
        thought, instruction = tasks.wrong_thought(made, rng)
        assert thought and instruction != made.instruction


def test_items_without_decoys_refuse():
    made = next(m for m in items("composition", "train") if not m.wrong)
    with pytest.raises(ValueError, match="no wrong derivation"):
        tasks.wrong_thought(made, random.Random(0))


def test_set_valued_facts_accept_each_value():
    drawn = (tasks.item("reasoning", i, "train") for i in range(2000))
    made = next(m for m in drawn if "autumn" in m.prompt or "rust" in m.prompt)
    assert len(made.spec.objects[0].color) == 2
    shape = grammar.noun(made.spec.objects[0].shape)
    assert tasks.follows(made, f"an orange {shape}") and tasks.follows(made, f"a brown {shape}")
    assert not tasks.follows(made, f"a red {shape}")


def test_riddles_are_resolved_in_the_explicit_prompt():
    for made in items("reasoning", "train"):
        assert made.instruction in made.explicit
        assert made.explicit != made.prompt


def test_edit_steps_can_come_in_any_order():
    made = next(m for m in items("edit", "train", 0, 80) if m.tag == "compose")
    first, second = made.instruction.split(" and ")
    assert tasks.follows(made, f"{second} and {first}")
    assert not tasks.follows(made, first)


def test_references_come_in_the_right_number():
    counts = {"edit": {1}, "reasoning_edit": {1}, "in_context": {1, 2, 3}, "reflection": {1}}
    counts |= {"understand": {1}}
    for scenario in tasks.SCENARIOS:
        found = {len(m.references) for m in items(scenario, "train")}
        assert found == counts.get(scenario, {0})


def test_reflection_leaves_a_tenth_alone():
    made = items("reflection", "train", 0, 150)
    whole = [m for m in made if m.instruction == edits.NO_CHANGE]
    assert 5 <= len(whole) <= 27
    assert all(m.references[0] == m.target for m in whole)


def test_answers_are_right():
    """Counts, colours and yes or no, read from the plan of the picture."""
    for made in items("understand", "train", 0, 100):
        objects = made.references[0].objects
        if made.tag == "count":
            shape = next(s for s in SHAPES if grammar.noun(s, 2) in made.prompt)
            assert made.answer == grammar.NUMBERS[sum(o.shape == shape for o in objects)]
        elif made.tag == "color":
            named = [o for o in objects if made.prompt.endswith(grammar.noun(o.shape))]
            assert made.answer in {o.color for o in named}
        elif made.tag == "exists":
            said = any(f"{o.color} {grammar.noun(o.shape)}" in made.prompt for o in objects)
            assert made.answer == ("yes" if said else "no")
        elif made.tag == "word":
            assert made.answer == f"'{made.references[0].signs[0].word}'"


def test_mixing_follows_the_weights():
    made = [tasks.mixed({"text": 3.0, "edit": 1.0}, i, "train") for i in range(80)]
    share = sum(m.scenario == "text" for m in made) / len(made)
    assert 0.6 < share < 0.9 and {m.scenario for m in made} == {"text", "edit"}
    assert tasks.mixed({"text": 3.0, "edit": 1.0}, 5, "train") == made[5]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="painting"):
        tasks.item("painting", 0, "train")
    with pytest.raises(ValueError, match="validation"):
        tasks.item("text", 0, "validation")
    with pytest.raises(ValueError, match="text9"):
        tasks.item("text", 0, "train", "text9")


@pytest.mark.parametrize("scenario", tasks.SCENARIOS)
def test_tags_can_be_asked_for(scenario):
    for tag in tasks.TAGS[scenario]:
        for split in layout.SPLITS:
            made = tasks.item(scenario, 3, split, tag)
            assert made.tag == tag and bool(made.held_out) == (split == "heldout")
