"""Bundles whose manifests are edited in place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtimes.bundle import MANIFEST


def rewrite_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's JSON in place."""
    document = json.loads((bundle / MANIFEST).read_bytes())
    change(document)
    (bundle / MANIFEST).write_text(json.dumps(document))
