"""What an evaluation has answered so far, kept in a file as it goes, so that one that was stopped goes on where it was.

The first line is JSON that says which evaluation it is; each further one a batch (`EvaluatedBatch`). A line that was torn while it was written is
dropped on reading. A finished journal is kept: given again it gives the figures at once, and it holds each picture's five top classes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from io import FileIO
from pathlib import Path

import msgspec

from calibration.data import ImageSource
from runtimes.base import Runtime
from runtimes.bundle import Bundle, sha256_of_file
from runtimes.errors import BadInput, PlanError
from runtimes.manifest import json_from_manifest
from runtimes.printable import printable

SHOWN = 12
"""Characters of a digest that are enough to tell it from another."""
LONGEST_HEADER = 1 << 12


@dataclass(frozen=True)
class EvaluatedBatch:
    """One batch.

    Attributes:
        after: the place after the last picture that was taken for it.
        rows: of each picture its place, its label, and the most likely classes, five or as many as there are, most likely first.
        unreadable: what was wrong with pictures that were left out.
        model_s, elapsed_s: seconds in the model, and all in all.
    """

    after: int
    rows: tuple[tuple[int, ...], ...]
    unreadable: tuple[str, ...]
    model_s: float
    elapsed_s: float


@dataclass(frozen=True)
class EvaluationKey:
    """Which evaluation a journal is of: digests of the bundle's manifest, of the file that is run and of the data's names and labels; and how."""

    bundle: str
    file: str
    backend: str
    provider: str
    batch: str
    images: int
    data: str


@dataclass(frozen=True)
class ResumeFile:
    """An open journal. The batches that it holds are read before more are added."""

    path: Path
    _file: FileIO

    def batches(self) -> Iterator[EvaluatedBatch]:
        """The batches it holds, one at a time; a torn last line is cut off.

        Raises:
            BadInput: a line is damaged.
        """
        done, whole = 0, 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                if number > 1:
                    batch = self._batch(line, number, done)
                    done = batch.after
                    yield batch
        self._file.truncate(whole)
        self._file.seek(whole)

    def _batch(self, line: bytes, number: int, done: int) -> EvaluatedBatch:
        try:
            batch = msgspec.json.decode(line, type=EvaluatedBatch)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadInput(
                f"--resume: {self.path}, line {number} is damaged ({error}); delete the file to begin again"
            ) from error
        if batch.after != done + len(batch.rows) + len(batch.unreadable):
            raise BadInput(
                f"--resume: {self.path}, line {number} does not go on where the one before ended; delete the file to begin again"
            )
        return batch

    def add(self, batch: EvaluatedBatch) -> None:
        """Write a batch, so that it outlives this process.

        Raises:
            BadInput: it cannot be written.
        """
        # A name that is no UTF-8 has no place in JSON.
        line = msgspec.json.encode(replace(batch, unreadable=tuple(map(printable, batch.unreadable)))) + b"\n"
        with _said(self.path):
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def evaluation_key(bundle: Bundle, backend: str, runtime: Runtime, source: ImageSource) -> EvaluationKey:
    """The key of evaluating a bundle on the pictures of `source`."""
    digest = hashlib.sha256()
    if source.labels is not None:
        digest.update(source.labels.astype("<i8").tobytes())
    for name in source.names or (source.name,):
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return EvaluationKey(
        bundle=hashlib.sha256(json_from_manifest(bundle.manifest)).hexdigest(),
        file=sha256_of_file(runtime.file_of(bundle)),
        backend=backend,
        provider=runtime.provider,
        batch=str(bundle.manifest.batch),
        images=source.count,
        data=digest.hexdigest(),
    )


@contextmanager
def open_resume_file(path: Path, key: EvaluationKey) -> Iterator[ResumeFile]:
    """The journal at `path`, made where there is none.

    Raises:
        BadInput: the file is no journal, or one of another evaluation (says what differs); or it cannot be written.
        PlanError: another process is writing it.
    """
    ours = msgspec.json.encode(key) + b"\n"
    with _said(path):
        # Made and locked before anything is written: of two that find no file, one would take the other's away.
        file = FileIO(
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666), "r+"
        )  # written at once, or not at all
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadInput(f"--resume: {path} is not a file; give another, which will be made")
        with _said(path):
            _lock(file, path)
            header = file.read(LONGEST_HEADER)
            if ours.startswith(header) and header != ours:  # nothing yet, or a first line that was torn
                file.seek(0)
                header = ours[: file.write(ours)]
                os.fsync(file.fileno())
        _check_header(header.split(b"\n")[0], key, path)
        yield ResumeFile(path, file)


def _lock(file: FileIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PlanError(f"--resume: another evaluation is writing {path}; wait for it, or give another file") from error


def _check_header(line: bytes, key: EvaluationKey, path: Path) -> None:
    try:
        found = msgspec.json.decode(line, type=EvaluationKey)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"--resume: {path} is no evaluation's journal; give another file, which will be made") from error
    pairs = [(field.name, str(getattr(found, field.name)), str(getattr(key, field.name))) for field in fields(key)]
    different = [
        f"{name} {theirs[:SHOWN]} in place of {ours[:SHOWN]}" for name, theirs, ours in pairs if theirs != ours
    ]
    if different:
        raise BadInput(
            f"--resume: {path} is of another evaluation ({', '.join(different)}); delete it, or give another file"
        )


@contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(f"--resume: cannot write {path}: {error.strerror}; give another file") from error
