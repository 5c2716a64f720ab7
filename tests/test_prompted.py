# SPDX-License-Identifier: Apache-2.0
"""SepGRPO of prompt sets: files of the field's formats, mixed, drawn, each rewarded by its rule."""

import json
from collections import Counter

import numpy as np
import pytest

from configs import sepgrpo
from launch import prompts
from tests.data import real
from tests.hosts import rl_run
from tests.rewards.peers import peer
from thinkgen_jax import logs, train
from thinkgen_jax.models import vgi

GENEVAL = {
    "tag": "single_object",
    "include": [{"class": "cup", "count": 1}],
    "exclude": [],
    "prompt": "a photo of a cup",
}
OURS = [
    {"scenario": "reasoning", "prompt": "the fruit that keeps doctors away"},
    {
        "scenario": "edit",
        "prompt": "make it blue",
        "images": ["in.png"],
        "reward": {"target": "target.png"},
    },
    {
        "scenario": "reflection",
        "prompt": "a red circle",
        "images": ["in.png"],
        "reward": {"repairs": ["paint the circle red"]},
    },
]


def mixed(folder, name, ours):
    """One file of these scenarios and two more, as `python -m launch.prompts` writes it."""
    for number, shown in enumerate(("in.png", "target.png")):
        (folder / shown).write_bytes(real.picture(number))
    (folder / "geneval.jsonl").write_text(json.dumps(GENEVAL))
    (folder / "ocr.txt").write_text("a shop with the sign 'OPEN'\n")
    (folder / "ours.jsonl").write_text("\n".join(map(json.dumps, ours)))
    sets = [["composition", "geneval", "geneval.jsonl"], ["text", "flow_grpo", "ocr.txt"]]
    words = [f"--out={folder / name}"]
    for scenario, kind, file in [*sets, ["-", "jsonl", "ours.jsonl"]]:
        words += ["--set", scenario, kind, str(folder / file)]
    report = prompts.run(prompts.parser().parse_args(words))
    assert report["written"] == 2 + len(ours)
    return str(folder / name)


def test_every_scenario_is_drawn_and_rewarded_by_its_own_rule(tmp_path, monkeypatch):
    """Detector, preference and likeness stand at servers; words are read here, repairs compared."""
    pytest.importorskip("rapidocr", reason="launch/requirements-ocr.txt is not installed")
    monkeypatch.setattr(vgi, "has_instruction", rl_run.valid)  # random weights write none
    asked: dict[str, Counter] = {name: Counter() for name in sepgrpo.PORTS}

    def answers(name):
        about = {"reward": name, "version": "1"}

        def answer(path, body, number):
            if body is None:
                return 200, about
            asked[name].update(sample["prompt"] for sample in body["samples"])
            count, cup = len(body["samples"]), [0, 0, 32, 32, 0.9, ""]
            seen = {"details": [{"cup": [cup]}] * count} if name == "geneval" else {}
            return 200, {**about, **seen, "scores": [number % 3 / 2] * count}

        return answer

    config = sepgrpo.get_config("tiny,prompts=sets")
    config.plans.mllm_grpo.sets.mix.path = mixed(tmp_path, "thought.jsonl", OURS)
    config.plans.dit_grpo.sets.mix.path = mixed(tmp_path, "drawn.jsonl", OURS[:1])
    with config.unlocked():
        config.steps, config.phases = 6, (("mllm_grpo", 5), ("dit_grpo", 1))
    names = list(sepgrpo.PORTS)
    with peer(answers(names[0])) as a, peer(answers(names[1])) as b, peer(answers(names[2])) as c:
        for plan in config.plans.values():
            for name, one in zip(names, (a, b, c), strict=True):
                if name in plan.servers:
                    plan.servers[name].urls = (one.url,)
        rows = logs.read_metrics(train.run(config, tmp_path / "run"))
    assert all(row.get(f"{name}/failed_groups", 0) == 0 for row in rows for name in config.plans)
    rewards = [row.get("mllm_grpo/reward", row.get("dit_grpo/reward")) for row in rows]
    assert len(rewards) == 6 and np.isfinite(rewards).all()
    assert set(asked["geneval"]) == {GENEVAL["prompt"]}
    assert set(asked["hpsv3"]) == {OURS[0]["prompt"]}
    assert set(asked["siglip2"]) == {OURS[1]["prompt"]}
    own = {key.partition("/reward_")[2] for row in rows for key in row if "/reward_" in key}
    assert {"geneval", "hpsv3", "siglip2", "word_f1", "reflection_ned"} <= own
    assert max(row.get("mllm_grpo/reward_geneval", 0) for row in rows) == 1.0  # the cup was seen
