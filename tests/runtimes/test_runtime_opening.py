"""A model is opened by its path and the name of a backend; what names neither is refused."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import Backend, backend_fixture, one_thread_fixture  # noqa: F401  # pytest finds the fixtures by their names
from tiny_answers import INPUT, OUTPUT, images

from runtimes import Bundle, Manifest, available_backends, backend_names, open_runtime
from runtimes.bundle_writing import write_manifest
from runtimes.errors import BackendUnavailable, BadInput, BundleError, UnknownName
from runtimes.specs import BatchRange


def test_backends_are_the_files_in_their_folder() -> None:
    assert {"onnxruntime", "pytorch"} <= set(backend_names())
    assert list(backend_names()) == sorted(backend_names())
    assert set(available_backends()) <= set(backend_names())
    assert {"onnxruntime", "pytorch"} <= set(available_backends())  # the tests need both


def test_an_unknown_backend_is_refused_with_the_nearest(tiny_model: Path) -> None:
    with pytest.raises(UnknownName, match="unknown backend 'onnx-runtime'; did you mean onnxruntime") as caught:
        open_runtime(tiny_model / "model.onnx", "onnx-runtime")
    assert caught.value.exit_code == 2


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract") / "bundle"
    shutil.copytree(tiny_model, folder)
    write_manifest(folder, replace(manifest, batch=BatchRange(2, 3, 4)))
    return folder


def test_a_bundle_opens_by_its_path_or_as_itself_with_its_batch_range(backend: Backend, bundle: Path) -> None:
    for model in (bundle, str(bundle), Bundle.open(bundle)):
        with open_runtime(model, backend.name, provider=backend.provider) as runtime:
            assert runtime.batch == BatchRange(2, 3, 4)
            assert runtime.run({INPUT: images(5)})[OUTPUT].shape == (5, 10)


def test_a_single_file_opens_with_the_batch_it_declares(backend: Backend) -> None:
    backend.need_file()
    with open_runtime(backend.path, backend.name, provider=backend.provider) as runtime:
        assert runtime.batch is None


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=re.escape(f"{tmp_path / 'nothing'} does not exist; give a bundle folder or a model file")
    ):
        open_runtime(tmp_path / "nothing")


@pytest.mark.parametrize("given", [None, 7, b"bundle", [], 1.5], ids=repr)
def test_what_is_no_path_is_refused(given: Any) -> None:
    for opened in (Bundle.open, open_runtime):
        with pytest.raises(BadInput, match=f"got {type(given).__name__}; give its path"):
            opened(given)


@pytest.mark.parametrize("given", ["a\0b", "x" * 5000, ""], ids=["nul", "long", "empty"])
def test_a_name_that_no_bundle_can_have_is_refused(given: str) -> None:
    for opened in (Bundle.open, open_runtime):
        with pytest.raises((BadInput, BundleError)):
            opened(given)


@pytest.mark.parametrize("given", [7, b"cpu", []], ids=repr)
def test_what_is_no_name_of_a_backend_or_provider_is_refused(given: Any, tiny_model: Path) -> None:
    with pytest.raises(UnknownName, match="unknown backend"):
        open_runtime(tiny_model / "model.onnx", given)
    with pytest.raises(BadInput, match="expected a provider's name"):
        open_runtime(tiny_model / "model.onnx", provider=given)


def test_a_folder_that_is_no_bundle_and_a_bundle_without_the_backends_file_are_refused(
    tmp_path: Path, tiny_model: Path, manifest: Manifest
) -> None:
    with pytest.raises(BundleError, match="is no bundle"):
        open_runtime(tmp_path)
    shutil.copy(tiny_model / "model.onnx", tmp_path)
    write_manifest(tmp_path, manifest)
    with pytest.raises(
        BackendUnavailable, match=r"has no reference\.pt2, .*: it was left out on purpose, as by --no-ref"
    ):
        open_runtime(tmp_path, "pytorch")
