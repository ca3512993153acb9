"""Picture files for the line from files: the user's own, or some that are as large as a photograph for the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.data import ImageSource, built_in, check_channels, open_source
from calibration.folders import suffix_of
from calibration.picture_readers import FilePictures
from calibration.storage import is_url
from runtimes.bundle import Bundle
from runtimes.errors import BadInput
from runtimes.picture_file import ARRAY_SUFFIX
from runtimes.preprocess import Preprocess

COUNT, MOST = 32, 256
QUALITY = 90
LARGER = 1.5
"""Times the side that the model resizes to: ImageNet's photographs have 400 x 350 pixels on average, and are resized to
256 (Russakovsky et al. 2015, arXiv 1409.0575)."""


@dataclass(frozen=True)
class PictureFiles:
    """Files of pictures, and what they are in words."""

    paths: tuple[Path, ...]
    what: str


def picture_files(bundle: Bundle, data: str | None, folder: Path) -> PictureFiles:
    """The first pictures of `data`, or mosaics of the built-in ones; written into `folder` where they are no files yet.

    Raises:
        BadInput: `data` cannot be read, or its pictures do not fit the model.
    """
    if data is None:
        return _made(bundle.manifest.preprocess, folder)
    source = open_source(data, split="test")
    check_channels(source, bundle.manifest.preprocess)
    paths, sizes = [], []
    for place in range(min(source.count, MOST)):
        try:
            picture = source.picture(place)
        except BadInput:
            continue
        paths.append(_file_of(source, place, folder) or _write(picture, folder / f"{place}"))
        sizes.append(picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1])
    if not paths:
        raise BadInput(f"--data: {data} holds no picture that can be read; give another")
    width, height = np.median(np.array(sizes), axis=0).astype(int)
    kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1e3
    return PictureFiles(
        tuple(paths), f"{len(paths)} of {data}, {width}x{height} pixels and {kilobytes:.0f} kB at the middle"
    )


def _file_of(source: ImageSource, place: int, folder: Path) -> Path | None:
    """The file of a picture, or a copy in `folder` of one on storage; None where it has no file of its own."""
    pictures = source.picture
    if not isinstance(pictures, FilePictures):
        return None
    if not is_url(pictures.folder):
        return Path(pictures.folder, pictures.files[place])
    copy = folder / f"{place}{suffix_of(pictures.files[place])}"
    copy.write_bytes(pictures.content(place))
    return copy


def _made(preprocess: Preprocess, folder: Path) -> PictureFiles:
    """JPEG files of colour noise and edges: tiles of the built-in pictures, so that they take as long to decode as a
    photograph's details do."""
    height = round(LARGER * _shorter_side(preprocess))
    width = round(4 / 3 * height)
    paths = [_write(_mosaic(place, height, width, preprocess.channels), folder / f"{place}") for place in range(COUNT)]
    kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1e3
    kind = paths[0].suffix.removeprefix(".").replace("jpg", "JPEG")
    return PictureFiles(
        tuple(paths),
        f"{COUNT} {kind} files of {width}x{height} pixels and {kilobytes:.0f} kB, mosaics of the built-in pictures",
    )


def _shorter_side(preprocess: Preprocess) -> int:
    if preprocess.resize is None:
        return min(preprocess.crop)
    return preprocess.resize if isinstance(preprocess.resize, int) else min(preprocess.resize)


def _mosaic(seed: int, height: int, width: int, channels: int) -> Image.Image | NDArray[np.uint8]:
    source, random = built_in("test"), np.random.default_rng(seed)
    side = source.image(0).height
    rows, columns = -(-height // side), -(-width // side)

    def plane() -> NDArray[np.uint8]:
        tiles = [
            np.hstack([np.asarray(source.image(int(random.integers(source.count)))) for _ in range(columns)])
            for _ in range(rows)
        ]
        return np.vstack(tiles)[:height, :width]

    pixels = np.dstack([plane() for _ in range(channels)])
    if channels in (1, 3):
        return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return pixels


def _write(picture: Image.Image | NDArray[np.uint8], path: Path) -> Path:
    if isinstance(picture, Image.Image):
        path = path.with_suffix(".jpg")
        picture.convert("L" if picture.mode in ("1", "L") else "RGB").save(path, quality=QUALITY)
    else:
        path = path.with_suffix(ARRAY_SUFFIX)
        np.save(path, picture)
    return path
