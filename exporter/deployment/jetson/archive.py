"""A tar file of which equal contents give equal bytes, written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from runtimes.errors import BundleError
from runtimes.manifest import FileFacts

MTIME = 315532800
"""1980-01-01: of every file, so that equal files give equal kits. Of 1970-01-01 tar warns."""


class Content(NamedTuple):
    """A file of an archive: its content, or where that is; sha256 in hex, and bytes."""

    data: bytes | Path
    facts: FileFacts


def content_of(data: bytes) -> Content:
    """A file that is made here."""
    return Content(data, FileFacts(hashlib.sha256(data).hexdigest(), len(data)))


def write_archive(path: Path, root: str, files: Mapping[str, Content]) -> None:
    """Write files below the folder `root` of a tar file, in their order, beside its place, and rename it.

    Raises:
        BundleError: it cannot be written, or a file that it is to hold cannot be read; nothing is left.
    """
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(8)}")
    try:
        with partial.open("xb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for entry, content in _entries(root, files):
                    _add(archive, entry, content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error.strerror or error}; give another --output") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _entries(root: str, files: Mapping[str, Content]) -> Iterator[tuple[tarfile.TarInfo, bytes | Path | None]]:
    """The folders and files, each folder before what is in it."""
    folders = {parent.as_posix() for name in files for parent in Path(root, name).parents} - {"."}
    for folder in sorted(folders):
        entry = _entry(folder, 0o755)
        entry.type = tarfile.DIRTYPE
        yield entry, None
    for name, content in files.items():
        entry = _entry(f"{root}/{name}", 0o755 if name.endswith(".sh") and "/" not in name else 0o644)
        entry.size = content.facts.bytes
        yield entry, content.data


def _entry(name: str, mode: int) -> tarfile.TarInfo:
    """Owned by root, of one time: nothing of the machine that packs."""
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = mode, MTIME
    return entry


def _add(archive: tarfile.TarFile, entry: tarfile.TarInfo, content: bytes | Path | None) -> None:
    if content is None:
        archive.addfile(entry)
    elif isinstance(content, bytes):
        archive.addfile(entry, io.BytesIO(content))
    else:
        with content.open("rb") as file:
            archive.addfile(entry, file)
