"""The commands that come after an install: of each bundle the build that this machine can do."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from runtimes.board.dla import board_has_dla, dla_refusal
from runtimes.board.jetpack import ROOT, JetPack, board_name, this_board
from runtimes.bundle import Bundle
from runtimes.manifest import Manifest

ON_DLA = " --dla 0"
WITH_DLA = "sm87"
"""Orin: the only boards of our JetPacks of which some have a DLA."""


def main() -> None:
    """Print a line for each bundle; `install.sh` calls it with its command, TensorRT's version, and the folders."""
    deploy, version, *folders = sys.argv[1:]
    print("\n".join(next_commands(deploy, version, tuple(map(Path, folders)))))


def next_commands(deploy: str, version: str, folders: Sequence[Path], root: Path = ROOT) -> list[str]:
    """A `build` for each bundle, as a POSIX shell reads it.

    Args:
        deploy: the path of `resnet-deploy`.
        version: TensorRT's, such as `10.3.0`.
        folders: the bundles'.
        root: where `etc`, `proc` and `sys` are.

    Raises:
        BundleError: a folder is no bundle.
    """
    return [_line(deploy, version, folder, root) for folder in folders]


def jetpacks_with_dla(manifest: Manifest, boards: Sequence[JetPack]) -> list[str]:
    """The names of the releases whose own TensorRT runs a bundle on a DLA; none for one that was not written for it."""
    return [
        one.name
        for one in boards
        if manifest.asked.dla_friendly
        and WITH_DLA in one.targets
        and not dla_refusal(one.tensorrt, "", manifest.precision)
    ]


def _line(deploy: str, version: str, folder: Path, root: Path) -> str:
    manifest = Bundle.open(folder).manifest
    command = f"  {shlex.quote(deploy)} build {shlex.quote(str(folder))}"
    if not manifest.asked.dla_friendly:
        return command
    if this_board(root) is None:
        return f"{command}   # for the GPU: this is no Jetson"
    name = board_name(root)
    refusal = dla_refusal(version, name, manifest.precision)
    if refusal:
        return f"{command}   # for the GPU: {refusal.split('; ')[0]}"
    return command + ON_DLA + ("" if board_has_dla(name) else "   # leave out --dla 0 on a board without DLA")


if __name__ == "__main__":
    main()
