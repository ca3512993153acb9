"""Read a picture file: the formats of photographs, up to a bounded size; upright, in eight bits."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import re
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, UnidentifiedImageError, _imaging

from runtimes.arrays import array_from_bytes, array_from_npy, check_growth
from runtimes.errors import BadInput

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "PPM", "GIF", "AVIF", "JPEG2000")
"""The formats that are read, by Pillow's names, whatever a file is called. Pillow knows thirty more, and starts a
program for some of them (Ghostscript for EPS)."""
IMAGE_SUFFIXES = (
    *(
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jpe",
        ".jfif",
        ".mpo",
        ".apng",
    ),
    *(".dib", ".gif", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
)
"""Suffixes of such files, in lower case."""
ARRAY_SUFFIX = ".npy"
Picture = Image.Image | NDArray[np.uint8]
"""Grey or colour; or, of any other number of channels, uint8 (height, width, channels)."""
MOST_PIXELS = 178_956_970
"""13,377 x 13,377. A larger picture Pillow takes for a decompression bomb."""
MOST_GROWTH = 400
"""A picture of more than 64 MiB of pixels may be so many times as large as its file. Photographs are ten to a hundred
times as large; black ones as a JPEG 230 times, where nothing was made to deceive."""
LONGEST_SIDE = 1 << 20
"""In pixels. A JPEG has 65,535 at most; to shrink a longer side, Pillow would need gigabytes of filter weights."""
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
JPEG_START = b"\xff\xd8"
ORIENTATION = 0x0112  # Exif 2.3, "Orientation"
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(path: Path) -> Picture:
    """Read a picture as `open_image` does, or from an `.npy` file an array of any number of channels.

    Raises:
        BadInput: the file is missing, no picture that Pillow reads, too large, or no array of uint8 (height, width,
            channels).
    """
    if path.suffix.lower() != ARRAY_SUFFIX:
        return open_image(path)
    return _picture_of_array(lambda: array_from_npy(path), path)


def picture_from_bytes(data: bytes, name: str) -> Picture:
    """Read a picture as `open_picture` does, from the content of the file of that name.

    Raises:
        BadInput: as `open_picture`.
    """
    if name.lower().endswith(ARRAY_SUFFIX):
        return _picture_of_array(lambda: array_from_bytes(data), name)
    return _plain_image(lambda: _decode(io.BytesIO(data), is_jpeg=data.startswith(JPEG_START)), name)


def _picture_of_array(read: Callable[[], NDArray[Any]], name: str | Path) -> Picture:
    try:
        array = read()
    except ValueError as error:
        raise BadInput(f"cannot read the array {name}: {error}") from error
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.size == 0:
        raise BadInput(
            f"{name}: expected an array of uint8 (height, width, channels), got {array.dtype} {array.shape}; scale the "
            "values to 0..255"
        )
    return picture_from_array(array)


def picture_from_array(array: NDArray[np.uint8]) -> Picture:
    """Pixels (height, width) or (height, width, channels) as a picture, grey or in colour where they can be one."""
    if array.ndim == 3 and array.shape[2] not in (1, 3):
        return array
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def open_image(path: Path) -> Image.Image:
    """Read the picture in a file, upright (EXIF) and in eight bits; of several in one file, the first.

    Only the orientation of the metadata is used: if the rest is damaged, so that Pillow warns or fails, the picture is
    read all the same.

    Raises:
        BadInput: the file is missing, is no picture that Pillow reads, or holds more than MOST_PIXELS or a side of more
            than LONGEST_SIDE.
    """
    return _plain_image(lambda: _decoded_file(path), path)


def _plain_image(decode: Callable[[], Image.Image], name: str | Path) -> Image.Image:
    """What `decode` gives, in eight bits; `name` is for messages."""
    try:
        image = decode()
        if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips at 255 instead of scaling
            levels = (np.arange(1 << 16) / 257).round().astype(np.uint8)
            image = Image.fromarray(levels[np.asarray(image).clip(0, (1 << 16) - 1)])
    except UnidentifiedImageError as error:
        raise BadInput(f"cannot read the picture {name}: it is damaged, or none of {', '.join(FORMATS)}") from error
    except Exception as error:
        # a decoder raises whatever it stumbles over: OSError, SyntaxError, ValueError, RuntimeError, MemoryError
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadInput(f"cannot read the picture {name}: {' '.join(said.split()) or type(error).__name__}") from error
    if image.mode not in MODES:
        raise BadInput(
            f"{name}: expected whole numbers in grey or colour, got pixels of mode {image.mode}; save it as a PNG"
        )
    return image


def _decoded_file(path: Path) -> Image.Image:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for without end
        raise OSError("it is a folder; name the pictures in it" if path.is_dir() else "it is no file")
    with path.open("rb") as file:
        is_jpeg = file.read(len(JPEG_START)) == JPEG_START
    return _decode(path, is_jpeg=is_jpeg)


def _decode(source: Path | io.BytesIO, *, is_jpeg: bool) -> Image.Image:
    _silence_warnings()
    # Pillow looks for further pictures behind a JPEG (MPO), and fails where what tells of them is damaged.
    with JpegImagePlugin.JpegImageFile(source) if is_jpeg else Image.open(source, formats=_formats()) as opened:
        if opened.width * opened.height > MOST_PIXELS:
            raise ValueError(
                f"it has {opened.width}x{opened.height} pixels, and more than {MOST_PIXELS:,} are not read; make it "
                "smaller"
            )
        if max(opened.size) > LONGEST_SIDE:
            raise ValueError(
                f"it has {opened.width}x{opened.height} pixels, and no side of more than {LONGEST_SIDE:,} is read; cut "
                "it"
            )
        check_growth(opened.width * opened.height * _bytes_of_pixel(opened), _size_of(source), MOST_GROWTH)
        opened.load()
        turn = TURNS.get(_orientation(opened))
        if turn is not None:
            image: Image.Image = opened.transpose(turn)
        else:
            # Other formats than JPEG may read further frames from the file, which is closed here.
            image = opened if is_jpeg else opened.copy()
    image.info.clear()  # unused, and Pillow warns of some transparencies on converting
    return image


def _bytes_of_pixel(image: Image.Image) -> int:
    """What Pillow takes for a pixel: four bytes for several channels, or for more than eight bits."""
    return 1 if image.mode in ("1", "L", "P") else 4


def _size_of(source: Path | io.BytesIO) -> int:
    return source.stat().st_size if isinstance(source, Path) else source.getbuffer().nbytes


def _orientation(opened: Image.Image) -> int:
    """The orientation by EXIF, or else by XMP, 1..8; 1 if neither has one, or they are damaged."""
    alone = Image.new("1", (1, 1))  # XMP without the EXIF, which Pillow may have found damaged
    if opened.format != "TIFF":  # Pillow turns those itself on loading
        alone.info = {name: value for name, value in opened.info.items() if "xmp" in str(name).lower()}
    for image in (opened, alone):
        try:
            found = image.getexif().get(ORIENTATION)
        except Exception:  # of metadata, as above
            continue
        if isinstance(found, int) and found in range(1, 9):
            return found
    return 1


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats of FORMATS that this Pillow reads. Also stops its loggers and its libtiff from writing to stderr:
    Pillow raises their errors."""
    Image.init()
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what it raises is printed, too
    with contextlib.suppress(AttributeError, OSError):  # where it is linked in such a way that it cannot be told
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _silence_warnings() -> None:
    """Ignore Pillow's warnings, which are mostly about metadata, for good.

    `warnings.catch_warnings` would end the filter again, but is not safe with threads, and pictures are decoded in
    several.
    """
    own = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if own != next(iter(warnings.filters), None):
        warnings.filterwarnings("ignore", module=r"PIL\.")
