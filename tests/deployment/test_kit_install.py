"""A kit's `install.sh`, as a shell runs it on a machine without TensorRT."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Ran
from kits import unpacked
from small_bundles import bundle_fixture  # noqa: F401  # pytest finds it by its name

from exporter.deployment.jetson import kit
from exporter.deployment.jetson.own_wheel import Wheel

SCRIPT = kit.SCRIPT


def install(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"PATH": os.environ["PATH"], "HOME": str(folder.parent / "home"), "PYTHON": sys.executable}
    return subprocess.run(
        [folder / "install.sh", *map(str, arguments)],
        env={**given, **environment},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(name="folder")
def folder_fixture(bundle: Path, deploy: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kit whose wheel is none, for what is refused before it is looked at."""
    monkeypatch.setattr(kit, "own_wheel", lambda: Wheel("resnet_export-0-py3-none-any.whl", b"no wheel", ()))
    monkeypatch.setattr(kit, "collect_wheels", lambda *_: {})
    assert deploy("kit", bundle, "--output", tmp_path / "kit.tar", "--wheels", "linux-aarch64-cp310").code == 0
    return unpacked(tmp_path / "kit.tar", tmp_path)


def test_the_script_is_one_of_posix() -> None:
    subprocess.run(["sh", "-n", SCRIPT], check=True)


def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_a_kit_that_was_not_copied_whole_is_not_installed(folder: Path) -> None:
    (folder / "bundles" / "bundle" / "model.onnx").write_text("the mode")
    done = install(folder)
    assert done.returncode == 1
    assert "bundles/bundle/model.onnx" in done.stdout + done.stderr
    assert "install.sh: the kit is not what was packed (the files above); copy it again" in done.stderr


def test_wheels_of_another_platform_are_told_with_the_platform_that_is_here(folder: Path) -> None:
    done = install(folder, PYTHON=sys.executable)
    here = f"linux-{os.uname().machine}-cp3{sys.version_info[1]}"
    assert done.returncode == 3
    assert f"the kit's wheels are for linux-aarch64-cp310, and this is {here}; make the kit" in done.stderr


def test_an_old_python_is_refused(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\necho linux-aarch64-cp38\n")
    old.chmod(0o755)
    done = install(folder, PYTHON=str(old))
    assert (done.returncode, "expected Python 3.10 to 3.13, got linux-aarch64-cp38" in done.stderr) == (3, True)
    done = install(folder, PYTHON="no-such-python")
    assert (done.returncode, "expected the command no-such-python, got none" in done.stderr) == (3, True)


def test_a_pip_that_fails_leaves_no_half_environment(folder: Path, tmp_path: Path) -> None:
    """The Python of this test says that it is the one of the wheels; its environment has no package to install."""
    (tmp_path / "taken").mkdir()
    said = "linux-aarch64-cp310"
    here = tmp_path / "python"
    here.write_text(
        f'#!/bin/sh\ncase $2 in *platform.machine*) echo {said} && exit ;; esac\nexec "{sys.executable}" "$@"\n'
    )
    here.chmod(0o755)
    for arguments, code, message in (
        (["a", "b"], 2, "expected one folder for the environment, got 2"),
        (["--help"], 0, "./install.sh [FOLDER]"),
        (["--no"], 2, "./install.sh [FOLDER]"),
        ([tmp_path / "taken"], 2, "taken is there, and is no environment of Python; give another FOLDER"),
        ([tmp_path / "new"], 1, "pip failed, see above"),
    ):
        done = install(folder, *arguments, PYTHON=str(here))
        assert (done.returncode, message in done.stdout + done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "new").exists()


def other_python() -> str:
    """A Python that is not this one, as a board's is not."""
    names = [f"python3.{minor}" for minor in (10, 12, 13, 11) if minor != sys.version_info[1]]
    homes = [str(path) for path in Path.home().glob(".pyenv/versions/*/bin")]
    for name in names:
        for place in (None, os.pathsep.join(homes)):
            path = shutil.which(name, path=place)
            works = (
                path and subprocess.run([path, "-c", "import venv"], capture_output=True, check=False).returncode == 0
            )
            if path and works:
                return path
    pytest.skip("no other Python of 3.10 to 3.13 is here")


@pytest.mark.slow
def test_all_but_tensorrt_is_installed_without_a_network(
    exported: Path, deploy: Callable[..., Ran], tmp_path: Path
) -> None:
    python = other_python()
    minor = subprocess.run(
        [python, "-c", "import sys; print(sys.version_info[1])"], capture_output=True, text=True, check=True
    )
    platform = f"linux-{os.uname().machine}-cp3{minor.stdout.strip()}"
    ran = deploy("kit", exported, "--output", tmp_path / "kit.tar", "--wheels", platform)
    assert ran.code == 0, ran.err
    folder = unpacked(tmp_path / "kit.tar", tmp_path)
    for _ in range(2):  # the second time into the environment that is there
        done = install(folder, "board", PYTHON=python, PIP_NO_INDEX="1", HOME=str(tmp_path))
        assert done.returncode == 3, done.stderr
        assert "TensorRT is missing, all else is installed: expected 'import tensorrt' to work in" in done.stderr
        assert "No module named 'tensorrt'; on a Jetson: sudo apt-get install python3-libnvinfer" in done.stderr
    deployed, bundle = tmp_path / "board" / "bin" / "resnet-deploy", folder / "bundles" / exported.name
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    shown = subprocess.run([deployed, "inspect", bundle], env=clean, capture_output=True, text=True, check=True)
    assert "resnet20" in shown.stdout
    built = subprocess.run([deployed, "build", bundle], env=clean, capture_output=True, text=True, check=False)
    assert (built.returncode, "on a Jetson use JetPack's own" in built.stderr) == (3, True), built.stderr
    again = subprocess.run(
        [deployed, "kit", exported, "--output", tmp_path / "again.tar"],
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert deploy("kit", exported, "--output", tmp_path / "kit.tar", "--force").code == 0
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "kit.tar").read_bytes(), (
        "an install packs another wheel"
    )
    standin = tmp_path / "board" / "lib" / f"python3.{minor.stdout.strip()}" / "site-packages" / "tensorrt.py"
    for version, code, message in (
        ("10.3.0", 0, "TensorRT 10.3.0\n\nnext:\n  "),
        ("8.5.2", 3, "got 8.5.2; JetPack 6.1"),
    ):
        standin.write_text(f"__version__ = '{version}'\n")
        done = install(folder, "board", PYTHON=python, PIP_NO_INDEX="1", HOME=str(tmp_path))
        assert (done.returncode, message in done.stdout + done.stderr) == (code, True), done.stderr
