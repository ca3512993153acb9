"""A picture's file is opened with its own colours and upright; one that cannot be read is named."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from plain_pictures import noise, pixels, plain

from runtimes.errors import BadInput
from runtimes.preprocess import open_image

COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255], [0, 0, 0], [51, 102, 204]]], np.uint8)


def colours() -> Image.Image:
    """Six patches of 8 x 8 pixels, a JPEG's block each."""
    return Image.fromarray(COLOURS.repeat(8, axis=0).repeat(8, axis=1))


def patches(image: Image.Image) -> NDArray[np.uint8]:
    """The six colours of a picture opened again, as a model of three channels sees them."""
    return pixels(plain(crop=(16, 24))(image))[4::8, 4::8]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("kind", ["png", "tiff", "bmp"])
def test_colours_survive_each_lossless_file(kind: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{kind}"
    colours().convert(mode, palette=Image.Palette.ADAPTIVE).save(path)
    np.testing.assert_array_equal(patches(open_image(path)), COLOURS)


def test_a_transparent_palette_gives_its_colours_without_a_warning(tmp_path: Path) -> None:
    indexed = colours().convert("P", palette=Image.Palette.ADAPTIVE)
    indexed.save(tmp_path / "one.png", transparency=0)
    indexed.save(tmp_path / "each.png", transparency=bytes([0, 128, 255, 64, 32, 16]))
    for name in ("one.png", "each.png"):
        np.testing.assert_array_equal(patches(open_image(tmp_path / name)), COLOURS)


def test_a_transparent_picture_keeps_the_colours_below_its_transparency_as_torchvision_does(tmp_path: Path) -> None:
    image = colours().convert("RGBA")
    image.putalpha(0)
    image.save(tmp_path / "clear.png")
    np.testing.assert_array_equal(patches(open_image(tmp_path / "clear.png")), COLOURS)


def test_a_jpeg_for_print_becomes_red_green_and_blue(tmp_path: Path) -> None:
    colours().convert("CMYK").save(tmp_path / "print.jpg", quality=100)
    opened = open_image(tmp_path / "print.jpg")
    assert opened.mode == "CMYK"
    assert np.abs(patches(opened).astype(int) - COLOURS).max() <= 2


def test_a_jpeg_becomes_its_colours(tmp_path: Path) -> None:
    colours().save(tmp_path / "photo.jpg", quality=100, subsampling=0)
    assert np.abs(patches(open_image(tmp_path / "photo.jpg")).astype(int) - COLOURS).max() <= 2


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_a_grey_picture_has_three_equal_channels_for_a_model_of_three(mode: str, tmp_path: Path) -> None:
    levels = np.array([[0, 255, 0], [255, 0, 255]], np.uint8)
    Image.fromarray(levels.repeat(8, axis=0).repeat(8, axis=1)).convert(mode).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(patches(open_image(tmp_path / "grey.png")), np.repeat(levels[:, :, None], 3, axis=2))


def test_a_coloured_picture_has_its_brightness_for_a_model_of_one_channel(tmp_path: Path) -> None:
    colours().save(tmp_path / "colours.png")
    grey = pixels(plain(crop=(16, 24), mean=(0.0,), std=(1.0,))(open_image(tmp_path / "colours.png")))[4::8, 4::8, 0]
    brightness = COLOURS @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    np.testing.assert_allclose(grey, brightness, rtol=0, atol=0.51)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_scaled_to_eight_and_not_cut_off(kind: str, tmp_path: Path) -> None:
    levels = np.array([[0, 257, 257 * 128], [257 * 200 + 128, 257 * 200 + 129, 65535]], np.uint16)
    path = tmp_path / f"deep.{kind}"
    Image.fromarray(levels).save(path)
    np.testing.assert_array_equal(np.asarray(open_image(path)), [[0, 1, 128], [200, 201, 255]])


def test_floating_point_pixels_are_refused_because_their_range_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "float.tiff"
    Image.fromarray(np.ones((4, 6), np.float32)).save(path)
    with pytest.raises(
        BadInput,
        match=re.escape(f"{path}: expected whole numbers in grey or colour, got pixels of mode F; save it as a PNG"),
    ):
        open_image(path)


UPRIGHT = noise(16, 24)
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),  # shown after a quarter turn to the right
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_turned_upright_as_its_camera_says(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation  # Exif 2.3, "Orientation"
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(tmp_path / "camera.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "camera.png")), UPRIGHT)


def test_an_opened_picture_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "gone.png"
    colours().save(path)
    opened = open_image(path)
    path.unlink()
    np.testing.assert_array_equal(patches(opened), COLOURS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"no picture at all",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"GIF89a",
        b"II*\x00",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
)
def test_a_file_that_is_no_picture_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=re.escape(f"cannot read the picture {path}")):
        open_image(path)


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "gif", "webp"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_picture_that_was_cut_short_is_named(share: float, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{kind}"
    Image.fromarray(noise(64, 64)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadInput, match=re.escape(f"cannot read the picture {path}")):
        open_image(path)


def test_of_a_folder_it_says_to_name_the_pictures_in_it(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="it is a folder; name the pictures in it"):
        open_image(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadInput, match=r"cannot read the picture .*pipe\.png: it is no file"):
        open_image(tmp_path / "pipe.png")


def test_a_missing_picture_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "missing.png"
    with pytest.raises(BadInput) as raised:
        open_image(path)
    assert str(raised.value) == f"cannot read the picture {path}: No such file or directory"


def test_a_missing_picture_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.png", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(BadInput, match=re.escape(f"cannot read the picture {path}")):
            open_image(path)


def test_a_damaged_picture_is_read_or_named_and_never_anything_else(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path, exif = tmp_path / "damaged", Image.Exif()
    exif[0x0112] = 6
    refused = []
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF"):
        Image.fromarray(noise(20, 30)).save(path, kind, exif=exif)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[random.integers(0, min(len(whole), 300), 8)] = random.integers(0, 256, 8)
            path.write_bytes(damaged.tobytes())
            try:
                assert plain()(open_image(path)).shape == (3, 4, 6)
            except BadInput as error:
                refused.append(str(error))
    assert len(refused) > 30
    assert all(str(path) in message for message in refused)
