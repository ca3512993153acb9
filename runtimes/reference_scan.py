"""Check that a `torch.export` program (`reference.pt2`) holds only tensors and arithmetic, before PyTorch reads it.
Needs no PyTorch.

`torch.export.load` runs code that an archive brings: it unpickles weights, constants and example inputs, loads compiled
libraries, evaluates symbolic sizes as Python, imports what a tree of arguments names, resolves operators by attribute
from `torch`, `math` and `operator`, and compiles the names of values and the guards into a function. So every string of
an archive is checked against a list of what a program needs, and PyTorch is given a new archive of the checked parts
alone: two readers of one zip file need not agree on what is in it. (Read in torch 2.9 to 2.14:
export/pt2_archive/_package.py, _export/serde/serialize.py, export/_unlift.py, fx/graph.py, utils/_pytree.py.)
"""

from __future__ import annotations

import io
import json
import math
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtimes.errors import BadInput, BundleError
from runtimes.reference_fields import Refused, check_field, check_path

LARGEST_JSON = 64 << 20
"""A ResNet-1202's program has 9 MB of it."""
LARGEST_LINE, LARGEST_PICKLE = 1 << 16, 1 << 20
MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = "data/weights/", "data/constants/"
CONFIGS = {f"{WEIGHTS}model_weights_config.json": WEIGHTS, f"{CONSTANTS}model_constants_config.json": CONSTANTS}
LINES = (
    ".data/version",
    ".data/serialization_id",
    "version",
    "archive_format",
    "archive_version",
    "byteorder",
    "extra/outputs",
)
PAYLOAD = re.compile(r"data/(weights/weight|constants/tensor)_[0-9]+")
PLAIN_PICKLE = re.compile(
    r"torch\._utils _rebuild_tensor(_v2)?|torch (\w+Storage|Size|device|(bool|b?float|int|uint)\d*)"
    r"|collections OrderedDict"
)


def plain_program(path: Path) -> io.BytesIO:
    """Check the program at `path`, and pack its checked parts into a new archive for `torch.export.load`.

    Holds the file's content in memory once. Raises as `plain_parts` does.
    """
    return _pack(plain_parts(path))


def plain_parts(path: Path) -> dict[str, bytes]:
    """Check the program at `path`: the content of each of its entries, by the entry's name in the archive's folder.

    Raises:
        BadInput: the file is no archive, or is cut short.
        BundleError: it holds something else than tensors, ATen operators and what describes them; nothing of it was
            run.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            parts = _parts(archive, path.stat().st_size)
        _check_program(parts)
    except Refused as problem:
        raise BundleError(
            f"{path} holds {problem}, expected plain tensors and ATen operators alone; nothing of it was run: do not "
            "use this file"
        ) from problem
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
        RecursionError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadInput(f"pytorch cannot load {path}: expected a torch.export program (.pt2), got {said}") from error
    return parts


def _parts(archive: zipfile.ZipFile, size: int) -> dict[str, bytes]:
    """Every entry by its name below the archive's one folder; all are stored as they are, so that together they are no
    larger than the file."""
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > size:
        raise Refused("entries that lie in one another, or are packed")
    parts: dict[str, bytes] = {}
    for entry in entries:
        root, _, name = entry.filename.partition("/")
        if (
            entry.compress_type != zipfile.ZIP_STORED
            or entry.flag_bits & 1
            or root != entries[0].filename.partition("/")[0]
            or name in parts
        ):
            raise Refused(f"an entry {entry.filename!r} that is packed, encrypted, double or outside of its folder")
        if entry.file_size > _most(name):
            raise Refused(f"an entry {entry.filename!r} of {entry.file_size} bytes")
        parts[name] = archive.read(entry)
    if MODEL not in parts:
        raise ValueError(f"no {MODEL} in it")
    return parts


def _most(name: str) -> float:
    """The most bytes that an entry may have."""
    if PAYLOAD.fullmatch(name):
        return math.inf
    limits: dict[str, float] = {
        MODEL: LARGEST_JSON,
        SAMPLES: math.inf,
        **dict.fromkeys(CONFIGS, LARGEST_JSON),
        **dict.fromkeys(LINES, LARGEST_LINE),
    }
    if name not in limits:
        raise Refused(f"an entry {name!r}")
    return limits[name]


def _pack(parts: dict[str, bytes]) -> io.BytesIO:
    """A zip archive of the parts, which are taken out of the dictionary one by one, so that none is in memory twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as packed:
        for name in list(parts):
            content = parts.pop(name)
            packed.writestr(zipfile.ZipInfo(f"reference/{name}"), b"" if name == SAMPLES else content)
    buffer.seek(0)
    return buffer


def _check_program(parts: Mapping[str, bytes]) -> None:
    for name in LINES:
        if not parts.get(name, b"").decode().replace("\n", "").isprintable():
            raise Refused(f"an entry {name!r} that is no text")
    for name, folder in CONFIGS.items():
        for key, payload in json.loads(parts[name])["config"].items():
            _check_payload(key, payload, folder, parts)
    check_field(json.loads(parts[MODEL]), "", "")
    if parts.get(SAMPLES):
        _check_samples(parts[SAMPLES])


def _check_payload(key: str, payload: dict[str, Any], folder: str, parts: Mapping[str, bytes]) -> None:
    """Check one tensor's description: its values must be in the archive as plain bytes."""
    check_field(payload, "", "")
    check_path(key)
    place = f"{folder}{payload['path_name']}"
    if payload["use_pickle"] is not False or not PAYLOAD.fullmatch(place):
        raise Refused(f"'{key}' as a pickle or an object, {payload['path_name']!r}")
    sizes = [size["as_int"] for size in payload["tensor_meta"]["sizes"]]
    if not all(type(size) is int and size >= 0 for size in sizes) or math.prod(sizes) > len(parts[place]):
        raise Refused(f"'{key}' of more values than are there")


def _check_samples(data: bytes) -> None:
    """Check the example inputs: PyTorch never gets them, but anything but tensors is refused all the same."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickles = [entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
            raise Refused("example inputs that are no tensors")
        content = archive.read(pickles[0])
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ") or opcode.name.startswith("EXT"):
            raise Refused("example inputs that are no plain tensors")
        if opcode.name == "GLOBAL" and not PLAIN_PICKLE.fullmatch(str(argument)):
            raise Refused(f"example inputs that call {str(argument)!r}")
