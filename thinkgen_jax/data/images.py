# SPDX-License-Identifier: Apache-2.0
"""Pictures on the host: opened, brought to size, cut for the vision tower, saved.

A picture is uint8 [height, width, 3] in sRGB. What a user hands in may be a file, bytes, a PIL
image or an array; what can be converted is converted and told, what cannot is refused in one line.

* References are never enlarged; their sides are floored to what the DiT's tokens need.
* The vision tower's pictures are brought near an area range, sides multiples of one merged token.
* Resizing happens on uint8 with PIL, as the release does it; only drawn pictures are resized in
  floating point.

Source: OmniGen2 image processor; Qwen2-VL image processor (smart resize, patch order).
"""

import contextlib
import io
import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 2**26  # largest picture that is opened, 8192 x 8192
MAX_ASPECT = 200  # longest side over shortest
# Tried for every file, whatever it is called. Not all that PIL knows: it hands EPS to Ghostscript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

Pixels = UInt8[np.ndarray, "_ _ 3"]
Source = str | Path | bytes | Image.Image | np.ndarray


class Picture(NamedTuple):
    """An opened picture and what was changed on the way, e.g. ("alpha put on white",)."""

    image: Pixels
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class VisionSpec:
    """How the vision tower wants its pictures.

    Attributes:
      patch: side of a patch in pixels.
      temporal: frames per patch; a still picture is repeated.
      merge: patches per merged token and side.
      min_pixels, max_pixels: area range that pictures are brought into.
    """

    patch: int = 16
    temporal: int = 2
    merge: int = 2
    min_pixels: int = 65_536
    max_pixels: int = 262_144

    @property
    def factor(self) -> int:
        """Pixels per merged token and side."""
        return self.patch * self.merge


# --- in ---


def open_picture(
    source: Source, *, limit: int = MAX_PIXELS, near: tuple[int, int] | None = None
) -> Picture:
    """Opens what a user hands in.

    Palettes, gray and 16-bit pictures are converted, transparency is put on white, the camera's
    orientation is applied, and of an animation the first frame is taken; each is noted.

    Args:
      source: a path, the bytes of a file, a PIL image, or an array [height, width] or
        [height, width, 1 | 3 | 4] of uint8 or of floats in [0, 1].
      limit: most pixels, checked before anything is decoded.
      near: (height, width) that is wanted in the end: a JPEG may be decoded at a half, quarter or
        eighth of its size as long as both sides stay at least twice as long as these.

    Raises:
      ValueError: when it is missing, unreadable, empty, larger than `limit`, longer than 200 times
        its width, or an array of another kind.
    """
    if isinstance(source, np.ndarray):
        source = _from_array(source, limit)
    with _checked(source, limit) as image:
        if near is not None and image.format == "JPEG":
            near = near if _is_upright(image) else near[::-1]
            image.draft(None, (2 * near[1], 2 * near[0]))
        return _to_rgb(image)


def measure(source: str | Path | bytes, *, limit: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) of a picture as it will be seen; only its header is read.

    Raises:
      ValueError: as `open_picture`.
    """
    with _checked(source, limit) as image:
        return image.size[::-1] if _is_upright(image) else image.size


def _is_upright(image: Image.Image) -> bool:
    """Whether rows stay rows when the camera's orientation is applied."""
    if image.format == "PNG" and "exif" not in image.info:
        return True  # asked for its orientation, PIL would decode all of it
    return image.getexif().get(0x0112, 1) < 5


@contextlib.contextmanager
def _checked(source: str | Path | bytes | Image.Image, limit: int):
    """An open image of bearable size; whatever a decoder raises becomes one ValueError."""
    name = f"picture {str(source)!r}" if isinstance(source, str | Path) else "picture"
    with contextlib.ExitStack() as files:
        try:
            with warnings.catch_warnings():  # `limit` is stricter
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image = _open(source)
            if image is not source:
                files.enter_context(image)  # a path's file is closed, also of a damaged picture
            _check_size(*image.size, name=name, limit=limit)
            yield image
        except Image.DecompressionBombError as err:
            raise ValueError(f"{name} has more than {limit} pixels") from err
        except FileNotFoundError as err:
            raise ValueError(f"{name} does not exist") from err
        except UnidentifiedImageError as err:
            raise ValueError(f"{name} is not a picture that can be read") from err
        except (ValueError, MemoryError):
            raise
        except Exception as err:  # PIL's decoders raise nearly anything on damaged files
            raise ValueError(f"{name} cannot be read: {err}") from err


def _open(source: str | Path | bytes | Image.Image) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    return Image.open(file, formats=_formats())


@lru_cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that PIL was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(width: int, height: int, *, name: str, limit: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"{name} is empty: {width} x {height} pixels")
    if width * height > limit:
        raise ValueError(f"{name} has {width} x {height} pixels, at most {limit} in all")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(
            f"{name} is {width} x {height}: one side over {MAX_ASPECT} times the other"
        )


def _from_array(array: np.ndarray, limit: int) -> Image.Image:
    """A PIL image of an array; shapes and types that mean no picture are refused."""
    plain = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if plain.ndim not in (2, 3) or (plain.ndim == 3 and plain.shape[-1] not in (3, 4)):
        raise ValueError(
            f"an array of shape {array.shape} is no picture [height, width, 1 | 3 | 4]"
        )
    _check_size(plain.shape[1], plain.shape[0], name="picture", limit=limit)
    if np.issubdtype(plain.dtype, np.floating):
        if not (np.isfinite(plain).all() and plain.min() >= 0 and plain.max() <= 1):
            raise ValueError("a picture of floats must lie in [0, 1]")
        plain = np.round(plain * 255).astype(np.uint8)
    if plain.dtype != np.uint8:
        raise ValueError(f"a picture of {array.dtype}: want uint8 or floats in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(plain))


def _to_rgb(image: Image.Image) -> Picture:
    """Decodes, turns and converts; every step that changes something leaves a note."""
    notes = []
    if getattr(image, "n_frames", 1) > 1:
        image.seek(0)
        notes.append(f"first of {image.n_frames} frames taken")
    image.load()
    turned = ImageOps.exif_transpose(image)
    if turned.size != image.size or image.getexif().get(0x0112, 1) != 1:
        notes.append("turned as the camera was held")
    image = turned
    if image.mode.startswith("I"):  # 16 bits a pixel, which a plain conversion would clip
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.round(np.clip(wide / 257, 0, 255)).astype(np.uint8))
        notes.append("16 bits reduced to 8")
    elif image.mode == "F":
        raise ValueError("a picture of raw floats has no known range; save it with 8 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
        notes.append("transparency put on white")
    elif image.mode != "RGB":
        notes.append(f"converted from mode {image.mode}")
    return Picture(np.array(image.convert("RGB")), tuple(notes))


# --- out ---


def png_bytes(image: Pixels) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def save(path: str | Path, image: Pixels) -> None:
    """Writes a PNG, so that nothing is lost."""
    Path(path).write_bytes(png_bytes(image))


# --- device pixels ---


def to_pixels(image: UInt8[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """uint8 to float32 in [-1, 1]."""
    return image.astype(np.float32) / np.float32(255) * 2 - 1


def from_pixels(pixels: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """float32, clipped to [-1, 1], to uint8; inverse of `to_pixels`."""
    shares = np.clip(np.asarray(pixels, np.float32) / 2 + 0.5, 0, 1)
    return np.round(shares * 255).astype(np.uint8)


# --- sizes ---


def draw_size(height: int, width: int, *, max_pixels: int, multiple: int) -> tuple[int, int]:
    """Size in which a picture is drawn before it is resized to what was asked for.

    Too large an area is scaled down; then both sides are floored to multiples.

    Raises:
      ValueError: when a side is not positive.
    """
    if height < 1 or width < 1:
        raise ValueError(f"size {height} x {width}: both sides must be at least 1 pixel")
    ratio = min(math.sqrt(max_pixels / (height * width)), 1.0)
    return _floored(height, ratio, multiple), _floored(width, ratio, multiple)


def _floored(side: int, ratio: float, multiple: int) -> int:
    return max(int(side * ratio) // multiple, 1) * multiple


def fit_reference(image: Pixels, *, max_pixels: int, max_side: int, multiple: int) -> Pixels:
    """Brings a reference to a size the DiT can read: shrunk by Lanczos, never enlarged.

    Only a side below `multiple`, which has no token, is brought up to it.

    Args:
      max_pixels: largest area.
      max_side: longest side in pixels.
      multiple: both sides are floored to multiples of it.
    """
    height, width = image.shape[:2]
    ratio = min(math.sqrt(max_pixels / (height * width)), max_side / max(height, width), 1.0)
    size = _floored(height, ratio, multiple), _floored(width, ratio, multiple)
    return _resize(image, size, Image.Resampling.LANCZOS)


def fill(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Shrinks a picture by Lanczos until it just fills a size, and cuts what stands over evenly.

    Raises:
      ValueError: when it would have to be enlarged.
    """
    (height, width), (rows, columns) = image.shape[:2], size
    if rows > height or columns > width:
        raise ValueError(f"picture {height} x {width} does not fill {rows} x {columns}")
    if (rows, columns) == (height, width):
        return image
    ratio = min(height / rows, width / columns)  # pixels of the picture for one of the result
    top, left = (height - rows * ratio) / 2, (width - columns * ratio) / 2
    box = (left, top, left + columns * ratio, top + rows * ratio)
    box = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))
    how = Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((columns, rows), how, box, reducing_gap=3.0))


def _resize(image: Pixels, size: tuple[int, int], how: Image.Resampling) -> Pixels:
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], how))


def resize_output(
    pixels: Float[np.ndarray, "height width 3"], size: tuple[int, int]
) -> Float[np.ndarray, "y x 3"]:
    """Resizes a drawn picture bilinearly; pixel centres at halves, edges held, no smoothing.

    Args:
      size: (height, width) to return; the same size returns the picture itself.
    """
    if pixels.shape[:2] == tuple(size):
        return pixels
    for axis, side in enumerate(size):
        below, above, share = _neighbours(pixels.shape[axis], side)
        share = np.expand_dims(share, [a for a in range(3) if a != axis])
        low, high = np.take(pixels, below, axis), np.take(pixels, above, axis)
        pixels = low * (1 - share) + high * share
    return pixels.astype(np.float32)


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new place the two old ones it lies between, and its share of the second."""
    places = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
    below = np.minimum(places.astype(np.int64), old - 1)
    return below, np.minimum(below + 1, old - 1), (places - below).astype(np.float32)


# --- vision tower ---


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Size in which the vision tower sees a picture: sides multiples of `factor`, area in range.

    Raises:
      ValueError: when one side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"picture {height} x {width}: a side over {MAX_ASPECT} times the other")
    # Python rounds halves to even, and so does the release.
    size = round(height / factor) * factor, round(width / factor) * factor
    if size[0] * size[1] > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        size = tuple(math.floor(side / scale / factor) * factor for side in (height, width))
    elif size[0] * size[1] < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        size = tuple(math.ceil(side * scale / factor) * factor for side in (height, width))
    return max(size[0], factor), max(size[1], factor)


def patch_grid(image: Pixels, spec: VisionSpec) -> tuple[int, int]:
    """(rows, columns) of patches that a picture is cut into."""
    size = smart_resize(
        *image.shape[:2],
        factor=spec.factor,
        min_pixels=spec.min_pixels,
        max_pixels=spec.max_pixels,
    )
    return size[0] // spec.patch, size[1] // spec.patch


def merged_tokens(image: Pixels, spec: VisionSpec) -> int:
    """Tokens that stand for a picture in a prompt."""
    rows, columns = patch_grid(image, spec)
    return rows * columns // spec.merge**2


def vision_patches(
    image: Pixels, spec: VisionSpec
) -> tuple[Float[np.ndarray, "P X"], tuple[int, int]]:
    """Cuts a picture for the vision tower.

    Returns:
      float32 values in [-1, 1], ordered (channel, frame, row, column) inside a patch; the patches
      come block by block of merge x merge, row-major among and inside blocks. And the grid (rows,
      columns) in patches.
    """
    rows, columns = patch_grid(image, spec)
    size = rows * spec.patch, columns * spec.patch
    pixels = to_pixels(_resize(image, size, Image.Resampling.BICUBIC))
    m, p = spec.merge, spec.patch
    cut = pixels.reshape(rows // m, m, p, columns // m, m, p, 3)
    cut = cut.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, 1, p, p)
    frames = np.repeat(cut, spec.temporal, axis=2)
    return frames.reshape(rows * columns, -1), (rows, columns)
