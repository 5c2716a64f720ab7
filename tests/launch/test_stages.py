# SPDX-License-Identifier: Apache-2.0
"""The table of stages: seeds are pooled, exercises stay together, foreign files are refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch import stages


def write(folder, name, samples, think=True, clusters=None, **about):
    """One evaluation of one row."""
    row = {"scenario": "text", "think": think, "clusters": clusters}
    row["samples"] = {"reward": samples, "strict": None}
    found = {"benchmark": "miniature", "split": "heldout", "reader": "template", "rows": [row]}
    found["settings"] = {"steps": 20}
    path = folder / name
    path.write_text(json.dumps(found | about))
    return path


def test_seeds_are_pooled(tmp_path):
    """Two seeds of 0/1 rewards on the same four exercises: eight samples, four clusters."""
    paths = [
        write(tmp_path, "align.json", [0.0, 0.0, 0.0, 0.0], think=False),
        write(tmp_path, "mllm_grpo.0.json", [1.0, 0.0, 1.0, 0.0]),
        write(tmp_path, "mllm_grpo.1.json", [1.0, 0.0, 1.0, 1.0]),
    ]
    text = stages.table(stages.read(paths), "reward")
    head, _, no, yes = text.splitlines()
    assert head == "| scenario | think | align | mllm_grpo |"
    assert no.split(" | ")[1:] == ["no", "0.000 [0.000, 0.000] n=4", " |"]
    assert "0.625 [" in yes and "n=8" in yes
    assert stages.table(stages.read(paths), "strict").splitlines()[2].count("[") == 0


def test_from_the_command_line(tmp_path):
    path = write(tmp_path, "align.json", [0.0, 1.0])
    line = [sys.executable, "-m", "launch.stages", str(path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "| text | yes | 0.500 [" in done.stdout, done.stderr


def test_words_stay_together(tmp_path):
    """One word is one cluster: its mean has no interval."""
    path = write(tmp_path, "align.json", [0.0, 1.0], clusters=["BOX", "BOX"])
    assert "0.500 [-inf, inf] n=2" in stages.table(stages.read([path]), "reward")


@pytest.mark.parametrize("about", [dict(split="train"), dict(reader="other"), dict(settings={})])
def test_what_cannot_be_compared_is_refused(tmp_path, about):
    paths = [write(tmp_path, "align.json", [1.0]), write(tmp_path, "pretrain.json", [1.0], **about)]
    with pytest.raises(ValueError, match="cannot stand in one table"):
        stages.read(paths)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SystemExit, match="x.json is no evaluation"):
        stages.main([str(tmp_path / "x.json")])
