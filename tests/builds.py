"""What the tests of builds share: options, changes to a bundle, and the engines that it has."""

from __future__ import annotations

from pathlib import Path

TARGETS = ("--backend", "tensorrt-rtx", "--target", "sm86,sm120")


def engines(bundle: Path) -> list[str]:
    folder = bundle / "engines"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def quiet(step: str, done: int = 0, total: int = 0) -> None:
    pass
