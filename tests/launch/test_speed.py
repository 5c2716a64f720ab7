# SPDX-License-Identifier: Apache-2.0
"""The speed table: what is run, what is refused, and how a line reads; needs no PyTorch."""

import pytest

from launch import speed


def test_rows_are_chosen_in_the_order_of_the_table():
    every = speed.chosen(["nano", "mid"], None)
    assert {name for name, _ in every} == set(speed.ROWS)
    assert len(every) == sum(len(row.sizes) for row in speed.ROWS.values())
    assert speed.chosen(["mid"], ["decode", "dit"]) == [("dit", "mid"), ("decode", "mid")]


@pytest.mark.parametrize(
    ("sizes", "names", "message"),
    [
        (["huge"], None, r"--sizes: \['huge'\] is not in \['mid', 'nano'\]"),
        (["nano"], ["vea"], r"--rows: \['vea'\] is not in"),
        (["nano"], ["dit"], r"--rows=\['dit'\] has no row at --sizes=\['nano'\]"),
    ],
)
def test_unknown_rows_are_refused(sizes, names, message):
    with pytest.raises(ValueError, match=message):
        speed.chosen(sizes, names)


def test_settings_change_where_a_row_has_them():
    assert speed.changed({"steps": 8}, ["steps=10", "batch=2"]) == {"steps": 10}
    with pytest.raises(ValueError, match="--set=steps=x: want name=number"):
        speed.changed({}, ["steps=x"])


def test_missing_torch_is_one_line(monkeypatch):
    monkeypatch.setattr(speed, "NEEDED", ("torch_that_is_not_there",))
    with pytest.raises(SystemExit, match="torch_that_is_not_there not installed.*pip install -r"):
        speed.main(["speed"])


def test_a_line_says_ratio_range_and_settings():
    record = dict(row="dit", size="mid", title="DiT", settings={"batch": 4}, floor=1.0, pairs=3)
    record |= dict(
        ratio=2.0, ratio_min=1.5, ratio_max=2.5, ratio_best=2.1, ratio_cpu=1.9, load=[0.5, 0, 0]
    )
    record |= dict(ours_s=0.25, theirs_s=1.5, agreed=["velocity 1e-06 <= 0.0002"], more={})
    cells = [cell.strip() for cell in speed.line(record).strip("|").split("|")]
    assert len(cells) == len(speed.HEAD)
    assert cells[2:7] == ["**2.00** [1.50, 2.50]", "2.10", "1.90", "1", "250.0 ms / 1.50 s"]
    assert cells[8:] == ["batch 4", "velocity 1e-06 <= 0.0002", "0.5"]
