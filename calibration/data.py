"""Sources of images: folders, array files, IDX files, the built-in images; with labels where they are known."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.array_files import open_array_file
from calibration.folders import SHOWN, counts_by_suffix, files_below, folders_in, suffix_of
from calibration.order import order_evenly
from calibration.picture_readers import FilePictures, ReadPicture, StackedPictures, chosen_pictures
from calibration.splits import check_no_splits
from calibration.storage import is_url, kind_of, without_file_scheme
from runtimes.errors import BadInput
from runtimes.picture_file import ARRAY_SUFFIX, IMAGE_SUFFIXES, Picture
from runtimes.preprocess import Preprocess
from runtimes.printable import as_text

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)  # README of github.com/zalandoresearch/fashion-mnist, "Labels"

Split = Literal["train", "test"]
IDX_NAMES: dict[Split, str] = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}


@dataclass(frozen=True)
class ImageSource:
    """Pictures in a fixed order, decoded one at a time. Pickled, it tells where they are and holds none of them.

    Attributes:
        name: what a user would call it.
        count: how many pictures.
        picture: decode the picture at a place, 0 <= place < count, whatever its channels; raises BadInput if it cannot
            be read.
        labels: class indices, int64 (count,), where they are known.
        classes: class names, where they are known.
        names: the pictures' paths below the given folder, with slashes; None for other sources.
        left_out: what is ignored in a folder, in words: files that are no pictures, class folders without pictures.
    """

    name: str
    count: int
    picture: ReadPicture = field(repr=False)
    labels: NDArray[np.int64] | None = field(default=None, repr=False)
    classes: tuple[str, ...] | None = field(default=None, repr=False)
    names: tuple[str, ...] | None = field(default=None, repr=False)
    left_out: tuple[str, ...] = ()

    def image(self, place: int) -> Image.Image:
        """The picture at a place, in grey or colour.

        Raises:
            BadInput: it cannot be read, or has other channels.
        """
        found = self.picture(place)
        if not isinstance(found, Image.Image):
            raise BadInput(f"{self.name}: expected pictures in grey or colour, got {found.shape[2]} channels")
        return found

    def name_of(self, place: int) -> str:
        """What a user would call the picture at a place: its path below the folder, or `pictures.npz 17`."""
        return f"{PurePath(self.name).name} {place}" if self.names is None else self.names[place]

    def subset(self, places: NDArray[np.int64]) -> ImageSource:
        """The pictures at these places, in their order."""
        return replace(
            self,
            count=len(places),
            picture=chosen_pictures(self.picture, places),
            labels=None if self.labels is None else self.labels[places],
            names=None if self.names is None else tuple(self.names[place] for place in places),
        )


def open_source(data: str, *, split: Split = "train") -> ImageSource:
    """The pictures that `--data` names.

    `built-in`; a folder of pictures, or of `.npy` files (uint8, (height, width, channels)); a folder whose subfolders
    are classes; an `.npz` with `images` (uint8, (n, height, width) or (n, height, width, channels)) and perhaps
    `labels`; an `.npy` file of images; an IDX file of images, or a folder with Fashion-MNIST's four.

    Args:
        split: which images of those that come as training and test images: the built-in ones, and a folder with
            Fashion-MNIST's files.

    Raises:
        BadInput: there is nothing of the kind; says what was looked for. Or it is the folder above `train` and `val`,
            which are no classes.
    """
    if data == "built-in":
        return built_in(split)
    if not data.strip():
        raise BadInput(
            "expected something for --data, got nothing; name a folder of pictures, an .npz, an IDX file, or built-in"
        )
    where = without_file_scheme(data)
    where = where.rstrip("/") if is_url(where) else str(Path(where))
    kind = kind_of(where)
    if kind == "folder":
        return _source_from_folder(where, files_below(where), split)
    if kind == "nothing":
        raise BadInput(f"--data: {where} does not exist; give a folder of pictures, an .npz, an IDX file, or built-in")
    if suffix_of(where) in IMAGE_SUFFIXES:
        raise BadInput(
            f"--data: expected a folder of pictures, got the picture {where}; name the folder that it lies in"
        )
    return _source_from_array_file(where)


def choose_evenly(source: ImageSource, count: int, seed: int) -> NDArray[np.int64]:
    """Choose `count` pictures (all, if there are fewer), the same number from each class as far as possible.

    Returns:
        their places, int64, ascending; the same for the same seed.
    """
    return np.sort(order_evenly(source.count, source.labels, seed)[:count])


def check_channels(source: ImageSource, preprocess: Preprocess) -> None:
    """Refuse pictures of other channels than the model's, judged by the first that can be read.

    Raises:
        BadInput: says what the model takes, and how to give that.
    """
    for place in range(source.count):
        try:
            picture = source.picture(place)
        except BadInput:
            continue  # counted and named where the pictures are read
        try:
            preprocess.check(picture)
        except BadInput as error:
            raise BadInput(f"{source.name}: {error}") from error
        return


def _source_from_folder(folder: str, files: Sequence[str], split: Split) -> ImageSource:
    if images := _idx_images(folder, files, split):
        return _source_from_array_file(images)
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    if not any(suffix_of(file) in suffixes for file in files):
        suffixes = (ARRAY_SUFFIX,)  # beside pictures, arrays are something else: labels, say
    pictures = tuple(file for file in files if suffix_of(file) in suffixes)
    others = counts_by_suffix(file for file in files if suffix_of(file) not in suffixes)
    if not pictures:
        raise BadInput(
            f"--data: {folder} holds no pictures; expected files such as {', '.join(IMAGE_SUFFIXES[:3])}, or "
            f"{ARRAY_SUFFIX} for other channels, in it or in a subfolder for each class, got {others or 'none'}"
        )
    names = tuple(map(as_text, pictures))
    check_no_splits({name.split("/", 1)[0] for name in names if "/" in name}, folder, "--data")
    left_out = (f"{folder}: {others}, which are no pictures",) if others else ()
    own = names if names == pictures else pictures  # one tuple in memory, and once in a pickle
    source = ImageSource(folder, len(names), FilePictures(folder, own), names=names, left_out=left_out)
    if any("/" not in name for name in names):
        return source
    parents = [name.split("/", 1)[0] for name in names]
    classes = tuple(sorted(set(parents)))
    numbers = {name: number for number, name in enumerate(classes)}
    empty = sorted(set(map(as_text, folders_in(folder, files))) - set(classes))
    if empty:
        some = ", ".join(empty[:SHOWN]) + (", ..." if len(empty) > SHOWN else "")
        left_out = (*left_out, f"{folder}: {len(empty)} class folder{'s' * (len(empty) > 1)} without a picture: {some}")
    return replace(
        source, labels=np.array([numbers[parent] for parent in parents], np.int64), classes=classes, left_out=left_out
    )


def _idx_images(folder: str, files: Sequence[str], split: Split) -> str | None:
    """The IDX file with the images of `split`; None if the folder has no such files."""
    found = {
        part: [file for file in files if file.startswith(name) and "/" not in file] for part, name in IDX_NAMES.items()
    }
    if any(found.values()) and not found[split]:
        other = next(filter(None, found.values()))[0]
        raise BadInput(f"--data: expected {IDX_NAMES[split]} in {folder}, got only {other}; add it, or name a file")
    return f"{folder}/{found[split][0]}" if found[split] else None


def _source_from_array_file(where: str) -> ImageSource:
    pictures, labels = open_array_file(where)
    return ImageSource(where, pictures.shape[0], pictures, labels)


@functools.cache
def built_in(split: Split) -> ImageSource:
    """The images that ship with the package: part of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747;
    MIT).

    1,000 training images (100 of each class) or the first 2,000 test images; grey, 28 x 28 pixels.
    """
    images, labels = _built_in_arrays(split)
    picture = functools.partial(_built_in_picture, split)
    return ImageSource(f"built-in ({split})", len(images), picture, labels.astype(np.int64), FASHION_MNIST_CLASSES)


@functools.cache
def _built_in_arrays(split: Split) -> tuple[NDArray[Any], NDArray[Any]]:
    # A Traversable that is a path, since wheels are unpacked.
    with np.load(files("calibration") / "assets" / "fashion_mnist.npz") as archive:  # type: ignore[arg-type]
        return archive[f"{split}_images"], archive[f"{split}_labels"]


def _built_in_picture(split: Split, place: int) -> Picture:
    return Image.fromarray(_built_in_arrays(split)[0][place])


def with_channels(source: ImageSource, channels: int) -> ImageSource:
    """Make pictures of `channels` channels, each channel a different picture of a grey source of one size.

    They show nothing real, so they have no labels; but a model that mixes channels up is found out.
    """
    return ImageSource(source.name, source.count, StackedPictures(source.image, source.count, channels))


def inputs_from_source(source: ImageSource, preprocess: Preprocess, count: int) -> NDArray[np.float32]:
    """The first `count` pictures as the model's input, float32 (count, channels, height, width).

    Raises:
        BadInput: one cannot be read, or has other channels than the model.
    """
    return np.stack([preprocess(source.picture(place)) for place in range(min(count, source.count))])
