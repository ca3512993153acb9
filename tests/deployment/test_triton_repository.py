"""Writing a repository: whole or not at all, and added to without a change to what is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from triton_bundles import bundle_fixture

from exporter.deployment.triton import repository as repository_module
from exporter.deployment.triton.models import TritonPlan, triton_models
from exporter.deployment.triton.repository import write_repository
from runtimes import bundle_writing
from runtimes.bundle import Bundle
from runtimes.errors import BundleError

__all__ = ["bundle_fixture"]

Made = Callable[..., Path]


def models(*bundles: Path, **options: Any) -> Any:
    return triton_models(TritonPlan(tuple(map(Bundle.open, bundles)), **options))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_bundle_gives_the_same_bytes_and_modes_under_any_umask(bundle: Made, tmp_path: Path) -> None:
    made = models(bundle())
    write_repository(made, tmp_path / "one", 1)
    old = os.umask(0o077)
    try:
        write_repository(made, tmp_path / "two", 1)
    finally:
        os.umask(old)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for folder in ("one", "two"):
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / folder).rglob("*") if path.is_file()}
        assert modes == {0o644}
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / folder).rglob("*") if path.is_dir()} == {0o755}


def test_models_and_versions_are_added_and_nothing_there_is_touched(bundle: Made, tmp_path: Path) -> None:
    first, second = bundle(), bundle("second", name="second")
    repository = tmp_path / "repository"
    write_repository(models(first), repository, 1)
    before = files(repository)
    assert write_repository(models(first), repository, 3) == [repository / "tiny-fp32" / "3"]
    write_repository(models(second), repository, 1)
    after = files(repository)
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys()) == [
        "second/1/model.onnx",
        "second/config.pbtxt",
        "second/configs/ci.pbtxt",
        "second/labels.txt",
        "tiny-fp32/3/model.onnx",
    ]
    assert list(tmp_path.glob(".*")) == []


def test_a_repository_behind_a_link_is_added_to(bundle: Made, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_repository(models(bundle()), tmp_path / "link", 1)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "tiny-fp32" / "1" / "model.onnx").exists()


def test_a_write_that_fails_leaves_nothing(bundle: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    made = models(bundle())
    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(BundleError, match="No space left on device; free some room"):
        write_repository(made, tmp_path / "repository", 1)
    assert not (tmp_path / "repository").exists()
    assert list(tmp_path.glob(".*")) == []


def test_if_one_model_cannot_be_put_in_none_is(bundle: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = bundle(), bundle("second", name="second"), bundle("third", name="third")
    repository = tmp_path / "repository"
    write_repository(models(first), repository, 1)
    before = files(repository)
    check = repository_module.check_repository

    def another_run_comes_first(*arguments: Any) -> None:
        check(*arguments)
        (repository / "third").mkdir()
        (repository / "third" / "config.pbtxt").write_text("another's")

    monkeypatch.setattr(repository_module, "check_repository", another_run_comes_first)
    with pytest.raises(BundleError, match="cannot write"):
        write_repository(models(second, third), repository, 1)
    assert files(repository) == {**before, "third/config.pbtxt": b"another's"}


def test_where_its_parent_is_not_writable_a_repository_is_added_to_from_within(
    bundle: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    write_repository(models(bundle()), repository, 1)
    (repository / ".git").mkdir()
    beside: list[Path] = []
    real, access = bundle_writing.new_folder_beside, os.access

    @contextmanager
    def noted(destination: Path) -> Iterator[Path]:
        beside.append(destination.parent)
        with real(destination) as folder:
            yield folder

    monkeypatch.setattr(repository_module, "new_folder_beside", noted)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    write_repository(models(bundle("second", name="second")), repository, 1)
    assert beside == [repository]
    assert sorted(path.name for path in repository.iterdir()) == [".git", "second", "tiny-fp32"]
