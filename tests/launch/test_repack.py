# SPDX-License-Identifier: Apache-2.0
"""Sources written anew: the same records, the broken ones left out and told."""

import pytest

from launch import repack
from tests.data import real
from thinkgen_jax.data import corpus, packed, records
from thinkgen_jax.data.corpus import Source


@pytest.mark.parametrize("kind", ["array_record", "tfds"])
def test_records_are_the_same(tmp_path, monkeypatch, capsys, kind):
    path = real.write_parquet(tmp_path / "from", real.items(7))
    words = ["repack", f"--source={path}", "--columns", "instruction=caption"]
    words += [f"--kind={kind}", f"--out={tmp_path / 'out'}"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(repack, "SHARD", 3)
    repack.main()
    assert "7 records in " in capsys.readouterr().out
    path = tmp_path / "out" / ("records/1.0.0" if kind == "tfds" else "")
    source = corpus.open_source(Source(kind, str(path)))
    for number, item in enumerate(real.items(7)):
        record = source[number]
        assert record.instruction == item["instruction"] and record.task == item["task_type"]
        assert record.target == item["output_image"][1]
        assert record.references == tuple(data for _, data in item["input_images"])
        measured = [records.measure(b) for b in (record.target, *record.references)]
        assert record.sizes == tuple(measured)
    if kind == "array_record":
        with pytest.raises(SystemExit):  # nothing is written over
            repack.main()
        assert "is not empty" in capsys.readouterr().err


def test_broken_records_are_left_out_and_told(tmp_path, monkeypatch, capsys):
    path = real.write_jsonl(tmp_path / "from", real.items(3))
    (tmp_path / "from" / "pictures" / "out1.jpg").unlink()
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["repack", f"--source={path}", f"--out={out}"])
    repack.main()
    told = capsys.readouterr()
    assert told.out.startswith("2 records in ") and "1 left out" in told.out
    assert "left out records.jsonl:3: picture" in told.err and "does not exist" in told.err
    source = corpus.open_source(Source("array_record", str(out)))
    assert [packed.fields_of(source[i])["instruction"] for i in range(2)] == [
        real.items(3)[i]["instruction"] for i in (0, 2)
    ]
