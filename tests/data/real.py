# SPDX-License-Identifier: Apache-2.0
"""A dozen small pictures with instructions, written as every kind of source."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from thinkgen_jax.data import builder, packed
from thinkgen_jax.data.files import JsonLines, Where

SIZES = ((64, 64), (70, 90), (48, 64), (128, 100), (64, 64), (65, 66))  # (height, width)


def picture(number: int, *, suffix: str = "png", size: tuple[int, int] | None = None) -> bytes:
    """The bytes of one picture; equal for equal numbers."""
    height, width = size or SIZES[number % len(SIZES)]
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG" if suffix == "jpg" else "PNG")
    return buffer.getvalue()


def items(count: int = 12) -> list[dict]:
    """Fields of records; pictures are (name, bytes)."""
    made = []
    for number in range(count):
        suffix = ("png", "jpg")[number % 2]
        inputs = [(f"in{number}.png", picture(100 + number))] if number % 3 == 2 else []
        made.append(
            {
                "task_type": "edit" if inputs else "t2i",
                "instruction": f"The image shows {number} é things",
                "input_images": inputs,
                "output_image": (f"out{number}.{suffix}", picture(number, suffix=suffix)),
            }
        )
    return made


def write_jsonl(folder: Path, made: list[dict]) -> str:
    """One line a record, pictures beside it in `pictures/`."""
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for item in made:
        for name, data in [*item["input_images"], item["output_image"]]:
            (folder / "pictures" / name).write_bytes(data)
        line = dict(item)
        line["input_images"] = [f"pictures/{name}" for name, _ in item["input_images"]] or None
        line["output_image"] = f"pictures/{item['output_image'][0]}"
        lines.append(json.dumps(line))
    path = folder / "records.jsonl"
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")  # blank lines mean nothing
    return str(path)


def write_tar(folder: Path, made: list[dict]) -> str:
    """Two shards, as the webdataset library names things."""
    folder.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / f"s-{shard}.tar", "w") as tar:
            for number, item in list(enumerate(made))[shard * 7 : shard * 7 + 7]:
                fields = {k: item[k] for k in ("task_type", "instruction")}
                members = [(f"{number:04}.json", json.dumps(fields).encode())]
                name, data = item["output_image"]
                members.append((f"{number:04}.{name.split('.')[1]}", data))
                for place, (_, data) in enumerate(item["input_images"]):
                    members.append((f"{number:04}.input{place}.png", data))
                for name, data in members:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return str(folder / "s-*.tar")


def write_parquet(folder: Path, made: list[dict]) -> str:
    """Row groups of five; targets wrapped as Hugging Face does."""
    folder.mkdir(parents=True)
    table = pa.table(
        {
            "caption": [item["instruction"] for item in made],
            "task_type": [item["task_type"] for item in made],
            "input_images": [[data for _, data in item["input_images"]] for item in made],
            "output_image": [
                {"bytes": item["output_image"][1], "path": item["output_image"][0]} for item in made
            ],
        }
    )
    path = folder / "records.parquet"
    pq.write_table(table, path, row_group_size=5)
    return str(path)


def write_array_record(folder: Path, made: list[dict]) -> str:
    """Of the JSONL source's records."""
    folder.mkdir(parents=True)
    source = JsonLines(Where(write_jsonl(folder / "from", made)))
    path = folder / "a.array_record"
    packed.write_shard(path, (packed.pack(source[i]) for i in range(len(source))))
    return str(path)


def write_tfds(folder: Path, made: list[dict]) -> str:
    """By the builder that is shipped, of the JSONL source's records."""
    folder.mkdir(parents=True)
    source = JsonLines(Where(write_jsonl(folder / "from", made)))
    skipped = []
    path = builder.build(source, folder, name="own", skip=lambda *one: skipped.append(one))
    assert not skipped
    return str(path)


WRITERS = {
    "jsonl": write_jsonl,
    "webdataset": write_tar,
    "parquet": write_parquet,
    "array_record": write_array_record,
    "tfds": write_tfds,
}
