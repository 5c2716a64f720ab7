# SPDX-License-Identifier: Apache-2.0
"""The measurement of feeding: it reads what it wrote, and its sums are right."""

import re

from launch import feeding


def test_from_files_to_a_table(monkeypatch, capsys):
    """A host of 4 chips at 40 % of 459 TFLOP/s; 3 forwards of 1 TFLOP a picture: 244.8 a second."""
    monkeypatch.setattr(feeding, "SIZES", ((80, 64), (64, 64)))
    monkeypatch.setattr(feeding, "FORWARD", {64: 1e12})
    words = ["feeding", "--pictures=8", "--count=16", "--batch=4", "--workers", "0"]
    monkeypatch.setattr("sys.argv", words)
    feeding.main()
    head, row, several, need = capsys.readouterr().out.splitlines()
    assert head.startswith("8 JPEG files")
    core = float(re.search(r"64 pixels: +([\d.]+) pictures a core's second", row)[1])
    assert float(re.search(r" 0 workers: +([\d.]+) pictures/s", several)[1]) > 0
    cores = float(re.search(r"takes 244.8 pictures/s: ([\d.]+) of its 208 cores", need)[1])
    assert core > 0 and abs(cores * core - 244.8) <= 0.05 * core + 0.05 * cores + 1
