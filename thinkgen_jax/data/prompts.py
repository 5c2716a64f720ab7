# SPDX-License-Identifier: Apache-2.0
"""Token rows and pictures to a `Prompt`: padded, with rotary positions and patches.

* Text moves the time, row and column positions on together. A picture whose pixels the MLLM gets
  starts at position s with time s, rows from s and columns from s; the text behind it starts one
  past the largest of them.
* In a row without pixels an image token is an ordinary token.
* Shapes are what the caller says, so that few programs are compiled.

Source: transformers@4.57.1 models/qwen3_vl/modeling_qwen3_vl.py (position ids).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from thinkgen_jax.data.images import Pixels, VisionSpec, vision_patches
from thinkgen_jax.structs import Patches, Prompt

PAD_POSITION = 1  # what padding carries, on every axis

Grid = tuple[int, int]  # (rows, columns) of a picture in patches


def assemble(
    rows: Sequence[Sequence[int]],
    *,
    length: int,
    image_id: int = -1,
    pictures: Sequence[Sequence[Pixels]] | None = None,
    vision: VisionSpec | None = None,
    patches: int | None = None,
    cut: bool = False,
    pad_id: int = 0,
) -> Prompt:
    """Makes one batch for the MLLM; all leaves are numpy arrays.

    Args:
      rows: token ids of each row; every picture with pixels stands there as as many `image_id`s as
        it has merged tokens.
      length: tokens to pad to.
      image_id: the token that stands for pictures.
      pictures: per row the pictures whose pixels the MLLM gets, in order; None for none at all.
      vision: how they are cut.
      patches: patches to pad each row to, a multiple of merge²; None pads to the fullest row. With
        a number the result always has `Patches`, even when no row has a picture.
      cut: drop what does not fit `length` at the right; the caller tells the user.

    Raises:
      ValueError: when a row is empty, longer than `length` and not to be cut, loses tokens of a
        picture, or does not match its pictures; when pictures come without a `vision` spec or their
        patches do not fit.
    """
    longest = max(map(len, rows))
    if longest > length and not cut:
        raise ValueError(f"a prompt of {longest} tokens does not fit {length}")
    if not all(map(len, rows)):
        raise ValueError("a prompt without tokens")
    ids = np.full((len(rows), length), pad_id, np.int32)
    segments = np.zeros((len(rows), length), np.int32)
    for b, row in enumerate(rows):
        kept = row[:length]
        ids[b, : len(kept)] = kept
        segments[b, : len(kept)] = 1
    seen = [tuple(row) for row in pictures] if pictures is not None else [()] * len(rows)
    if not any(seen) and patches is None:
        return Prompt(ids, segments, position_ids(ids, segments, image_token_id=image_id))
    if vision is None:
        raise ValueError("pictures were given, but the model has no vision tower")
    parts = [[vision_patches(image, vision) for image in row] for row in seen]
    grids = [[grid for _, grid in row] for row in parts]
    positions = position_ids(ids, segments, grids, image_token_id=image_id, merge=vision.merge)
    return Prompt(
        ids, segments, positions, _patches(ids, segments, parts, image_id, vision, patches)
    )


def _patches(
    ids: np.ndarray,
    segments: np.ndarray,
    parts: Sequence[Sequence[tuple[np.ndarray, Grid]]],
    image_id: int,
    vision: VisionSpec,
    patches: int | None,
) -> Patches:
    """Lays the patches of each row's pictures one behind the other."""
    merge = vision.merge
    fullest = max(sum(len(values) for values, _ in row) for row in parts)
    count = fullest if patches is None else patches
    if fullest > count or count % merge**2:
        raise ValueError(
            f"{fullest} patches a row do not fit {count}, which must be a multiple of {merge**2}"
        )
    batch, length = ids.shape
    pixels = np.zeros((batch, count, 3 * vision.temporal * vision.patch**2), np.float32)
    positions = np.zeros((batch, count, 2), np.int32)
    # Padding has the grid of one block, so that the position table is read inside its range.
    grids = np.full((batch, count, 2), merge, np.int32)
    numbers = np.zeros((batch, count), np.int32)
    slots = np.full((batch, count // merge**2), length, np.int32)
    for b, row in enumerate(parts):
        place = 0
        for number, (values, grid) in enumerate(row, start=1):
            span = slice(place, place + len(values))
            pixels[b, span] = values
            positions[b, span] = patch_positions(*grid, merge=merge)
            grids[b, span] = grid
            numbers[b, span] = number
            place += len(values)
        if row:
            found = np.flatnonzero((ids[b] == image_id) & (segments[b] > 0))
            slots[b, : len(found)] = found
    return Patches(pixels, positions, grids, numbers, slots)


def position_ids(
    ids: Int[np.ndarray, "B T"],
    segments: Int[np.ndarray, "B T"],
    grids: Sequence[Sequence[Grid]] | None = None,
    *,
    image_token_id: int,
    merge: int = 2,
) -> Int[np.ndarray, "3 B T"]:
    """Makes int32 positions (time, row, column) of token rows; padding carries 1.

    Args:
      segments: 0 at padding, on whichever side.
      grids: per row the pictures whose pixels the model gets, in order, in patches; in a row
        without any an image token is an ordinary token.
      merge: patches per merged token and side.

    Raises:
      ValueError: when a row's image tokens are not those of its pictures.
    """
    out = np.full((3, *ids.shape), PAD_POSITION, np.int32)
    for row in range(ids.shape[0]):
        places = np.flatnonzero(segments[row])
        pictures = grids[row] if grids is not None else ()
        out[:, row, places] = _row_positions(ids[row, places] == image_token_id, pictures, merge)
    return out


def _row_positions(is_image: np.ndarray, pictures: Sequence[Grid], merge: int) -> np.ndarray:
    count = len(is_image)
    if not pictures:
        return np.broadcast_to(np.arange(count), (3, count))
    wanted = sum(rows * columns for rows, columns in pictures) // merge**2
    if wanted != is_image.sum():
        raise ValueError(f"{is_image.sum()} image tokens stand for pictures of {wanted} tokens")
    parts, place, start = [], 0, 0
    for rows, columns in pictures:
        text = int(np.argmax(is_image[place:]))
        parts.append(np.broadcast_to(start + np.arange(text), (3, text)))
        place, start = place + text, start + text
        h, w = rows // merge, columns // merge
        row, column = np.divmod(np.arange(h * w), w)
        if not is_image[place : place + h * w].all():
            raise ValueError(f"the image tokens of a {rows}x{columns} picture are interrupted")
        parts.append(start + np.stack([np.zeros_like(row), row, column]))
        place, start = place + h * w, start + max(h, w)
    rest = count - place
    parts.append(np.broadcast_to(start + np.arange(rest), (3, rest)))
    return np.concatenate(parts, axis=1)


def patch_positions(rows: int, columns: int, *, merge: int) -> Int[np.ndarray, "P 2"]:
    """(row, column) of a picture's patches, in the order the vision tower wants.

    Patches come block by block of merge x merge, row-major among and inside blocks.
    """
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    blocks = grid.reshape(rows // merge, merge, columns // merge, merge, 2)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2).astype(np.int32)
