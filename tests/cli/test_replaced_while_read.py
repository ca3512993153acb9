"""A bundle that another export replaces while a command reads it: all of the old one, or one line that says so."""

from __future__ import annotations

import ctypes
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import Ran
from engine_fixtures import api_fixture, cuda_fixture, folder_fixture, proven_fixture, reference_fixture  # noqa: F401  # pytest finds them by their names
from PIL import Image
from small_bundles import write_bundle
from standin_tensorrt import StandinTensorRT

from runtimes import Bundle, Manifest, open_runtime
from runtimes.bundle_writing import staging_folder, write_manifest
from runtimes.errors import BundleError, PlanError
from runtimes.nvidia.engine_file import facts_of
from runtimes.parity import golden
from runtimes.parity.golden import golden_arrays

Deploy = Callable[..., Ran]


def exchange(bundle: Path, other: Path) -> None:
    """Put a copy of another bundle in a bundle's place, as an export does."""
    with staging_folder(bundle, force=True) as folder:
        shutil.copytree(other, folder, dirs_exist_ok=True)


@pytest.fixture(name="pair")
def pair_fixture(exported: Path, shipped_bundle: Any, tmp_path: Path) -> tuple[Path, Path]:
    """A bundle, and one that takes its place."""
    other: Path = shipped_bundle("fp32").folder
    return Path(shutil.copytree(exported, tmp_path / "bundle")), other


@pytest.fixture(name="replaced_once_open")
def replaced_once_open_fixture(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle that is replaced right after it was opened and verified."""
    real, (bundle, other) = Bundle.open, pair

    def opened(folder: str | Path) -> Bundle:
        found = real(folder)
        exchange(bundle, other)
        return found

    monkeypatch.setattr(Bundle, "open", opened)
    return bundle


@pytest.mark.parametrize("verb", ["run", "eval", "check", "kit", "triton"])
def test_a_command_says_that_its_bundle_was_replaced(
    verb: str, replaced_once_open: Path, deploy: Deploy, tmp_path: Path
) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "picture.png")
    options: dict[str, tuple[object, ...]] = {
        "run": (tmp_path / "picture.png",),
        "eval": ("--data", "built-in", "--images", 8),
        "check": ("--backend", "onnxruntime"),
        "kit": ("--output", tmp_path / "kit.tar"),
        "triton": ("--output", tmp_path / "repository"),
    }
    ran = deploy(verb, replaced_once_open, *options[verb])
    assert (ran.code, "Traceback" in ran.err) == (1, False), ran
    assert "while it was " in ran.err + ran.out or "was changed while" in ran.err + ran.out
    assert "give the command again" in ran.err + ran.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "picture.png"]


def test_every_way_to_a_file_of_a_bundle_notices_another(pair: tuple[Path, Path]) -> None:
    folder, other = pair
    bundle = Bundle.open(folder)
    assert bundle.read("golden.npz") == (folder / "golden.npz").read_bytes()
    exchange(folder, other)
    for read in (
        lambda: bundle.read("model.onnx"),
        bundle.check_same,
        bundle.manifest_bytes,
        lambda: golden_arrays(bundle),
        lambda: open_runtime(bundle),
        lambda: open_runtime(bundle, "pytorch"),
    ):
        with pytest.raises(BundleError, match="give the command again"):
            read()
    shutil.rmtree(folder)
    for read in (lambda: bundle.read("model.onnx"), bundle.check_same, bundle.manifest_bytes):
        with pytest.raises(BundleError):
            read()


def test_labels_of_another_bundle_are_not_taken(manifest: Manifest, tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", manifest))
    (bundle.folder / "labels.txt").write_text("".join(f"{letter}\n" for letter in "abcdefghij"))
    with pytest.raises(BundleError, match="labels.txt was changed while .* was read; give the command again"):
        _ = bundle.labels


def test_an_engine_is_not_kept_in_the_bundle_that_came_meanwhile(
    proven: Path,
    api: StandinTensorRT,
    deploy: Deploy,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    other = write_bundle(tmp_path / "other", replace(manifest, name="other"))
    shutil.rmtree(other / "engines")
    (other / "manifest.json").unlink()
    write_manifest(other, replace(manifest, name="other"))
    real = golden.golden_report

    def then_replaced(*arguments: Any) -> Any:
        found = real(*arguments)
        exchange(proven, other)
        return found

    monkeypatch.setattr("exporter.engines.build.golden_report", then_replaced)
    ran = deploy("build", proven)
    assert (ran.code, "was replaced by another bundle while it was read" in ran.error) == (1, True)
    assert Bundle.open(proven).manifest.name == "other"
    assert [path.name for path in proven.rglob("*.engine")] == []


# --- two at once ---


def exports_at_once(destination: Path, manifest: Manifest, *, force: bool) -> list[str]:
    """Two exports that end in one moment: their names, or what they were told."""
    ready = threading.Barrier(2)

    def write(name: str) -> str:
        try:
            with staging_folder(destination, force=force) as folder:
                (folder / "model.onnx").write_text(name)
                write_manifest(folder, replace(manifest, name=name))
                ready.wait(10)
        except PlanError as error:
            return str(error)
        return name

    with ThreadPoolExecutor(2) as threads:
        return sorted(threads.map(write, ["one", "two"]))


def test_two_exports_to_one_new_folder_leave_one_bundle_and_tell_the_other(manifest: Manifest, tmp_path: Path) -> None:
    for force in (False, True):
        for number in range(10):
            destination = tmp_path / f"{force}-{number}" / "bundle"
            written = exports_at_once(destination, manifest, force=force)
            found = Bundle.open(destination)
            told = f"{destination} exists; give --force to replace it, or another --output"
            assert written == (["one", "two"] if force else sorted([told, found.manifest.name]))
            assert found.file("model.onnx").read_text() == found.manifest.name
            assert [path.name for path in destination.parent.iterdir()] == ["bundle"]


def test_two_exports_at_once_on_a_file_system_that_cannot_exchange(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    test_two_exports_to_one_new_folder_leave_one_bundle_and_tell_the_other(manifest, tmp_path)


def test_what_came_into_the_folder_during_an_export_is_not_lost(manifest: Manifest, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", manifest)

    def export() -> None:
        with staging_folder(bundle, force=True) as folder:
            write_manifest(folder, manifest)
            (bundle / "notes.txt").write_text("mine")

    with pytest.raises(PlanError, match=r"holds notes\.txt"):
        export()
    assert (bundle / "notes.txt").read_text() == "mine"


def test_a_reader_of_an_engine_sees_no_half_of_a_build_that_ends(
    proven: Path, api: StandinTensorRT, deploy: Deploy
) -> None:
    from exporter.engines.folder import keep_engine, staged_engine
    from runtimes.bundle_writing import write_synced
    from runtimes.nvidia.plan_files import sidecar_of

    engine = Path(deploy("build", proven, "--json").json["engine"])
    kept = engine.read_bytes(), sidecar_of(engine).read_bytes()
    pairs = [kept, _other_build(engine)]
    done = threading.Event()

    def build_again() -> None:
        for number in range(150):
            with staged_engine(engine) as staged:
                plan, sidecar = pairs[number % 2]
                write_synced(staged, plan)
                write_synced(sidecar_of(staged), sidecar)
                keep_engine([(staged, engine), (sidecar_of(staged), sidecar_of(engine))])
        done.set()

    with ThreadPoolExecutor(2) as threads:
        builds = [threads.submit(build_again), threads.submit(build_again)]
        while not done.is_set():
            facts_of(engine)  # raises where the two are not of one build
        for build in builds:
            build.result()
    assert (engine.read_bytes(), sidecar_of(engine).read_bytes()) in pairs
    assert len(list(engine.parent.iterdir())) == 2


def _other_build(engine: Path) -> tuple[bytes, bytes]:
    """As another build of the same engine gives it: other bytes, and its sidecar."""
    import hashlib

    from runtimes.nvidia.engine_file import json_from_facts

    plan = engine.read_bytes() + b"other"
    facts = replace(facts_of(engine), engine_sha256=hashlib.sha256(plan).hexdigest(), engine_bytes=len(plan))
    return plan, json_from_facts(facts)
