# SPDX-License-Identifier: Apache-2.0
"""Official benchmarks from end to end: copies as users have them, a painter, judges that behave."""

import csv
import dataclasses
import json
import pickle
from collections import defaultdict

import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from tests.bench.test_miniature import MODEL
from tests.rewards.peers import peer, says
from thinkgen_jax import bench, cli, evaluate, logs, pipeline
from thinkgen_jax.bench import cvtg, geneval, official, risebench
from thinkgen_jax.rewards import words
from thinkgen_jax.rewards.remote import Client, Service
from thinkgen_jax.structs import Params, Result

DOG = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"}
CUPS = {
    "tag": "counting",
    "include": [{"class": "cup", "count": 2}],
    "exclude": [{"class": "cup", "count": 3}],
    "prompt": "two cups",
}
WISE = dict(Explanation="an answer", Category="c", Subcategory="s")


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """A painter that needs no weights; counts what it drew."""
    asked = []

    def paint(parts, params, requests, settings):
        asked.extend(requests)
        return [
            Result(np.full((8, 8, 3), r.seed % 251, np.uint8), "hm" * r.think, r.prompt)
            for r in requests
        ]

    monkeypatch.setattr(pipeline, "generate", paint)
    monkeypatch.setattr(evaluate.cache, "enable", lambda: None)
    monkeypatch.setattr(evaluate.ThinkGen, "from_pretrained", lambda path, start: MODEL)
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.fixture
def door(drawn, monkeypatch):
    monkeypatch.setattr(evaluate, "Service", quick)
    saved = flagsaver.save_flag_values(evaluate.FLAGS)
    yield lambda *given: cli.start(evaluate.FLAGS, evaluate.run, ["evaluate", *given])
    flagsaver.restore_flag_values(saved, evaluate.FLAGS)


def quick(urls, **how):
    return Service(urls, **{"tries": 2, "backoff": 0.01, "timeout": 5.0} | how)


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)


def dogs(path, body, n):
    about = {"reward": "dogs", "version": "2"}
    if path == "/health":
        return 200, about
    box = [0, 0, 5, 5, 0.95, ""]
    return 200, {**about, "scores": [0], "details": [{"dog": [box], "cup": [box]}]}


def test_geneval_through_the_door(door, drawn, tmp_path, capsys):
    write(tmp_path / "copy" / geneval.PROMPTS, "\n".join(map(json.dumps, (DOG, CUPS))))
    line = ("--benchmark=geneval", "--prompts=copy", "--out=out", "--think=both")
    door(*line)
    assert len(drawn) == 16 and len({r.seed for r in drawn}) == 8
    assert "--detector=URL" in capsys.readouterr().out
    folder = tmp_path / "out" / "think"
    assert json.loads((folder / "images/00001/metadata.jsonl").read_text()) == CUPS
    names = sorted(p.name for p in (folder / "images/00000/samples").iterdir())
    assert names == [f"{n:05d}.png" for n in range(4)]
    (folder / "images/00001/samples/00002.png").unlink()
    with peer(dogs) as there:
        door(*line, f"--detector={there.url}")
        assert len(drawn) == 17 and drawn[-1].seed == drawn[14].seed  # the same picture again
        assert scored(there) == 16
        door(*line, f"--detector={there.url}")
        assert scored(there) == 16  # and nothing is asked twice
    with peer(dogs) as there:  # nor of the same detector elsewhere
        door(*line, f"--detector={there.url}")
        assert scored(there) == 0
    with peer(lambda *_: (200, {"reward": "dogs", "version": "3"})) as there:
        with pytest.raises(SystemExit):
            door(*line, f"--detector={there.url}")
    said = capsys.readouterr()
    assert "holds answers of ['dogs 2'], not of dogs 3" in said.err
    shown = said.out
    assert "| ours |  |  |  |  |" in shown and "| ThinkGen | 0.88 | 0.89 | a |  |" in shown
    assert "| part | ours, no-think | ours, think | OmniGen2 | BAGEL |" in shown
    assert "| counting | 0 | 0 | 0.64 | 0.81 |" in shown
    assert "2 of 553 prompts: not comparable" in shown
    found = json.loads((tmp_path / "out/result.json").read_text())
    assert found["rows"][0]["about"]["detector"] == "dogs 2"
    rows = json.loads((tmp_path / "out/result.json").read_text())["rows"]
    assert rows[0]["parts"] == {"single_object": 1.0, "counting": 0.0}
    results = [json.loads(x) for x in (folder / "results.jsonl").read_text().splitlines()]
    assert summary_scores(results) == (0.5, 0.5, 0.5)
    assert results[4]["reason"] == "expected cup>=2, found 1"


def scored(there):
    """How often a detector was asked to look."""
    return sum(path == "/score" for path, *_ in there.asked)


def summary_scores(rows):
    """What the official summary makes of a results file: by image, by prompt, by task."""
    prompts, tasks = defaultdict(list), defaultdict(list)
    for row in rows:
        assert isinstance(row["correct"], bool) and isinstance(row["metadata"], str)
        prompts[row["metadata"]].append(row["correct"])
        tasks[row["tag"]].append(row["correct"])
    return (
        np.mean([row["correct"] for row in rows]),
        np.mean([any(rights) for rights in prompts.values()]),
        np.mean([np.mean(rights) for rights in tasks.values()]),
    )


def test_another_run_is_refused_the_folder(door, tmp_path, capsys):
    write(tmp_path / "m.jsonl", json.dumps(DOG))
    line = ("--benchmark=geneval", "--prompts=m.jsonl", "--out=out", "--think=no")
    door(*line)
    door(*line, "--batch=2")  # what a picture becomes does not depend on its neighbours
    with pytest.raises(SystemExit):
        door(*line, "--seed=1")
    assert "holds pictures of another run (seed: 0 -> 1)" in capsys.readouterr().err


def test_another_copy_or_benchmark_is_refused_the_folder(door, drawn, tmp_path, capsys):
    """Pictures of other prompts must not be taken for those of these."""
    line = ("--benchmark=geneval", "--prompts=m.jsonl", "--out=out", "--think=no")
    write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, (DOG, CUPS))))
    door(*line, "--limit=1")
    door(*line, "--limit=0")  # all of the same prompts go on
    assert len(drawn) == 8
    write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, (CUPS, DOG))))
    with pytest.raises(SystemExit):
        door(*line)
    assert "holds pictures of another run (prompts: " in capsys.readouterr().err
    write(tmp_path / "dpg/prompts/3.txt", "a dog\n")
    with pytest.raises(SystemExit):
        door("--benchmark=dpg", "--prompts=dpg", *line[2:])
    assert "(benchmark: 'GenEval (HF detector)' -> 'DPG-Bench" in capsys.readouterr().err


def test_a_detector_that_does_not_say_what_it_is_is_refused(drawn, tmp_path):
    write(tmp_path / "m.jsonl", json.dumps(DOG))
    for reply, told in (
        (lambda *_: (200, {"reward": "dogs"}), r"states reward and version \['dogs', None\]"),
        (lambda *_: (404, b"nothing"), "cannot be asked what it is: .*status 404"),
    ):
        with peer(reply) as there, Client("d", quick((there.url,))) as detector:
            with pytest.raises(ValueError, match=told):
                official_run("geneval", tmp_path / "m.jsonl", tmp_path / "out", detector=detector)


def test_modes_are_columns_beside_what_was_published():
    thought = official.Score(0.5, {"a": 0.25, "b": 1.0}, {})
    rows = (
        official.Published("X", 0.6, {"a": 0.5}, "s"),
        official.Published("X", 0.7, {"a": 0.75}, "s", think=True),
        official.Published("X", 0.8, {}, "t", "later", think=True),
    )
    own = dict(title="B", protocol="by rule", published=rows)
    benchmark = dataclasses.replace(bench.OFFICIAL["wise"], **own)
    lines = official.Outcome(benchmark, {"think": thought}).table().split("\n\n")
    whole, parts = ([line for line in x.splitlines() if "---" not in line] for x in lines[:2])
    assert whole == [
        "| B | no-think | think | source | note |",
        "| ours |  | 0.5 |  |  |",
        "| X | 0.6 | 0.7 | s |  |",
        "| X |  | 0.8 | t | later |",
    ]
    assert parts == [
        "| part | ours, think | X | X, think |",
        "| a | 0.25 | 0.5 | 0.75 |",
        "| b | 1.00 |  |  |",
    ]
    assert lines[2:] == ["by rule"]


def test_weights_are_told_apart():
    tree = {"a": np.zeros((2, 3, 4), np.float32), "b": np.float32(1)}
    params = Params(tree, {}, {})
    same, other = Params(dict(tree), {}, {}), Params({**tree, "a": tree["a"] + 1e-7}, {}, {})
    assert official.weights_of(params) == official.weights_of(same)
    assert official.weights_of(params) != official.weights_of(other)


def test_all_tags_of_half_the_prompts_are_no_overall(drawn, tmp_path):
    rows = [{**DOG, "tag": tag} for tag in geneval.TAGS]
    write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, rows)))
    with peer(dogs) as there, Client("d", quick((there.url,))) as detector:
        found = official_run("geneval", tmp_path / "m.jsonl", tmp_path / "out", detector=detector)
    assert set(found.scores["no-think"].parts) == set(geneval.TAGS)
    assert found.scores["no-think"].overall is None


def test_prompts_do_not_lead_out_of_their_folders(drawn, tmp_path):
    copy = tmp_path / "copy"
    write(copy / "prompts.jsonl", json.dumps({"item_id": "../../x", "prompt": "p"}))
    edit = {"id": "a.png", "prompt": "p", "edit_type": "add"}
    picture(copy / "a.png")
    picture(tmp_path / "x.png")
    bad = {
        "dpg": lambda: None,
        "imgedit": lambda: write(copy / "basic_edit.json", {"../../x": edit}),
        "imgedit, source": lambda: write(
            copy / "basic_edit.json", {"1": {**edit, "id": str(tmp_path / "x.png")}}
        ),
    }
    for benchmark, make in bad.items():
        make()
        with pytest.raises(ValueError, match="--prompts: .* leads out of"):
            official_run(benchmark.split(",")[0], copy, tmp_path / "out")
    assert not drawn


def test_a_prompt_that_is_there_twice_is_refused(drawn, tmp_path):
    wise_copy(tmp_path / "copy")
    items = [{**WISE, "Prompt": "other", "prompt_id": 2}]
    write(tmp_path / "copy" / f"{bench.wise.FILES[1]}.json", items)
    with pytest.raises(ValueError, match="'2' is there twice"):
        official_run("wise", tmp_path / "copy", tmp_path / "out")
    write(tmp_path / "copy" / f"{bench.wise.FILES[1]}.json", [{**items[0], "prompt_id": 1001}])
    with pytest.raises(ValueError, match="prompt_id 1001 is not one of 1 to 1000"):
        official_run("wise", tmp_path / "copy", tmp_path / "out")


def test_a_dead_judge_is_not_asked_a_thousand_times(monkeypatch, tmp_path):
    """One answer, then none: after three in a row nothing more is asked; the answer is kept."""
    monkeypatch.setattr(official, "PATIENCE", 3)
    tmp_path.joinpath("think").mkdir()
    reply = lambda path, body, n: says("yes") if n == 1 else (401, b"no key")  # noqa: E731
    service = dict(model="m", workers=1)
    with peer(reply) as there, Client("judge", quick((there.url,), **service)) as judge:
        asks = {str(n): (lambda: judge.chat("?", [], str)) for n in range(500)}
        with pytest.raises(ValueError, match="499 of 500 answers could not be had.*no key"):
            official.collect(tmp_path / "think", judge, asks)
        assert len(there.asked) < 100
    (kept,) = official.records(tmp_path / "think" / official.ANSWERS)
    assert kept["answer"] == "yes"


def wise_copy(folder, count=3):
    for n, name in enumerate(bench.wise.FILES):
        ids = range(1, 1 + count) if n == 0 else ()
        items = [{**WISE, "Prompt": f"riddle {i}", "prompt_id": i} for i in ids]
        write(folder / f"{name}.json", items)
    write(folder / "judge_system.txt", "be strict")
    write(folder / "judge_prompt.txt", 'PROMPT: "{PROMPT}" EXPLANATION: "{EXPLANATION}"')


def test_wise_and_a_judge_that_refuses_one(door, drawn, tmp_path, capsys):
    """The two other answers are kept; when the judge has calmed down only one is asked for."""
    wise_copy(tmp_path / "copy")
    good = "Consistency: 2\nRealism: 1\nAesthetic Quality: 1"
    refused = ["riddle 2"]
    line = ("--benchmark=wise", "--prompts=copy", "--out=out", "--think=yes", "--judge_model=m")

    def reply(path, body, n):
        asked = body["messages"][1]["content"][0]["text"]
        return says("I will not" if any(word in asked for word in refused) else good)

    with peer(reply) as there:
        with pytest.raises(SystemExit):
            door(*line, f"--judge={there.url}/v1")
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "1 of 3 answers could not be had" in told
        assert len(drawn) == 3 and len(there.asked) == 4  # two tries of the one
        refused.clear()
        door(*line, f"--judge={there.url}/v1")
        assert len(there.asked) == 5 and len(drawn) == 3
    body = there.asked[-1][1]
    assert body["messages"][0] == {"role": "system", "content": "be strict"}
    said = body["messages"][1]["content"][0]["text"]
    assert said == 'PROMPT: "riddle 2" EXPLANATION: "an answer"'
    assert (body["temperature"], body["max_tokens"]) == (0, 2000)
    lines = (tmp_path / "out/think/scores.jsonl").read_text().splitlines()
    assert json.loads(lines[2]) == {
        **{"prompt_id": 3, "Subcategory": "s"},
        **{"consistency": 2.0, "realism": 1.0, "aesthetic_quality": 1.0},
    }
    row = json.loads((tmp_path / "out/result.json").read_text())["rows"][0]
    assert row["overall"] is None and row["parts"] == {"culture": pytest.approx(0.85)}
    assert row["about"]["judge"] == "m" and len(row["about"]["dates"]) == 1
    with pytest.raises(SystemExit):
        door(*line[:-1], "--judge_model=other", f"--judge={there.url}/v1")
    assert "holds answers of ['m'], not of other" in capsys.readouterr().err


def official_run(name, prompts, out, **tools):
    return official.run(
        bench.OFFICIAL[name],
        MODEL,
        prompts=prompts,
        out=out,
        think=(False,),
        seed=0,
        settings=MODEL.settings,
        tools=official.Tools(**tools),
    )


def judge_of(there):
    return Client("judge", quick((there.url,), model="m"))


def test_imgedit_writes_what_the_official_steps_read(drawn, tmp_path):
    edits = {
        "7": {"id": "animal/x.png", "prompt": "add a hat", "edit_type": "add"},
        "8": {"id": "animal/x.png", "prompt": "make it blue", "edit_type": "alter"},
    }
    write(tmp_path / "copy/basic_edit.json", edits)
    write(tmp_path / "copy/prompts.json", {"add": "A <edit_prompt>", "adjust": "B <edit_prompt>"})
    picture(tmp_path / "copy/animal/x.png")
    said = "fine\nPrompt Compliance: 5\nVisual Naturalness: 4\nPhysical & Detail Integrity: 4"
    with peer(lambda *_: says(said)) as there, judge_of(there) as judge:
        found = official_run("imgedit", tmp_path / "copy", tmp_path / "out", judge=judge)
    asked = [body["messages"][0]["content"] for _, body, _ in there.asked]
    assert sorted(parts[0]["text"] for parts in asked) == ["A add a hat", "B make it blue"]
    assert [len(parts) for parts in asked] == [3, 3] and len(drawn[0].images) == 1
    folder = tmp_path / "out/no-think"
    assert sorted(p.name for p in (folder / "images").iterdir()) == ["7.png", "8.png"]
    assert json.loads((folder / "result.json").read_text()) == {"7": said, "8": said}
    assert json.loads((folder / "average_score.json").read_text()) == {"7": 4.33, "8": 4.33}
    assert json.loads((folder / "typescore.json").read_text()) == {"add": 4.33, "adjust": 4.33}
    assert found.scores["no-think"].overall is None


def rise_copy(folder):
    items = [
        {"index": "temporal_reasoning_1", "category": "temporal_reasoning", "reference": "older"},
        {"index": "logical_reasoning_1", "category": "logical_reasoning", "reference_img": "r.png"},
        {"index": "spatial_reasoning_1", "category": "spatial_reasoning", "reference": "mirrored"},
    ]
    for item in items:
        item |= {"instruction": "do it", "image": "t/a.png", "reasoning_img": None}
    items[2]["consistency_free"] = 1.0
    write(folder / risebench.DATA, items)
    picture(folder / "data/t/a.png")
    picture(folder / "data/r.png")


def test_rise_answers_lie_where_the_official_script_resumes(drawn, tmp_path):
    rise_copy(tmp_path / "copy")

    def answer(path, body, n):
        is_puzzle = "puzzle" in body["messages"][0]["content"][0]["text"]
        return says(f"so\n**Final Score:** **{1 if is_puzzle else 5}**")

    with peer(answer) as there, judge_of(there) as judge:
        found = official_run("risebench", tmp_path / "copy", tmp_path / "out", judge=judge)
    assert len(there.asked) == 3 + 2 + 2
    folder = tmp_path / "out/no-think/outputs/thinkgen_jax"
    assert (folder / "images/temporal_reasoning/temporal_reasoning_1.png").exists()
    kept = pickle.loads((folder / "thinkgen_jax.pkl").read_bytes())
    assert {k: set(v) for k, v in kept.items()} == {
        "temporal_reasoning_1": {"judge1", "judge2", "judge3"},
        "logical_reasoning_1": {"judge1", "judge2"},
        "spatial_reasoning_1": {"judge1", "judge2", "judge3"},
    }
    assert kept["spatial_reasoning_1"]["judge1"] is None
    parts = found.scores["no-think"].parts
    assert parts["temporal"] == parts["logical"] == parts["spatial"] == 100
    assert parts["accuracy, old"] == pytest.approx(200 / 3) and parts["score"] == 100
    assert "own rubric" in found.table()


def test_rise_answers_that_the_official_script_falls_over_are_asked_for_again(drawn, tmp_path):
    """Two numbers behind the score: the script would take them for two aspects."""
    rise_copy(tmp_path / "copy")

    def answer(path, body, n):
        is_puzzle = "puzzle" in body["messages"][0]["content"][0]["text"]
        right = f"**Final Score:** **{1 if is_puzzle else 5}**"
        return says(right if n > 1 else f"{right}\n3 objects")

    with peer(answer) as there, judge_of(there) as judge:
        official_run("risebench", tmp_path / "copy", tmp_path / "out", judge=judge)
    assert len(there.asked) == 7 + 1
    path = tmp_path / "out/no-think/outputs/thinkgen_jax/thinkgen_jax.pkl"
    kept = pickle.loads(path.read_bytes())
    said = [text for answers in kept.values() for text in answers.values() if text is not None]
    assert len(said) == 7 and all(len(risebench.extract(text)) == 1 for text in said)


def test_dpg_grids_and_questions(drawn, tmp_path):
    write(tmp_path / "copy/prompts/3.txt", "a dog\n")
    with (tmp_path / "copy/dpg_bench.csv").open("w") as file:
        names = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
        table = csv.writer(file)
        table.writerows([names, (3, 9, 0, "x", "?"), (3, 1, 0, "entity - whole (dog)", "A dog?")])
    yes = iter(["yes", "no", "yes", "yes"])
    with peer(lambda *_: says(next(yes))) as there, judge_of(there) as judge:
        found = official_run("dpg", tmp_path / "copy", tmp_path / "out", judge=judge)
        assert found.scores["no-think"].about["questions"] == 4
    grid = Image.open(tmp_path / "out/no-think/images/3.png")
    assert grid.size == (16, 16)
    assert [grid.getpixel(at)[0] for at in ((0, 0), (8, 0), (0, 8), (8, 8))] == [0, 1, 2, 3]


def test_cvtg_reads_what_was_drawn(drawn, tmp_path, monkeypatch):
    for half in cvtg.HALVES:
        for area in cvtg.AREAS:
            one = {"index": 0, "prompt": "a sign 'GO ON'", "carrier_list": [], "sentence_list": []}
            write(tmp_path / f"copy/{half}/{area}.json", {"data_list": [one]})
    monkeypatch.setattr(words, "read", lambda image: ["go"])
    monkeypatch.setattr(words, "reader", lambda: "a reader")
    found = official_run("cvtg", tmp_path / "copy", tmp_path / "out").scores["no-think"]
    assert found.overall is None and found.parts["2 regions"] == 0.5  # 8 of 2000 prompts
    assert found.about == {"reader": "a reader", "images": 8, "words": 16}
    assert (tmp_path / "out/no-think/images/CVTG-Style/5/0.png").exists()
    whole = json.loads((tmp_path / "out/no-think/result.json").read_text())
    assert whole["overall_results"]["correct_words"] == 8 and len(whole["area_results"]) == 8
    similar = [row["ned_word_data"] for row in whole["area_results"]]
    assert all(len(words_) == 2 for words_ in similar)
    assert np.mean(similar) == pytest.approx(whole["overall_results"]["ned"])
    assert "ned_word_data" not in whole["overall_results"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--benchmark=geneval", "--out=o"], "needs --prompts"),
        (["--benchmark=wise", "--prompts=none"], "needs a folder"),
        (["--benchmark=wise", "--prompts=none", "--out=o"], "cannot be read"),
        (["--benchmark=geneval", "--prompts=bad.jsonl", "--out=o"], "line 1 has no 'include'"),
        (["--benchmark=dpg", "--prompts=.", "--out=o"], "neither prompts/*.txt nor"),
        (["--benchmark=geneval", "--prompts=m", "--out=o", "--judge=http://x"], "--judge_model"),
    ],
)
def test_one_line_for_what_is_wrong(door, tmp_path, capsys, given, message):
    write(tmp_path / "bad.jsonl", json.dumps({"prompt": "p", "tag": "t"}))
    write(tmp_path / "m", json.dumps(DOG))
    with pytest.raises(SystemExit) as stop:
        door(*given)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.startswith("error: ") and message in told
    assert told.count("\n") == 1


def no_reader():
    raise ValueError("reading words needs RapidOCR")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("wise", "judge_prompt.txt"),
        ("wise", "judge_system.txt"),
        ("dpg", "dpg_bench.csv"),
        ("imgedit", "prompts.json"),
        ("cvtg", "RapidOCR"),
    ],
)
def test_what_scoring_lacks_is_told_before_anything_is_drawn(
    door, drawn, tmp_path, capsys, monkeypatch, name, missing
):
    copy = tmp_path / "copy"
    wise_copy(copy)
    write(copy / "prompts/3.txt", "a dog\n")
    edit = {"id": "a.png", "prompt": "p", "edit_type": "add"}
    write(copy / "basic_edit.json", {"1": edit})
    picture(copy / "a.png")
    for half in cvtg.HALVES:
        for area in cvtg.AREAS:
            write(copy / half / f"{area}.json", {"data_list": [{"index": 0, "prompt": "'GO'"}]})
    (copy / missing).unlink(missing_ok=True)
    monkeypatch.setattr(words, "reader", no_reader)
    line = [f"--benchmark={name}", "--prompts=copy", "--out=out", "--judge_model=m", "--think=no"]
    with pytest.raises(SystemExit):
        door(*line, "--judge=http://127.0.0.1:9/v1")
    told = capsys.readouterr().err
    assert told.startswith("error: ") and missing in told and told.count("\n") == 1
    assert not drawn
    if name != "cvtg":  # pictures alone need none of it
        door(*line, "--judge=")
        assert drawn


def test_lines_end_where_json_says_so(tmp_path):
    """U+2028 inside a prompt or an answer ends no line."""
    meta = {**DOG, "prompt": "a\u2028dog\x85"}
    path = tmp_path / geneval.PROMPTS
    path.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in (meta, CUPS)))
    assert [task.prompt for task in geneval.read(path)] == [meta["prompt"], "two cups"]
    official.append(tmp_path / "a.jsonl", [json.dumps({"key": "a\u2028b"}, ensure_ascii=False)])
    assert [line["key"] for line in official.records(tmp_path / "a.jsonl")] == ["a\u2028b"]
    write(tmp_path / "dpg/prompts.jsonl", '{"item_id": "1", "prompt": "p"}\n{"item')
    with pytest.raises(ValueError, match="prompts.jsonl, line 2 is no JSON"):
        bench.dpg.read(tmp_path / "dpg")


def test_a_file_cut_off_by_a_crash_goes_on(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": "a"}\n{"key": "b')
    official.append(path, ['{"key": "c"}'])
    assert [line["key"] for line in official.records(path)] == ["a", "c"]
    assert logs.read_metrics(tmp_path) == []
