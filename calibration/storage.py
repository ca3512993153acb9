"""Files on shared storage, named by URLs such as `s3://bucket/photographs`. The one file about fsspec.

A process has one file system for each URL, which all of its threads use, and a forked process its own. What a file
system knows of credentials, endpoints and retries, it reads from the environment, as it does in other programs.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, Literal, NamedTuple, TypeVar

from runtimes.ahead import map_ahead
from runtimes.errors import BadInput, StorageUnavailable, first_line
from runtimes.printable import printable

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*(?=://)")
PASSWORD = re.compile(r"[a-z0-9+.-]+://[^/]*:[^/]*@")
LOCAL = "file://"
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "az": "adlfs",
    "abfs": "adlfs",
    "http": "'fsspec[http]'",
    "https": "'fsspec[http]'",
}
"""What fsspec needs beside itself, by scheme."""
CREDENTIALS = {
    "s3": "AWS_PROFILE or AWS_ACCESS_KEY_ID, or FSSPEC_S3_ANON=true for a public bucket",
    "gs": "gcloud auth application-default login, or FSSPEC_GS_TOKEN=anon for a public bucket",
    "hf": "HF_TOKEN, or hf auth login",
}
LOGGERS = ("fsspec", "s3fs", "gcsfs", "adlfs", "aiobotocore", "asyncio", "google")
"""Of the packages, some of which tell of each attempt, with a traceback; on stderr, unless logging is set up."""
LISTED_AT_ONCE = 8
PATIENCE_S, LONG_PATIENCE_S = 60.0, 1800.0
"""How long an answer, or a picture, is waited for; and the listing of a folder, or a file of many pictures."""

SILENT = logging.NullHandler()
Answer = TypeVar("Answer")
Kind = Literal["folder", "file", "nothing"]


class Store(NamedTuple):
    """A file system, and a URL's path in it."""

    files: Any
    root: str


def is_url(where: str) -> bool:
    return SCHEME.match(where) is not None


def without_file_scheme(where: str) -> str:
    """A path in place of a `file://` URL; anything else as it is."""
    return (where.removeprefix(LOCAL) or "/") if where.startswith(LOCAL) else where


def kind_of(where: str) -> Kind:
    """What lies at a path or URL.

    Raises:
        BadInput: the path or the URL is none that can be read.
        StorageUnavailable: the storage cannot be reached.
    """
    if not is_url(where):
        path = Path(where)
        try:
            return "folder" if path.is_dir() else "file" if path.exists() else "nothing"
        except OSError as error:  # a name that no file can have, or a folder that may not be entered
            raise BadInput(f"cannot read {where}: {error.strerror}; give another path") from error
    store = _store(where)
    try:
        found = _answer(where, lambda: store.files.info(store.root))
    except FileNotFoundError:
        return "nothing"
    return "folder" if found["type"] == "directory" else "file"


def names_below_url(url: str) -> list[str]:
    """The paths of all files below a URL, with slashes, in no order.

    Its folders are listed several at a time, each as a whole, and no file is asked for on its own: what is known of a
    million files at once would take a gigabyte.

    Raises:
        BadInput: a folder in it vanished meanwhile.
        StorageUnavailable: it cannot be listed.
    """
    store = _store(url)
    prefix = f"{store.root.rstrip('/')}/"

    def below(folder: str) -> list[str]:
        return _answer(url, lambda: _files_below(store.files, folder), LONG_PATIENCE_S)

    try:
        names, folders = _answer(url, lambda: _entries(store.files, store.root), LONG_PATIENCE_S)
        for found in map_ahead(below, folders, ahead=2 * LISTED_AT_ONCE, threads=LISTED_AT_ONCE):
            names += found
    except FileNotFoundError as error:
        raise BadInput(
            f"{url}: a folder in it vanished while it was listed; leave it alone meanwhile, and repeat"
        ) from error
    outside = next((name for name in names if not name.startswith(prefix)), None)
    if outside is not None:
        raise BadInput(
            f"{url}: expected files below {prefix}, got {printable(outside)}; name the folder as it lists it"
        )
    return [name.removeprefix(prefix) for name in names if not name.endswith("/")]


def bytes_from_url(folder: str, name: str) -> bytes:
    """A file below a URL.

    Raises:
        BadInput: there is no such file any more.
        StorageUnavailable: it cannot be read.
    """
    url, store = f"{folder}/{name}", _store(folder)
    path = f"{store.root.rstrip('/')}/{name}"
    try:
        return bytes(_answer(url, lambda: store.files.cat_file(path)))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise BadInput(f"cannot read the picture {printable(url)}: there is no such file") from error


@contextmanager
def local_file(where: str) -> Iterator[Path]:
    """A file's path; what a URL names is copied to a temporary one for the while.

    Raises:
        BadInput: there is no file at the URL.
        StorageUnavailable: it cannot be read.
    """
    if not is_url(where):
        yield Path(where)
        return
    store = _store(where)
    with tempfile.TemporaryDirectory(prefix="resnet-export-") as folder:
        copy = Path(folder, "file")
        try:
            _answer(where, lambda: store.files.get_file(store.root, str(copy)), LONG_PATIENCE_S)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise BadInput(f"cannot read {where}: there is no such file") from error
        if not copy.is_file():
            raise BadInput(f"cannot read {where}: expected a file, got a folder; name a file in it")
        yield copy


def _scheme(url: str) -> str:
    found = SCHEME.match(url)
    assert found is not None
    return found.group()


def _store(url: str) -> Store:
    return _store_of_process(url, os.getpid())


@functools.lru_cache(maxsize=64)
def _store_of_process(url: str, process: int) -> Store:
    """The store of a URL in a process: what a fork leaves of the parent's connections is not used."""
    if PASSWORD.match(url):
        raise BadInput(
            "expected a URL without a password, which reports would show, got one; give it by the environment"
        )
    if "::" in url:
        raise BadInput(f"expected one URL, got {printable(url)}; unpack the archive, and name its folder")
    scheme = _scheme(url)
    try:
        from fsspec import get_filesystem_class
        from fsspec.core import url_to_fs

        kind = get_filesystem_class(scheme)
        for name in LOGGERS:
            logging.getLogger(name).addHandler(SILENT)
    except ImportError as error:
        package = PACKAGES.get(scheme)
        remedy = f"pip install 'resnet-export[storage]'{f' {package}' if package else ''}"
        raise StorageUnavailable(
            f"{scheme}:// needs a package that is not installed ({first_line(error)}); {remedy}"
        ) from error
    except ValueError as error:
        raise BadInput(f"expected a path, or a URL as s3://, gs:// or hf://, got '{printable(url)}'") from error
    # Object stores keep a kilobyte for each file, and read without it. Others look files up in what they listed.
    options = {"use_listings_cache": False} if kind.async_impl else {}
    return Store(*_answer(url, lambda: url_to_fs(url, **options)))


def _files_below(files: Any, folder: str) -> list[str]:
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    kind = type(files)
    # fsspec's own walk, which some inherit, leaves a folder out that cannot be listed.
    if kind._find is not AsyncFileSystem._find if files.async_impl else kind.find is not AbstractFileSystem.find:
        names: list[str] = files.find(folder)
        return names
    names, folders = _entries(files, folder)
    while folders:
        found, more = _entries(files, folders.pop())
        names += found
        folders += more
    return names


def _entries(files: Any, folder: str) -> tuple[list[str], list[str]]:
    """The files and the folders in a folder."""
    names: list[str] = []
    folders: list[str] = []
    for entry in files.ls(folder, detail=True):
        if entry["name"].rstrip("/") != folder.rstrip("/"):  # some list the folder itself
            (folders if entry["type"] == "directory" else names).append(entry["name"])
    return names, folders


def _answer(url: str, ask: Callable[[], Answer], within_s: float | None = None) -> Answer:
    """What a store answers, in a bounded time.

    Few file systems bound it themselves; so it is asked in a thread, which is left behind if it hangs.

    Raises:
        FileNotFoundError, ImportError, MemoryError: as the store does.
        StorageUnavailable: for any other error, or if there is no answer.
    """
    patience_s = PATIENCE_S if within_s is None else within_s
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    thread = Thread(target=run, name="storage", daemon=True)
    thread.start()
    thread.join(patience_s)
    if not answer.done():
        raise StorageUnavailable(
            f"expected an answer from {printable(url)} within {patience_s:.0f} s, got none; {_remedy(url)}"
        )
    try:
        return answer.result()
    except (FileNotFoundError, IsADirectoryError, ImportError, MemoryError):
        raise
    except Exception as error:  # each package has its own kinds
        if getattr(getattr(error, "response", None), "status_code", None) == 404:
            raise FileNotFoundError(url) from error
        said = printable(first_line(error)) or type(error).__name__
        raise StorageUnavailable(f"cannot read {printable(url)}: {said}; {_remedy(url)}") from error


def _remedy(url: str) -> str:
    known = CREDENTIALS.get({"s3a": "s3", "gcs": "gs"}.get(_scheme(url), _scheme(url)))
    return f"check the network and the credentials{f' ({known})' if known else ''}, and repeat"
