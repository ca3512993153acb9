"""Files that hold many pictures as one array: `.npz`, `.npy`, IDX; on a disk or, by a URL, on shared storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.folders import suffix_of
from calibration.idx import read_idx
from calibration.picture_readers import ArrayPictures
from calibration.storage import kind_of, local_file
from runtimes.arrays import array_from_npy, arrays_from_npz
from runtimes.errors import BadInput
from runtimes.picture_file import ARRAY_SUFFIX

IDX_IMAGES, IDX_LABELS = "images-idx3", "labels-idx1"


class ArrayFile(NamedTuple):
    """The pictures of a file, and their labels, int64 (pictures,); None where they are not known."""

    pictures: ArrayPictures
    labels: NDArray[np.int64] | None


def open_array_file(where: str) -> ArrayFile:
    """Read the pictures and perhaps labels of a file.

    Raises:
        BadInput: it cannot be read, or does not hold pictures, uint8 (n, height, width) or (n, height, width,
            channels), and a label for each.
        StorageUnavailable: the storage cannot be read.
    """
    suffix = suffix_of(where)
    if suffix == ".npz":
        arrays = _arrays_of_npz(where)
        return _array_file(where, _images_of_npz, arrays["images"], arrays.get("labels"))
    if suffix == ARRAY_SUFFIX:
        return _array_file(where, _array_of_npy, _array_of_npy(where), None)
    images = _array_of_idx(where)
    if images.ndim != 3:
        raise BadInput(f"{where}: expected images of shape (n, height, width), got {images.shape}")
    folder, slash, name = where.rpartition("/")
    beside = folder + slash + name.replace(IDX_IMAGES, IDX_LABELS)
    labels = _array_of_idx(beside) if beside != where and kind_of(beside) == "file" else None
    return _array_file(where, _array_of_idx, images, labels)


def _images_of_npz(where: str) -> NDArray[Any]:
    return _arrays_of_npz(where)["images"]


def _arrays_of_npz(where: str) -> dict[str, NDArray[Any]]:
    with local_file(where) as path:
        try:
            return arrays_from_npz(path, ("images",), ("labels",))
        except ValueError as error:
            raise BadInput(f"--data: cannot read {where}: {error}") from error


def _array_of_npy(where: str) -> NDArray[Any]:
    with local_file(where) as path:
        try:
            return array_from_npy(path)
        except ValueError as error:
            raise BadInput(f"--data: cannot read {where}: {error}") from error


def _array_of_idx(where: str) -> NDArray[Any]:
    with local_file(where) as path:
        return read_idx(path, where)


def _array_file(
    name: str, read: Callable[[str], NDArray[Any]], images: NDArray[Any], labels: NDArray[Any] | None
) -> ArrayFile:
    _check_arrays(name, images, labels)
    pictures = ArrayPictures(name, read, images.shape, [images])
    return ArrayFile(pictures, None if labels is None else labels.astype(np.int64))


def _check_arrays(name: str, images: NDArray[Any], labels: NDArray[Any] | None) -> None:
    channels_first = images.ndim == 4 and images.shape[1] in (1, 3)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or channels_first:
        kept = "expected 'images' of uint8 (n, height, width) or (n, height, width, channels)"
        raise BadInput(
            f"{name}: {kept}, got images {images.dtype} {images.shape}; "
            f"{'transpose them' if channels_first else 'scale them to 0..255'}"
        )
    if images.size == 0:
        raise BadInput(f"{name} holds no pictures, or empty ones: images of shape {images.shape}")
    if labels is not None and labels.shape != images.shape[:1]:
        raise BadInput(f"{name}: expected a label for each of {len(images)} images, got labels of shape {labels.shape}")
    if labels is not None and (labels.dtype.kind not in "iu" or labels.min() < 0):
        raise BadInput(
            f"{name}: expected labels of whole numbers, not negative, got {', '.join(map(str, labels[:3]))}, ... "
            f"({labels.dtype})"
        )
