# SPDX-License-Identifier: Apache-2.0
"""A corpus: equal batches of all kinds of sources, mixtures, hosts, places, broken records."""

import importlib
import io
import json
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl import flags

from tests.data import real
from thinkgen_jax import logs, parts, phases, recipe, train
from thinkgen_jax.data import builder, corpus, feeding, images, shards
from thinkgen_jax.data.batches import Shape
from thinkgen_jax.data.corpus import Corpus, Source
from thinkgen_jax.hf import assets
from thinkgen_jax.models import presets

ROOT = Path(__file__).parents[2]
COLUMNS = (("instruction", "caption"),)
HOW = dict(multiple=16, tokens=8, size=4, drop=0.3)


@pytest.fixture(autouse=True)
def flags_are_read():
    """What the door does before it trains; workers ask grain's flags."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Paths of the same twelve records by kind of source."""
    folder = tmp_path_factory.mktemp("records")
    return {kind: write(folder / kind, real.items()) for kind, write in real.WRITERS.items()}


@pytest.fixture(scope="module")
def shape():
    return Shape(assets.load_text(parts.ASSETS, presets.get("nano")), None, seed=3)


def source(kind, path, **more):
    return Source(kind, path, columns=COLUMNS if kind == "parquet" else (), **more)


def of(*sources, **more):
    return Corpus(sources, **{"pixels": 64 * 64, "length": 96, "scales": (1.0, 0.75)} | more)


def equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def opened(written, shape, kind="jsonl", **more):
    found, _ = feeding.feed(of(source(kind, written[kind])), shape, **{**HOW, **more})
    return found


@pytest.mark.parametrize("kind", [k for k in real.WRITERS if k != "jsonl"])
def test_every_kind_of_source_gives_the_same_batches(written, shape, kind):
    one, other = opened(written, shape), opened(written, shape, kind)
    shapes = set()
    for _ in range(8):
        batch = next(one)
        equal(batch, next(other))
        shapes.add(batch.pixels.shape)
    assert len(shapes) > 1


def test_batches_are_the_records(written, shape):
    """Without dropping and cleaning: every row's words and picture belong together."""
    feed, _ = feeding.feed(
        of(source("jsonl", written["jsonl"]), clean=0.0), shape, **{**HOW, "drop": 0.0}
    )
    made, seen = real.items(), set()
    for _ in range(12):
        batch = next(feed)
        for row in range(4):
            words = shape.text.decode(np.asarray(batch.prompt.ids)[row].tolist())
            number = int(words.rpartition("shows ")[2].split()[0])
            seen.add(number)
            size = batch.pixels.shape[1:3]
            image = images.fill(images.open_picture(made[number]["output_image"][1]).image, size)
            # A JPEG may have been decoded at half its size, but these are too small for that.
            np.testing.assert_array_equal(batch.pixels[row], image)
            assert (batch.references is not None) == (number % 3 == 2)
            assert words.count("<|image_pad|>") == 2 * (number % 3 == 2)
    assert seen == set(range(12))


def test_every_record_comes_once_an_epoch(written, shape):
    """Groups of four and two records, in batches of three."""
    made = of(source("jsonl", written["jsonl"]), scales=(0.75,))
    opened = corpus.open_corpus(made, multiple=16, batch=3)
    for number, group in enumerate(opened.groups):
        parts_ = corpus.parts(opened.firsts, group)
        picks = feeding._picks(parts_, opened.shares[number], seed=5)
        count = len(group.rows)
        first = [picks[i].place for i in range(count)]
        later = [picks[i].place for i in range(count, 2 * count)]
        assert sorted(first) == sorted(later) == list(range(count))
    assert sum(len(g.rows) for g in opened.groups) == 12


def test_what_is_there_is_told(written):
    made = of(source("jsonl", written["jsonl"]), scales=(0.75,))
    told = corpus.describe(corpus.open_corpus(made, multiple=16, batch=3))
    assert told == (
        "12 records in 5 shapes: 4 of 48 x 48, 2 of 32 x 48, 2 of 32 x 48 with 1 of 48 x 48, "
        "2 of 48 x 32, 2 of 48 x 48 with 1 of 48 x 32"
    )


def test_many_records_are_measured_by_processes(written):
    """In parts of five, in their order."""
    found = corpus.open_source(source("jsonl", written["jsonl"]))
    here = corpus._measure_all(found)
    assert here[:, 0].tolist() == [real.SIZES[n % 6][0] for n in range(12)]
    np.testing.assert_array_equal(corpus._measure_all(found, 5), here)


def test_weights_are_shares_of_records(written):
    """Twelve records at weight 3 against the same twelve at weight 1."""
    made = of(
        source("jsonl", written["jsonl"], weight=3.0), source("webdataset", written["webdataset"])
    )
    opened = corpus.open_corpus(made, multiple=16, batch=2)
    np.testing.assert_allclose(opened.shares.sum(axis=0), [0.75, 0.25])
    np.testing.assert_allclose(opened.shares[:, 0], 3 * opened.shares[:, 1])
    parts_ = corpus.parts(opened.firsts, opened.groups[0])
    picks = feeding._picks(parts_, opened.shares[0], seed=0)
    found = np.asarray([picks[i].source for i in range(400)])
    assert abs((found == 0).mean() - 0.75) < 0.01


def test_hosts_take_slices_of_the_same_batch(written, shape):
    whole = opened(written, shape)
    halves = [opened(written, shape, host=(n, 2)) for n in range(2)]
    for _ in range(4):
        batch, cut = next(whole), [next(half) for half in halves]
        np.testing.assert_array_equal(batch.pixels, np.concatenate([c.pixels for c in cut]))
        ids = [np.asarray(c.prompt.ids) for c in cut]
        np.testing.assert_array_equal(np.asarray(batch.prompt.ids), np.concatenate(ids))
    with pytest.raises(ValueError, match="batch = 4 is not divisible by 3 hosts"):
        opened(written, shape, host=(0, 3))


@pytest.mark.parametrize("workers", [0, 1])
def test_goes_on_where_it_stopped(written, shape, workers):
    """Killed after three batches and resumed, whatever makes the batches."""
    straight = opened(written, shape)
    expected = [next(straight) for _ in range(6)]
    first = opened(written, shape, workers=workers)
    for batch in expected[:3]:
        equal(next(first), batch)
    place = json.loads(json.dumps(first.get_state()))
    again = opened(written, shape, workers=workers)
    again.set_state(place)
    for batch in expected[3:]:
        equal(next(again), batch)


def test_place_in_other_data_is_refused(written, shape):
    place = opened(written, shape).get_state()
    with pytest.raises(ValueError, match="files changed since the last commit"):
        opened(written, shape, "webdataset").set_state(place)


@pytest.mark.parametrize("kind", list(real.WRITERS))
def test_place_in_the_same_data_elsewhere_is_good(written, shape, tmp_path, kind):
    """Copied to another folder, at another time; then one letter of a caption changes."""
    first = opened(written, shape, kind)
    path = Path(written[kind])
    home = path if path.is_dir() else path.parent
    shutil.copytree(home, tmp_path / home.name, copy_function=shutil.copy)
    moved = str(tmp_path / home.name / path.relative_to(home))
    other, _ = feeding.feed(of(source(kind, moved)), shape, **HOW)
    equal(next(first), next(other))
    other.set_state(first.get_state())
    equal(next(first), next(other))
    if kind == "jsonl":
        Path(moved).write_text(
            Path(moved).read_text().replace("0 \\u00e9 things", "0 \\u00e9 thingz")
        )
        changed, _ = feeding.feed(of(source(kind, moved)), shape, **HOW)
        with pytest.raises(ValueError, match="files changed since the last commit"):
            changed.set_state(first.get_state())


def test_seeds_differ(written, shape):
    one, other = opened(written, shape), opened(written, replace(shape, seed=4))
    assert any(not np.array_equal(next(one).prompt.ids, next(other).prompt.ids) for _ in range(3))


def test_words_are_dropped_with_or_without_references(written, shape):
    """Of 400 rows 30 % have no words; half of those of editing have no reference either."""
    feed = opened(written, shape)
    bare, shown, total = 0, [], 0
    frame = {n: len(shape.text.pseudo("", images=n)) for n in (0, 1)}
    for _ in range(100):
        batch = next(feed)
        lengths = np.asarray(batch.prompt.segments).sum(axis=1)
        present = np.zeros(4, int) if batch.references is None else batch.references.present[:, 0]
        empty = lengths == [frame[n] for n in present]
        bare, total = bare + empty.sum(), total + len(empty)
        if batch.references is not None:
            assert present[~empty].all()
            shown += present[empty].tolist()
    assert abs(bare / total - 0.3) < 4 * (0.21 / total) ** 0.5
    assert abs(np.mean(shown) - 0.5) < 4 * 0.5 / len(shown) ** 0.5


def test_prefaces_are_cleaned_from_half_of_the_captions(written):
    rng = np.random.default_rng(0)
    record = corpus.open_source(source("jsonl", written["jsonl"]))[0]
    words = [feeding.cleaned(record, rng, 0.5) for _ in range(400)]
    assert set(words) == {"The image shows 0 é things", "0 é things"}
    assert abs(np.mean([w.startswith("0") for w in words]) - 0.5) < 0.1
    edit = replace(record, task="edit")
    assert feeding.cleaned(edit, rng, 1.0) == record.instruction
    chinese = replace(record, instruction="这张图片展示了一只猫")
    assert feeding.cleaned(chinese, rng, 1.0) == "一只猫"


def test_long_instructions_are_cut_in_both_places(shape):
    words = "one red circle and two blue squares " * 20
    row = feeding.token_row(shape.text, words, 0, 96, plain=False)
    assert 90 <= len(row) <= 96
    cut = row.index(shape.text.close_id)
    kept = shape.text.decode(row[cut + 1 :])
    assert words.startswith(kept) and kept in shape.text.decode(row[:cut])
    with pytest.raises(ValueError, match="corpus.length = 8"):
        feeding.token_row(shape.text, words, 0, 8, plain=False)


# --- what is broken ---


def broken_jsonl(tmp_path, change, count=12):
    """A JSONL source of which one thing was changed."""
    path = real.write_jsonl(tmp_path / "broken", real.items(count))
    change(tmp_path / "broken")
    return source("jsonl", path)


def test_damaged_pictures_are_skipped_counted_and_listed(tmp_path, shape):
    """One has no header, one ends in the middle, which shows only when it is decoded."""

    def damage(folder):
        (folder / "pictures" / "out0.png").write_bytes(b"no picture at all")
        whole = (folder / "pictures" / "out4.png").read_bytes()
        (folder / "pictures" / "out4.png").write_bytes(whole[: len(whole) // 2])

    made = of(broken_jsonl(tmp_path, damage), broken=0.2, scales=(0.75,))
    feed, _ = feeding.feed(made, shape, **HOW)
    assert [name for name, _ in feed.news()] == ["records.jsonl:1"]
    for _ in range(9):  # three epochs
        batch = next(feed)
        assert batch.pixels.shape[0] == 4
    assert sorted(feed.broken) == ["records.jsonl:1", "records.jsonl:9"]
    ((name, why),) = feed.news()
    assert name == "records.jsonl:9" and "cannot be read" in why and not feed.news()
    again, _ = feeding.feed(made, shape, **HOW)
    again.set_state(feed.get_state())
    assert again.broken == feed.broken
    with pytest.raises(ValueError, match=r"1 of 12 records .* share 0.05 [\s\S]*records.jsonl:1"):
        feeding.feed(replace(made, broken=0.05), shape, **HOW)
    strict, _ = feeding.feed(replace(made, broken=0.1), shape, **HOW)
    with pytest.raises(ValueError, match=r"2 of 12 records .* share 0.1 "):
        for _ in range(9):
            next(strict)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "is no JSON"),
        ("[1]", "is no object but list"),
        ('{"instruction": "x"}', "output_image is missing"),
        ('{"instruction": " ", "output_image": "pictures/out1.jpg"}', "instruction is empty"),
        ('{"instruction": 7, "output_image": "pictures/out1.jpg"}', "instruction is 7, want text"),
        ('{"instruction": "x", "output_image": 7}', "a picture is int"),
        ('{"instruction": "x", "output_image": "pictures/none.png"}', "does not exist"),
        ('{"instruction": "x", "output_image": "pictures/out1.jpg/a"}', "does not exist"),
        ('{"instruction": "x", "output_image": "pictures"}', "is no file"),
        ('{"instruction": "x", "output_image": "' + "a" * 999 + '"}', "cannot be read"),
        (
            '{"instruction": "\\ud800", "output_image": "pictures/out1.jpg"}',
            "half a surrogate pair",
        ),
        (
            '{"instruction": "x", "output_image": "pictures/none.png",'
            ' "output_size": [Infinity, 1]}',
            "does not exist",
        ),
        ('{"instruction": "x", "output_image": "pictures/huge.png"}', "at most 67108864 in all"),
        (
            '{"instruction": "x", "output_image": "pictures/out1.jpg", "input_images": "a.png"}',
            "input_images is str",
        ),
    ],
)
def test_unusable_records_are_told_apart(tmp_path, shape, line, why):
    def add(folder):
        (folder / "pictures" / "huge.png").write_bytes(huge_png())
        with (folder / "records.jsonl").open("a") as file:
            file.write(line + "\n")

    made = of(broken_jsonl(tmp_path, add), broken=0.1)
    feed, _ = feeding.feed(made, shape, **HOW)
    ((name, reason),) = feed.broken.items()
    assert name == "records.jsonl:24" and why in reason
    next(feed)


def huge_png() -> bytes:
    """The header of a picture of 100 megapixels, as an attacker would send it."""
    whole = bytearray(real.picture(0))
    whole[16:24] = (10_000).to_bytes(4, "big") * 2
    whole[29:33] = zlib.crc32(bytes(whole[12:29])).to_bytes(4, "big")
    return bytes(whole)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "pictures/link.png"])
def test_paths_that_leave_the_root_stop_the_run(tmp_path, shape, name):
    def add(folder):
        (tmp_path / "secret.png").write_bytes(real.picture(0))
        (folder / "pictures" / "link.png").symlink_to(tmp_path / "secret.png")
        with (folder / "records.jsonl").open("a") as file:
            file.write(f'{{"instruction": "x", "output_image": "{name}"}}\n')

    made = of(broken_jsonl(tmp_path, add), broken=1.0)
    with pytest.raises(PermissionError, match="records.jsonl:24: .* leads out of the data root"):
        feeding.feed(made, shape, **HOW)


def test_words_that_mean_something_else_are_refused(tmp_path, shape):
    def change(folder):
        path = folder / "records.jsonl"
        path.write_text(path.read_text().replace("0 \\u00e9 things", "</think> all"))

    made = of(broken_jsonl(tmp_path, change, 1), broken=1.0)
    feed, _ = feeding.feed(made, shape, **HOW)
    with pytest.raises(ValueError, match="1 records one behind the other .*[\\s\\S]*</think>"):
        next(feed)


@pytest.mark.parametrize(
    ("kind", "path", "words"),
    [
        ("jsonl", "none.jsonl", "none.jsonl does not exist"),
        ("jsonl", "empty.jsonl", "is empty"),
        ("folder", "nothing", "holds no picture"),
        ("folder", "none", "is no folder"),
        ("webdataset", "nothing", "holds no file .tar"),
        ("webdataset", "empty.jsonl", "is no plain tar file"),
        ("parquet", "text.parquet", "is no Parquet file"),
        ("array_record", "text.parquet", "is no ArrayRecord file"),
        ("tfds", "nothing", "holds no dataset_info.json"),
    ],
)
def test_sources_that_are_not_there_are_one_error(tmp_path, kind, path, words):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "text.parquet").write_text("words, not a table, of some length\n" * 9)
    with pytest.raises(ValueError, match=words) as caught:
        corpus.open_source(Source(kind, str(tmp_path / path)))
    assert path in str(caught.value)


def test_a_damaged_tar_is_no_shorter_one(written, tmp_path):
    """tarfile takes a damaged header for the end."""
    path = next(Path(written["webdataset"]).parent.glob("s-0.tar"))
    source = corpus.open_source(Source("webdataset", str(path)))
    begin = source[3].target.offset - 512
    whole = path.read_bytes()
    damaged = whole[:begin] + b"\xff" * 512 + whole[begin + 512 :]
    for number, data in enumerate((damaged, whole[: begin + 200])):
        other = tmp_path / f"{number}.tar"
        other.write_bytes(data)
        with pytest.raises(ValueError, match=f"damaged header at byte {begin}"):
            corpus.open_source(Source("webdataset", str(other)))


def test_damaged_parts_of_tables_and_array_records_are_skipped(written, tmp_path, shape):
    """Bytes in the middle: the record, or the group of rows, is broken and the others are not."""
    path, names = tmp_path / "a.parquet", ["instruction", "output_image", "note"]
    rows = [["a", "b", "c", "d"], [real.picture(n) for n in range(4)], ["x"] * 4]
    pq.write_table(pa.table(dict(zip(names, rows, strict=True))), path, row_group_size=2)
    data = bytearray(path.read_bytes())
    begin = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    data[begin : begin + 16] = b"\xff" * 16
    path.write_bytes(data)
    broken = {}
    sizes = corpus.measured(corpus.open_source(Source("parquet", str(path))), broken)
    assert sizes[:2, 0].all() and not sizes[2:].any()
    assert len(broken) == 2 and all("row group 1 of a.parquet" in why for why in broken.values())

    data = bytearray(Path(written["array_record"]).read_bytes())
    begin = 2**16  # where a block of the format begins, with a hash of its own
    data[begin : begin + 24] = b"\xff" * 24
    path = tmp_path / "a.array_record"
    path.write_bytes(data)
    broken = {}
    sizes = corpus.measured(corpus.open_source(Source("array_record", str(path))), broken)
    assert len(sizes) == 12 and 0 < len(broken) < 3
    assert all("cannot be read" in why for why in broken.values())


def test_names_that_no_column_has_are_refused(written):
    """Even of fields that may be missing: edits without their references would be captions."""
    for kind, columns, words in (
        ("parquet", (("instruction", "caption"), ("input_images", "none")), "no column 'none'"),
        ("tfds", (("input_images", "none"),), "no feature for input_images"),
    ):
        with pytest.raises(ValueError, match=words):
            corpus.open_source(Source(kind, written[kind], columns=columns))
    with pytest.raises(ValueError, match=r"columns: \['inputs'\] are not among the fields"):
        Source("parquet", "a", columns=(("inputs", "caption"),))
    with pytest.raises(ValueError, match="jsonl has none"):
        Source("jsonl", "a", columns=(("instruction", "caption"),))


def test_a_data_set_of_the_same_name_is_not_taken_for_this_one(written, tmp_path):
    source = corpus.open_source(Source("jsonl", written["jsonl"]))
    (tmp_path / "own" / "1.0.0").mkdir(parents=True)
    with pytest.raises(ValueError, match="exists; remove it, or choose another name than own"):
        builder.build(source, tmp_path, name="own", skip=print)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name"])
def test_foreign_features_are_never_built(written, tmp_path, key):
    """TFDS would import what a features file names."""
    folder = tmp_path / "1.0.0"
    shutil.copytree(written["tfds"], folder)
    path = folder / "features.json"
    text = path.read_text().replace("pythonClassName", key, 1)
    wanted = "tensorflow_datasets.core.features."
    path.write_text(text.replace(wanted, "antigravity.core.features.", 1))
    with pytest.raises(ValueError, match="feature 'antigravity.* is not one of TFDS itself"):
        corpus.open_source(Source("tfds", str(folder)))
    legacy = {"type": "antigravity.Features", "content": {}}
    path.write_text(json.dumps({"type": f"{wanted}x.FeaturesDict", "content": {"a": legacy}}))
    with pytest.raises(ValueError, match="feature 'antigravity.* is not one of TFDS itself"):
        corpus.open_source(Source("tfds", str(folder)))
    with pytest.raises(ValueError, match="no split 'test', only"):
        corpus.open_source(Source("tfds", written["tfds"], split="test"))


def test_a_foreign_data_set_with_pictures(tmp_path):
    """Features of pictures are left as the bytes that they are; names are mapped."""
    import tensorflow_datasets as tfds

    class Foreign(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("2.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(), "caption": tfds.features.Text()}
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"image": io.BytesIO(real.picture(7)), "caption": "seven"}

    built = Foreign(data_dir=str(tmp_path), file_format="array_record")
    built.download_and_prepare()
    path = str(built.data_path)
    columns = (("instruction", "caption"), ("output_image", "image"))
    record = corpus.open_source(Source("tfds", path, columns=columns))[0]
    assert record.instruction == "seven" and record.target == real.picture(7)
    with pytest.raises(ValueError, match="no feature for instruction, only"):
        corpus.open_source(Source("tfds", path))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (dict(sources=()), "sources is empty"),
        (dict(clean=2.0), "clean = 2.0"),
        (dict(length=0), "length = 0"),
        (dict(pixels=100), "pixels = 100"),
        (dict(scales=(2.0,)), "scales = "),
    ],
)
def test_corpora_out_of_range_are_refused(written, bad, words):
    with pytest.raises(ValueError, match=words):
        made = replace(of(source("jsonl", written["jsonl"])), **bad)
        corpus.open_corpus(made, multiple=16, batch=2)
    for key, value in (("kind", "csv"), ("path", None), ("weight", 0.0)):
        with pytest.raises(ValueError, match=key):
            Source(**{"kind": "jsonl", "path": "a", key: value})


# --- configs ---


def test_a_line_of_sources(written, tmp_path):
    folder = written["jsonl"].rpartition("/")[0]
    line = f"{folder}/pictures, {written['webdataset']}@3, {written['tfds']}@0.5"
    found = corpus.parse_sources(line)
    assert [(s.kind, s.weight) for s in found] == [
        ("folder", 1.0),
        ("webdataset", 3.0),
        ("tfds", 0.5),
    ]
    assert corpus.parse_sources(folder)[0].kind == "jsonl"
    with pytest.raises(ValueError, match="none does not exist"):
        corpus.parse_sources(f"{folder}/none")
    with pytest.raises(ValueError, match="weight = 0.0: must be above 0"):
        corpus.parse_sources(f"{folder}@0")
    (tmp_path / "a@2").mkdir()
    (found,) = corpus.parse_sources(f"{tmp_path}/a@2")
    assert found.path == f"{tmp_path}/a@2" and found.weight == 1.0


def test_own_pictures_in_one_line(tmp_path):
    """Two steps on a folder; what `--config.data=` says stands in the place of the plan.

    Pictures of one size: each shape would compile the step once more.
    """
    for number in range(3):
        (tmp_path / f"a_cat_{number}.png").write_bytes(real.picture(number, size=(64, 64)))
    (tmp_path / "a_cat_1.txt").write_text("two cats\n")
    config = importlib.import_module("configs.own").get_config("tiny")
    with pytest.raises(ValueError, match="either streams or a corpus"):
        dict(recipe.plans(config))
    config.data = str(tmp_path)
    (plan,) = dict(recipe.plans(config)).values()
    assert [s.kind for s in plan.corpus.sources] == ["folder"] and not plan.streams
    source = corpus.open_source(plan.corpus.sources[0])
    assert [source[i].instruction for i in range(3)] == ["a cat 0", "two cats", "a cat 2"]
    rows = logs.read_metrics(train.run(config, tmp_path / "runs" / "own"))
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["flow_sft/loss"]) and row["flow_sft/broken"] == 0 for row in rows)


def test_stages_take_real_pictures_and_others_do_not(written):
    for name in ("align", "pretrain", "finetune"):
        config = importlib.import_module(f"configs.{name}").get_config()
        config.data = written["jsonl"]
        (plan,) = dict(recipe.plans(config)).values()
        assert plan.corpus.pixels == 64 * 64 and isinstance(plan, phases.SftPlan)
    config = importlib.import_module("configs.nano_mllm").get_config()
    config.data = written["jsonl"]
    with pytest.raises(ValueError, match="config.plans.text_sft: takes no real pictures"):
        dict(recipe.plans(config))


@pytest.mark.parametrize(
    ("name", "pixels", "weights"),
    [("align", 512**2, [54, 6]), ("pretrain", 512**2, [54, 6]), ("finetune", 1024**2, [0.7])],
)
def test_released_stages_ask_for_the_users_pictures(written, name, pixels, weights):
    """Paths are the user's: without them a run says which are missing."""
    config = importlib.import_module(f"configs.{name}").get_config("thinkgen")
    with pytest.raises(ValueError, match=r"corpus.sources.(captions|quality): path is not set"):
        dict(recipe.plans(config))
    for block in config.plans.flow_sft.corpus.sources.values():
        block.path = written["webdataset"]
    (plan,) = dict(recipe.plans(config)).values()
    assert plan.corpus.pixels == pixels and plan.corpus.length == 888 and not plan.streams
    assert [s.weight for s in plan.corpus.sources] == weights
    assert plan.corpus.references == (1024**2, 1024**2, 768**2, 512**2)


def test_row_groups_that_fill_the_memory_are_refused(written, monkeypatch):
    monkeypatch.setattr(shards, "GROUP_BYTES", 1000)
    with pytest.raises(ValueError, match="has a row group of .* bytes, at most 1000"):
        corpus.open_source(source("parquet", written["parquet"]))


def test_data_sets_are_imported_only_when_they_are_read():
    """TFDS takes seconds, and TensorFlow would come with it where it is installed."""
    code = "import sys, thinkgen_jax.data.feeding; print('tensorflow_datasets' in sys.modules)"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"
