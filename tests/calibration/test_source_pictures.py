"""Pictures of every kind: archives and arrays, each file format and mode, and any number of channels."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from data_sets import LABELS, PIXELS, pictures
from numpy.typing import NDArray
from PIL import Image

from calibration.data import built_in, check_channels, open_source, with_channels
from runtimes.errors import BadInput
from runtimes.preprocess import Preprocess

GREY = Preprocess(8, (8, 8), "bilinear", True, (0.5,), (0.25,))
COLOUR = Preprocess(8, (8, 8), "bilinear", True, (0.5,) * 3, (0.25,) * 3)


# --- archives ---


@pytest.mark.parametrize("pixels", [PIXELS, PIXELS[..., 0]], ids=["colour", "grey"])
@pytest.mark.parametrize("labels", [LABELS, None], ids=["labelled", "bare"])
def test_an_archive_gives_its_images_and_perhaps_labels(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64] | None, tmp_path: Path
) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **({"images": pixels} if labels is None else {"images": pixels, "labels": labels.astype(np.uint8)}))  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
    source = open_source(str(path))
    np.testing.assert_array_equal(pictures(source), pixels)
    if labels is None:
        assert source.labels is None
    else:
        assert source.labels is not None
        np.testing.assert_array_equal(source.labels, labels)
        assert source.labels.dtype == np.int64


BAD_ARCHIVES = {
    "floats": ({"images": PIXELS / 255}, "got images float64 (6, 10, 12, 3)"),
    "no images": ({"pixels": PIXELS}, "got pixels uint8 (6, 10, 12, 3)"),
    "nothing": ({}, "got nothing"),
    "channels first": ({"images": PIXELS.transpose(0, 3, 1, 2)}, "got images uint8 (6, 3, 10, 12)"),
    "one image": ({"images": PIXELS[0, :, :, 0]}, "got images uint8 (10, 12)"),
    "labels of five": (
        {"images": PIXELS, "labels": LABELS[:5]},
        "expected a label for each of 6 images, got labels of shape (5,)",
    ),
    "one-hot labels": (
        {"images": PIXELS, "labels": np.eye(3)[LABELS]},
        "expected a label for each of 6 images, got labels of shape (6, 3)",
    ),
    "words for labels": (
        {"images": PIXELS, "labels": LABELS.astype(str)},
        "expected labels of whole numbers, not negative, got",
    ),
    "fractions for labels": (
        {"images": PIXELS, "labels": LABELS + 0.5},
        "expected labels of whole numbers, not negative, got",
    ),
    "negative labels": (
        {"images": PIXELS, "labels": LABELS - 1},
        "expected labels of whole numbers, not negative, got",
    ),
    "empty": ({"images": PIXELS[:0]}, "holds no pictures, or empty ones"),
    "no rows": ({"images": PIXELS[:, :0]}, "holds no pictures, or empty ones"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_an_archive_of_something_else_is_refused_with_what_it_holds(case: str, tmp_path: Path) -> None:
    arrays, says = BAD_ARCHIVES[case]
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    with pytest.raises(BadInput, match=re.escape(says)) as refused:
        open_source(str(path))
    assert str(path) in str(refused.value)


def damaged_archives() -> dict[str, bytes]:
    whole, array = io.BytesIO(), io.BytesIO()
    np.savez_compressed(whole, images=PIXELS)
    np.save(array, PIXELS)
    data = whole.getvalue()
    middle = len(data) // 2
    objects = io.BytesIO()
    np.savez(objects, images=np.array([{}], object))
    return {
        "empty": b"",
        "text": b"images",
        "cut short": data[:middle],
        "flipped": data[:middle] + bytes([byte ^ 0xFF for byte in data[middle : middle + 20]]) + data[middle + 20 :],
        "a lone array": array.getvalue(),
        "pickled objects": objects.getvalue(),
    }


@pytest.mark.parametrize("damage", damaged_archives())
def test_a_damaged_archive_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(damaged_archives()[damage])
    with pytest.raises(BadInput, match=re.escape(str(path))):
        open_source(str(path))


# --- files of pictures ---


def smooth(mode: str) -> Image.Image:
    """The same soft ramp in any mode."""
    ramp = np.add.outer(np.arange(40) * 4, np.arange(30) * 3).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(ramp.astype(np.uint16) * 257)
    grey = Image.fromarray(ramp)
    if mode == "P":
        image = grey.convert("P")
        image.putpalette([value for level in range(256) for value in (level,) * 3])
        return image
    return grey.convert("RGB").convert(mode) if mode == "CMYK" else grey.convert(mode)


FORMATS = {
    "jpg": ("L", "RGB", "CMYK"),
    "jpeg": ("L", "RGB", "CMYK"),
    "png": ("L", "LA", "RGB", "RGBA", "P", "I;16"),
    "webp": ("RGB", "RGBA"),
    "bmp": ("L", "RGB", "P"),
    "tif": ("L", "RGB", "RGBA", "CMYK", "P", "I;16"),
    "tiff": ("L", "RGB", "RGBA", "CMYK", "P", "I;16"),
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in FORMATS.items() for mode in modes])
@pytest.mark.parametrize("upper", [False, True], ids=["", "upper case"])
def test_every_format_and_mode_is_the_same_picture(suffix: str, mode: str, upper: bool, tmp_path: Path) -> None:
    image = smooth(mode)
    assert image.mode == mode
    path = tmp_path / f"a.{suffix.upper() if upper else suffix}"
    image.save(path, **({"lossless": True} if suffix == "webp" else {"quality": 98} if suffix.startswith("jp") else {}))
    source = open_source(str(tmp_path))
    for preprocess in (GREY, COLOUR):
        np.testing.assert_allclose(preprocess(source.image(0)), preprocess(smooth("L")), atol=0.04)


def test_a_picture_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn by 90 degrees clockwise
    smooth("L").save(tmp_path / "a.png", exif=exif)
    assert open_source(str(tmp_path)).image(0).size == (40, 30)
    assert smooth("L").size == (30, 40)


# --- any number of channels ---

BANDS = np.random.default_rng(1).integers(0, 256, (6, 10, 12, 13), np.uint8)


def many(channels: int) -> Preprocess:
    return Preprocess(8, (8, 8), "bilinear", True, (0.5,) * channels, (0.25,) * channels)


@pytest.mark.parametrize("kind", ["npz", "npy", "folder", "tree"])
def test_arrays_of_any_number_of_channels_are_pictures(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"bands.{kind}"
    if kind == "npz":
        np.savez(path, images=BANDS, labels=LABELS)
    elif kind == "npy":
        np.save(path, BANDS)
    else:
        for place, array in enumerate(BANDS):
            parent = path / str(LABELS[place]) if kind == "tree" else path
            parent.mkdir(parents=True, exist_ok=True)
            np.save(parent / f"{place}.npy", array)
    source = open_source(str(path))
    order = np.argsort(LABELS, kind="stable") if kind == "tree" else np.arange(6)
    assert (source.labels is not None) == (kind in ("npz", "tree"))
    for one in (source, source.subset(np.arange(6))):
        np.testing.assert_array_equal(np.stack([np.asarray(one.picture(place)) for place in range(6)]), BANDS[order])
    check_channels(source, many(13))
    for channels in (1, 3, 4):
        with pytest.raises(
            BadInput, match=re.escape(str(path)) + ": expected pictures of .*, as the model takes, got 13 channels"
        ):
            check_channels(source, many(channels))
    with pytest.raises(BadInput, match="expected pictures in grey or colour, got 13 channels"):
        source.image(0)


def test_pictures_with_transparency_are_of_four_channels_and_the_first_that_can_be_read_decides(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"damaged")
    Image.fromarray(BANDS[0, :, :, :4], "RGBA").save(tmp_path / "1.png")
    check_channels(open_source(str(tmp_path)), many(4))
    check_channels(open_source(str(tmp_path)), many(3))
    with pytest.raises(BadInput, match="expected pictures of 6 channels, as the model takes, got pixels of mode RGBA"):
        check_channels(open_source(str(tmp_path)), many(6))


def test_random_weights_see_another_picture_in_each_channel() -> None:
    train = built_in("train")
    source = with_channels(train, 4)
    picture = np.asarray(source.picture(990))
    assert picture.shape == (28, 28, 4)
    assert len({picture[..., channel].tobytes() for channel in range(4)}) == 4
    np.testing.assert_array_equal(picture[..., 0], np.asarray(train.image(990)))
    assert source.labels is None
