"""Write files and bundles so that an interrupted run leaves nothing that looks finished."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from runtimes.bundle import MANIFEST, read_manifest, sha256_of_file
from runtimes.errors import BundleError, PlanError
from runtimes.manifest import FileFacts, Manifest, json_from_manifest

ENGINES, OF_ENGINES = "engines", (".engine", ".json", ".cache", ".xml")
"""A bundle's folder that its manifest does not list, since devices build engines into it; and the suffixes of its
files."""
REJECTED = ".rejected"
"""What the name of a bundle that its proof refused ends in."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def write_in_one_step(path: Path, data: bytes) -> None:
    """Write a file under another name beside its place, then rename it: a reader sees the old file or the new one,
    whole.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    partial = _partial_path(path)
    try:
        write_synced(partial, data)
        partial.replace(path)
    finally:
        with suppress(OSError):  # what went wrong first is on its way
            partial.unlink()


def write_synced(path: Path, data: bytes) -> None:
    """Write a file, and wait until it is on the disk. Raises OSError where it cannot be written."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_together(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Rename files that belong together into place, each `(source, destination)`; if one cannot be, what was there
    before is put back, where the file system has hard links.

    Raises:
        OSError: one cannot be renamed.
    """
    kept = [(_partial_path(destination), destination) for _, destination in pairs]
    done: list[tuple[Path, Path]] = []
    try:
        for (source, destination), (old, _) in zip(pairs, kept, strict=True):
            is_new = not os.path.lexists(destination)
            with suppress(OSError):  # there is none, or there are no links
                os.link(destination, old)
            done.append((destination, source) if is_new else (old, destination))
            source.replace(destination)
    except BaseException:
        for there, back in reversed(done):
            with suppress(OSError):
                there.replace(back)
        raise
    finally:
        for old, _ in kept:
            with suppress(OSError):
                old.unlink()


def _partial_path(path: Path) -> Path:
    """A name beside `path` that nobody else uses. Random, since other containers and threads may share our process
    number."""
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(8)}")


@contextmanager
def staging_folder(destination: Path, *, force: bool) -> Iterator[Path]:
    """Make a new folder beside `destination`, which takes its place if the block succeeds, and is removed if it fails.

    At every moment the destination is the old bundle or the new one, never a mixture: where the file system can, the
    two folders are exchanged in one step. A folder that a killed run left behind is removed by the next run.

    Raises:
        PlanError: the destination exists without `force`, or is something else than a bundle, at the start or by the
            end.
        BundleError: the folder cannot be written; says why.
    """
    check_destination(destination, force=force)
    with new_folder_beside(destination) as staging:
        yield staging
        while True:
            check_destination(destination, force=force)  # of two exports at once, the other may be done
            try:
                return _exchange(staging, destination)
            except OSError as error:  # it is done in this moment
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT) or not staging.exists():
                    raise


@contextmanager
def new_folder_beside(destination: Path) -> Iterator[Path]:
    """Make a new folder beside `destination` to write into, and rename out of; what is left of it in the end is
    removed. A folder that a killed run left behind is removed by the next run.

    Raises:
        BundleError: it cannot be written, or the block raised an OSError; says why.
    """
    with _explaining_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(destination)
        staging, lock = _locked_folder(destination)
    try:
        with _explaining_errors(destination):
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


@contextmanager
def _explaining_errors(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = (
            "free some room, or choose another --output"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "choose another --output"
        )
        raise BundleError(f"cannot write {destination}: {error.strerror or error}; {hint}") from error


def check_destination(destination: Path, *, force: bool) -> None:
    """Check, before the work, that a bundle may be written there.

    Raises:
        PlanError: it is the current folder or holds it; or it exists without `force`, or is or holds something else
            than a bundle (named).
        BundleError: it cannot be looked at; says why.
    """
    with _explaining_errors(destination):
        if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
            raise PlanError(f"{destination} is not a folder; choose another --output")
        if destination.name in ("", "..") or Path.cwd().is_relative_to(os.path.realpath(destination)):
            raise PlanError(
                f"'{destination}' is the current folder, or holds it, and a bundle is a folder of its own; choose "
                "another --output"
            )
        if destination.exists() and any(destination.iterdir()):
            _check_replaceable(destination)
            if not force:
                raise PlanError(f"{destination} exists; give --force to replace it, or another --output")


def rejected_path(destination: Path) -> Path:
    """Where a bundle that its proof refuses is kept, in place of `destination`."""
    return destination.with_name(f"{destination.name}{REJECTED}")


def check_rejected(destination: Path) -> None:
    """Check, before the work, that a refused bundle may be kept beside `destination`.

    Raises:
        PlanError: something else than an earlier refused bundle is there.
        BundleError: it cannot be looked at; says why.
    """
    path = rejected_path(destination)
    with _explaining_errors(path):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise PlanError(f"{path} is not a folder; move it away, or choose another --output")
        if Path.cwd().is_relative_to(os.path.realpath(path)):
            raise PlanError(f"{path} is the current folder, or holds it; leave it, or choose another --output")
        if path.exists() and any(path.iterdir()) and _check_replaceable(path).parity.ok:
            raise PlanError(
                f"{path} is a bundle that was not rejected; move it away, or choose another --output, or leave out "
                "--keep-rejected"
            )


def keep_rejected(staging: Path, destination: Path) -> Path:
    """Put a finished bundle, whose proof refused it, at `rejected_path(destination)`; returns that.

    An earlier refused bundle is replaced, in one step where the file system can.

    Raises:
        PlanError, BundleError: as `check_rejected`; or it cannot be written.
    """
    check_rejected(destination)
    path = rejected_path(destination)
    with _explaining_errors(path):
        _exchange(staging, path)
    return path


def _check_replaceable(folder: Path) -> Manifest:
    """The manifest of a bundle that holds nothing else.

    Raises:
        PlanError: it is none, or holds something else (named).
    """
    try:
        manifest = read_manifest(folder)
    except BundleError as error:
        raise PlanError(f"{folder} holds something else than a bundle; choose another --output") from error
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        is_file = path.is_symlink() or not path.is_dir()
        if is_file and name != MANIFEST and name not in manifest.files and not _belongs_to_engine(path, folder):
            raise PlanError(
                f"{folder} holds {name}, which its manifest does not name; move it away, or choose another --output"
            )
    return manifest


def _belongs_to_engine(path: Path, bundle: Path) -> bool:
    return path.parent == bundle / ENGINES and (path.suffix in OF_ENGINES or ".partial-" in path.name)


def files_of(folder: Path) -> dict[str, FileFacts]:
    """Size and sha256 of every file in a folder and below it, by its relative path."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): FileFacts(sha256_of_file(path), path.stat().st_size) for path in paths}


def write_manifest(staging: Path, manifest: Manifest) -> Manifest:
    """Write the manifest, as the last file, over all files in `staging`; returns it as written."""
    complete = replace(manifest, files=files_of(staging))
    with (staging / MANIFEST).open("wb") as file:
        file.write(json_from_manifest(complete))
        file.flush()
        os.fsync(file.fileno())
    return complete


def _exchange(staging: Path, destination: Path) -> None:
    """Put `staging` in the place of `destination`; what was there is then in `staging`, or gone."""
    if not destination.exists():
        staging.rename(destination)
        return
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        renameat2 = None  # glibc before 2.28, musl, or another system
    if (
        renameat2
        and renameat2(AT_FDCWD, os.fsencode(staging), AT_FDCWD, os.fsencode(destination), RENAME_EXCHANGE) == 0
    ):
        return
    aside = staging.with_name(f"{staging.name}-old")
    try:
        destination.rename(aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A folder of a lower layer of an overlay, as of a container's image, cannot be renamed.
        shutil.copytree(destination, aside, symlinks=True)
        (destination / MANIFEST).unlink(missing_ok=True)  # what is left no longer looks finished
        shutil.rmtree(destination)
    try:
        staging.rename(destination)
    except BaseException:  # Ctrl-C too
        with suppress(OSError):  # another run's bundle is there
            aside.rename(destination)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _locked_folder(destination: Path) -> tuple[Path, int]:
    """A new staging folder, and the descriptor of its lock, which is held while this process lives.

    Another run that removes leftovers may remove it in the moment before it is locked; then a new one is made.
    """
    while True:
        staging = _partial_path(destination)
        staging.mkdir()
        try:
            lock = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        except OSError:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        with suppress(OSError):  # a file system without locks, where no run clears anything away
            fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if staging.stat().st_ino == os.fstat(lock).st_ino:
                return staging, lock
        os.close(lock)


def _remove_leftovers(destination: Path) -> None:
    """Remove staging folders of this destination whose process is gone, which nobody has locked. An old bundle that was
    moved aside stays if there is no new one in its place."""
    pattern = re.compile(re.escape(f".{destination.name}.partial-") + r"([0-9a-f]{16}|\d+)(-old)?")
    for path in destination.parent.iterdir():
        found = pattern.fullmatch(path.name)
        if found is None or (found[2] and not destination.exists()):
            continue
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
