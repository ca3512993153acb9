"""Six pictures with labels, IDX files of arrays, and folders of classes: what `--data` is given."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.data import ImageSource

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2])


def idx_from_array(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 0x08, array.ndim, *array.shape) + array.tobytes()


def pictures(source: ImageSource) -> NDArray[np.uint8]:
    return np.stack([np.asarray(source.image(place)) for place in range(source.count)])


def tree(folder: Path) -> Path:
    """Two classes of a picture each."""
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(PIXELS[0]).save(folder / name / "one.png")
    return folder
