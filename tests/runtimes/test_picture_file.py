"""A file that calls itself a picture is read in the formats of photographs: bounded, upright, and in silence."""

from __future__ import annotations

import io
import re
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from calibration.data import open_source
from runtimes.errors import BadInput
from runtimes.picture_file import IMAGE_SUFFIXES, open_image, open_picture

LYING = Image.new("RGB", (40, 30), (9, 99, 200))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 10 10 rectfill\nshowpage\n"


def test_no_program_is_started_for_what_calls_itself_a_photograph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "photo.jpg").write_bytes(EPS)
    with pytest.raises(BadInput, match=r"cannot read the picture .*photo\.jpg: it is damaged, or none of JPEG, PNG"):
        open_image(tmp_path / "photo.jpg")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", ["PCX", "SGI", "ICO", "TGA", "PDF"])
def test_formats_that_photographs_do_not_come_in_are_not_read(kind: str, tmp_path: Path) -> None:
    LYING.save(tmp_path / "photo.jpg", kind)
    with pytest.raises(BadInput, match="it is damaged, or none of JPEG, PNG, WEBP, TIFF, BMP"):
        open_image(tmp_path / "photo.jpg")


@pytest.mark.parametrize("turn", [str.lower, str.upper], ids=["lower", "upper"])
def test_every_suffix_is_that_of_a_format_that_is_read(turn: Callable[[str], str], tmp_path: Path) -> None:
    Image.init()
    for suffix in IMAGE_SUFFIXES:
        kind = Image.EXTENSION[suffix]
        if kind in Image.SAVE:  # not every build of Pillow writes AVIF
            LYING.save(tmp_path / f"{suffix[1:]}{turn(suffix)}", kind)
    source = open_source(str(tmp_path))
    assert source.count == len(list(tmp_path.iterdir())) > 15
    assert {source.image(place).size for place in range(source.count)} == {(40, 30)}
    assert source.left_out == ()
    assert set(IMG_EXTENSIONS) <= set(IMAGE_SUFFIXES)


# --- metadata ---


def exif_of(*entries: bytes, count: int | None = None) -> bytes:
    """An EXIF block with these entries, and the turn to the right ahead of them."""
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    return (
        b"Exif\0\0II*\0\x08\0\0\0"
        + struct.pack("<H", len(entries) + 1 if count is None else count)
        + turned
        + b"".join(entries)
        + bytes(4)
    )


def entry(tag: int, kind: int, count: int, value: bytes | int) -> bytes:
    return struct.pack("<HHI", tag, kind, count) + (value if isinstance(value, bytes) else struct.pack("<I", value))


DAMAGED = {
    "a resolution in letters": exif_of(entry(0x011A, 2, 3, b"72\0\0")),
    "a resolution of nothing": exif_of(entry(0x011A, 5, 1, 0)),
    "a maker's name far behind the end": exif_of(entry(0x010F, 2, 999, 1 << 20)),
    "a count of entries beyond the end": exif_of(count=500),
    "cut in its second entry": exif_of(entry(0x011A, 5, 1, 26))[:-8],
    "a type that nobody knows": exif_of(entry(0x013B, 77, 4, 8)),
    "a sub-directory nowhere": exif_of(entry(0x8769, 4, 1, 1 << 24)),
    "a sub-directory in itself": exif_of(entry(0x8769, 4, 1, 8)),
    "a sub-directory that is a text": exif_of(entry(0x8769, 2, 3, b"no\0\0")),
    "places in letters": exif_of(entry(0x8825, 2, 3, b"no\0\0")),
    "text that is not ASCII": exif_of(entry(0x013B, 2, 4, b"\xff\xfe\xfd\0")),
    "two values for one": exif_of(entry(0x0100, 3, 2, 7)),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_a_photograph_is_turned_upright_whatever_else_its_exif_holds(
    kind: str, damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    LYING.save(tmp_path / f"photo.{kind}", exif=DAMAGED[damage])
    assert open_image(tmp_path / f"photo.{kind}").size == (30, 40)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II", b"Exif\0\0no EXIF at all", b"Exif\0\0MM\0*\xff\xff\xff\xff"], ids=str
)
def test_where_there_is_no_exif_to_read_the_picture_is_taken_as_it_lies(exif: bytes, kind: str, tmp_path: Path) -> None:
    LYING.save(tmp_path / f"photo.{kind}", exif=exif)
    assert open_image(tmp_path / f"photo.{kind}").size == (40, 30)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    "exif",
    [b"", b"Exif\0\0no EXIF at all", exif_of().replace(b"\x12\x01", b"\x13\x01")],
    ids=["alone", "beside damaged EXIF", "beside other EXIF"],
)
def test_an_orientation_in_xmp_counts(exif: bytes, tmp_path: Path) -> None:
    plain = io.BytesIO()
    LYING.save(plain, "JPEG", exif=exif)
    packet = b"http://ns.adobe.com/xap/1.0/\0" + XMP
    start = plain.getvalue()
    (tmp_path / "photo.jpg").write_bytes(
        start[:2] + b"\xff\xe1" + struct.pack(">H", len(packet) + 2) + packet + start[2:]
    )
    assert open_image(tmp_path / "photo.jpg").size == (30, 40)


@pytest.mark.parametrize(
    "entries",
    [b"", entry(0xB001, 4, 1, 2), entry(0xB001, 2, 2, b"2\0\0\0"), b"\xff" * 12],
    ids=["no", "a count", "text", "no entry"],
)
def test_a_photograph_whose_further_pictures_are_damaged_is_read(entries: bytes, tmp_path: Path) -> None:
    plain = io.BytesIO()
    LYING.save(plain, "JPEG", exif=exif_of())
    index = b"MPF\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries) // 12) + entries + bytes(4)
    start = plain.getvalue()
    (tmp_path / "photo.jpg").write_bytes(
        start[:2] + b"\xff\xe2" + struct.pack(">H", len(index) + 2) + index + start[2:]
    )
    assert open_image(tmp_path / "photo.jpg").size == (30, 40)


def test_of_several_photographs_in_one_file_the_first_is_read(tmp_path: Path) -> None:
    LYING.save(tmp_path / "both.mpo", save_all=True, append_images=[Image.new("RGB", (10, 10))])
    opened = open_image(tmp_path / "both.mpo")
    assert opened.size == (40, 30)
    np.testing.assert_allclose(np.asarray(opened)[0, 0], [9, 99, 200], atol=2)  # a JPEG's


def test_a_profile_of_broken_hexadecimal_in_a_png_is_passed_over(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n  10\nno hexadecimal")
    LYING.save(tmp_path / "photo.png", pnginfo=info)
    assert open_image(tmp_path / "photo.png").size == (40, 30)


# --- what Pillow and its libraries say ---


def damaged_tiffs(folder: Path) -> list[Path]:
    chance, paths = np.random.default_rng(0), []
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        whole = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (32, 32, 3), np.uint8)).save(whole, "TIFF", compression=compression)
        for place in range(30):
            damaged = np.frombuffer(whole.getvalue(), np.uint8).copy()
            damaged[chance.integers(8, len(damaged), 20)] = chance.integers(0, 256, 20)
            paths.append(folder / f"{compression}-{place}.tif")
            paths[-1].write_bytes(damaged.tobytes())
    return paths


@pytest.mark.parametrize("action", ["error", "always"])
def test_damaged_pictures_are_read_or_refused_without_a_word_of_pillow_or_libtiff(
    action: Literal["error", "always"], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refused = []
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        for path in damaged_tiffs(tmp_path):
            try:
                open_image(path)
            except BadInput as error:
                refused.append(str(error).replace(str(path), "PATH"))
    assert len(refused) > 20
    assert all("PATH" in said and "\n" not in said for said in refused)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "kind", [SyntaxError, struct.error, zlib.error, OverflowError, ValueError, MemoryError, KeyError, RecursionError]
)
def test_whatever_a_decoder_raises_the_picture_is_named_in_one_line(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(image: object) -> None:
        raise kind(*() if kind is MemoryError else ("a broken\n  stream",))

    LYING.save(tmp_path / "photo.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", failing)
    with pytest.raises(BadInput, match=r"^cannot read the picture .*photo\.png: .*(a broken.* stream|MemoryError)'?$"):
        open_image(tmp_path / "photo.png")


# --- bombs ---


def png_of(width: int, height: int) -> bytes:
    """A grey PNG that says it has this size; its pixels are cut short."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_a_picture_of_more_pixels_than_any_camera_takes_is_refused_before_they_are_in_memory(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of(60_000, 60_000))
    (tmp_path / "strip.png").write_bytes(png_of(100_000_000, 1))
    jpeg = io.BytesIO()
    LYING.save(jpeg, "JPEG")
    (tmp_path / "bomb.jpg").write_bytes(
        jpeg.getvalue().replace(struct.pack(">HH", 30, 40), struct.pack(">HH", 60_000, 60_000))
    )
    tracemalloc.start()
    for name, said in (
        ("bomb.png", "decompression bomb"),
        ("bomb.jpg", "it has 60000x60000 pixels, and more than 178,956,970 are not read"),
        ("strip.png", "it has 100000000x1 pixels, and no side of more than 1,048,576 is read; cut it"),
    ):
        with pytest.raises(BadInput, match=rf"cannot read the picture .*{re.escape(name)}.*{said}"):
            open_image(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


# --- other channels ---


def test_an_array_is_a_picture_of_its_channels(tmp_path: Path) -> None:
    bands = np.arange(2 * 3 * 13, dtype=np.uint8).reshape(2, 3, 13)
    for channels in (2, 4, 13):
        np.save(tmp_path / "a.npy", bands[..., :channels])
        np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / "a.npy")), bands[..., :channels])
    for array, mode in ((bands[..., :3], "RGB"), (bands[..., :1], "L"), (bands[..., 0], "L")):
        np.save(tmp_path / "a.npy", array)
        found = open_picture(tmp_path / "a.npy")
        assert isinstance(found, Image.Image)
        assert found.mode == mode
        np.testing.assert_array_equal(np.asarray(found), array.squeeze())


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 3, 4)), np.zeros((2, 3, 4, 5), np.uint8), np.zeros((0, 3, 4), np.uint8)],
    ids=lambda one: str(one.shape),
)
def test_an_array_of_something_else_is_no_picture(array: NDArray[Any], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(BadInput, match=r"a\.npy: expected an array of uint8 \(height, width, channels\), got"):
        open_picture(tmp_path / "a.npy")
