"""Bundles: folders with a model, the numbers that prove it, and a manifest that names every file by its sha256."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from runtimes.ahead import map_ahead
from runtimes.errors import BadInput, BundleError
from runtimes.manifest import FileFacts, Manifest, manifest_from_json
from runtimes.textfile import lines_from_text

MANIFEST, ONNX, LABELS = "manifest.json", "model.onnx", "labels.txt"
LARGEST_MANIFEST = 4 << 20
"""In bytes. A ResNet-1202's, with the damage of each of its blocks, has 0.1 million; read, a manifest takes up to
twenty times as many."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, verified: every file is the one that its manifest names."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Read the manifest and verify every file it names.

        Raises:
            BundleError: no manifest, a malformed one, or a file that is missing, changed, or outside the folder
                (named).
            BadInput: `folder` is no path.
        """
        folder = path_from_given(folder, "the folder of a bundle")
        manifest = read_manifest(folder)
        files = sorted(manifest.files, key=lambda name: -manifest.files[name].bytes)  # so that threads end together
        for _ in map_ahead(lambda name: _verify(folder, name, manifest.files[name]), files, ahead=len(files)):
            pass
        return cls(folder, manifest)

    @property
    def rejection(self) -> str:
        """Why its export refused the bundle, which was kept as evidence (`--keep-rejected`); empty for any other."""
        parity = self.manifest.parity
        if parity.ok:
            return ""
        refused = {name: (*one.violations, *one.undecided) for name, one in parity.backends.items() if not one.ok}
        return "; ".join(f"{name}: {', '.join(said)}" for name, said in refused.items()) or "it is out of budget"

    def check_accepted(self) -> None:
        """Refuse a bundle that its export refused.

        Raises:
            BundleError: says why it was refused.
        """
        if self.rejection:
            raise BundleError(
                f"{self.folder} was rejected by its export and is kept as evidence alone ({self.rejection}); "
                "see its report.html, and export it again"
            )

    def file(self, name: str) -> Path:
        """Path of a file that the manifest names.

        Raises:
            BundleError: the bundle has no such file.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder} has no {name}; it holds {', '.join(sorted(self.manifest.files))}")
        return self.folder / name

    def read(self, name: str) -> bytes:
        """The content of a file that the manifest names, verified: other content may be there than when it was opened.

        Raises:
            BundleError: the bundle has no such file, or it cannot be read, or was changed.
        """
        path = self.file(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}; export or copy the bundle again") from error
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name].sha256:
            raise BundleError(f"{path} was changed while {self.folder} was read; give the command again")
        return data

    def manifest_bytes(self) -> bytes:
        """The manifest as it is written.

        Raises:
            BundleError: it cannot be read, or is another bundle's by now.
        """
        path = self.folder / MANIFEST
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}; export or copy the bundle again") from error
        self.check_same()
        return data

    def check_same(self) -> None:
        """Check, after files were read, that they were of this bundle: bundles are replaced as whole folders.

        Raises:
            BundleError: another bundle has taken its place since it was opened, or it is gone.
        """
        if read_manifest(self.folder).files != self.manifest.files:
            raise BundleError(f"{self.folder} was replaced by another bundle while it was read; give the command again")

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names in order, where they are known.

        Raises:
            BundleError: `labels.txt` is no UTF-8 text, has not a line for each class, or was changed.
        """
        if LABELS not in self.manifest.files:
            return None
        data, classes = self.read(LABELS), self.manifest.model.classes
        ends = data.count(b"\n")  # a file of line ends alone would take ten times its size as a list
        try:
            labels = tuple(lines_from_text(data.decode())) if ends <= classes else ()
        except UnicodeDecodeError as error:
            raise BundleError(
                f"{self.folder}: expected UTF-8 text in {LABELS}, got something else ({error}); export the bundle again"
            ) from error
        if len(labels) != classes:
            raise BundleError(
                f"{self.folder}: expected a line for each of the {classes} classes in {LABELS}, "
                f"got {len(labels) or ends}; export the bundle again"
            )
        return labels


def path_from_given(given: object, what: str) -> Path:
    """The path that a caller gave.

    Raises:
        BadInput: it is no str or path; the message says that `what` was expected.
    """
    if not isinstance(given, str | os.PathLike):
        raise BadInput(f"expected {what}, got {type(given).__name__}; give its path")
    return Path(given)


def read_manifest(folder: Path) -> Manifest:
    """Read and validate a bundle's manifest alone, not its files.

    Raises:
        BundleError: it is missing, too large or malformed.
    """
    path = folder / MANIFEST
    try:
        mode = path.stat().st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):  # which would be waited for, or read without end
            raise OSError(errno.EINVAL, "Not a file")
        with path.open("rb") as file:
            data = file.read(LARGEST_MANIFEST + 1)
    except (OSError, ValueError) as error:
        said = f"cannot read {MANIFEST} ({getattr(error, 'strerror', None) or error})"
        if not os.path.lexists(folder):
            said = "there is no such folder"
        elif folder.is_file():
            said = "it is a file"
        raise BundleError(f"{folder} is no bundle: {said}; give the folder that resnet-export wrote") from error
    if len(data) > LARGEST_MANIFEST:
        raise BundleError(f"{path}: expected at most {LARGEST_MANIFEST >> 20} MiB, got more; do not use this bundle")
    return manifest_from_json(data, where=str(path))


def _verify(folder: Path, name: str, facts: FileFacts) -> None:
    """Check one file that the manifest names. Names must stay below the folder; links may lead out of it, as in a model
    hub's cache, since the sha256 fixes the content."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        raise BundleError(f"{folder}: {name} lies outside the bundle; do not use this bundle")
    try:
        problem = _problem(folder / name, facts)
    except (OSError, ValueError, RuntimeError) as error:
        # unreadable, a name that no file can have, links in a circle
        raise BundleError(f"{folder}: cannot read {name!r} ({error}); export or copy the bundle again") from error
    if problem:
        raise BundleError(f"{folder}: {name} {problem}; export or copy the bundle again")


def _problem(path: Path, facts: FileFacts) -> str:
    """What is wrong with a file; empty if it is the one of the manifest."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != facts.bytes:
        return f"was changed: expected {facts.bytes} bytes, got {size}"
    return "" if sha256_of_file(path) == facts.sha256 else "was changed: its sha256 is not the manifest's"


def sha256_of_file(path: Path) -> str:
    """The sha256 of a file's content, in hex. Reads in pieces, up to the file's size: some system files never end."""
    digest, left = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(min(left, 1 << 20)):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()
