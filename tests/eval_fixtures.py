"""What the tests of `resnet-deploy eval` share: the bundle, the command, and data sets of built-in pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from manifest_edits import rewrite_manifest

from calibration.data import FASHION_MNIST_CLASSES, built_in

SYNSETS = tuple(f"n{place * 7 % 10:08}" for place in range(10))  # not in sorted order
FOLDERS = tuple(name.replace("/", "_") for name in FASHION_MNIST_CLASSES)


@pytest.fixture(name="bundle")
def bundle_fixture(exported: Path) -> Path:
    return exported


@pytest.fixture(name="run")
def run_fixture(deploy: Any) -> Any:
    def call(bundle: Path, *arguments: object) -> Any:
        return deploy("eval", bundle, *arguments)

    return call


def counts(answer: dict[str, Any]) -> dict[str, Any]:
    """All figures but the speed."""
    return {name: value for name, value in answer.items() if not name.endswith("images_per_s")}


def edited(bundle: Path, **changes: Any) -> None:
    rewrite_manifest(bundle, lambda document: document.update(changes))


def copied(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "copy"))


def flat_folder(folder: Path, count: int = 40) -> list[int]:
    """Test pictures as `val/ILSVRC2012_val_00000001.JPEG` ..., and their labels."""
    source = built_in("test")
    assert source.labels is not None
    (folder / "val").mkdir()
    for place in range(count):
        source.image(place).save(folder / "val" / f"ILSVRC2012_val_{place + 1:08}.JPEG", quality=95)
    return [int(label) for label in source.labels[:count]]


def tree(folder: Path, names: tuple[str, ...], count: int = 40) -> Path:
    """Test pictures in a folder for each class."""
    source = built_in("test")
    assert source.labels is not None
    for place in range(count):
        path = folder / "tree" / names[source.labels[place]] / f"{place:04}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        source.image(place).save(path, quality=95)
    return folder / "tree"
