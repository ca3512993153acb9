"""The file of `resnet-deploy eval --resume`: an evaluation's answers, so that one that was stopped goes on from there.

The first line is JSON that says which evaluation it is (`EvaluationKey`), each further line a shard (`EvaluatedShard`).
Shards may stand in any order, each once, until the evaluation is finished: then in that of their images. A last line
that was only partly written is dropped on reading. The file of a finished evaluation is kept: given again, it gives the
figures at once, and it holds the five most likely classes of each image.
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
from typing import Annotated, NamedTuple

import msgspec

from calibration.data import ImageSource
from calibration.distributed.seen import manifest_digest
from calibration.distributed.shards import shards_of
from runtimes.bundle import Bundle
from runtimes.bundle_writing import write_in_one_step
from runtimes.errors import BadInput, PlanError
from runtimes.printable import printable

SHOWN = 12
"""How many characters of a digest are shown."""
LONGEST_HEADER = 1 << 12


@dataclass(frozen=True)
class EvaluatedShard:
    """The answers to one shard of the images.

    Attributes:
        start, stop: the places of its images, as a `calibration.distributed.shards.Shard` has them.
        rows: for each image its place, its label and its most likely classes, most likely first, at most five.
        unreadable: what is wrong with images that were left out.
        model_s: seconds in the model.
        elapsed_s: seconds since the shard that was finished before, reading included.
    """

    start: int
    stop: int
    rows: tuple[tuple[int, ...], ...]
    unreadable: tuple[str, ...]
    model_s: float
    elapsed_s: float


class Ran(NamedTuple):
    """What runs the model: the backend, where (`runtimes.base.Runtime.provider`), and the sha256 of the file."""

    backend: str
    provider: str
    file: str


@dataclass(frozen=True)
class EvaluationKey:
    """What must be the same for an evaluation to go on.

    Attributes:
        bundle: sha256 of the bundle's manifest.
        file: sha256 of the model file that is run.
        backend, provider: what runs it.
        batch: the bundle's batch sizes, as `1:8:32`.
        images: how many there are.
        shard: how many of them are in a shard.
        data: sha256 of the images' labels and names.
    """

    bundle: str
    file: str
    backend: str
    provider: str
    batch: str
    images: int
    shard: Annotated[int, msgspec.Meta(ge=1)]
    data: str


@dataclass(frozen=True)
class ResumeFile:
    """An open resume file. The shards that it holds are read before more are added."""

    path: Path
    _file: FileIO

    def shards(self, source: ImageSource, size: int) -> Iterator[EvaluatedShard]:
        """The shards that it holds, one at a time; then cuts off a last line that was only partly written.

        Raises:
            BadInput: a line is damaged, or holds no answers to a shard of these images.
        """
        whole = 0
        for line in _whole_lines(self.path, source, size, "--resume"):
            whole += len(line.text)
            if line.shard is not None:
                yield line.shard
        self._file.truncate(whole)
        self._file.seek(whole)

    def add(self, shard: EvaluatedShard) -> None:
        """Append a shard; it is with the operating system when this returns, so that it outlives this process.

        Raises:
            BadInput: it cannot be written.
        """
        # JSON takes no names that are not UTF-8.
        line = msgspec.json.encode(replace(shard, unreadable=tuple(map(printable, shard.unreadable)))) + b"\n"
        with _write_errors(self.path):
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sort(self, source: ImageSource, size: int) -> None:
        """Put the shards into the order of their images, in which several workers do not finish them.

        Raises:
            BadInput: it cannot be written.
        """
        lines = [
            (-1 if line.shard is None else line.shard.start, line.text)
            for line in _whole_lines(self.path, source, size, "--resume")
        ]
        ordered = sorted(lines)
        if ordered != lines:
            with _write_errors(self.path):
                write_in_one_step(self.path, b"".join(text for _, text in ordered))


class _Line(NamedTuple):
    """A line of a resume file; the first one holds no shard."""

    text: bytes
    shard: EvaluatedShard | None


def _whole_lines(path: Path, source: ImageSource, size: int, option: str) -> Iterator[_Line]:
    """The lines that were written whole.

    Raises:
        BadInput: a line is damaged, or holds no answers to a shard of these images that no line before it holds.
    """
    missing = {(shard.start, shard.stop) for shard in shards_of(source.count, size)}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            if number == 1:
                yield _Line(line, None)
                continue
            try:
                shard = msgspec.json.decode(line, type=EvaluatedShard)
            except (ValueError, RecursionError) as error:
                raise BadInput(
                    f"{option}: {path}, line {number} is damaged ({error}); delete the file to begin again"
                ) from error
            which = f"{option}: {path}, line {number}"
            if (shard.start, shard.stop) not in missing:
                raise BadInput(
                    f"{which} holds no images that are still missing there (those from {shard.start} to {shard.stop}); "
                    "delete the file to begin again"
                )
            if not _answers(shard, source):
                raise BadInput(
                    f"{which} is damaged (no answers to the images from {shard.start} to {shard.stop}); delete the "
                    "file to begin again"
                )
            missing.remove((shard.start, shard.stop))
            yield _Line(line, shard)


def _answers(shard: EvaluatedShard, source: ImageSource) -> bool:
    """Whether a shard holds an answer to each of its images, or why there is none."""
    assert source.labels is not None
    assert source.classes is not None
    if len(shard.rows) + len(shard.unreadable) != shard.stop - shard.start or min(shard.model_s, shard.elapsed_s) < 0:
        return False
    places = [row[0] for row in shard.rows if len(row) > 2]
    if len(places) < len(shard.rows) or places != sorted(set(places) & set(range(shard.start, shard.stop))):
        return False
    known = range(len(source.classes))
    return all(row[1] == source.labels[row[0]] and all(given in known for given in row[2:]) for row in shard.rows)


def finished_shards(path: Path, source: ImageSource) -> Iterator[EvaluatedShard]:
    """The shards of another evaluation, which is finished, of the images of `source`.

    Raises:
        BadInput: it is no resume file, it is of other images, or it is not finished.
    """
    done = 0
    try:
        with path.open("rb") as file:
            found = _key_from_line(file.readline(LONGEST_HEADER), path, "--against")
        if (found.images, found.data) != (source.count, data_digest(source)):
            raise BadInput(f"--against: {path} is an evaluation of other images; evaluate both on the same --data")
        for line in _whole_lines(path, source, found.shard, "--against"):
            if line.shard is not None:
                done += line.shard.stop - line.shard.start
                yield line.shard
    except OSError as error:
        raise BadInput(f"--against: cannot read {path}: {error.strerror}; give a file of --resume") from error
    if done < source.count:
        raise BadInput(f"--against: {path} holds {done} of {source.count} images; let that evaluation go on to its end")


def data_digest(source: ImageSource) -> str:
    """sha256 of the images' labels and names."""
    digest = hashlib.sha256()
    if source.labels is not None:
        digest.update(source.labels.astype("<i8").tobytes())
    for name in source.names or (source.name,):
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def evaluation_key(bundle: Bundle, ran: Ran, source: ImageSource, size: int) -> EvaluationKey:
    """The key of evaluating a bundle on the images of `source`, in shards of `size`."""
    return EvaluationKey(
        bundle=manifest_digest(bundle),
        file=ran.file,
        backend=ran.backend,
        provider=ran.provider,
        batch=str(bundle.manifest.batch),
        images=source.count,
        shard=size,
        data=data_digest(source),
    )


@contextmanager
def open_resume_file(path: Path, key: EvaluationKey) -> Iterator[ResumeFile]:
    """Open and lock the resume file at `path`; it is created where there is none.

    Raises:
        BadInput: it is no resume file, or that of another evaluation (says what differs), or it cannot be written.
        PlanError: another process is writing it.
    """
    ours = msgspec.json.encode(key) + b"\n"
    with _write_errors(path):
        # Created and locked before anything is written: two processes that find no file must not overwrite each other.
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        file = FileIO(opened, "r+")  # unbuffered
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadInput(f"--resume: {path} is not a file; give another, which will be made")
        with _write_errors(path):
            _lock(file, path)
            header = file.read(LONGEST_HEADER)
            if ours.startswith(header) and header != ours:  # empty, or a first line that was only partly written
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
    found = _key_from_line(line, path, "--resume")
    pairs = [(field.name, str(getattr(found, field.name)), str(getattr(key, field.name))) for field in fields(key)]
    differing = [f"{name} {old[:SHOWN]} in place of {new[:SHOWN]}" for name, old, new in pairs if old != new]
    if differing:
        raise BadInput(
            f"--resume: {path} is of another evaluation ({', '.join(differing)}); delete it, or give another file"
        )


def _key_from_line(line: bytes, path: Path, option: str) -> EvaluationKey:
    try:
        return msgspec.json.decode(line, type=EvaluationKey)
    except (ValueError, RecursionError) as error:
        made = "give another file, which will be made" if option == "--resume" else "give a file of --resume"
        earlier = line.startswith(b'{"bundle":') and b'"data":' in line and b'"shard":' not in line
        by = "was written by an earlier version, in another form" if earlier else "was not written by an evaluation"
        raise BadInput(f"{option}: {path} {by}; {made}") from error


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into BadInput that names the file."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"--resume: cannot write {path}: {error.strerror}; give another file") from error
