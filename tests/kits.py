"""What the tests of kits share."""

from __future__ import annotations

import tarfile
from pathlib import Path

from exporter.deployment.jetson.kit import ROOT


def unpacked(path: Path, into: Path) -> Path:
    """Unpack a kit; returns its folder."""
    with tarfile.open(path) as archive:
        archive.extractall(into, filter="data")
    return into / ROOT
