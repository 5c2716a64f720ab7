# SPDX-License-Identifier: Apache-2.0
"""The doctor: log-probabilities of what was drawn, statistics, advice, and the known set."""

import json
import math

import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from tests.rewards.peers import peer
from thinkgen_jax import cli, doctor, phases
from thinkgen_jax.data.batches import Stream
from thinkgen_jax.doctor import Level
from thinkgen_jax.rewards.remote import Service

NOTHING = np.zeros((1, 1, 1, 3), np.uint8)


def level(noise, *, drift=1e-7, specks=1.0, spread=1.0):
    return Level(noise, drift, specks, 0.0, spread, math.nan, math.nan, NOTHING)


def test_advice_is_the_cleanest_level_that_explores_most():
    still, found = level(0.0, specks=1.0), [level(0.3, spread=2.0), level(0.5, spread=3.0)]
    told = doctor.advise(still, [*found, level(0.9, specks=4.0, spread=9.0)], clip=1e-4, kernel="x")
    assert told.startswith("Train with noise = 0.5")
    told = doctor.advise(still, [level(0.3, drift=1e-3)], clip=1e-4, kernel="cps")
    assert "(1.0e-03) exceeds path.clip = 0.0001" in told
    told = doctor.advise(still, [level(0.3, specks=9.0)], clip=1e-4, kernel="flow_sde")
    assert "take lower levels, or path.kernel='cps'" in told


def test_statistics_by_hand():
    """One white dot on gray is a speck of 127 of 255 in 1 of 25 places; of two pictures, half."""
    flat, dot = np.full((5, 5, 3), 128, np.uint8), np.full((5, 5, 3), 128, np.uint8)
    dot[2, 2] = 255
    specks, saturated, spread = doctor.statistics(np.stack([flat, dot]))
    assert specks == pytest.approx(127 / 50) and saturated == 1 / 50
    assert spread == pytest.approx(127 / 25)


def seen(samples):
    """A reward of this file that knows no right from wrong."""
    return np.ones(len(samples), np.float32)


def plan(weights, **servers):
    streams = (Stream(1.0, {"text": 1.0}),)
    return phases.RlPlan(2, 2, streams, rewards=weights, servers=servers)


def test_rewards_on_the_known_set():
    weights = {"miniature": 1.0, "reflection_ned": 1.0, f"{__name__}:seen": 1.0}
    page, faults = doctor.check_rewards(plan(weights), doctor.known_set())
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[-1] for row in rows] == [
        "tells right from wrong |",
        "tells right from wrong |",
        "does not tell right from wrong |",
    ]
    assert "| miniature | 1.000 |" in page and not faults
    assert "reads the instruction and meta['repairs'], version 1, scored here" in page


def test_a_reward_that_fails_is_told_and_the_others_still_checked():
    with peer(lambda path, *_: (200, {"floor": 0.0, "ceiling": 1.0})) as there:
        far = Service((there.url,), tries=1)
        made = plan({"far": 1.0, "form": 1.0}, far=far)
        page, faults = doctor.check_rewards(made, doctor.known_set())
    assert len(faults) == 1 and "no scores for 1 samples" in faults[0]
    assert "| form | 1.000 | 0.000 |" in page and "| failed |" in page


def test_a_known_set_of_ones_own(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    row = {"image": "a.png", "prompt": "p", "meta": {"tag": "t"}, "is_right": True}
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "is_right": False}))
    (right, sample), (wrong, _) = doctor.read_set(path)
    assert not wrong
    assert right and sample.request.meta == {"tag": "t"} and sample.instruction == "p"
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match="true in some lines, false in others"):
        doctor.read_set(path)
    path.write_text(json.dumps({**row, "is_right": "no"}))
    with pytest.raises(ValueError, match="line 1: .*is_right = 'no'"):
        doctor.read_set(path)
    path.write_text(json.dumps(row) + "\n{}")
    with pytest.raises(ValueError, match="line 2: KeyError"):
        doctor.read_set(path)
    path.write_text(json.dumps(row) + "\n" + "[" * 10**5)
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        doctor.read_set(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--config is needed"),
        (["--config=configs/align.py"], "align has no phase with rewards"),
        (["--config=configs/dit_grpo.py", "--check=pulse"], "pulse"),
        (["--config=configs/dit_grpo.py", "--check="], "--check is empty"),
        (["--config=configs/dit_grpo.py", "--group=0"], "--group=0, must be at least 1"),
        (["--config=configs/dit_grpo.py", "--check=noise", "--levels=x"], "--levels=x"),
        (["--config=configs/mllm_grpo.py", "--check=noise"], "has no phase dit_grpo"),
        (["--config=configs/dit_grpo.py", "--samples=none", "--check=rewards"], "cannot be read"),
    ],
)
def test_one_line_for_what_is_wrong(words, message, capsys, tmp_path):
    saved = flagsaver.save_flag_values(doctor.FLAGS)
    try:
        with pytest.raises(SystemExit) as stop:
            cli.start(doctor.FLAGS, doctor.run, ["doctor", f"--out={tmp_path}", *words])
    finally:
        flagsaver.restore_flag_values(saved, doctor.FLAGS)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.startswith("error: ") and message in told
