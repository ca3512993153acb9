"""What a kit says of bundles that were exported with `--dla-friendly`, and what its install ends with."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from boards import write_files
from commands import Ran
from kits import unpacked
from manifest_edits import rewrite_manifest
from small_bundles import bundle_fixture  # noqa: F401  # pytest finds it by its name

from exporter.deployment.jetson import kit
from exporter.deployment.jetson.next_commands import next_commands
from exporter.deployment.jetson.own_wheel import Wheel

L4T = "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n"
BOARD, PLAIN = "etc/nv_tegra_release", {"min": 1, "opt": 1, "max": 1}


@pytest.fixture(name="for_dla")
def for_dla_fixture(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """The bundle, in a precision, written for DLA."""
    monkeypatch.setattr(kit, "own_wheel", lambda: Wheel("resnet_export-0-py3-none-any.whl", b"no wheel", ()))
    monkeypatch.setattr(kit, "collect_wheels", lambda *_: {})

    def edited(precision: str) -> Path:
        def change(document: dict[str, Any]) -> None:
            document.update(precision=precision, batch=PLAIN)
            document.setdefault("asked", {})["dla_friendly"] = True

        rewrite_manifest(bundle, change)
        return bundle

    return edited


def page(deploy: Callable[..., Ran], bundle: Path, tmp_path: Path, *arguments: str) -> str:
    ran = deploy("kit", bundle, "--output", tmp_path / "kit.tar", "--force", *arguments)
    assert ran.code == 0, ran.err
    return (unpacked(tmp_path / "kit.tar", tmp_path / "board") / "README.md").read_text()


def test_the_page_builds_for_dla_where_a_jetpack_has_it(
    for_dla: Callable[[str], Path], deploy: Callable[..., Ran], tmp_path: Path
) -> None:
    bundle = for_dla("fp16")
    said = page(deploy, bundle, tmp_path)
    assert "resnet-deploy build bundles/bundle --dla 0\n" in said
    assert "on AGX Orin or Orin NX with JetPack 6.1, 6.2, 6.2.1 or 6.2.2. On any other board" in said
    said = page(deploy, bundle, tmp_path, "--jetpack", "7.2")
    assert "resnet-deploy build bundles/bundle\n" in said
    assert "no JetPack of section 1 has DLA for it" in said
    said = page(deploy, for_dla("int8"), tmp_path)
    assert "resnet-deploy build bundles/bundle\n" in said
    assert "int8 on DLA needs TensorRT from 11.4.1 on" in said


def test_a_page_for_a_pc_names_nothing_of_a_jetson(
    bundle: Path, for_dla: Callable[[str], Path], deploy: Callable[..., Ran], tmp_path: Path
) -> None:
    said = page(deploy, for_dla("fp16"), tmp_path, "--wheels", "linux-x86_64-cp312")
    assert [word for word in ("nvpmodel", "jetson_clocks", "JetPack", "--dla") if word in said] == []
    said = page(deploy, bundle, tmp_path, "--wheels", "linux-aarch64-cp312")
    assert "A Jetson with JetPack 7.0, 7.1, 7.2 or 7.2.1. " in said
    assert "jetson_clocks" in said


@pytest.mark.parametrize(
    ("precision", "model", "version", "ends"),
    [
        ("fp16", "NVIDIA Jetson AGX Orin Developer Kit", "10.3.0", " --dla 0"),
        ("fp16", "", "10.3.0", " --dla 0   # leave out --dla 0 on a board without DLA"),
        ("fp16", "NVIDIA Jetson Orin Nano", "10.3.0", "   # for the GPU: NVIDIA Jetson Orin Nano has no DLA"),
        ("int8", "NVIDIA Jetson Orin NX", "10.3.0", "   # for the GPU: the DLA of TensorRT 10.3.0 takes no Q/DQ pairs"),
        ("int8", "NVIDIA Jetson AGX Orin", "11.4.1", " --dla 0"),
        ("fp16", None, "10.3.0", "   # for the GPU: this is no Jetson"),
    ],
)
def test_the_install_ends_with_the_build_that_the_machine_can_do(
    for_dla: Callable[[str], Path], tmp_path: Path, precision: str, model: str | None, version: str, ends: str
) -> None:
    root, folder = tmp_path / "root", for_dla(precision)
    if model is not None:
        write_files(root, {BOARD: L4T, "proc/device-tree/model": model})
    (line,) = next_commands("/home/a b/bin/resnet-deploy", version, [folder.rename(tmp_path / "it's a bundle")], root)
    assert ends in line
    assert shlex.split(line)[:3] == ["/home/a b/bin/resnet-deploy", "build", str(tmp_path / "it's a bundle")]
    assert shlex.split(line, comments=True)[3:] == shlex.split(ends, comments=True)


def test_the_script_leaves_the_commands_to_the_package() -> None:
    assert "-m exporter.deployment.jetson.next_commands" in kit.SCRIPT.read_text()
