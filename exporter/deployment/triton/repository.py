"""Write models into a Triton repository: all of them or none, into a new one or beside what an old one holds."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from exporter.deployment.triton.models import CI_CONFIG, CONFIG, TritonModel
from runtimes.bundle import MANIFEST
from runtimes.bundle_writing import new_folder_beside
from runtimes.errors import BundleError, PlanError

FOLDER_MODE, FILE_MODE = 0o755, 0o644
"""A server in a container runs as another user."""
OPTIONS = {
    "--instances": re.compile(r"^  count: (\d+)$", re.MULTILINE),
    "--max-delay-us": re.compile(r"^  max_queue_delay_microseconds: (\d+)$", re.MULTILINE),
    "--serve-versions": re.compile(r"^    num_versions: (\d+)$", re.MULTILINE),
}
"""Options that stand in a configuration, and where."""


def write_repository(models: Sequence[TritonModel], repository: Path, version: int) -> list[Path]:
    """Write a version of each model into a repository; returns the folders of the versions.

    A model that is there already gets the version beside those that it has, if its configuration stays the same. A
    server that polls the repository sees each model whole.

    Raises:
        PlanError: the folder holds something else than models, a model has this version, or another configuration.
        BundleError: it cannot be written, or a bundle was replaced meanwhile; nothing is left.
    """
    repository = Path(os.path.realpath(repository))
    is_new = not repository.exists()
    there = {model.name for model in models if (repository / model.name).exists()}
    check_repository(models, repository, version)
    with new_folder_beside(_place_for_staging(repository)) as staging:
        whole = staging / "repository"
        _make(whole)
        moves = [_stage(model, whole, version, alone=model.name in there) for model in models]
        for model in models:
            model.source.check_same()
        if is_new:
            whole.rename(repository)
        else:
            _move_all([(staged, repository / staged.relative_to(whole)) for staged in moves])
    return [repository / model.name / str(version) for model in models]


def check_repository(models: Sequence[TritonModel], repository: Path, version: int) -> None:
    """Check, before anything is written, that the models can be added.

    Raises:
        PlanError: as `write_repository`.
        BundleError: the folder cannot be read.
    """
    try:
        _check_holds_models(repository)
        for model in models:
            _check_version_is_new(model, repository / model.name, version)
    except OSError as error:
        raise BundleError(f"cannot read {error.filename}: {error.strerror}; choose another --output") from error
    for model in models:
        if repository.is_relative_to(model.bundle.resolve()):
            raise PlanError(f"{repository} lies in the bundle {model.bundle}; choose another --output")


def _check_holds_models(repository: Path) -> None:
    if not os.path.lexists(repository):
        return
    if not repository.is_dir():
        raise PlanError(f"{repository} is not a folder; choose another --output")
    if (repository / MANIFEST).exists():
        raise PlanError(f"{repository} is a bundle; choose another --output")
    for path in sorted(repository.iterdir()):
        if not path.name.startswith(".") and not (path / CONFIG).is_file():
            raise PlanError(
                f"expected a repository of models, each a folder with {CONFIG}, got {path.name} in {repository}; "
                "choose another --output"
            )


def _check_version_is_new(model: TritonModel, folder: Path, version: int) -> None:
    if not folder.exists():
        return
    versions = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    if (folder / str(version)).exists():
        raise PlanError(
            f"{folder} has version {version} already, and a version is never changed; give --version "
            f"{versions[-1] + 1}, or another --name"
        )
    for name in sorted({CONFIG, CI_CONFIG, *model.beside}):
        path, expected = folder / name, model.beside.get(name)
        got = path.read_bytes() if path.is_file() else None
        if got != expected:
            raise PlanError(_change(path, versions, got, expected))


def _change(path: Path, versions: Sequence[int], old: bytes | None, new: bytes | None) -> str:
    """What a new version would change in a file, which all versions of a model share; None for no file."""
    many = len(versions) > 1
    those = f"version{'s' * many} {', '.join(map(str, versions))}" if versions else "the model"
    if old is None or new is None:
        has, needs = ("no", "needs it") if old is None else ("a", "has none")
        verb = "have" if many else "has"
        return f"{those} {verb} {has} {path.name} in {path.parent}, and this one {needs}; give another --name"
    before, after = old.decode(errors="replace"), new.decode()
    for option, pattern in OPTIONS.items():
        was, is_now = pattern.search(before), pattern.search(after)
        if (was and was[1]) != (is_now and is_now[1]):
            there = f"{option} {was[1]}" if was else f"no {option}"
            given = f"{option} {is_now[1]}" if is_now else f"no {option}"
            return f"{given} would change the configuration of {those} in {path}; give {there}, or another --name"
    lines = zip_longest(before.splitlines(), after.splitlines(), fillvalue="nothing")
    pair = next(((one.strip(), other.strip()) for one, other in lines if one != other), ("its line ends", "others"))
    return (
        f"this would change {path}, which {those} {'share' if many else 'has'}, from '{pair[0]}' to '{pair[1]}'; give "
        "a bundle and options as before, or another --name"
    )


def _place_for_staging(repository: Path) -> Path:
    """The path that the new folder is made beside: the repository, or, where that is another file system's root or its
    parent is not writable, a name in it."""
    if not repository.exists():
        return repository
    parent = repository.parent
    beside = os.access(parent, os.W_OK) and parent.stat().st_dev == repository.stat().st_dev
    return repository if beside else repository / repository.name


def _stage(model: TritonModel, whole: Path, version: int, *, alone: bool) -> Path:
    """Write a model, or the new version alone; returns what is to be moved."""
    folder = whole / model.name
    _make(folder)
    _write(folder / str(version), model.version)
    if alone:
        return folder / str(version)
    _write(folder, model.beside)
    return folder


def _write(folder: Path, files: Mapping[str, bytes | Path]) -> None:
    for name, content in sorted(files.items()):
        path = folder / name
        _make(path.parent)
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_bytes(content)
        path.chmod(FILE_MODE)


def _make(folder: Path) -> None:
    """Make a folder, if it is not there, that others may read whatever this process's umask."""
    if not folder.exists():
        folder.mkdir()
        folder.chmod(FOLDER_MODE)


def _move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename each; if one fails, those before it are renamed back. A folder with something in it is not replaced."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        raise
