"""Where `scripts/train.py` finds its pictures: a tree of class folders, Fashion-MNIST's IDX files, or CIFAR-10."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.error import URLError

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10

from calibration.data import FASHION_MNIST_CLASSES, ImageSource, open_source
from calibration.idx import read_idx
from calibration.splits import splits_among
from exporter.models.sources.torchvision import network_timeout
from runtimes.errors import BadInput, ResnetExportError

FASHION_MNIST_BEGINS = (9, 0, 0, 3, 0, 2, 7, 2, 5, 5)
"""Its first training labels; MNIST's and KMNIST's files have the same names and shapes, but not these."""
CIFAR10_FOLDER = "cifar-10-batches-py"
IDX_SHIFT, CIFAR10_SHIFT = 2, 4
NETWORK_TIMEOUT_SECONDS = 10.0
GREY_MODES = ("1", "L", "LA")


class DataUnavailable(ResnetExportError):
    """The pictures are not here and could not be fetched."""

    exit_code = 3


@dataclass(frozen=True)
class Part:
    """Pictures to train on, or to judge by.

    Attributes:
        source: the pictures, decoded one at a time.
        labels: class indices, int64 (pictures,).
        pixels: uint8 (pictures, channels, height, width), where all are in memory and of one size.
    """

    source: ImageSource
    labels: Tensor
    pixels: Tensor | None = None


@dataclass(frozen=True)
class Data:
    """A training part and one held out.

    Attributes:
        held_out_name: `test` for a data set's own test images, `validation` for those that serve to choose by.
        shift: by how many pixels pictures in memory are shifted at random.
    """

    training: Part
    held_out: Part
    classes: tuple[str, ...]
    held_out_name: Literal["test", "validation"]
    shift: int = 0

    @property
    def channels(self) -> int:
        """1 where the pictures are grey, judged by the first one."""
        return 1 if self.training.source.image(0).mode in GREY_MODES else 3


@dataclass(frozen=True)
class Request:
    """Where the pictures are, and how a tree without `val` is split."""

    folder: Path
    val_fraction: float
    seed: int
    download: bool


def open_data(request: Request) -> Data:
    """What `--data` names, told by what the folder holds.

    Raises:
        BadInput: the folder holds nothing of the kind, or parts that do not fit together.
        DataUnavailable: CIFAR-10 is to be downloaded, and cannot be.
    """
    folder = request.folder
    if request.download:
        _download_cifar10(folder)
    if not folder.is_dir():
        raise BadInput(
            f"--data: {folder} is not a folder; give class folders, Fashion-MNIST's IDX files, or CIFAR-10 (--download fetches it)"
        )
    if any(folder.glob("train-images-idx3-ubyte*")):
        return _data_from_idx(folder)
    if folder.name == CIFAR10_FOLDER:
        return _data_from_cifar10(folder.parent)
    if (folder / CIFAR10_FOLDER).is_dir():
        return _data_from_cifar10(folder)
    if _folders(folder / "train"):
        return _data_from_two_trees(folder)
    if parts := splits_among(_folders(folder)):
        found = ", ".join(parts)
        raise BadInput(
            f"--data: expected train and val in {folder}, each with a folder for each class, got {found}; name and fill them so"
        )
    return _data_from_tree(request)


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, but for hidden ones; none where it is none. (`glob("*/")` gives files too before Python 3.11.)"""
    return sorted(path.name for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))


def _data_from_idx(folder: Path) -> Data:
    """The four IDX files of Fashion-MNIST (or MNIST, or KMNIST), gzip-compressed or not."""

    def array(name: str) -> NDArray[np.uint8]:
        packed = folder / f"{name}.gz"
        return np.array(read_idx(packed if packed.exists() else folder / name))

    training, test = (
        (array(f"{part}-images-idx3-ubyte"), array(f"{part}-labels-idx1-ubyte")) for part in ("train", "t10k")
    )
    for images, labels in (training, test):
        if images.ndim != 3 or images.size == 0 or labels.shape != images.shape[:1]:
            raise BadInput(
                f"{folder}: expected images of (n, height, width) and n labels, got {images.shape} and {labels.shape}"
            )
    count = int(max(training[1].max(), test[1].max())) + 1
    known = count == len(FASHION_MNIST_CLASSES) and tuple(training[1][:10]) == FASHION_MNIST_BEGINS
    classes = FASHION_MNIST_CLASSES if known else tuple(map(str, range(count)))
    name = str(folder)
    return Data(
        _part_from_arrays(name, *training, classes), _part_from_arrays(name, *test, classes), classes, "test", IDX_SHIFT
    )


def _data_from_cifar10(folder: Path) -> Data:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy 2.4 warns of how the arrays of 2009 were pickled
        try:
            training, test = (CIFAR10(folder, train=train) for train in (True, False))
        except (RuntimeError, OSError) as error:
            raise BadInput(
                f"--data: {folder / CIFAR10_FOLDER} is incomplete or damaged; remove it and fetch it again with --download"
            ) from error
    classes = tuple(training.classes)
    training_part, test_part = (
        _part_from_arrays("CIFAR-10", one.data, np.array(one.targets), classes) for one in (training, test)
    )
    return Data(training_part, test_part, classes, "test", CIFAR10_SHIFT)


def _download_cifar10(folder: Path) -> None:
    """By torchvision, which leaves what is there and whole as it is."""
    try:
        with network_timeout(NETWORK_TIMEOUT_SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above
            CIFAR10(folder, download=True)
    except (URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise DataUnavailable(
            f"cannot fetch {CIFAR10.url} ({reason}); without a network, fetch it elsewhere, unpack it in {folder} and leave --download out"
        ) from error


def _part_from_arrays(
    name: str, images: NDArray[np.uint8], labels: NDArray[np.int64] | NDArray[np.uint8], classes: tuple[str, ...]
) -> Part:
    pixels = torch.from_numpy(images)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    indices = labels.astype(np.int64)
    return Part(
        ImageSource(name, len(images), lambda place: Image.fromarray(images[place]), indices, classes),
        torch.from_numpy(indices),
        pixels,
    )


def _data_from_two_trees(folder: Path) -> Data:
    """`train` and `val`, each with a folder for each class."""
    if not (folder / "val").is_dir():
        raise BadInput(
            f"--data: {folder} has train but no val; expected both, or the class folders themselves (then some pictures are held out)"
        )
    (training, training_labels, classes), (held_out, held_out_labels, held_out_classes) = (
        _open_labelled(folder / part) for part in ("train", "val")
    )
    strange = sorted(set(held_out_classes) - set(classes))
    if strange:
        raise BadInput(
            f"--data: {folder / 'val'} has classes that train lacks: {', '.join(strange[:4])}; expected the same folders in both"
        )
    renumbered = np.array([classes.index(name) for name in held_out_classes], np.int64)[held_out_labels]
    return Data(
        Part(training, torch.from_numpy(training_labels)),
        Part(held_out, torch.from_numpy(renumbered)),
        classes,
        "validation",
    )


def _data_from_tree(request: Request) -> Data:
    """Class folders; of each class the fraction asked for is held out, the same pictures for the same seed."""
    source, labels, classes = _open_labelled(request.folder)
    chance = np.random.default_rng(request.seed)
    chosen = []
    for label in range(len(classes)):
        places = chance.permutation(np.flatnonzero(labels == label))
        chosen.append(places[: min(max(1, round(len(places) * request.val_fraction)), len(places) - 1)])
    held_out = np.sort(np.concatenate(chosen))
    if not len(held_out):
        raise BadInput(
            f"--data: {request.folder} has one picture a class; expected at least two, one to train on and one to validate on"
        )
    kept = np.setdiff1d(np.arange(source.count), held_out)
    training, validation = (
        Part(source.subset(places), torch.from_numpy(labels[places])) for places in (kept, held_out)
    )
    return Data(training, validation, classes, "validation")


def _open_labelled(folder: Path) -> tuple[ImageSource, NDArray[np.int64], tuple[str, ...]]:
    source = open_source(str(folder))
    if source.labels is None or source.classes is None:
        raise BadInput(
            f"--data: expected {folder} to hold a subfolder of pictures for each class and nothing beside, got pictures in it"
        )
    empty = sorted(set(_folders(folder)) - set(source.classes))
    if empty:
        raise BadInput(
            f"--data: expected pictures in every class folder of {folder}, got none in {', '.join(empty[:4])}; remove the empty folders"
        )
    if len(source.classes) < 2:
        raise BadInput(f"--data: expected at least two class folders in {folder}, got {source.classes[0]} alone")
    return source, source.labels, source.classes
