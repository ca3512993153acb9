"""Images to measure with: where they come from, and their labels."""

from __future__ import annotations

import functools
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.idx import read_idx
from calibration.splits import check_no_splits
from runtimes.errors import BadInput
from runtimes.preprocess import open_image

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


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

Split = Literal["train", "test"]
IDX_NAMES: dict[Split, str] = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}


@dataclass(frozen=True)
class ImageSource:
    """Pictures in a fixed order, decoded one at a time.

    Attributes:
        name: what a user would call it.
        count: how many pictures.
        image: the picture at a place, 0 <= place < count; raises BadInput where it cannot be read.
        labels: class indices, int64 (count,), where they are known.
        classes: class names, where they are known.
        names: the pictures' paths below the folder that was given, with slashes; None for what is no folder.
    """

    name: str
    count: int
    image: Callable[[int], Image.Image] = field(repr=False)
    labels: NDArray[np.int64] | None = field(default=None, repr=False)
    classes: tuple[str, ...] | None = field(default=None, repr=False)
    names: tuple[str, ...] | None = field(default=None, repr=False)

    def chosen(self, places: NDArray[np.int64]) -> ImageSource:
        """The pictures at these places, in their order."""
        labels = None if self.labels is None else self.labels[places]
        names = None if self.names is None else tuple(self.names[place] for place in places)
        return ImageSource(self.name, len(places), lambda place: self.image(int(places[place])), labels, self.classes, names)


def open_source(data: str, *, split: Split = "train") -> ImageSource:
    """The pictures that `--data` names.

    `built-in`; a folder of pictures; a folder whose subfolders are classes; an `.npz` with `images` (uint8, (n, height, width) or
    (n, height, width, 3)) and perhaps `labels`; an IDX file of images, or a folder with Fashion-MNIST's four.

    Args:
        split: which images of those that come as training and test images: the built-in ones, and a folder with Fashion-MNIST's files.

    Raises:
        BadInput: there is nothing of the kind; says what was looked for. Or it is the folder above `train` and `val`, which are no classes.
    """
    if data == "built-in":
        return built_in(split)
    if not data.strip():
        raise BadInput("expected something for --data, got nothing; name a folder of pictures, an .npz, an IDX file, or built-in")
    path = Path(data)
    if path.is_dir():
        found = {part: sorted(path.glob(f"{name}*")) for part, name in IDX_NAMES.items()}
        if any(found.values()) and not found[split]:
            raise BadInput(
                f"--data: expected {IDX_NAMES[split]} in {path}, got only {next(filter(None, found.values()))[0].name}; add it, or name a file"
            )
        return _source_from_idx(found[split][0]) if found[split] else _source_from_folder(path)
    if not path.exists():
        raise BadInput(f"--data: {path} does not exist; give a folder of pictures, an .npz, an IDX file, or built-in")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise BadInput(f"--data: expected a folder of pictures, got the picture {path}; name the folder that it lies in")
    return _source_from_npz(path) if path.suffix == ".npz" else _source_from_idx(path)


def evenly_chosen(source: ImageSource, count: int, seed: int) -> NDArray[np.int64]:
    """Places of `count` pictures (all, where there are fewer), as many of each class as can be; ascending, and decided by the seed."""
    order = np.random.default_rng(seed).permutation(source.count)
    if source.labels is not None:
        labels = source.labels[order]
        turn = np.empty(len(order), np.int64)  # a picture's place among those of its class: the first of each class come first
        for label in np.unique(labels):
            turn[labels == label] = np.arange((labels == label).sum())
        order = order[np.argsort(turn, kind="stable")]
    return np.sort(order[:count]).astype(np.int64)


def _source_from_folder(folder: Path) -> ImageSource:
    paths = sorted(path for path in _files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise BadInput(f"--data: {folder} holds no pictures; expected {' '.join(IMAGE_SUFFIXES)} files, in it or in a subfolder for each class")
    names = tuple(path.relative_to(folder).as_posix() for path in paths)
    check_no_splits({name.split("/", 1)[0] for name in names if "/" in name}, folder, "--data")
    source = ImageSource(str(folder), len(paths), lambda place: open_image(paths[place]), names=names)
    if any("/" not in name for name in names):
        return source
    parents = [name.split("/", 1)[0] for name in names]
    classes = tuple(sorted(set(parents)))
    numbers = {name: number for number, name in enumerate(classes)}
    return replace(source, labels=np.array([numbers[parent] for parent in parents], np.int64), classes=classes)


def _files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those in it; without hidden ones, which desktops and notebooks leave behind.

    Linked folders are followed, as torchvision and timm do: a subset of a data set is often a tree of links.

    Raises:
        BadInput: a folder cannot be read, or a link leads back to a folder that it lies in.
    """

    def fail(error: OSError) -> NoReturn:
        raise BadInput(f"--data: cannot read {error.filename}: {error.strerror}") from error

    way = {str(folder): {_identity(folder)}}  # the folders that lead to one, itself among them
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        above = way.pop(parent)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (os.path.join(parent, name) for name in folders):
            if (own := _identity(path)) in above:
                raise BadInput(f"--data: {path} leads back to a folder that it lies in; remove that link")
            way[path] = {*above, own}
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _identity(folder: str | Path) -> tuple[int, int]:
    facts = os.stat(folder)
    return facts.st_dev, facts.st_ino


def _source_from_npz(path: Path) -> ImageSource:
    try:
        with path.open("rb") as file:  # np.load leaves a damaged file open
            archive = np.load(file)
            if isinstance(archive, np.ndarray):
                raise ValueError("it is a lone array, not an archive of them")
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise BadInput(f"--data: cannot read {path}: {error}") from error
    images, labels = arrays.get("images"), arrays.get("labels")
    if images is None or images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        found = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise BadInput(f"{path}: expected 'images' of uint8 (n, height, width) or (n, height, width, 3), got {found}")
    return _source_from_arrays(str(path), images, labels)


def _source_from_idx(path: Path) -> ImageSource:
    images = read_idx(path)
    if images.ndim != 3:
        raise BadInput(f"{path}: expected images of shape (n, height, width), got {images.shape}")
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    labels = read_idx(beside) if beside != path and beside.exists() else None
    return _source_from_arrays(str(path), images, labels)


def _source_from_arrays(name: str, images: NDArray[np.uint8], labels: NDArray[Any] | None) -> ImageSource:
    if images.size == 0:
        raise BadInput(f"{name} holds no pictures, or empty ones: images of shape {images.shape}")
    if labels is not None and labels.shape != images.shape[:1]:
        raise BadInput(f"{name}: expected a label for each of {len(images)} images, got labels of shape {labels.shape}")
    if labels is not None and (labels.dtype.kind not in "iu" or labels.min() < 0):
        raise BadInput(f"{name}: expected labels of whole numbers, not negative, got {', '.join(map(str, labels[:3]))}, ... ({labels.dtype})")
    return ImageSource(name, len(images), lambda place: Image.fromarray(images[place]), None if labels is None else labels.astype(np.int64))


@functools.cache
def built_in(split: Split) -> ImageSource:
    """The images that ship with the package: part of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747; MIT).

    1,000 training images (100 of each class) or the first 2,000 test images; grey, 28 x 28 pixels.
    """
    with np.load(files("calibration") / "assets" / "fashion_mnist.npz") as archive:  # type: ignore[arg-type]  # a Traversable that is a path: wheels are unpacked
        pixels: NDArray[Any] = archive[f"{split}_images"]
        labels: NDArray[Any] = archive[f"{split}_labels"]
    return ImageSource(
        name=f"built-in ({split})",
        count=len(pixels),
        image=lambda place: Image.fromarray(pixels[place]),
        labels=labels.astype(np.int64),
        classes=FASHION_MNIST_CLASSES,
    )
