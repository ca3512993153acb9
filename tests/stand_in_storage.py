"""Storage that fails as it is told to, in place of a bucket: a tree in memory, behind fsspec's own interface."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from calibration import storage

FAULTY = "faulty"


class FaultyFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """Folders and files by `ls` alone, as most file systems of fsspec; counts what it is asked for.

    Attributes:
        store: the content of each file, by its path.
        faults: what to do when a path is asked for, by the question: `info`, `ls` or `open`.
        asked: how often each question was put.
    """

    protocol = FAULTY
    store: ClassVar[dict[str, bytes]] = {}
    faults: ClassVar[dict[tuple[str, str], Callable[[], None]]] = {}
    asked: ClassVar[Counter[str]] = Counter()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked["file system"] += 1

    def _ask(self, question: str, path: str) -> str:
        path = self._strip_protocol(path)
        self.asked[question] += 1
        self.faults.get((question, path), lambda: None)()
        return path

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        path = self._ask("info", path)
        if path in self.store:
            return {"name": path, "size": len(self.store[path]), "type": "file"}
        if any(name.startswith(f"{path}/") for name in self.store):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        path = self._ask("ls", path)
        below = sorted({name[len(path) + 1 :].split("/")[0] for name in self.store if name.startswith(f"{path}/")})
        kinds = {f"{path}/{name}": "file" if f"{path}/{name}" in self.store else "directory" for name in below}
        return [{"name": name, "size": 0, "type": kind} for name, kind in kinds.items()]

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        path = self._ask("open", path)
        if path not in self.store:
            raise FileNotFoundError(path)
        return io.BytesIO(self.store[path])


def raising(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def hanging(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


def put(url: str, folder: Path) -> str:
    """Copy a folder to a `memory://` or `faulty://` URL, and return the URL."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            where = f"{url}/{path.relative_to(folder).as_posix()}"
            if url.startswith(FAULTY):
                FaultyFileSystem.store[where.removeprefix(f"{FAULTY}://")] = path.read_bytes()
            else:
                fsspec.filesystem("memory").pipe_file(where, path.read_bytes())
    return url


@pytest.fixture(name="faulty")
def faulty_fixture() -> Iterator[type[FaultyFileSystem]]:
    """`faulty://` and `memory://` URLs, both of them empty."""
    fsspec.register_implementation(FAULTY, FaultyFileSystem, clobber=True)
    yield FaultyFileSystem
    for held in (FaultyFileSystem.store, FaultyFileSystem.faults, FaultyFileSystem.asked, MemoryFileSystem.store):
        held.clear()
    FaultyFileSystem.clear_instance_cache()
    storage._store_of_process.cache_clear()
