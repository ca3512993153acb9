"""A tar file of which equal contents give equal bytes, written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, cast

from runtimes.bundle import sha256_of_file
from runtimes.bundle_writing import new_folder_beside
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


def write_archive(path: Path, root: str, files: Mapping[str, Content]) -> FileFacts:
    """Write files below the folder `root` of a tar file, in their order, beside its place, and rename it; returns the
    tar file's sha256 and size.

    Raises:
        BundleError: it cannot be written, or a file that it is to hold cannot be read, or is not the one that was asked
            for; nothing is left.
    """
    with new_folder_beside(path) as staging:
        with (staging / path.name).open("xb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for entry, content in _entries(root, files):
                    _add(archive, entry, content)
            file.flush()
            os.fsync(file.fileno())
        facts = FileFacts(sha256_of_file(staging / path.name), (staging / path.name).stat().st_size)
        (staging / path.name).replace(path)
    return facts


def _entries(root: str, files: Mapping[str, Content]) -> Iterator[tuple[tarfile.TarInfo, Content | None]]:
    """The folders and files, each folder before what is in it."""
    folders = {parent.as_posix() for name in files for parent in Path(root, name).parents} - {"."}
    for folder in sorted(folders):
        entry = _entry(folder, 0o755)
        entry.type = tarfile.DIRTYPE
        yield entry, None
    for name, content in files.items():
        entry = _entry(f"{root}/{name}", 0o755 if name.endswith(".sh") and "/" not in name else 0o644)
        entry.size = content.facts.bytes
        yield entry, content


def _entry(name: str, mode: int) -> tarfile.TarInfo:
    """Owned by root, of one time: nothing of the machine that packs."""
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = mode, MTIME
    return entry


def _add(archive: tarfile.TarFile, entry: tarfile.TarInfo, content: Content | None) -> None:
    if content is None:
        archive.addfile(entry)
    elif isinstance(content.data, bytes):
        archive.addfile(entry, io.BytesIO(content.data))
    else:
        with content.data.open("rb") as file:
            read = _Hashed(file)
            archive.addfile(entry, cast(IO[bytes], read))
        if read.digest.hexdigest() != content.facts.sha256:
            raise BundleError(f"{content.data} was changed while it was packed; give the command again")


class _Hashed:
    """A file whose sha256 is taken while it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data
