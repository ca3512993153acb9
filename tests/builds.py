"""What the tests of builds share: options, changes to a bundle, and the engines that it has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGETS = ("--backend", "tensorrt-rtx", "--target", "sm86,sm120")


def changed(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit the manifest."""
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def engines(bundle: Path) -> list[str]:
    folder = bundle / "engines"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def quiet(step: str, done: int = 0, total: int = 0) -> None:
    pass
