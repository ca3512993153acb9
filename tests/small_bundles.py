"""A bundle of three small files, and its manifest changed in place. A test file imports the fixture that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtimes.bundle_writing import write_manifest
from runtimes.manifest import Manifest

LABELS = ("Trouser", "Königinpasteten", "top\u2028half", "cat\x85s", "form\x0cfeed", *"abcde")


def write_bundle(folder: Path, manifest: Manifest) -> Path:
    """A bundle of three files; their content is nobody's business but the manifest's."""
    (folder / "engines").mkdir(parents=True)
    (folder / "model.onnx").write_text("the model")
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    (folder / "engines" / "sm87.engine").write_bytes(b"\x00" * 100)
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(name="bundle")
def bundle_fixture(manifest: Manifest, tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", manifest)
