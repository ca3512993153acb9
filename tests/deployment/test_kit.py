"""`resnet-deploy kit`: what it packs, the same bytes each time, and what it refuses."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, PathDistribution
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import Ran
from engine_bundles import add_engine, as_a_strangers
from engine_fixtures import api_fixture, cuda_fixture, folder_fixture  # noqa: F401  # pytest finds them by their names
from kits import unpacked
from manifest_edits import rewrite_manifest
from small_bundles import write_bundle
from standin_tensorrt import StandinTensorRT

from exporter.deployment.jetson import archive, base_wheels, kit, own_wheel
from exporter.deployment.jetson.base_wheels import WheelPlatform, collect_wheels
from runtimes import Bundle, Manifest
from runtimes.bundle_writing import write_manifest
from runtimes.errors import BackendUnavailable, BundleError
from runtimes.kernels import KernelCount

OWN = own_wheel.Wheel("resnet_export-0.0.0-py3-none-any.whl", b"a wheel", ("numpy>=1.24",))
JETPACK_6 = WheelPlatform("aarch64", 10)


@pytest.fixture(autouse=True)
def small_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "own_wheel", lambda: OWN)


@pytest.fixture(name="bundle")
def bundle_fixture(manifest: Manifest, tmp_path: Path) -> Path:
    """A bundle with a reference, and with an engine that was built on this machine."""
    folder = tmp_path / "bundles" / "resnet20-fp32"
    write_bundle(folder, manifest)
    (folder / "engines" / "sm87.engine").unlink()
    (folder / "engines").rmdir()
    (folder / "manifest.json").unlink()
    (folder / "reference.pt2").write_bytes(b"the program")
    (folder / "golden.npz").write_bytes(b"the proof")
    write_manifest(folder, manifest)
    return folder


def test_a_kit_holds_bundles_that_open_without_their_reference(
    bundle: Path, deploy: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = deploy("kit", bundle, "--output", tmp_path / "kit.tar", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["bundles"] == ["resnet20-fp32"]
    assert ran.json["sha256"] == hashlib.sha256((tmp_path / "kit.tar").read_bytes()).hexdigest()
    folder = unpacked(tmp_path / "kit.tar", tmp_path / "board")
    opened = Bundle.open(folder / "bundles" / "resnet20-fp32")
    assert sorted(opened.manifest.files) == ["golden.npz", "labels.txt", "model.onnx"]
    before = Bundle.open(bundle).manifest
    assert opened.manifest == replace(before, files=opened.manifest.files)
    assert not (opened.folder / "reference.pt2").exists()
    assert os.access(folder / "install.sh", os.X_OK)
    assert (folder / OWN.name).read_bytes() == OWN.data
    sums = {name: digest for digest, name in map(str.split, (folder / "SHA256SUMS").read_text().splitlines())}
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()} == {
        **sums,
        "SHA256SUMS": hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest(),
    }
    page = (folder / "README.md").read_text()
    for said in ("| 6.2 | 36.4.3 | 10.3.0 | 12.6 | 22.04 | 3.10 | sm87 |", "| 7.2 | 39.2.0 | 10.16.2 | 13.2 |"):
        assert said in page
    for verb in ("build", "check", "bench", "run"):
        assert f"~/resnet/bin/resnet-deploy {verb} bundles/resnet20-fp32" in page


def test_the_same_bundles_give_the_same_bytes(bundle: Path, deploy: Callable[..., Ran], tmp_path: Path) -> None:
    assert deploy("kit", bundle, "--output", tmp_path / "kit.tar").code == 0
    other = tmp_path / "elsewhere" / bundle.name
    shutil.copytree(bundle, other)
    for path in (other, *other.rglob("*")):
        os.utime(path, (10**9, 10**9))
        path.chmod(0o700)
    assert deploy("kit", other, "--output", tmp_path / "again.tar").code == 0
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "kit.tar").read_bytes()
    with tarfile.open(tmp_path / "kit.tar") as packed:
        entries = packed.getmembers()
    assert [one.name for one in entries if one.isfile()] == sorted(one.name for one in entries if one.isfile())
    assert {(one.uid, one.gid, one.uname, one.mtime) for one in entries} == {(0, 0, "", archive.MTIME)}
    assert {oct(one.mode) for one in entries if one.isfile()} == {"0o644", "0o755"}
    mine = unpacked(tmp_path / "kit.tar", tmp_path / "board") / "bundles" / bundle.name
    assert deploy("kit", mine, "--output", tmp_path / "third.tar").code == 0  # it has no reference any more
    assert (tmp_path / "third.tar").read_bytes() == (tmp_path / "kit.tar").read_bytes()


def test_jetpack_chooses_the_row_of_the_board(bundle: Path, deploy: Callable[..., Ran], tmp_path: Path) -> None:
    ran = deploy("kit", bundle, "--output", tmp_path / "kit.tar", "--jetpack", "7.1")
    assert "JetPack 7.1\n" in ran.out
    page = (unpacked(tmp_path / "kit.tar", tmp_path / "board") / "README.md").read_text()
    assert "| 7.1 | 38.4.0 | 10.13.3 | 13.0 | 24.04 | 3.12 | sm110 |" in page
    assert "| 6.2 |" not in page


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--wheels", "linux-riscv64-cp310"), 2, "expected --wheels as linux-aarch64-cp310 (JetPack 6)"),
        (("--wheels", "linux-aarch64-cp38"), 2, "got 'linux-aarch64-cp38'"),
        (("--wheels", "win-arm64-cp310"), 2, "the package runs on no other platform"),
        (
            ("--wheels", "linux-aarch64-cp311", "--jetpack", "7.2"),
            2,
            "expected --wheels for Python 3.12 of JetPack 7.2",
        ),
        (("--wheels", "linux-aarch64-cp312", "--jetpack", "6.2"), 2, "expected --wheels for Python 3.10 of JetPack 6"),
        (("--wheels", "linux-x86_64-cp310", "--jetpack", "6.2"), 2, "expected wheels for aarch64 with --jetpack"),
        (("--jetpack", "6.3"), 2, "unknown JetPack '6.3'; choose from 6.1, 6.2, "),
        (("--jetpack", "7.2.2"), 2, "what is newer than 7.2.1 brings is not known; leave out --jetpack for it"),
        (("--jetpack", "5.1.2"), 2, "JetPack 5.1.2 brings TensorRT 8.5.2, and bundles need 10.3"),
        (("--engines",), 2, "expected an engine that was built on a board"),
    ],
)
def test_contradictions_and_unknown_platforms_are_refused(
    bundle: Path, deploy: Callable[..., Ran], tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    ran = deploy("kit", bundle, "--output", tmp_path / "kit.tar", *arguments)
    assert (ran.code, message in ran.error) == (code, True), ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundles"]


def test_outputs_that_cannot_be_written_are_refused_first(
    bundle: Path, deploy: Callable[..., Ran], tmp_path: Path
) -> None:
    (tmp_path / "kit.tar").write_text("another file")
    for output, message in (
        (tmp_path / "nowhere" / "kit.tar", "there is no folder"),
        (bundle / "kit.tar", "lies in the bundle"),
        (tmp_path / "kit.tar", "exists; give --force to replace it"),
    ):
        ran = deploy("kit", bundle, "--output", output)
        assert (ran.code, message in ran.error) == (2, True), ran.err
    assert (tmp_path / "kit.tar").read_text() == "another file"
    assert deploy("kit", bundle, "--output", tmp_path / "kit.tar", "--force").code == 0
    assert deploy("kit", bundle, "--output", tmp_path).code == 2


def test_a_kit_that_cannot_be_finished_leaves_nothing(
    bundle: Path, deploy: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "_add", no_room)
    ran = deploy("kit", bundle, "--output", tmp_path / "kit.tar")
    assert (ran.code, "kit.tar: No space left on device; free some room, or choose another --output" in ran.error) == (
        1,
        True,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundles"]


def test_an_archive_that_has_no_place_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot write .*: (Not a directory|File exists)"):
        archive.write_archive(tmp_path / "file" / "kit.tar", "kit", {})


def test_two_bundles_of_one_name_are_refused(bundle: Path, deploy: Callable[..., Ran], tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "others" / bundle.name))
    ran = deploy("kit", bundle, other, "--output", tmp_path / "kit.tar")
    assert (ran.code, "two bundles are named resnet20-fp32: " in ran.error) == (2, True)
    assert str(other) in ran.error
    assert deploy("kit", bundle, other.rename(other.with_name("b2")), "--output", tmp_path / "kit.tar").code == 0


def test_bundles_that_no_board_builds_are_refused(bundle: Path, deploy: Callable[..., Ran], tmp_path: Path) -> None:
    pack = ("kit", bundle, "--output", tmp_path / "kit.tar")
    rewrite_manifest(bundle, lambda document: document.update(opset=22, precision="bf16"))
    ran = deploy(*pack, "--jetpack", "6.2")
    assert (ran.code, "opset 22 (bf16), which TensorRT 10.3 of JetPack 6 does not read" in ran.error) == (2, True)
    assert deploy(*pack, "--json").json["jetpacks"] == ["7.0", "7.1", "7.2", "7.2.1"]
    (tmp_path / "kit.tar").unlink()
    kernels = {name: 1 for name in KernelCount.__dataclass_fields__}
    rewrite_manifest(bundle, lambda document: document.update(target="cpu", kernels=kernels))
    ran = deploy(*pack)
    assert (ran.code, "is for cpu, and a board's TensorRT refuses its unsigned numbers" in ran.error) == (2, True)
    rewrite_manifest(bundle, lambda document: document["parity"].update(ok=False))
    ran = deploy(*pack)
    assert (ran.code, "was rejected by its export" in ran.error) == (1, True)


def test_bundles_whose_files_a_kit_cannot_hold_are_refused(
    bundle: Path, deploy: Callable[..., Ran], tmp_path: Path, manifest: Manifest
) -> None:
    pack = ("kit", bundle, "--output", tmp_path / "kit.tar")
    (bundle / "manifest.json").unlink()
    (bundle / "a\nb").write_text("two lines")
    write_manifest(bundle, manifest)
    ran = deploy(*pack)
    assert (ran.code, "expected printable names of files" in ran.error) == (2, True)
    (bundle / "manifest.json").unlink()
    (bundle / "a\nb").unlink()
    (bundle / "model.onnx").unlink()
    write_manifest(bundle, manifest)
    ran = deploy(*pack)
    assert (ran.code, "has no model.onnx" in ran.error) == (1, True)
    named = bundle.rename(bundle.with_name("a\nb"))
    ran = deploy("kit", named, "--output", tmp_path / "kit.tar")
    assert (ran.code, "expected a printable name" in ran.error) == (2, True)


# --- engines ---


def test_engines_of_another_bundle_are_refused_and_those_of_boards_packed_if_asked_for(
    folder: Path, api: StandinTensorRT, deploy: Callable[..., Ran], tmp_path: Path
) -> None:
    engine = add_engine(folder, api)
    pack = ("kit", folder, "--output", tmp_path / "kit.tar", "--force", "--json")
    assert deploy(*pack).json["engines"] == []
    as_a_strangers(engine, platform="linux-x86_64")
    assert "expected an engine that was built on a board" in deploy(*pack, "--engines").error
    as_a_strangers(engine, platform="linux-aarch64")
    assert deploy(*pack, "--engines").json["engines"] == [f"bundle/engines/{engine.name}"]
    mine = unpacked(tmp_path / "kit.tar", tmp_path / "board") / "bundles" / "bundle"
    assert (mine / "engines" / engine.name).read_bytes() == engine.read_bytes()
    Bundle.open(mine)
    as_a_strangers(engine, platform="linux-aarch64", onnx_sha256="0" * 64)
    for arguments in ((), ("--engines",)):
        ran = deploy(*pack, *arguments)
        assert (ran.code, "was built from another model.onnx than the bundle's" in ran.error) == (1, True)


# --- this package's wheel ---


def test_the_wheel_is_the_package_that_runs_and_has_the_same_bytes_from_an_install_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = own_wheel.own_wheel()
    with zipfile.ZipFile(io.BytesIO(wheel.data)) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
        opened.extractall(tmp_path)
    record = next(name for name in files if name.endswith("/RECORD"))
    assert {row[0] for row in csv.reader(files[record].decode().splitlines())} == set(files)
    for name, digest, size in csv.reader(files[record].decode().splitlines()):
        if name != record:
            found = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={found}", len(files[name])), name
    assert {name.split("/")[0] for name in files if ".dist-info/" not in name} == {
        "exporter",
        "runtimes",
        "calibration",
    }
    assert "exporter/deployment/jetson/install.sh" in files
    assert not [name for name in files if "__pycache__" in name]
    assert "numpy>=1.24" in wheel.requires
    assert not [line for line in wheel.requires if "torch" in line]

    monkeypatch.setattr(own_wheel, "distribution", lambda _: PathDistribution((tmp_path / record).parent))
    monkeypatch.setattr(own_wheel, "runtimes", SimpleNamespace(__file__=str(tmp_path / "runtimes" / "__init__.py")))
    (tmp_path / "exporter" / "__pycache__").mkdir()
    (tmp_path / "exporter" / "__pycache__" / "x.pyc").write_bytes(b"")
    (tmp_path / "exporter" / "of_another_package.py").write_bytes(b"")
    assert own_wheel.own_wheel() == wheel
    (tmp_path / "exporter" / "__init__.py").write_text("changed")
    with pytest.raises(BackendUnavailable, match="__init__.py was changed since.*; install it again"):
        own_wheel.own_wheel()
    (tmp_path / "exporter" / "__init__.py").unlink()
    with pytest.raises(BackendUnavailable, match="__init__.py is missing"):
        own_wheel.own_wheel()
    (tmp_path / record).with_name("METADATA").unlink()
    with pytest.raises(BackendUnavailable, match="has no METADATA; install it again"):
        own_wheel.own_wheel()


def test_without_an_install_there_is_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(own_wheel, "distribution", none)
    with pytest.raises(BackendUnavailable, match="resnet-export is not installed in this Python; pip install it"):
        own_wheel.own_wheel()


# --- the base install's wheels ---


def made_wheel(folder: Path, name: str, *requires: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        lines = "".join(f"Requires-Dist: {one}\n" for one in requires)
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\n{lines}\nText\n")


def test_what_the_boards_python_needs_is_collected_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip judges by its own Python: it brings `newer`, and leaves out `older` and `another`."""
    asked = []

    def download(platform: WheelPlatform, requirements: list[str], folder: Path) -> None:
        asked.append(requirements)
        made_wheel(folder, "Big_One", "newer; python_version >= '3.11'", "older>=2; python_version < '3.11'")
        made_wheel(folder, "newer")
        for name, needs in (("older", ["another[fast]<2; platform_machine == 'aarch64'"]), ("another", [])):
            if any(one.startswith(name) for one in requirements):
                made_wheel(folder, name, *needs, "quick; extra == 'slow'")

    monkeypatch.setattr(base_wheels, "_download", download)
    found = collect_wheels(JETPACK_6, ["Big.One>=1", "never; sys_platform == 'win32'"])
    assert list(found) == [f"{name}-1.0-py3-none-any.whl" for name in ("another", "Big_One", "older")]
    assert asked == [["Big.One>=1"], ["Big.One>=1", "older>=2"], ["Big.One>=1", "older>=2", "another[fast]<2"]]


def test_packages_that_cannot_be_had_are_told_in_one_line(
    bundle: Path, deploy: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    ran = deploy("kit", bundle, "--output", tmp_path / "kit.tar", "--wheels", "linux-aarch64-cp310")
    assert ran.code == 3
    assert "pip cannot collect the wheels for linux-aarch64-cp310: No matching distribution found for " in ran.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundles"]
    monkeypatch.setitem(sys.modules, "pip._vendor.packaging.requirements", None)
    ran = deploy("kit", bundle, "--output", tmp_path / "kit.tar", "--wheels", "linux-aarch64-cp310")
    assert (ran.code, "--wheels needs pip, which this Python has not" in ran.error) == (3, True)


def test_wheels_lie_beside_the_platform_that_they_are_for(
    bundle: Path, deploy: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def collect(platform: WheelPlatform, requires: list[str]) -> dict[str, bytes]:
        asked.extend([str(platform), *requires])
        return {"numpy-2-py3-none-any.whl": b"numpy"}

    monkeypatch.setattr(kit, "collect_wheels", collect)
    ran = deploy("kit", bundle, "--output", tmp_path / "kit.tar", "--wheels", "linux-aarch64-cp310", "--json")
    assert (ran.json["wheels"], ran.json["jetpacks"]) == (
        ["numpy-2-py3-none-any.whl"],
        ["6.1", "6.2", "6.2.1", "6.2.2"],
    )
    assert asked == ["linux-aarch64-cp310", "numpy>=1.24", "cuda-python>=12.8,<13"]
    folder = unpacked(tmp_path / "kit.tar", tmp_path / "board")
    assert (folder / "wheels" / "PLATFORM").read_text() == "linux-aarch64-cp310\n"
    assert (folder / "wheels" / "numpy-2-py3-none-any.whl").read_bytes() == b"numpy"
    assert "needs no network" in (folder / "README.md").read_text()
