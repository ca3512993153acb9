"""`--ray` where there are no pictures to share: refused in one line, before any work and without Ray."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from commands import run_main
from small_bundles import bundle_fixture  # noqa: F401  # pytest finds it by its name

from exporter.cli import deploy, export

NOTHING_TO_SHARE = "--ray shares pictures among workers, and golden inputs are few; give --data, or leave it out"


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((), NOTHING_TO_SHARE),
        (
            ("--data", "built-in", "--timeout", "9"),
            "--timeout ends a backend's process on this machine, and --ray runs it elsewhere; leave one out",
        ),
    ],
)
def test_check_needs_pictures_and_no_timeout(
    bundle: Path,
    given: tuple[str, ...],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = run_main(deploy.main, ("check", bundle, "--ray", "local", *given), capsys, monkeypatch)
    assert (ran.code, ran.error) == (2, f"error: {says}")


@pytest.mark.parametrize("given", [("--fp16", "--data", "built-in"), ("--int8",)], ids=str)
def test_an_export_needs_pictures_to_calibrate_on(
    given: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("resnet20", *given, "--ray", "local:2", "--output", tmp_path / "bundle")
    ran = run_main(export.main, arguments, capsys, monkeypatch)
    assert (ran.code, ran.error) == (
        2,
        "error: --ray shares the pictures that INT8 is calibrated on; give --int8 and --data, or leave it out",
    )


def test_without_ray_installed_the_command_that_installs_it_is_told(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("calibration.distributed.cluster")]:
        monkeypatch.delitem(sys.modules, name)
    ran: Any = run_main(deploy.main, ("check", bundle, "--ray", "local", "--data", "built-in"), capsys, monkeypatch)
    expected = "error: --ray needs the package 'ray', which is not installed; pip install 'resnet-export[ray]'"
    assert (ran.code, ran.error) == (3, expected)


def test_what_ray_itself_lacks_is_named(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray.py").write_text("import not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if f"{name}.".startswith(("ray.", "calibration.distributed.cluster."))]:
        monkeypatch.delitem(sys.modules, name)
    ran: Any = run_main(deploy.main, ("check", bundle, "--ray", "local", "--data", "built-in"), capsys, monkeypatch)
    assert ran.code == 3
    assert "--ray needs the package 'not_there', which is not installed" in ran.error
