"""What the tests of `scripts/train.py` share: its modules, its command, and small data sets of built-in pictures."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from commands import Ran, run_main
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10

from calibration.data import FASHION_MNIST_CLASSES, built_in
from runtimes.preprocess import Preprocess

SCRIPTS = Path(__file__).parents[1] / "scripts"
CLASSES = ("Bag", "Sneaker", "Trouser")
GREY = Preprocess(28, (28, 28), "bilinear", True, (0.286,), (0.353,))


@pytest.fixture(name="one_thread", autouse=True)
def one_thread_fixture() -> Iterator[None]:
    """Networks this small gain nothing from more, and waiting threads cost much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(name="script")
def script_fixture(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A module of `scripts/`, found as when the script itself is run."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


@pytest.fixture(name="train")
def train_fixture(
    script: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Any:
    """`scripts/train.py` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Ran:
        return run_main(script("train").main, arguments, capsys, monkeypatch)

    return call


def tree(folder: Path, count: int, split: Any = "train", classes: Sequence[str] = CLASSES) -> Path:
    """The first `count` built-in pictures of each class as PNGs, a folder for each class."""
    source = built_in(split)
    assert source.labels is not None
    for name in classes:
        (folder / name).mkdir(parents=True)
        for place in np.flatnonzero(source.labels == FASHION_MNIST_CLASSES.index(name))[:count]:
            source.image(int(place)).save(folder / name / f"{place}.png")
    return folder


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def idx_folder(folder: Path, training: int, test: int) -> Path:
    """Fashion-MNIST's layout, of built-in pictures."""
    folder.mkdir()
    for part, split, count in (("train", "train", training), ("t10k", "test", test)):
        source = built_in("train" if split == "train" else "test")
        assert source.labels is not None
        write_idx(
            folder / f"{part}-images-idx3-ubyte", np.stack([np.asarray(source.image(place)) for place in range(count)])
        )
        write_idx(folder / f"{part}-labels-idx1-ubyte", source.labels[:count].astype(np.uint8))
    return folder


def cifar10_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    """Noise in CIFAR-10's layout, whose checksums torchvision is told; the first file's pictures, (10, 3, 32, 32)."""
    inner = folder / "cifar-10-batches-py"
    inner.mkdir(parents=True)
    chance = np.random.default_rng(0)
    pixels = {
        name: chance.integers(0, 256, (10, 3, 32, 32), np.uint8)
        for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]
    }

    def written(name: str, content: object) -> str:
        (inner / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((inner / name).read_bytes()).hexdigest()

    sums = {
        name: written(name, {"data": array.reshape(10, -1), "labels": list(range(10))})
        for name, array in pixels.items()
    }
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, sums[name]] for name, _ in CIFAR10.test_list])
    names = [f"class {index}" for index in range(10)]
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": written("batches.meta", {"label_names": names})})
    return pixels["data_batch_1"]


def opened(script: Callable[[str], ModuleType], folder: Path, val_fraction: float = 0.25, seed: int = 0) -> Any:
    data = script("_train_data")
    return data.open_data(data.Request(folder, val_fraction, seed, False))
