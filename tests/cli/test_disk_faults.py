"""A disk that is full, broken or interrupted at any moment: the old artefact or the new one, and one line that says why."""

from __future__ import annotations

import ctypes
import errno
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import Ran
from engine_fixtures import api_fixture, cuda_fixture, folder_fixture, proven_fixture, reference_fixture  # noqa: F401  # pytest finds them by their names
from faults import FAULTS, Fault, every_fault, faulty_disk, points, snapshot
from small_bundles import write_bundle
from standin_tensorrt import StandinTensorRT

from exporter.cli._common import _disk_text
from exporter.deployment.jetson import kit, own_wheel
from exporter.deployment.remote import build as remote
from exporter.verification.accuracy import resume_file
from exporter.verification.accuracy.resume_file import EvaluationKey, open_resume_file
from runtimes import BatchRange, Bundle, Manifest
from runtimes.bundle_writing import staging_folder, write_manifest
from runtimes.errors import BadInput, ResnetExportError

Deploy = Callable[..., Ran]
Check = Callable[[Callable[[], object], Callable[[], Ran]], None]


@pytest.fixture(name="root")
def root_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is on the faulty disk; temporary files go elsewhere."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


@pytest.fixture(name="small")
def small_fixture(manifest: Manifest, tmp_path: Path) -> Path:
    folder = write_bundle(tmp_path / "small", manifest)
    shutil.rmtree(folder / "engines")
    (folder / "manifest.json").unlink()
    write_manifest(folder, replace(manifest, batch=BatchRange(1, 2, 4)))
    return folder


@pytest.fixture(name="assert_all_or_nothing", params=[False, pytest.param(True, marks=pytest.mark.slow)])
def assert_all_or_nothing_fixture(root: Path, request: pytest.FixtureRequest) -> Check:
    return partial(all_or_nothing, root, thorough=request.param)


def all_or_nothing(root: Path, fresh: Callable[[], object], command: Callable[[], Ran], *, thorough: bool) -> None:
    """Whatever fails: the old or the new, whole, and one line."""
    failed = 0
    for disk, ran, state in every_fault(root, fresh, command, thorough=thorough):
        at = disk.done[-1] if disk.fault.at is None or disk.fault.at >= len(disk.done) else disk.done[disk.fault.at]
        where = (disk.fault, at, ran, state)
        if ran.code == 0:
            cannot_clear_up = at[0] in {"open", "scandir"} and ".partial-" in at[1]  # the next run does
            assert state == "new" or cannot_clear_up, where
            continue
        failed += 1
        assert ran.code in {1, 2, 3}, where
        assert "; " in ran.error, where  # and what to do
        assert state == "old", where
    assert failed > 5
    assert list(Path(tempfile.gettempdir()).iterdir()) == []


def test_a_kit(
    assert_all_or_nothing: Check, root: Path, small: Path, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        kit, "own_wheel", lambda: own_wheel.Wheel("resnet_export-0.0.0-py3-none-any.whl", b"a wheel", ())
    )
    assert_all_or_nothing(
        lambda: shutil.copytree(small, root / "bundle"),
        lambda: deploy("kit", root / "bundle", "--output", root / "kit.tar"),
    )


def test_a_kit_in_place_of_another(
    assert_all_or_nothing: Check, root: Path, small: Path, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        kit, "own_wheel", lambda: own_wheel.Wheel("resnet_export-0.0.0-py3-none-any.whl", b"a wheel", ())
    )

    def fresh() -> None:
        (root / "kit.tar").write_bytes(b"the old one")

    assert_all_or_nothing(fresh, lambda: deploy("kit", small, "--force", "--output", root / "kit.tar"))


def test_a_triton_repository(assert_all_or_nothing: Check, root: Path, small: Path, deploy: Deploy) -> None:
    assert_all_or_nothing(
        lambda: shutil.copytree(small, root / "bundle"),
        lambda: deploy("triton", root / "bundle", "--output", root / "repository"),
    )


@pytest.mark.slow  # what is different from the next: nothing is to be put back
def test_an_engine(
    assert_all_or_nothing: Check, root: Path, proven: Path, api: StandinTensorRT, deploy: Deploy
) -> None:
    assert_all_or_nothing(lambda: shutil.copytree(proven, root / "bundle"), lambda: deploy("build", root / "bundle"))


def test_an_engine_in_place_of_another(
    assert_all_or_nothing: Check, root: Path, proven: Path, api: StandinTensorRT, deploy: Deploy
) -> None:
    assert deploy("build", proven).code == 0
    assert_all_or_nothing(
        lambda: shutil.copytree(proven, root / "bundle"),
        lambda: deploy("build", root / "bundle", "--force"),
    )


def answered(work: Callable[[], object]) -> Ran:
    """What a command would say of work of its own."""
    try:
        work()
    except ResnetExportError as error:
        return Ran(error.exit_code, "", f"error: {error}\n")
    return Ran(0, "", "")


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_bundle_in_place_of_another(
    assert_all_or_nothing: Check,
    exchanges: bool,
    root: Path,
    small: Path,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not exchanges:  # a file system that cannot exchange two folders
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())

    def write() -> None:
        with staging_folder(root / "bundle", force=True) as folder:
            (folder / "model.onnx").write_bytes(b"another" * 1000)
            np.savez(folder / "golden.npz", inputs=np.zeros(3))
            (folder / "labels.txt").write_text("new")
            (folder / "engines").mkdir()
            write_manifest(folder, replace(manifest, name="new"))

    assert_all_or_nothing(lambda: shutil.copytree(small, root / "bundle"), lambda: answered(write))


def test_an_engine_from_a_board(
    assert_all_or_nothing: Check, root: Path, proven: Path, api: StandinTensorRT, deploy: Deploy, tmp_path: Path
) -> None:
    engine = Path(deploy("build", proven, "--json").json["engine"])
    for report in ("check.json", "check.xml"):
        engine.with_suffix(f".{report}").write_text("old")
    board = Path(shutil.copytree(proven, tmp_path / "board"))
    (board / "check.xml").write_text("new")

    def get(source: str, destination: Path) -> None:
        shutil.copyfile(board / source.removeprefix("bundle/"), destination)

    def bring() -> None:
        plan = SimpleNamespace(board=SimpleNamespace(text="board"), bundle=Bundle.open(root / "bundle"))
        there, said = remote._There(engine.name, ahead_of_time=True), remote._Said(3, "{}", "")
        remote._bring_back(plan, SimpleNamespace(get=get), there, said)  # type: ignore[arg-type]  # what it reads of them

    assert_all_or_nothing(lambda: shutil.copytree(proven, root / "bundle"), lambda: answered(bring))


def test_the_first_line_of_a_resume_file_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 1, 5))

    key = EvaluationKey("bundle", "file", "onnxruntime", "cpu", "1:8:32", 10, 64, "data")
    with open_resume_file(tmp_path / "journal", replace(key, data="others")):
        before = (tmp_path / "journal").read_bytes()
    monkeypatch.setattr(resume_file, "FileIO", Short)
    with pytest.raises(BadInput, match="is of another evaluation"), open_resume_file(tmp_path / "journal", key):
        pass  # nothing of it fits
    assert (tmp_path / "journal").read_bytes() == before


@pytest.mark.slow
def test_an_export(root: Path, run: Any, exported: Path) -> None:
    """Each point meets one of the kinds of faults in turn."""

    def command() -> Ran:
        found: Ran = run("resnet20", "--weights", "random", "--output", root / "bundle", "--force", "--quiet")
        return found

    def begin() -> dict[str, bytes]:
        shutil.rmtree(root / "bundle", ignore_errors=True)
        shutil.copytree(exported, root / "bundle")
        return snapshot(root)

    before = begin()
    with faulty_disk(root, Fault(None)) as disk:
        assert command().code == 0
    for number, at in enumerate(points(disk.done)):
        begin()
        with faulty_disk(root, Fault(at, *FAULTS[number % len(FAULTS)])):
            ran = command()
        assert ran.code in {0, 1, 2}
        if ran.code:
            assert "; " in ran.error
            assert snapshot(root) == before, (at, disk.done[at], ran)
        else:
            assert Bundle.open(root / "bundle").manifest.name == "resnet20-fp32"
            assert [path.name for path in root.iterdir()] == ["bundle"]


def test_the_disks_words_name_the_file_and_what_to_do() -> None:
    full, broken = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error", "/a/file")
    assert _disk_text(full) == "cannot write the output: No space left on device; make room for it"
    assert _disk_text(broken).startswith("/a/file: Input/output error; see that its disk or network is well")
    unnamed = _disk_text(OSError(errno.EIO, "Input/output error"))
    assert unnamed.startswith("a file or the output failed: Input/output error; ")  # it may have been read, not written
