"""Bundles are written so that the old one or the new one is there at every moment."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_bundles import bundle_fixture, write_bundle  # noqa: F401  # pytest finds the fixture by its name

from runtimes.bundle import MANIFEST, Bundle
from runtimes.bundle_writing import staging_folder, write_in_one_step, write_manifest
from runtimes.errors import BundleError, PlanError
from runtimes.manifest import Manifest


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if ".partial-" in path.name)


def test_a_new_bundle_appears_whole_with_its_parent_folders(manifest: Manifest, tmp_path: Path) -> None:
    destination = tmp_path / "deep" / "down" / "bundle"
    with staging_folder(destination, force=False) as folder:
        assert folder.parent == destination.parent  # the same file system, so that a rename is one step
        write_bundle(folder / "inner", manifest)
        (folder / "model.onnx").write_text("new")
        write_manifest(folder, manifest)
        assert not destination.exists()
    assert Bundle.open(destination).file("model.onnx").read_text() == "new"
    assert [path.name for path in destination.parent.iterdir()] == ["bundle"]


def test_an_empty_folder_is_filled_without_force(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with staging_folder(tmp_path / "bundle", force=False) as folder:
        write_manifest(folder, manifest)
    assert Bundle.open(tmp_path / "bundle").manifest.files == {}


def test_a_bundle_is_replaced_with_force_and_only_with_it(bundle: Path, manifest: Manifest) -> None:
    with (
        pytest.raises(PlanError, match=re.escape(f"{bundle} exists; give --force to replace it, or another --output")),
        staging_folder(bundle, force=False),
    ):
        pytest.fail("the block must not run")
    with staging_folder(bundle, force=True) as folder:
        (folder / "model.onnx").write_text("new")
        write_manifest(folder, manifest)
        assert Bundle.open(bundle).file("model.onnx").read_text() == "the model"
    opened = Bundle.open(bundle)
    assert opened.file("model.onnx").read_text() == "new"
    assert set(opened.manifest.files) == {"model.onnx"}  # nothing of the old one
    assert leftovers(bundle.parent) == []


@pytest.mark.parametrize("force", [True, False])
def test_a_folder_of_something_else_is_never_replaced(force: bool, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with (
        pytest.raises(PlanError, match="thesis holds something else than a bundle; choose another --output"),
        staging_folder(tmp_path / "thesis", force=force),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


@pytest.mark.parametrize("text", ["{}", '{"schema_version": 1}', '{"name": "my site", "start_url": "/"}', ""])
def test_a_folder_with_another_kind_of_manifest_is_never_replaced(text: str, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / MANIFEST).write_text(text)  # as of a web app or an extension of a browser
    with (
        pytest.raises(PlanError, match="site holds something else than a bundle"),
        staging_folder(tmp_path / "site", force=True),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "site" / MANIFEST).read_text() == text


@pytest.mark.parametrize(
    "name", ["notes.txt", "engines/notes.txt", "engines/deep/other.engine", ".git/HEAD", "photos", ".hidden"]
)
def test_a_bundle_that_holds_a_strangers_file_is_not_replaced(name: str, bundle: Path) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    if name == "photos":
        (bundle / name).symlink_to(bundle.parent)
    else:
        (bundle / name).write_text("years of work")
    with (
        pytest.raises(
            PlanError, match=re.escape(f"{bundle} holds {name}, which its manifest does not name; move it away")
        ),
        staging_folder(bundle, force=True),
    ):
        pytest.fail("the block must not run")
    assert Bundle.open(bundle).file("model.onnx").read_text() == "the model"


def test_engines_that_were_built_in_a_bundle_go_with_it(bundle: Path, manifest: Manifest) -> None:
    for name in ("tensorrt-10.3-sm87-b1-8-32.engine", "tensorrt-10.3-sm87-b1-8-32.json", ".tensorrt.engine.partial-77"):
        (bundle / "engines" / name).write_text("built here")
    with staging_folder(bundle, force=True) as folder:
        write_manifest(folder, manifest)
    assert [path.name for path in bundle.iterdir()] == [MANIFEST]


@pytest.mark.parametrize("place", [".", "./", "..", "../work", "/", "sub/..", "sub/../.."])
@pytest.mark.parametrize("force", [True, False])
def test_the_current_folder_and_those_that_hold_it_are_refused(
    place: str, force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(PlanError, match="is the current folder, or holds it"), staging_folder(Path(place), force=force):
        pytest.fail("the block must not run")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("kind", ["file", "link to a bundle", "broken link"])
def test_what_is_not_a_folder_is_never_replaced(kind: str, force: bool, bundle: Path) -> None:
    path = bundle.parent / "output"
    if kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(bundle if kind == "link to a bundle" else "nowhere")
    with (
        pytest.raises(PlanError, match=re.escape(f"{path} is not a folder; choose another --output")),
        staging_folder(path, force=force),
    ):
        pytest.fail("the block must not run")
    assert path.is_file() if kind == "file" else path.is_symlink()


@pytest.mark.parametrize("below", ["file/bundle", "file/deep/down/bundle"])
def test_a_place_below_a_file_cannot_be_written(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    message = re.escape(f"cannot write {tmp_path / below}: ") + ".+; choose another --output"
    with pytest.raises(BundleError, match=message), staging_folder(tmp_path / below, force=False):
        pytest.fail("the block must not run")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("length", [250, 300])
def test_a_name_too_long_for_the_file_system_cannot_be_written(length: int, tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match="File name too long; choose another --output"),
        staging_folder(tmp_path / ("x" * length), force=False),
    ):
        pytest.fail("the block must not run")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that refuses every write")
def test_a_file_system_that_refuses_new_folders_cannot_be_written() -> None:
    with (
        pytest.raises(BundleError, match="cannot write /proc/self/bundle: "),
        staging_folder(Path("/proc/self/bundle"), force=False),
    ):
        pytest.fail("the block must not run")


def fail_halfway(folder: Path, error: BaseException) -> None:
    (folder / "model.onnx").write_text("half of")
    raise error


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(PlanError("no"), PlanError), (KeyboardInterrupt(), KeyboardInterrupt), (OSError("disk on fire"), BundleError)],
)
@pytest.mark.parametrize("force", [True, False])
def test_a_failure_on_the_way_leaves_what_was_there_and_nothing_else(
    raised: BaseException, expected: type[BaseException], force: bool, bundle: Path, tmp_path: Path
) -> None:
    destination = bundle if force else tmp_path / "new"
    with pytest.raises(expected), staging_folder(destination, force=force) as folder:
        fail_halfway(folder, raised)
    assert Bundle.open(bundle).file("model.onnx").read_text() == "the model"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def fill_up(folder: Path, file: str, manifest: Manifest) -> None:
    (folder / file).symlink_to("/dev/full")  # writing to it fails as writing to a full disk does
    if file == "model.onnx":
        (folder / file).write_bytes(b"\x00" * 100_000)
    write_manifest(folder, manifest)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("file", ["model.onnx", MANIFEST])
def test_a_full_disk_leaves_the_old_bundle_and_says_what_to_do(file: str, bundle: Path, manifest: Manifest) -> None:
    with pytest.raises(BundleError) as caught, staging_folder(bundle, force=True) as folder:
        fill_up(folder, file, manifest)
    assert (
        str(caught.value)
        == f"cannot write {bundle}: No space left on device; free some room, or choose another --output"
    )
    assert caught.value.exit_code == 1
    assert Bundle.open(bundle).file("model.onnx").read_text() == "the model"
    assert leftovers(bundle.parent) == []


def no_library(name: None, use_errno: bool) -> Any:
    raise OSError("no C library here")


NO_EXCHANGE = {
    "no C library": no_library,
    "a C library without renameat2": lambda name, use_errno: SimpleNamespace(),
    "a file system that cannot exchange": lambda name, use_errno: SimpleNamespace(renameat2=lambda *arguments: -1),
}


@pytest.mark.parametrize("library", NO_EXCHANGE.values(), ids=NO_EXCHANGE)
def test_where_folders_cannot_be_exchanged_the_old_bundle_steps_aside(
    library: Callable[..., Any], bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", library)
    with staging_folder(bundle, force=True) as folder:
        (folder / "model.onnx").write_text("new")
        write_manifest(folder, manifest)
    opened = Bundle.open(bundle)
    assert opened.file("model.onnx").read_text() == "new"
    assert set(opened.manifest.files) == {"model.onnx"}
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_new_bundle_that_vanished_before_the_exchange_brings_the_old_one_back(bundle: Path) -> None:
    with (
        pytest.raises(BundleError, match=re.escape(f"cannot write {bundle}: No such file or directory")),
        staging_folder(bundle, force=True) as folder,
    ):
        shutil.rmtree(folder)  # as a cleaner of temporary files may
    assert Bundle.open(bundle).file("model.onnx").read_text() == "the model"
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path, manifest: Manifest) -> None:
    destination = tmp_path / "bundle"
    script = (
        "import sys, time; from pathlib import Path; from runtimes.bundle_writing import staging_folder\n"
        "with staging_folder(Path(sys.argv[1]), force=False) as folder:\n"
        "    (folder / 'model.onnx').write_text('half of'); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(destination)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (theirs,) = leftovers(tmp_path)
        with staging_folder(destination, force=False) as folder:
            write_manifest(folder, manifest)
            assert theirs in leftovers(tmp_path)  # the other still lives
        process.kill()
    assert leftovers(tmp_path) == [theirs]
    (tmp_path / f"{theirs}-old").mkdir()
    (tmp_path / f".other.partial-{'0' * 16}").mkdir()
    (tmp_path / ".bundle.partial-mine").mkdir()
    with staging_folder(destination, force=True) as folder:
        write_manifest(folder, manifest)
    assert leftovers(tmp_path) == [".bundle.partial-mine", f".other.partial-{'0' * 16}"]


def test_a_run_in_another_container_keeps_its_folder(
    bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(process: int, signal: int) -> None:
        raise ProcessLookupError  # as the number of a process of another container, or machine, is

    monkeypatch.setattr(os, "kill", dead)
    with staging_folder(bundle, force=True) as theirs:
        (theirs / "model.onnx").write_text("theirs")
        with staging_folder(bundle, force=True) as ours:
            write_manifest(ours, manifest)
        write_manifest(theirs, manifest)
    assert Bundle.open(bundle).file("model.onnx").read_text() == "theirs"
    assert leftovers(bundle.parent) == []


def test_a_bundle_that_stepped_aside_for_one_that_never_came_is_kept(tmp_path: Path, manifest: Manifest) -> None:
    aside = write_bundle(tmp_path / f".bundle.partial-{'0' * 16}-old", manifest)
    with staging_folder(tmp_path / "bundle", force=False) as folder:
        write_manifest(folder, manifest)
    assert Bundle.open(aside).file("model.onnx").read_text() == "the model"


def test_two_threads_that_write_one_file_leave_one_of_the_two(tmp_path: Path) -> None:
    texts = [bytes([letter]) * 300_000 for letter in b"ab"]
    for _ in range(20):
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda text: write_in_one_step(tmp_path / "file", text), texts))
        assert (tmp_path / "file").read_bytes() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_run_of_an_earlier_version_left_is_no_obstacle(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / f".bundle.partial-{os.getpid()}" / "engines").mkdir(
        parents=True
    )  # it was called by the number of its process
    (tmp_path / f".bundle.partial-{10**30}").mkdir()
    with staging_folder(tmp_path / "bundle", force=False) as folder:
        assert list(folder.iterdir()) == []
        write_manifest(folder, manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_that_lies_in_the_lower_layer_of_an_overlay_is_replaced(
    bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def of_an_overlay(self: Path, target: Path) -> Path:
        if self == bundle:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", of_an_overlay)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    with staging_folder(bundle, force=True) as folder:
        (folder / "model.onnx").write_text("new")
        write_manifest(folder, manifest)
    assert Bundle.open(bundle).file("model.onnx").read_text() == "new"
    assert leftovers(bundle.parent) == []
