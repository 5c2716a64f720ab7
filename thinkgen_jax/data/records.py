# SPDX-License-Identifier: Apache-2.0
"""What every source of real pictures yields: one record, its pictures not yet read.

A record is OmniGen2's: `{task_type, instruction, input_images, output_image}`. Its pictures are
paths, pieces of larger files, or bytes; nothing is read before it is needed, so that a source can
be measured by its headers alone.

* What is wrong with one record is a ValueError: it is skipped, counted and listed.
* A path that leaves the data root is a PermissionError: it stops the run, whoever wrote it.

Source: OmniGen2 training code (record format).
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from thinkgen_jax.data import images

MAX_REFERENCES = 5  # what the DiT has index embeddings for
MAX_BYTES = 2**28  # largest picture file that is read
HEAD = 2**16  # bytes in which nearly every header ends
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Span:
    """A piece of a larger file."""

    path: Path
    offset: int
    length: int


Blob = bytes | Path | Span
Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Record:
    """One supervised picture as a source has it.

    Attributes:
      id: names it in lists of what was skipped.
      task: the source's own word for what is asked, e.g. "t2i" or "edit".
      instruction: caption or edit instruction.
      references: pictures to look at, at most five.
      target: picture to draw.
      sizes: (height, width) of target and references where the source knows them, else empty.
    """

    id: str
    task: str
    instruction: str
    references: tuple[Blob, ...]
    target: Blob
    sizes: tuple[Size, ...] = ()


def from_fields(fields: object, name: str, root: Path | None = None) -> Record:
    """A record of its named fields.

    Args:
      fields: `instruction` and `output_image`; `task_type`, `input_images` and `id` may be missing.
        Pictures are bytes, spans, or paths below `root`. `output_size` and `input_sizes`, (height,
        width) each, save measuring.
      name: id where the fields have none.
      root: folder of the pictures; None where the fields hold no paths.

    Raises:
      ValueError: when a field is missing or of another type, or there are too many references.
      PermissionError: when a path leads out of the root.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"is no object but {type(fields).__name__}")
    words = _text(fields, "instruction")
    if not words.strip():
        raise ValueError("instruction is empty")
    inputs = fields.get("input_images")
    inputs = [] if inputs is None else inputs
    if not isinstance(inputs, list | tuple):
        raise ValueError(f"input_images is {type(inputs).__name__}, want a list")
    if len(inputs) > MAX_REFERENCES:
        raise ValueError(f"input_images has {len(inputs)} pictures, at most {MAX_REFERENCES}")
    if fields.get("output_image") is None:
        raise ValueError("output_image is missing")
    references = tuple(_blob(value, root) for value in inputs)
    task = _text(fields, "task_type", "edit" if references else "t2i")
    known = _text(fields, "id", name)
    return Record(
        known or name,
        task,
        words,
        references,
        _blob(fields["output_image"], root),
        _sizes(fields, len(references)),
    )


def _text(fields: Mapping, key: str, default: str | None = None) -> str:
    value = fields.get(key)
    value = default if value is None else value
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as err:
            raise ValueError(f"{key} is not UTF-8") from err
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r:.40}, want text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as err:  # JSON can spell what is no character
        raise ValueError(f"{key} is {value!r:.40}, which holds half a surrogate pair") from err
    return value


def _blob(value, root: Path | None) -> Blob:
    if isinstance(value, str) and root is not None:
        return inside(root, value)
    if isinstance(value, bytes | Span):
        return value
    raise ValueError(f"a picture is {type(value).__name__}, want {'a path' if root else 'bytes'}")


def _sizes(fields: Mapping, references: int) -> tuple[Size, ...]:
    """Sizes that the fields give; all of them or none."""
    try:
        rest = fields.get("input_sizes")
        found = [fields["output_size"], *(rest if rest is not None else ())]
        known = tuple((int(height), int(width)) for height, width in found)
    except (KeyError, TypeError, ValueError, OverflowError):
        return ()  # they are measured, then
    return known if len(known) == references + 1 else ()


def inside(root: Path, name: str) -> Path:
    """The path of a name below a root.

    Raises:
      PermissionError: for an absolute name, one that climbs, or a link that leads out.
      ValueError: for a name that no file can have.
    """
    if "\0" in name or not name:
        raise ValueError(f"{name!r} is no path")
    path = root / name
    # Most names are plain; the real path, which asks the disk for every part, only where needed.
    home, real = os.path.realpath(root), os.path.realpath(path)
    if os.path.isabs(name) or os.path.commonpath([home, real]) != home:
        raise PermissionError(f"path {name!r} leads out of the data root {str(root)!r}")
    return path


def load(blob: Blob) -> bytes | Path:
    """What `images.open_picture` takes: a path as it is, a span read.

    Raises:
      ValueError: when it is larger than any picture, missing or cut short.
    """
    size = _nbytes(blob)
    if size > MAX_BYTES:
        raise ValueError(f"picture of {size} bytes, at most {MAX_BYTES}")
    return read(blob, size) if isinstance(blob, Span) else blob


def read(span: Span, count: int) -> bytes:
    """The first `count` bytes of a span.

    Raises:
      ValueError: when they are too many, cannot be read, or the file ends before.
    """
    count = min(count, span.length)
    if count > MAX_BYTES:
        raise ValueError(f"{span.path.name} has a part of {count} bytes, at most {MAX_BYTES}")
    try:
        with span.path.open("rb") as file:
            file.seek(span.offset)
            data = file.read(count)
    except FileNotFoundError as err:
        raise ValueError(f"{span.path.name} does not exist") from err
    except OSError as err:
        raise ValueError(f"{span.path.name} cannot be read: {err.strerror}") from err
    if len(data) < count:
        raise ValueError(f"{span.path.name} ends {count - len(data)} bytes too early")
    return data


def _nbytes(blob: Blob) -> int:
    if isinstance(blob, Path):
        try:
            found = blob.stat()
        except (FileNotFoundError, NotADirectoryError) as err:
            raise ValueError(f"picture {blob.name!r} does not exist") from err
        except OSError as err:  # a name too long, a folder that may not be entered
            raise ValueError(f"picture {blob.name!r:.99} cannot be read: {err.strerror}") from err
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"picture {blob.name!r} is no file")
        return found.st_size
    return blob.length if isinstance(blob, Span) else len(blob)


def measure(blob: Blob) -> Size:
    """(height, width) of a picture as it will be seen, from its header alone.

    Raises:
      ValueError: when it is no picture, too large, or too long.
    """
    if isinstance(blob, Span) and blob.length > HEAD:
        try:
            return images.measure(read(blob, HEAD))
        except ValueError:
            pass  # a header longer than that, or a fault that the whole file tells better
    return images.measure(load(blob))


def sizes(record: Record) -> tuple[Size, ...]:
    """Sizes of target and references, those the source knows or measured."""
    return record.sizes or tuple(map(measure, (record.target, *record.references)))
