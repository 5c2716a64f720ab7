# SPDX-License-Identifier: Apache-2.0
"""Pictures: official resizing and patches, odd files accepted and told, bad ones refused."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.golden import assert_golden, cases
from thinkgen_jax.data import images
from thinkgen_jax.data.images import VisionSpec, open_picture

QWEN, _ = cases("qwen3vl_tiny.cases")
PIPELINE, PIPELINE_META = cases("pipeline_tiny")
RNG = np.random.default_rng(0)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


# --- official numbers ---


def test_smart_resize_equals_official():
    for height, width, least, most, *want in QWEN["smart_resize.table"].tolist():
        got = images.smart_resize(height, width, factor=32, min_pixels=least, max_pixels=most)
        assert list(got) == want, (height, width)


@pytest.mark.parametrize("name", ["preprocess_exact", "preprocess_resize"])
def test_patches_equal_official(name):
    spec = VisionSpec(min_pixels=1024, max_pixels=262_144)
    values, grid = images.vision_patches(QWEN[f"{name}.image"], spec)
    assert [1, *grid] == QWEN[f"{name}.image_grid_thw"][0].tolist()
    np.testing.assert_allclose(values, QWEN[f"{name}.pixel_values"], rtol=0, atol=2e-6)


REFERENCES = [k for k in PIPELINE if ".ref_image." in k]


@pytest.mark.parametrize("key", REFERENCES)
def test_references_equal_official(key):
    case = PIPELINE_META["cases"][key.split(".")[0]]
    fitted = images.fit_reference(
        PIPELINE[key],
        max_pixels=case.get("max_pixels", 1024**2),
        max_side=case.get("max_input_image_side_length", 1024),
        multiple=4,
    )
    got = images.to_pixels(fitted).transpose(2, 0, 1)[None]
    assert_golden("pipeline_tiny", key.replace("ref_image", "ref_pre"), got)


@pytest.mark.parametrize("name", ["t2i", "t2i_range", "edit2_dpm", "think"])
def test_draw_size_equals_official(name):
    """The tiny autoencoder halves sides; the release floors to 16 pixels whatever its factor."""
    case = PIPELINE_META["cases"][name]
    got = images.draw_size(
        case["height"], case["width"], max_pixels=case.get("max_pixels", 1024**2), multiple=16
    )
    assert [side // 2 for side in got] == case["latent_size"]


# --- by hand ---


def test_patch_order_by_hand():
    """A 4 x 4 picture in patches of 1, blocks of 2: a pixel says where it stood."""
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = np.arange(16).reshape(4, 4)
    spec = VisionSpec(patch=1, temporal=2, merge=2, min_pixels=1, max_pixels=16)
    values, grid = images.vision_patches(image, spec)
    assert grid == (4, 4) and values.shape == (16, 6)
    red = np.round((values[:, 0] + 1) * 127.5).astype(int)
    assert red.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    np.testing.assert_array_equal(values[:, 0], values[:, 1])  # the second frame is the first
    assert images.merged_tokens(image, spec) == 4


def test_pixels_round_trip_and_clip():
    every = np.arange(256, dtype=np.uint8)
    pixels = images.to_pixels(every)
    assert pixels[0] == -1 and pixels[255] == 1
    np.testing.assert_array_equal(images.from_pixels(pixels), every)
    assert images.from_pixels(np.array([-3.0, 3.0], np.float32)).tolist() == [0, 255]


def test_output_is_resized_between_pixel_centres():
    ramp = np.broadcast_to(np.array([0.0, 1.0], np.float32)[:, None, None], (2, 1, 3))
    got = images.resize_output(ramp, (4, 1))[:, 0, 0]
    np.testing.assert_allclose(got, [0, 0.25, 0.75, 1])
    assert images.resize_output(ramp, (2, 1)) is ramp
    flat = np.full((3, 5, 3), 0.3, np.float32)
    np.testing.assert_allclose(images.resize_output(flat, (7, 2)), 0.3, rtol=1e-6)


def test_references_are_never_enlarged():
    image = np.zeros((20, 33, 3), np.uint8)
    fit = images.fit_reference
    assert fit(image, max_pixels=10**6, max_side=1000, multiple=8).shape == (16, 32, 3)
    assert fit(image, max_pixels=10**6, max_side=16, multiple=8).shape == (8, 16, 3)
    assert fit(image[:3], max_pixels=10**6, max_side=1000, multiple=8).shape == (8, 32, 3)


def test_draw_size_by_hand():
    size = images.draw_size
    assert size(64, 64, max_pixels=4096, multiple=8) == (64, 64)
    assert size(65, 71, max_pixels=8192, multiple=8) == (64, 64)
    assert size(128, 128, max_pixels=4096, multiple=8) == (64, 64)
    assert size(3, 640, max_pixels=4096, multiple=8) == (8, 640)
    with pytest.raises(ValueError, match="0 x 64"):
        size(0, 64, max_pixels=4096, multiple=8)


# --- what users hand in ---


def test_opens_plain_files_without_notes(tmp_path):
    pixels = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    images.save(tmp_path / "a.png", pixels)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), images.png_bytes(pixels), pixels):
        opened = open_picture(source)
        assert opened.notes == ()
        np.testing.assert_array_equal(opened.image, pixels)
    np.testing.assert_array_equal(open_picture(pixels / 255.0).image, pixels)


def test_odd_files_are_converted_and_told():
    red = Image.new("RGB", (4, 2), (255, 0, 0))
    seen = open_picture(encoded(red.convert("P")))
    assert "mode P" in seen.notes[0] and seen.image[0, 0].tolist() == [255, 0, 0]
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 51))  # a fifth of red, the rest white
    seen = open_picture(encoded(half))
    assert "white" in seen.notes[0] and seen.image[0, 0].tolist() == [255, 204, 204]
    gray = open_picture(np.full((2, 3), 9, np.uint8))
    assert "mode L" in gray.notes[0] and gray.image.shape == (2, 3, 3)
    deep = Image.fromarray(np.full((2, 2), 257 * 100, np.uint16))
    seen = open_picture(encoded(deep))
    assert "16 bits" in seen.notes[0] and (seen.image == 100).all()
    frames = encoded(red, "GIF", save_all=True, append_images=[Image.new("RGB", (4, 2), "blue")])
    seen = open_picture(frames)
    assert "first of 2" in seen.notes[0] and seen.image[0, 0, 0] > 250


def test_rotated_pictures_are_turned():
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the top is at the right
    seen = open_picture(encoded(image, exif=exif))
    assert seen.image.shape == (4, 2, 3) and seen.image[0, 1, 0] == 255
    assert any("turned" in note for note in seen.notes)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"no picture at all", "not a picture"),
        (b"", "not a picture"),
        ("nowhere/to/be/found.png", "nowhere/to/be/found.png.* does not exist"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((4, 4, 2), np.uint8), "no picture"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.full((4, 4, 3), 2.0), r"\[0, 1\]"),
        (np.full((4, 4, 3), np.nan), r"\[0, 1\]"),
        (np.zeros((1, 300, 3), np.uint8), "200 times"),
        (np.zeros((101, 100, 3), np.uint8), "at most 10000"),
        (Image.new("F", (2, 2)), "raw floats"),
    ],
)
def test_bad_pictures_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        open_picture(source, limit=10_000)


def test_damaged_and_giant_files_are_refused(tmp_path):
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="cannot be read"):
        open_picture(images.png_bytes(noise)[:2000])
    with pytest.raises(ValueError, match="cannot be read"):
        open_picture(tmp_path)  # a folder
    bomb = encoded(Image.new("1", (20_000, 20_000)))  # a few kilobytes that would become 1.2 GB
    with pytest.raises(ValueError, match="pixels"):
        open_picture(bomb)


def test_whatever_a_decoder_raises_is_one_error():
    """PIL raises TypeError for a TIFF whose directory ends before its sides."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format="TIFF")
    data = bytearray(buffer.getvalue())
    data[8] = 7  # entries of the directory, of which more are needed
    with pytest.raises(ValueError, match="cannot be read"):
        open_picture(bytes(data))


def test_formats_that_other_programs_would_run_are_refused():
    """PIL hands EPS to Ghostscript, whose input is a program."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format="EPS")
    for read in (open_picture, images.measure):
        with pytest.raises(ValueError, match="not a picture that can be read"):
            read(buffer.getvalue())
