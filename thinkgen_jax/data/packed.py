# SPDX-License-Identifier: Apache-2.0
"""Records as bytes: a JSON head, then the pictures one behind the other, and shards of them.

Nothing in it can execute: the head says how long each part is, and lengths that do not add up are
refused. Precomputed encodings use the same layout (`encoded.py`).
"""

import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from array_record.python import array_record_module

from thinkgen_jax.data import records
from thinkgen_jax.data.records import Record

FIELDS = (
    "id",
    "task_type",
    "instruction",
    "input_images",
    "output_image",
    "output_size",
    "input_sizes",
)
COUNT = struct.Struct("<I")  # bytes of the head, before it


def join(head: dict, parts: Sequence[bytes]) -> bytes:
    """One record of a JSON-able head and binary parts."""
    text = json.dumps({**head, "parts": [len(part) for part in parts]}).encode()
    return b"".join((COUNT.pack(len(text)), text, *parts))


def cut(data: bytes) -> tuple[dict, list[bytes]]:
    """Inverse of `join`.

    Raises:
      ValueError: when the bytes are no such record.
    """
    start = COUNT.size
    if len(data) < start:
        raise ValueError(f"a packed record of {len(data)} bytes")
    place = start + COUNT.unpack_from(data)[0]
    try:
        head = json.loads(data[start:place])
        lengths = [int(length) for length in head.pop("parts")]
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as err:
        raise ValueError("a packed record with a damaged head") from err
    if min(lengths, default=0) < 0 or place + sum(lengths) != len(data):
        raise ValueError(f"a packed record of {len(data)} bytes, its parts do not add up")
    parts = []
    for length in lengths:
        parts.append(data[place : place + length])
        place += length
    return head, parts


def fields_of(record: Record) -> dict:
    """A record's fields with its pictures read and measured: what `records.from_fields` takes."""
    first, *rest = records.sizes(record)
    target, *inputs = map(_loaded, (record.target, *record.references))
    return {
        "id": record.id,
        "task_type": record.task,
        "instruction": record.instruction,
        "input_images": inputs,
        "output_image": target,
        "output_size": list(first),
        "input_sizes": [list(size) for size in rest],
    }


def _loaded(blob: records.Blob) -> bytes:
    found = records.load(blob)
    return found.read_bytes() if isinstance(found, Path) else found


def pack(record: Record) -> bytes:
    """A record as one element of an ArrayRecord file."""
    fields = fields_of(record)
    inputs, target = fields.pop("input_images"), fields.pop("output_image")
    return join(fields, [target, *inputs])


def unpack(data: bytes) -> dict:
    """Fields of a packed record.

    Raises:
      ValueError: when the bytes are none.
    """
    head, parts = cut(data)
    if not parts:
        raise ValueError("a packed record without pictures")
    return {**head, "output_image": parts[0], "input_images": parts[1:]}


def write_shard(path: Path, elements: Iterable[bytes]) -> int:
    """Writes one ArrayRecord file, whole or not at all; returns how many elements it has."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    # One element a group: any of them is read alone.
    writer = array_record_module.ArrayRecordWriter(str(part), "group_size:1")
    count = 0
    try:
        for element in elements:
            writer.write(element)
            count += 1
        writer.close()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count
