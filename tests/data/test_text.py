# SPDX-License-Identifier: Apache-2.0
"""Templates against official ids; responses taken apart; the tokenizer of the miniature world."""

import json
import logging
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.golden import cases
from tests.toy import SYSTEM, toy_text
from thinkgen_jax import parts
from thinkgen_jax.data import text as words
from thinkgen_jax.data.text import SPECIAL
from thinkgen_jax.models import presets

ARRAYS, META = cases("pipeline_tiny")
CASES = {n: c for n, c in META["cases"].items() if f"{n}.prompt_ids" in ARRAYS}
IMAGE = 508


@pytest.fixture(scope="module")
def released():
    return toy_text(replace(SYSTEM, system_prompt=presets.RELEASED_SYSTEM))


@pytest.fixture(scope="module")
def nano():
    corpus = ["a red circle", "a blue square and a green star", "the sign says OPEN", "count 12345"]
    return words.Text(words.train(corpus * 20, vocab_size=400), system="you draw.")


# --- official -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_prompts_equal_official(released, name):
    case, want = CASES[name], ARRAYS[f"{name}.prompt_ids"][0].tolist()
    images = len(case["image_sizes"] or ())
    if case.get("think"):
        # Two image tokens for the fixture's picture of 32 x 64 pixels.
        got = released.think(case["prompt"], pictures=[want.count(IMAGE)] * images)
    else:
        got = released.pseudo(case["prompt"], images=images)
    assert got == want


@pytest.mark.parametrize("name", CASES)
def test_negative_prompts_equal_official(released, name):
    got = released.pseudo(CASES[name].get("negative_prompt") or "")
    assert got == ARRAYS[f"{name}.negative_ids"][0].tolist()


def test_released_response_is_taken_apart(released):
    whole = ARRAYS["think.sequences"][0].tolist()
    response = whole[ARRAYS["think.prompt_ids"].shape[1] :]
    assert released.split(response) == (
        "the user wants a cat",
        "a red cat on the green grass",
        True,
    )
    assert released.decode(response) == CASES["think"]["decoded_output"][0]


# --- by hand --------------------------------------------------------------------------------------


def test_forms_by_hand(nano):
    head = "<|im_start|>system\nyou draw.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    picture = "<|vision_start|>{}<|vision_end|>"
    one, four = picture.format("<|image_pad|>"), picture.format("<|image_pad|>" * 4)
    shown = nano.decode
    assistant = "<|im_start|>assistant\n"
    assert shown(nano.think("p")) == head.format("p") + assistant + "<think>\n"
    assert shown(nano.think("p", pictures=[4, 1])) == (
        head.format(four + one + "p") + assistant + "<think>\n"
    )
    assert shown(nano.pseudo("p", images=1)) == (
        head.format(one + "p") + assistant + "<think>\n</think>" + one + "p"
    )
    question = f"<|im_start|>user\n{four}p<|im_end|>\n{assistant}"
    assert shown(nano.question("p", pictures=[4])) == question
    assert shown(nano.answer("two")) == "two<|im_end|>"


def test_what_is_written_is_read_back(nano):
    written = nano.response("a blue square", "a red circle")
    assert nano.split(written) == ("a blue square", "a red circle", True)
    assert nano.split(nano.encode("never closed")) == ("never closed", "", False)
    # Only the first marker counts; what stands behind it is the instruction.
    twice = nano.encode("a</think>b</think>c<|im_end|>")
    assert nano.split(twice) == ("a", "b</think>c", True)
    assert nano.split(nano.encode("a</think><|im_end|>")) == ("a", "", True)


def test_another_marker_takes_its_place(released):
    tokenizer = released.tokenizer
    other = words.Text(tokenizer, system="s", marker="<|video_pad|>")
    assert other.close_id == 509
    assert other.decode(other.pseudo("p")).endswith("<|im_start|>assistant\n<|video_pad|>p")


def test_a_marker_of_ones_own_is_added(tmp_path):
    """`<INS>` takes the next free id, stays whole between words, and is there again when read."""
    system = presets.get("nano")
    count = len(words.load(parts.ASSETS, system="s").tokenizer)
    for folder in (parts.ASSETS, tmp_path):
        text = words.load(folder, system="s", marker="<INS>")
        text.tokenizer.save_pretrained(tmp_path)
        assert text.close_id == count
        assert text.pseudo("a red circle").count(count) == 1
        written = text.encode("hm<INS>a red circle<|im_end|>")
        assert text.split(written) == ("hm", "a red circle", True)
    with pytest.raises(ValueError, match="marker '<INS>' .* is token"):
        small = replace(system, mllm=replace(system.mllm, vocab_size=count))
        parts.build(small, text)


@pytest.mark.parametrize("marker", ["", " ", "red", "<a b>", "<think>", "<|im_end|>"])
def test_impossible_markers_are_refused(nano, marker):
    with pytest.raises(ValueError, match="want <NAME>"):
        words.Text(nano.tokenizer, system="s", marker=marker)


# --- the tokenizer of the miniature world ---------------------------------------------------------


def test_special_tokens_come_first(nano):
    assert [nano.encode(token) for token in SPECIAL] == [[i] for i in range(len(SPECIAL))]
    ids = presets.NANO_IDS
    assert nano.image_id == ids["image_token_id"]
    assert nano.encode("<|vision_start|><|vision_end|>") == [
        ids["vision_start_token_id"],
        ids["vision_end_token_id"],
    ]
    assert nano.close_id == len(SPECIAL) + 1


def test_capitals_and_digits_are_spelled(nano):
    """So that a word that training never saw can be written on a sign."""
    for word in ("OPEN", "12345", "ZEBRA9"):
        assert [nano.decode([i]) for i in nano.encode(word)] == list(word)
    assert len(nano.encode(" circle")) < len(" circle")


@pytest.mark.parametrize("said", ["a red circle", "  two  spaces\n", "sign 'OPEN'", "naïve ✓"])
def test_every_string_survives(nano, said):
    assert nano.decode(nano.encode(said)) == said


def test_training_repeats_itself():
    a, b = (words.train(["a red circle", "a blue star"] * 9, vocab_size=300) for _ in range(2))
    assert a.get_vocab() == b.get_vocab()


def test_a_text_beyond_the_tokenizers_length_is_read_in_silence(nano, caplog, monkeypatch):
    """Who asks cuts it and tells; the tokenizer's own note speaks of errors that do not come."""
    monkeypatch.setattr(nano.tokenizer, "deprecation_warnings", {})  # it tells once
    package = logging.getLogger("transformers")
    monkeypatch.setattr(package, "propagate", True)
    assert len(nano.encode("a red circle " * 2000)) > nano.tokenizer.model_max_length
    assert not caplog.records


def test_folders(nano, tmp_path):
    nano.tokenizer.save_pretrained(tmp_path)
    again = words.load(tmp_path, system="you draw.")
    assert again.think("a red circle 42") == nano.think("a red circle 42")
    with pytest.raises(ValueError, match="no tokenizer.json"):
        words.load(tmp_path / "nowhere", system="")
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    bare.add_tokens(list("<|im_end>"))
    with pytest.raises(ValueError, match=r"no token '<\|im_end\|>'"):
        words.Text(bare, system="")


# --- chat templates of folders --------------------------------------------------------------------

# Turns as Qwen3-VL's Thinking models write them: the assistant's turn opens a thought.
TEMPLATE = META["config"]["chat_template"]
THINKING = TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")


def with_template(text, template):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=text.tokenizer._tokenizer)
    tokenizer.chat_template = template
    return words.Text(tokenizer, system=text.system)


@pytest.mark.parametrize("template", [TEMPLATE, THINKING])
def test_official_templates_give_the_forms_for_pictures(released, template):
    other = with_template(released, template)
    assert other.think(" a cat ", pictures=[3, 1]) == released.think(" a cat ", pictures=[3, 1])
    assert other.pseudo("a cat", images=2) == released.pseudo("a cat", images=2)


def test_questions_open_a_thought_where_the_template_does(released):
    plain = released.question("how many?", pictures=[2])
    assert with_template(released, TEMPLATE).question("how many?", pictures=[2]) == plain
    thinking = with_template(released, THINKING).question("how many?", pictures=[2])
    assert thinking == plain + released.encode("<think>\n")


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ messages }}", "does not keep the user's words"),
        (TEMPLATE.replace("m['content']", "m['content'] | trim"), "does not keep"),
        ("{{ raise_exception('only one system turn') }}", "fails: only one system turn"),
        ("{% for m in messages %}", "chat template fails"),
    ],
)
def test_templates_that_change_words_are_refused(released, template, told):
    with pytest.raises(ValueError, match=told):
        with_template(released, template)


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json"])
def test_folder_brings_its_template(released, tmp_path, file):
    released.tokenizer.save_pretrained(tmp_path)
    content = THINKING if file.endswith("jinja") else json.dumps({"chat_template": THINKING})
    (tmp_path / file).write_text(content)
    text = words.load(tmp_path, system="s")
    assert text.decode(text.question("p")).endswith("<|im_start|>assistant\n<think>\n")
    (tmp_path / file).write_text(content.replace("m['content']", "m['role']"))
    with pytest.raises(ValueError, match=f"{tmp_path}.*does not keep"):
        words.load(tmp_path, system="s")
