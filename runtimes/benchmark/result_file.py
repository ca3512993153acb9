"""A benchmark's result as a file: versioned, and validated when it is read."""

from __future__ import annotations

from pathlib import Path

import msgspec

from runtimes.benchmark.results import SCHEMA_VERSION, Result
from runtimes.errors import BadInput, PlanError
from runtimes.private import read_regular

LARGEST_FILE = 8 << 20


def json_from_result(result: Result) -> bytes:
    """Indented UTF-8 JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"


def result_from_file(path: Path) -> Result:
    """Read and validate a result.

    Raises:
        BadInput: it cannot be read, is no such result, or one of another schema version.
    """
    remedy = "give a file that resnet-deploy bench --json wrote"
    try:
        data = read_regular(path, LARGEST_FILE)
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; {remedy}") from error
    try:
        found = msgspec.json.decode(data, type=dict[str, object]).get("schema_version")
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: expected a JSON object, got: {error}; {remedy}") from error
    if found != SCHEMA_VERSION:
        raise BadInput(f"{path}: expected schema_version {SCHEMA_VERSION}, got {found!r}; measure again")
    try:
        return msgspec.json.decode(data, type=Result)
    except (ValueError, RecursionError, PlanError) as error:
        raise BadInput(f"{path}: {error}; {remedy}") from error
