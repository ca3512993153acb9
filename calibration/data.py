"""Sources of images: folders, array files, IDX files, the built-in images; with labels where they are known."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.folders import SHOWN, counts_by_suffix, files_below
from calibration.idx import read_idx
from calibration.order import order_evenly
from calibration.picture_readers import ArrayPictures, FilePictures, ReadPicture, StackedPictures, chosen_pictures
from calibration.splits import check_no_splits
from runtimes.arrays import array_from_npy, arrays_from_npz
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
    path = Path(data)
    if path.is_dir():
        found = {part: sorted(path.glob(f"{name}*")) for part, name in IDX_NAMES.items()}
        if any(found.values()) and not found[split]:
            raise BadInput(
                f"--data: expected {IDX_NAMES[split]} in {path}, got only "
                f"{next(filter(None, found.values()))[0].name}; add it, or name a file"
            )
        return _source_from_idx(found[split][0]) if found[split] else _source_from_folder(path)
    if not path.exists():
        raise BadInput(f"--data: {path} does not exist; give a folder of pictures, an .npz, an IDX file, or built-in")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise BadInput(
            f"--data: expected a folder of pictures, got the picture {path}; name the folder that it lies in"
        )
    readers = {".npz": _source_from_npz, ARRAY_SUFFIX: _source_from_npy}
    return readers.get(path.suffix.lower(), _source_from_idx)(path)


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


def _source_from_folder(folder: Path) -> ImageSource:
    files = list(files_below(folder))
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    if not any(path.suffix.lower() in suffixes for path in files):
        suffixes = (ARRAY_SUFFIX,)  # beside pictures, arrays are something else: labels, say
    paths = sorted(path for path in files if path.suffix.lower() in suffixes)
    others = counts_by_suffix(path for path in files if path.suffix.lower() not in suffixes)
    if not paths:
        raise BadInput(
            f"--data: {folder} holds no pictures; expected files such as {', '.join(IMAGE_SUFFIXES[:3])}, or "
            f"{ARRAY_SUFFIX} for other channels, in it or in a subfolder for each class, got {others or 'none'}"
        )
    below = tuple(path.relative_to(folder).as_posix() for path in paths)
    names = tuple(map(as_text, below))
    check_no_splits({name.split("/", 1)[0] for name in names if "/" in name}, folder, "--data")
    left_out = (f"{folder}: {others}, which are no pictures",) if others else ()
    source = ImageSource(str(folder), len(paths), FilePictures(folder, below), names=names, left_out=left_out)
    if any("/" not in name for name in names):
        return source
    parents = [name.split("/", 1)[0] for name in names]
    classes = tuple(sorted(set(parents)))
    numbers = {name: number for number, name in enumerate(classes)}
    empty = sorted(
        {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")} - set(classes)
    )
    if empty:
        some = ", ".join(empty[:SHOWN]) + (", ..." if len(empty) > SHOWN else "")
        left_out = (*left_out, f"{folder}: {len(empty)} class folder{'s' * (len(empty) > 1)} without a picture: {some}")
    return replace(
        source, labels=np.array([numbers[parent] for parent in parents], np.int64), classes=classes, left_out=left_out
    )


def _source_from_npz(path: Path) -> ImageSource:
    arrays = _arrays_of_npz(path)
    return _source_from_arrays(path, _images_of_npz, arrays["images"], arrays.get("labels"))


def _images_of_npz(path: Path) -> NDArray[Any]:
    return _arrays_of_npz(path)["images"]


def _arrays_of_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return arrays_from_npz(path, ("images",), ("labels",))
    except ValueError as error:
        raise BadInput(f"--data: cannot read {path}: {error}") from error


def _source_from_npy(path: Path) -> ImageSource:
    return _source_from_arrays(path, _images_of_npy, _images_of_npy(path), None)


def _images_of_npy(path: Path) -> NDArray[Any]:
    try:
        return array_from_npy(path)
    except ValueError as error:
        raise BadInput(f"--data: cannot read {path}: {error}") from error


def _source_from_idx(path: Path) -> ImageSource:
    images = read_idx(path)
    if images.ndim != 3:
        raise BadInput(f"{path}: expected images of shape (n, height, width), got {images.shape}")
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    labels = read_idx(beside) if beside != path and beside.exists() else None
    return _source_from_arrays(path, read_idx, images, labels)


def _source_from_arrays(
    path: Path, read: Callable[[Path], NDArray[Any]], images: NDArray[Any], labels: NDArray[Any] | None
) -> ImageSource:
    _check_arrays(str(path), images, labels)
    pictures = ArrayPictures(path, read, images.shape, [images])
    return ImageSource(str(path), len(images), pictures, None if labels is None else labels.astype(np.int64))


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
