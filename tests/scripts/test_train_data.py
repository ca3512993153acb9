"""`scripts/train.py`: the data sets it reads, and those it refuses in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10
from train_fixtures import (  # noqa: F401  # pytest finds them by their names
    CLASSES,
    cifar10_folder,
    idx_folder,
    one_thread_fixture,
    opened,
    script_fixture,
    train_fixture,
    tree,
    write_idx,
)

from calibration.data import FASHION_MNIST_CLASSES, built_in
from calibration.idx import read_idx


def test_a_tree_with_train_and_val_is_numbered_by_the_training_folders(script: Any, tmp_path: Path) -> None:
    tree(tmp_path / "train", 3)
    tree(tmp_path / "val", 2, "test", CLASSES[1:])
    data = opened(script, tmp_path)
    assert data.classes == CLASSES
    assert data.held_out_name == "validation"
    assert data.training.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.held_out.labels.tolist() == [1, 1, 2, 2]
    names = sorted(path.name for path in (tmp_path / "val" / "Sneaker").iterdir())
    assert data.held_out.source.image(0).tobytes() == Image.open(tmp_path / "val" / "Sneaker" / names[0]).tobytes()


def test_a_tree_without_val_is_split_evenly_and_by_the_seed(script: Any, tmp_path: Path) -> None:
    folder = tree(tmp_path / "all", 8)
    pictures = {path.read_bytes() for path in folder.rglob("*.png")}
    assert len(pictures) == 24

    def pixels(part: Any) -> list[bytes]:
        return [part.source.image(place).tobytes() for place in range(part.source.count)]

    data, again, other = (opened(script, folder, seed=seed) for seed in (0, 0, 1))
    assert torch.bincount(data.training.labels).tolist() == [6, 6, 6]
    assert torch.bincount(data.held_out.labels).tolist() == [2, 2, 2]
    assert not set(pixels(data.training)) & set(pixels(data.held_out))
    assert pixels(data.held_out) == pixels(again.held_out) != pixels(other.held_out)


def test_idx_files_are_fashion_mnist_only_if_their_labels_are(script: Any, tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "idx", 40, 30)
    data = opened(script, folder)
    assert data.classes == FASHION_MNIST_CLASSES
    assert data.training.pixels.shape == (40, 1, 28, 28)
    assert data.held_out.labels.tolist() == read_idx(folder / "t10k-labels-idx1-ubyte").tolist()
    labels = read_idx(folder / "train-labels-idx1-ubyte")
    write_idx(folder / "train-labels-idx1-ubyte", labels[::-1].copy())
    assert opened(script, folder).classes == tuple("0123456789")


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_cifar10_is_read_from_its_folder_or_the_one_around_it(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    first = cifar10_folder(tmp_path, monkeypatch)
    data = opened(script, tmp_path / inner)
    assert data.training.pixels.shape == (50, 3, 32, 32)
    assert np.array_equal(data.training.pixels[:10].numpy(), first)
    assert data.held_out.labels.tolist() == list(range(10))
    assert data.classes[3] == "class 3"
    assert np.array_equal(np.asarray(data.training.source.image(2)), first[2].transpose(1, 2, 0))


def test_a_damaged_cifar10_and_one_that_cannot_be_fetched_are_one_line(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar10_folder(tmp_path / "here", monkeypatch)
    (tmp_path / "here" / "cifar-10-batches-py" / "test_batch").write_bytes(b"cut short")
    ran = train("--data", "here")
    assert ran.code == 2
    assert "is incomplete or damaged; remove it and fetch it again with --download" in ran.error
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # nobody listens there
    ran = train("--data", "nowhere", "--download")
    assert ran.code == 3
    assert "cannot fetch http://127.0.0.1:9/cifar-10-python.tar.gz" in ran.error
    assert "leave --download out" in ran.error


def _train_alone(folder: Path) -> None:
    tree(folder / "train", 2)


def _other_parts(folder: Path) -> None:
    for part in ("Train", "valid"):
        tree(folder / part, 2)


def _flat_parts(folder: Path) -> None:
    for part in ("train", "val"):
        (folder / part).mkdir()
        built_in("train").image(0).save(folder / part / "0.png")


def _strange_class(folder: Path) -> None:
    tree(folder / "train", 2, classes=CLASSES[:2])
    tree(folder / "val", 2)


def _stray_picture(folder: Path) -> None:
    tree(folder, 2)
    built_in("train").image(0).save(folder / "stray.png")


def _empty_class(folder: Path) -> None:
    tree(folder, 2)
    (folder / "Shirt").mkdir()


def _damaged_picture(folder: Path) -> None:
    tree(folder, 40)
    next((folder / "Bag").glob("*.png")).write_bytes(b"no picture")


def _labels_too_few(folder: Path) -> None:
    folder.rmdir()
    idx_folder(folder, 30, 20)
    write_idx(folder / "t10k-labels-idx1-ubyte", np.zeros(19, np.uint8))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "train alone": (_train_alone, "has train but no val"),
    "parts of other names": (
        _other_parts,
        "expected train and val in data, each with a folder for each class, got Train, valid",
    ),
    "parts without classes": (
        _flat_parts,
        "expected train and val in data, each with a folder for each class, got train, val",
    ),
    "strange class": (_strange_class, "has classes that train lacks: Trouser"),
    "stray picture": (_stray_picture, "nothing beside, got pictures in it"),
    "empty class": (_empty_class, "got none in Shirt"),
    "one class": (lambda folder: tree(folder, 2, classes=["Bag"]), "expected at least two class folders"),
    "one picture a class": (lambda folder: tree(folder, 1), "one to train on and one to validate on"),
    "damaged picture": (_damaged_picture, "cannot read the picture"),
    "nothing": (lambda folder: None, "holds no pictures"),
    "no such folder": (lambda folder: folder.rmdir(), "is not a folder; give class folders"),
    "labels too few": (_labels_too_few, "and n labels, got (20, 28, 28) and (19,)"),
    "test files missing": (
        lambda folder: write_idx(folder / "train-images-idx3-ubyte", np.zeros((2, 4, 4), np.uint8)),
        "cannot read",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_unusable_pictures_are_one_line_that_says_what_is_wrong(train: Any, tmp_path: Path, broken: str) -> None:
    (tmp_path / "data").mkdir()
    make, message = BROKEN[broken]
    make(tmp_path / "data")
    ran = train("--data", "data", "--batch", 8, "--epochs", 1)
    assert ran.code == 2
    assert message in ran.error
    assert not (tmp_path / "build" / "train" / "best.pth").exists()
