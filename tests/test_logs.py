# SPDX-License-Identifier: Apache-2.0
"""Numbers arrive a step late and whole; logs are cut back to the commit; captions stay legible."""

import json
import logging
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from thinkgen_jax import logs
from thinkgen_jax.logs import Writer


def events(folder):
    """(step, tag, value) of every scalar: records are length, check sum, message, check sum."""
    found = []
    for path in sorted((folder / "events").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            if event.session_log.status == 1:
                found.append((event.step, "purge", None))
    return found


class Probe:
    """A 0-d array that notes when it is read."""

    def __init__(self, value, reads):
        self.value, self.reads = value, reads

    def __array__(self, dtype=None, copy=None):
        self.reads.append(self.value)
        return np.asarray(self.value, dtype)


def test_numbers_are_read_one_step_late(tmp_path):
    reads = []
    with Writer(tmp_path) as writer:
        writer.scalars(1, {"loss": Probe(10.0, reads)})
        writer.scalars(1, {"reward": Probe(11.0, reads)}, "eval")
        assert reads == [] and logs.read_metrics(tmp_path) == []
        writer.scalars(2, {"loss": Probe(20.0, reads)})
        assert reads == [10.0, 11.0]
        assert len(logs.read_metrics(tmp_path)) == 1
        writer.flush()
        assert reads == [10.0, 11.0, 20.0]
    first, second = logs.read_metrics(tmp_path)
    assert (first["step"], first["loss"], first["eval/reward"]) == (1, 10.0, 11.0)
    assert (second["step"], second["loss"]) == (2, 20.0)
    assert {e for e in events(tmp_path) if e[1] == "loss"} == {(1, "loss", 10.0), (2, "loss", 20.0)}


def test_nested_arrays_and_numbers_that_are_none(tmp_path):
    values = {
        "kl": {"mllm": jnp.float32(0.5), "dit": jnp.bfloat16(2)},
        "skipped": np.int64(3),
        "n": 4,
    }
    with Writer(tmp_path) as writer:
        writer.scalars(5, values, "train")
        writer.scalars(6, {"loss": jnp.nan, "worst": -np.inf})
    first, second = logs.read_metrics(tmp_path)
    first.pop("seconds")
    want = {"train/kl/mllm": 0.5, "train/kl/dit": 2.0, "train/skipped": 3.0, "train/n": 4.0}
    assert first == {"step": 5, **want}
    assert (second["loss"], second["worst"]) == (None, None)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda text: pytest.fail(f"not JSON: {text}"))


def test_resume_cuts_back_to_the_commit(tmp_path):
    picture = [np.zeros((8, 8, 3), np.uint8)]
    with Writer(tmp_path) as writer:
        for step in range(1, 6):
            writer.scalars(step, {"loss": float(step)})
            writer.images(step, "held_out", picture, ["x"])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    with Writer(tmp_path, start=3) as writer:
        assert [row["step"] for row in logs.read_metrics(tmp_path)] == [1, 2, 3]
        names = [p.name for p in sorted((tmp_path / "pictures" / "held_out").iterdir())]
        assert names == ["0000001.png", "0000002.png", "0000003.png"]
        writer.scalars(4, {"loss": 40.0})
    rows = logs.read_metrics(tmp_path)
    assert [row["loss"] for row in rows] == [1.0, 2.0, 3.0, 40.0]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)  # the clock goes on, too
    assert (4, "purge", None) in events(tmp_path)
    with Writer(tmp_path):  # from the beginning: nothing stays
        assert logs.read_metrics(tmp_path) == []
        assert not any(tag == "loss" for _, tag, _ in events(tmp_path))


class Service:
    """What the package of Weights & Biases is to us: it notes what it is given."""

    def __init__(self):
        self.begun, self.said, self.finished, self.refuses = [], [], 0, None

    def init(self, **how):
        if self.refuses:
            raise RuntimeError(self.refuses)
        self.begun.append(how)
        return self

    def Settings(self, **how):  # noqa: N802
        return how

    def Image(self, picture):  # noqa: N802
        return picture.shape

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, row):
        self.said.append(row)

    def finish(self):
        self.finished += 1


def test_numbers_and_pictures_go_elsewhere_as_well(tmp_path, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    how = dict(project="mine", config={"seed": 3})
    with Writer(tmp_path, **how) as writer:
        writer.scalars(1, {"loss": jnp.float32(0.5)}, "dit")
        writer.images(2, "held_out", [np.zeros((8, 8, 3), np.uint8)], ["x"])
        writer.scalars(2, {"loss": jnp.float32(0.25)}, "dit")
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in service.said]
    assert rows[1:] == [{"dit/loss": 0.5, "step": 1}, {"dit/loss": 0.25, "step": 2}]
    assert rows[0]["step"] == 2 and len(rows[0]["pictures/held_out"]) == 3
    (begun,) = service.begun
    assert (begun["project"], begun["name"], begun["config"]) == (
        "mine",
        tmp_path.name,
        {"seed": 3},
    )
    assert begun["settings"] == dict(console="off", disable_git=True, save_code=False)
    with Writer(tmp_path, start=1, **how):
        pass
    assert service.begun[1]["id"] == begun["id"] and begun["resume"] == "allow"
    assert service.finished == 2
    with Writer(tmp_path):
        assert len(service.begun) == 2  # nobody asked


def test_a_service_that_refuses_is_one_line(tmp_path, monkeypatch):
    service = Service()
    service.refuses = "api_key not configured\nlong advice"
    monkeypatch.setitem(sys.modules, "wandb", service)
    with pytest.raises(ValueError, match="^config.log.wandb = 'mine': api_key not configured$"):
        Writer(tmp_path, project="mine")


def test_other_processes_write_nothing(tmp_path):
    with Writer(tmp_path / "run", total=3, active=False) as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.images(1, "x", [np.zeros((8, 8, 3), np.uint8)], ["x"])
        writer.describe("phase")
        writer.flush()
    assert not (tmp_path / "run").exists()


def test_bar_shows_the_numbers_that_matter(tmp_path, capsys):
    with Writer(tmp_path, start=4, total=6, shown=("reward", "loss")) as writer:
        writer.describe("mllm_grpo")
        writer.scalars(5, {"reward": 0.51237, "other": 7.0}, "mllm")
        writer.scalars(6, {"loss": 0.25})
    text = capsys.readouterr().err.split("\r")[-1]
    assert "mllm_grpo" in text and "6/6" in text
    assert "reward=0.5124" in text and "loss=0.25" in text and "other" not in text


def test_lines_go_to_screen_and_file(tmp_path, capsys):
    logger = logs.setup(tmp_path)
    logger = logs.setup(tmp_path)  # the second call does not double lines
    logging.getLogger("thinkgen_jax.phases").info("commit at step 7")
    logger.debug("unseen")
    assert capsys.readouterr().err.count("commit at step 7\n") == 1
    assert (tmp_path / "log.txt").read_text().count("commit at step 7") == 1
    logs.setup(level=logging.WARNING)
    logger.info("unseen")
    assert "unseen" not in capsys.readouterr().err + (tmp_path / "log.txt").read_text()


def test_grid_enlarges_by_whole_pixels_and_captions_below():
    image = np.zeros((64, 64, 3), np.uint8)
    image[0, 0] = (255, 0, 0)
    sheet = logs.grid([image, image, image], ["a", "b " * 200, ""])
    assert sheet.dtype == np.uint8
    side = 64 * 3  # the least whole factor that reaches 160
    assert sheet.shape[1] == 2 * (side + 8) + 8
    red = (sheet == (255, 0, 0)).all(-1)
    assert red.sum() == 3 * 9  # one source pixel of three pictures, 3 × 3 each
    assert red[8:11, 8:11].all()
    text = sheet[8 + side : 8 + side + 30, 8 : 8 + side]
    assert (text < 100).any() and (text[:, 20:] == 255).all()  # "a" stands at the left


def test_grid_takes_any_sizes_and_refuses_none():
    large, flat = np.full((700, 350, 3), 9, np.uint8), np.full((16, 64, 3), 9, np.uint8)
    sheet = logs.grid([large, flat], ["large", "flat"], columns=1)
    assert sheet.shape[1] == 64 * 3 + 16
    assert (sheet == 9).all(-1).sum() > 0.9 * 320 * 160
    for images, captions in (([], []), ([flat], [])):
        with pytest.raises(ValueError, match="want equal, >= 1"):
            logs.grid(images, captions)


def test_long_words_and_texts_are_wrapped():
    font = logs.ImageFont.load_default(logs.FONT)
    lines = logs._wrap("one " + "x" * 90 + " two\nthree", font, 160)
    assert "".join(lines).replace(" ", "") == "one" + "x" * 90 + "twothree"
    assert all(font.getlength(line) <= 160 for line in lines) and lines[-1] == "three"
    many = logs._wrap("word " * 300, font, 160)
    assert len(many) == logs.LINES and many[-1] == "..."
    assert logs.caption("a cat", "a cat") == "a cat"
    assert logs.caption("a cat", "a red cat", 0.756) == "a cat\n> a red cat\nreward 0.76"


def test_pictures_are_written_whole(tmp_path):
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    logs.save_png(tmp_path / "new" / "x.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "x.png")), image)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.png"]
