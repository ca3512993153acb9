"""Bundles: a folder with a model, the numbers that prove it, and a manifest that names every file by its sha256."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from runtimes.errors import BundleError, PlanError
from runtimes.manifest import FileFacts, Manifest, json_from_manifest, manifest_from_json
from runtimes.textfile import lines_from_text

MANIFEST, LABELS = "manifest.json", "labels.txt"
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose every file is the one its manifest names."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Read the manifest and verify every file it names.

        Raises:
            BundleError: no manifest, a malformed one, or a file that is missing, changed, or outside the folder (named).
        """
        folder = Path(folder)
        path = folder / MANIFEST
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(
                f"{folder} is no bundle: cannot read {MANIFEST} ({error.strerror}); give the folder that resnet-export wrote"
            ) from error
        manifest = manifest_from_json(data, where=str(path))
        for name, facts in manifest.files.items():
            try:
                _verify(folder, name, facts)
            except (OSError, ValueError, RuntimeError) as error:  # unreadable, a name that no file can have, links in a circle
                raise BundleError(f"{folder}: cannot read {name!r} ({error}); export or copy the bundle again") from error
        return cls(folder, manifest)

    def file(self, name: str) -> Path:
        """Path of a file that the manifest names.

        Raises:
            BundleError: the bundle has no such file.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder} has no {name}; it holds {', '.join(sorted(self.manifest.files))}")
        return self.folder / name

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names in order, where they are known.

        Raises:
            BundleError: `labels.txt` is no UTF-8 text, or has not a line for each class.
        """
        if LABELS not in self.manifest.files:
            return None
        try:
            labels = tuple(lines_from_text(self.file(LABELS).read_bytes().decode()))
        except UnicodeDecodeError as error:
            raise BundleError(f"{self.folder}: expected UTF-8 text in {LABELS}, got something else ({error}); export the bundle again") from error
        if len(labels) != self.manifest.model.classes:
            raise BundleError(
                f"{self.folder}: expected a line for each of the {self.manifest.model.classes} classes in {LABELS}, got {len(labels)}; "
                "export the bundle again"
            )
        return labels


def _verify(folder: Path, name: str, facts: FileFacts) -> None:
    pure = PurePosixPath(name)
    path = folder / name
    if pure.is_absolute() or ".." in pure.parts or not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{folder}: {name} lies outside the bundle; do not use this bundle")
    if not path.is_file():
        raise BundleError(f"{folder}: {name} is missing; export or copy the bundle again")
    size = path.stat().st_size
    if size != facts.bytes:
        raise BundleError(f"{folder}: {name} was changed: expected {facts.bytes} bytes, got {size}; export or copy the bundle again")
    if sha256_of_file(path) != facts.sha256:
        raise BundleError(f"{folder}: {name} was changed: its sha256 is not the manifest's; export or copy the bundle again")


def sha256_of_file(path: Path) -> str:
    """sha256 of a file's content, in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_in_one_step(path: Path, data: bytes) -> None:
    """Write a file beside its place and rename it into it: at every moment it is the old one or the new one, whole.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def staging_folder(destination: Path, *, force: bool) -> Iterator[Path]:
    """A new folder beside `destination` that takes its place when the block ends well, and is removed when it does not.

    The destination is the old bundle or the new one at every moment, never a mixture: where the file system can, the two
    folders are exchanged in one step. A folder that a killed run left behind is removed by the next.

    Raises:
        PlanError: the destination exists without `force`, or is something else than a bundle.
        BundleError: the folder cannot be written; says why.
    """
    staging = destination.parent / f".{destination.name}.partial-{os.getpid()}"
    try:
        _check_replaceable(destination, force=force)
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(destination)
        staging.mkdir()
    except OSError as error:
        raise BundleError(f"cannot write {destination}: {error.strerror}; choose another --output") from error
    try:
        yield staging
        _exchange(staging, destination)
    except OSError as error:
        hint = "free some room, or choose another --output" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another --output"
        raise BundleError(f"cannot write {destination}: {error.strerror or error}; {hint}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_replaceable(destination: Path, *, force: bool) -> None:
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise PlanError(f"{destination} is not a folder; choose another --output")
    if destination.exists() and any(destination.iterdir()):
        if not (destination / MANIFEST).exists():
            raise PlanError(f"{destination} holds something else than a bundle; choose another --output")
        if not force:
            raise PlanError(f"{destination} exists; give --force to replace it, or another --output")


def files_of(folder: Path) -> dict[str, FileFacts]:
    """Every file in a folder and below it, by its relative path."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): FileFacts(sha256_of_file(path), path.stat().st_size) for path in paths}


def finish(staging: Path, manifest: Manifest) -> Manifest:
    """Write the manifest, last, over all files that lie in `staging`; returns it as written."""
    complete = replace(manifest, files=files_of(staging))
    with (staging / MANIFEST).open("wb") as file:
        file.write(json_from_manifest(complete))
        file.flush()
        os.fsync(file.fileno())
    return complete


def _exchange(staging: Path, destination: Path) -> None:
    """Put `staging` where `destination` is; what was there is then in `staging`, or gone."""
    if not destination.exists():
        staging.rename(destination)
        return
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        renameat2 = None  # glibc before 2.28, musl, or another system
    if renameat2 and renameat2(AT_FDCWD, os.fsencode(staging), AT_FDCWD, os.fsencode(destination), RENAME_EXCHANGE) == 0:
        return
    aside = staging.with_name(f"{staging.name}-old")
    destination.rename(aside)
    try:
        staging.rename(destination)
    except OSError:
        aside.rename(destination)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(destination: Path) -> None:
    """Staging folders of this destination whose process is gone. In a container each run may have the same number: ours is a leftover too."""
    pattern = re.compile(re.escape(f".{destination.name}.partial-") + r"(\d+)(-old)?")
    for path in destination.parent.iterdir():
        found = pattern.fullmatch(path.name)
        if found and (int(found[1]) == os.getpid() or not _is_alive(int(found[1]))):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True
