# SPDX-License-Identifier: Apache-2.0
"""The door of drawing: picture beside JSON, requests by the line, one line for what is wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest
from absl.testing import flagsaver

from tests.toy import tiny
from thinkgen_jax import cli, generate, pipeline
from thinkgen_jax.data import images
from thinkgen_jax.hf import assets
from thinkgen_jax.structs import Result

RED = np.full((16, 16, 3), (200, 10, 10), np.uint8)


@pytest.fixture
def door(monkeypatch, tmp_path):
    """Runs the door with given arguments inside an empty folder."""
    monkeypatch.setattr(generate.cache, "enable", lambda: None)
    monkeypatch.chdir(tmp_path)
    saved = flagsaver.save_flag_values(generate.FLAGS)
    yield lambda *words: cli.start(generate.FLAGS, generate.run, ["generate", *words])
    flagsaver.restore_flag_values(saved, generate.FLAGS)


@pytest.fixture
def painter(monkeypatch):
    """A model without networks that remembers what it was asked."""
    seen = []

    def paint(parts, params, asked, settings):
        seen.append((list(asked), settings))
        return [
            Result(None if r.task == "understand" else RED, "hm", f"<{r.prompt}>", "hm</think>")
            for r in asked
        ]

    monkeypatch.setattr(pipeline, "generate", paint)
    model = pipeline.ThinkGen(*tiny())
    monkeypatch.setattr(generate.ThinkGen, "from_pretrained", lambda path, **how: model)
    return seen


def test_draws_from_a_saved_system(door, tmp_path, capsys):
    parts, params = tiny()
    assets.save(tmp_path / "weights", parts.system, params._asdict(), parts.text)
    words = ["--prompt=a red cat", "--checkpoint=weights", "--nothink", "--steps=1"]
    door(*words, "--text_guidance=1", "--size=16x24", "--seed=3", "--out=cat")
    assert images.open_picture("cat.png").image.shape == (16, 24, 3)
    about = json.loads((tmp_path / "cat.json").read_text())
    assert about["instruction"] == "a red cat" and about["size"] == [16, 24]
    assert (about["settings"]["steps"], about["seed"], about["thought"]) == (1, 3, "")
    assert capsys.readouterr().out.endswith("cat.png\n")


def test_several_pictures_of_a_request(door, painter, tmp_path):
    door("--prompt=p", "--images_per_prompt=3", "--seed=5", "--out=cat.png")
    assert [r.seed for r in painter[0][0]] == [5, 6, 7]
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["cat-1.png", "cat-2.png", "cat-3.png"]


def test_flags_reach_the_model(door, painter, tmp_path, capsys):
    images.save("in.png", RED[:8])
    words = ["--prompt=p", "--image=in.png", "--image=in.png", "--task=reflect", "--rounds=2"]
    numbers = ["--steps=7", "--text_guidance=5", "--image_guidance=2.5", "--temperature=0.5"]
    ways = ["--solver=dpm", "--reuse=taylorseer", "--guidance_start=0.25", "--guidance_end=0.75"]
    ways += ["--threshold=0.2"]
    door(*words, *numbers, *ways, "--negative=ugly", "--size=8X16", "--seed=9")
    ((request,), settings) = painter[0]
    assert (request.task, request.think, request.size, request.seed) == (
        "reflect",
        True,
        (8, 16),
        9,
    )
    assert [i.shape for i in request.images] == [(8, 16, 3)] * 2
    want = dict(steps=7, text_guidance=5.0, image_guidance=2.5, temperature=0.5)
    want |= dict(solver="dpm", reuse="taylorseer", start=0.25, end=0.75, threshold=0.2)
    assert {k: getattr(settings, k) for k in want} == want
    assert (settings.negative, settings.rounds) == ("ugly", 2)
    about = json.loads((tmp_path / "picture.json").read_text())
    assert about["thought"] == "hm" and about["images"] == ["in.png"] * 2
    assert "thought: hm\ninstruction: <p>\npicture.png" in capsys.readouterr().out


def test_answers_are_words_alone(door, painter, tmp_path, capsys):
    images.save("in.png", RED)
    door("--prompt=what is it", "--image=in.png", "--task=understand", "--out=a.png")
    assert "answer: <what is it>" in capsys.readouterr().out
    assert not (tmp_path / "a.png").exists()
    assert json.loads((tmp_path / "a.json").read_text())["picture"] is None


def test_requests_by_the_line(door, painter, tmp_path, capsys):
    images.save("in.png", np.repeat(RED[..., :1], 3, -1))
    (tmp_path / "gray.png").write_bytes((tmp_path / "in.png").read_bytes())
    lines = [
        {"prompt": "one", "seed": 4},
        {"prompt": "two", "image": "in.png", "think": False, "size": "24x16"},
        {"prompt": "three", "image": ["in.png", "in.png"], "task": "understand"},
    ]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "r.jsonl").write_text(text + "\n\n")
    door("--requests=r.jsonl", "--out=drawn", "--seed=8")
    ((a, b, c), _) = painter[0]
    assert [(r.prompt, r.seed, r.think) for r in (a, b, c)] == [
        ("one", 4, True),
        ("two", 8, False),
        ("three", 8, True),
    ]
    assert b.size == (24, 16) and len(c.images) == 2
    names = sorted(p.name for p in (tmp_path / "drawn").iterdir())
    assert names == ["0001.json", "0001.png", "0002.json", "0002.png", "0003.json"]


def test_what_was_converted_is_told(door, painter, tmp_path, capsys):
    from PIL import Image

    Image.fromarray(RED).convert("L").save("gray.png")
    door("--prompt=p", "--image=gray.png")
    assert "note: picture 1: converted from mode L" in capsys.readouterr().err
    assert "mode L" in json.loads((tmp_path / "picture.json").read_text())["warning"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --prompt or --requests"),
        (["--prompt=a", "--requests=b"], "either --prompt or --requests"),
        (["--prompt= "], "prompt is empty"),
        (["--prompt=a", "--image=none.png"], "none.png' does not exist"),
        (["--prompt=a", *["--image=in.png"] * 6], "6 pictures given (--image), at most 5"),
        (["--prompt=a", "--size=64"], "--size=64"),
        (["--prompt=a", "--size=0x64"], "--size=0x64"),
        (["--prompt=a", "--steps=0"], "--steps=0"),
        (["--prompt=a", "--steps=1000000000000"], "--steps=1000000000000, must be at most 1000"),
        (["--prompt=a \udcff"], "--prompt='a \\udcff' is no text"),
        (["--prompt=a", "--negative=\udcff"], "--negative='\\udcff' is no text"),
        (["--prompt=a <|image_pad|>"], "holds <|image_pad|>, which has a meaning of its own"),
        (["--prompt=a </think> b"], "holds </think>, which has a meaning of its own"),
        (["--prompt=a", "--task=sing"], "--task=sing"),
        (["--prompt=a", "--out=a.jpg"], "--out=a.jpg"),
        (["--prompt=a", "--seed=-1"], "--seed=-1"),
        (["--prompt=a", "--colour=red"], "colour"),
        (["--prompt=a", "stray"], "stray"),
        (["--requests=none.jsonl"], "none.jsonl cannot be read"),
        (["--requests=empty.jsonl"], "no request"),
        (["--requests=bad.jsonl"], "--requests=bad.jsonl, line 2 is no JSON"),
        (["--requests=deep.jsonl"], "--requests=deep.jsonl, line 1 is no JSON"),
        (["--requests=list.jsonl"], "--requests=list.jsonl, line 1 is no object"),
        (["--requests=half.jsonl"], "--requests=half.jsonl, line 3: --prompt='\\ud800' is no text"),
        (["--requests=pad.jsonl"], "line 1: --prompt='<|image_pad|>' holds <|image_pad|>"),
        (["--requests=seed.jsonl"], "--requests=seed.jsonl, line 3: --seed=-1"),
        (["--requests=task.jsonl"], "--requests=task.jsonl, line 1: --task=sing"),
        (["--requests=odd.jsonl"], "line 1: unknown keys ['promt']"),
        (["--requests=kind.jsonl"], "line 1: seed='x' is no int"),
    ],
)
def test_one_line_for_what_is_wrong(door, painter, tmp_path, capsys, words, message):
    images.save("in.png", RED)
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt"\n')
    (tmp_path / "odd.jsonl").write_text('{"promt": "a"}\n')
    (tmp_path / "kind.jsonl").write_text('{"prompt": "a", "seed": "x"}\n')
    (tmp_path / "deep.jsonl").write_text("[" * 10**5)
    (tmp_path / "list.jsonl").write_text("[]")
    (tmp_path / "half.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "\\ud800"}\n')
    (tmp_path / "pad.jsonl").write_text('{"prompt": "<|image_pad|>"}\n')
    (tmp_path / "seed.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "a", "seed": -1}\n')
    (tmp_path / "task.jsonl").write_text('{"prompt": "a", "task": "sing"}\n')
    with pytest.raises(SystemExit) as stop:
        door(*words)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.startswith("error: ") and message in told
    assert told.count("\n") == 1 and not painter


def test_missing_weights_are_one_line(door, capsys):
    with pytest.raises(SystemExit):
        door("--prompt=a", "--checkpoint=nowhere")
    assert "error: --checkpoint=" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        door("--prompt=a", "--checkpoint=")
    assert "error: --checkpoint is empty" in capsys.readouterr().err


def test_a_folder_takes_the_usual_name(door, painter, tmp_path):
    (tmp_path / "old").mkdir()
    for out in ("new/", "old"):
        door("--prompt=p", f"--out={out}")
        names = sorted(path.name for path in (tmp_path / out).iterdir())
        assert names == ["picture.json", "picture.png"]


def test_a_picture_whose_name_is_no_text_is_told_all_the_same(door, painter, tmp_path):
    images.save("in\udcff.png", RED)
    door("--prompt=p", "--image=in\udcff.png")
    assert json.loads((tmp_path / "picture.json").read_text())["images"] == ["in\udcff.png"]


def test_an_interruption_is_one_line(door, painter, monkeypatch, capsys):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "generate", interrupted)
    with pytest.raises(SystemExit) as stop:
        door("--prompt=p")
    told = capsys.readouterr().err
    assert stop.value.code == 130 and told.startswith("interrupted") and told.count("\n") == 1


def test_what_was_drawn_is_kept_when_a_later_batch_fails(door, painter, tmp_path, monkeypatch):
    lines = "".join(f'{{"prompt": "{n}"}}\n' for n in range(3))
    (tmp_path / "r.jsonl").write_text(lines)
    real, calls = pipeline.generate, []

    def failing(*given):
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("out of paint")
        return real(*given)

    monkeypatch.setattr(pipeline, "generate", failing)
    small = lambda *a, **k: replace(pipeline.default(*a, **k), batch=2)  # noqa: E731
    monkeypatch.setattr(generate, "default", small)
    with pytest.raises(SystemExit):
        door("--requests=r.jsonl", "--out=drawn")
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 2


def test_help(door, capsys):
    door("--help")
    assert "--prompt" in capsys.readouterr().out
