"""How the pictures of a source are read: by place, and picklable without pixels, so that another process reads them.

What is pickled is where pictures lie. A process that unpickles it needs the same paths, or the same storage.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.storage import bytes_from_url, is_url
from runtimes.errors import BadInput
from runtimes.picture_file import Picture, open_picture, picture_from_array, picture_from_bytes

ReadPicture = Callable[[int], Picture]
"""Reads the picture at a place; raises BadInput if it cannot be read."""
CHANNELS_APART = 37


@dataclass(frozen=True)
class FilePictures:
    """Pictures in files of their own.

    Attributes:
        folder: the path or the URL of what they lie in.
        files: their paths below it, with slashes.
        given: the folder as messages name it; None names it by `folder`.
    """

    folder: str
    files: tuple[str, ...]
    given: str | None = None

    def __call__(self, place: int) -> Picture:
        try:
            return self._read(place)
        except BadInput as error:
            if self.given in (None, self.folder):
                raise
            raise BadInput(str(error).replace(self.folder, str(self.given))) from error

    def _read(self, place: int) -> Picture:
        if is_url(self.folder):
            return picture_from_bytes(self.content(place), f"{self.folder}/{self.files[place]}")
        return open_picture(Path(self.folder, self.files[place]))

    def content(self, place: int) -> bytes:
        """The file of the picture at a place, undecoded.

        Raises:
            OSError, BadInput: there is no such file any more.
            StorageUnavailable: the storage cannot be read.
        """
        file = self.files[place]
        return bytes_from_url(self.folder, file) if is_url(self.folder) else Path(self.folder, file).read_bytes()

    def __reduce__(self) -> tuple[Any, ...]:
        return FilePictures, (_from_anywhere(self.folder), self.files, self.given or self.folder)

    def chosen(self, places: NDArray[np.int64]) -> FilePictures:
        return FilePictures(self.folder, tuple(self.files[place] for place in places), self.given)


@dataclass(frozen=True)
class ArrayPictures:
    """Pictures in one file that holds them as an array; another process reads the file when it wants the first one.

    Attributes:
        where: the file's path or URL.
        read: reads its images, uint8 (n, height, width) or (n, height, width, channels); raises BadInput.
        shape: theirs.
    """

    where: str
    read: Callable[[str], NDArray[Any]]
    shape: tuple[int, ...]
    held: list[NDArray[Any]] = field(default_factory=list, repr=False, compare=False)
    lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def __call__(self, place: int) -> Picture:
        if not self.held:
            with self.lock:
                if not self.held:  # another thread may have read them by now
                    self.held.append(self._read())
        return picture_from_array(self.held[0][place])

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayPictures, (_from_anywhere(self.where), self.read, self.shape)

    def _read(self) -> NDArray[Any]:
        images = self.read(self.where)
        if images.shape != self.shape:
            raise BadInput(
                f"{self.where}: expected images of shape {self.shape}, as when it was opened, got {images.shape}; "
                "leave it alone meanwhile, and repeat"
            )
        return images


@dataclass(frozen=True)
class ChosenPictures:
    """Those of other pictures that are at these places, int64 (pictures,)."""

    picture: ReadPicture
    places: NDArray[np.int64]

    def __call__(self, place: int) -> Picture:
        return self.picture(int(self.places[place]))


@dataclass(frozen=True)
class StackedPictures:
    """Pictures of `channels` channels, each channel another one of `count` grey images of one size."""

    image: Callable[[int], Image.Image]
    count: int
    channels: int

    def __call__(self, place: int) -> Picture:
        places = ((place + CHANNELS_APART * channel) % self.count for channel in range(self.channels))
        return np.dstack([np.asarray(self.image(one)) for one in places])


def chosen_pictures(picture: ReadPicture, places: NDArray[np.int64]) -> ReadPicture:
    """Read those at these places only; of files, no others are named."""
    return picture.chosen(places) if isinstance(picture, FilePictures) else ChosenPictures(picture, places)


def _from_anywhere(where: str) -> str:
    """A path as a process finds it that works in another folder; a URL is as good anywhere."""
    return where if is_url(where) else os.path.abspath(where)
