"""Decide which engines may be loaded: those that this machine built, and those that the user names by sha256.

An engine is code, and its sidecar lies beside it: whoever made one could make the other. So a build seals the sidecar,
which holds the engine's sha256, with a key that is in no bundle. Seals are HMAC-SHA256 (RFC 2104); docs/jetson.md says
where the key is kept and how machines share one.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from runtimes.errors import BackendUnavailable, BadInput, BundleError
from runtimes.private import OTHERS_MAY, home_folder, open_regular, private_folder

KEY_VARIABLE = "RESNET_EXPORT_ENGINE_KEY"
KEY_TEXT = re.compile(rb"([0-9a-f]{64})\n?")
SHA256 = re.compile(r"[0-9a-f]{64}")
REMEDY = f"set {KEY_VARIABLE} to a file, which need not exist yet, in a folder that you may write to"
ENGINE, KERNELS = b"resnet-export engine\0", b"resnet-export kernels\0"
"""Prefixes of what is sealed, so that a seal of one kind is never valid for another."""
SEAL_BYTES = hashlib.sha256().digest_size


def key_file() -> Path:
    """The file that `RESNET_EXPORT_ENGINE_KEY` names, by default `resnet-export/engine.key` in `$XDG_DATA_HOME`, by
    default `~/.local/share`.

    Raises:
        BadInput: the variable holds no absolute path.
        BackendUnavailable: this user has no home folder.
    """
    given = os.environ.get(KEY_VARIABLE, "")
    if not given:
        try:
            return home_folder("XDG_DATA_HOME", ".local/share") / "resnet-export" / "engine.key"
        except BackendUnavailable as error:
            raise BackendUnavailable(
                f"this machine's engine key has no place, for this user has no home folder; {REMEDY}"
            ) from error
    if not os.path.isabs(given):
        raise BadInput(
            f"expected an absolute path in {KEY_VARIABLE}, got '{given}'; it would be another file in each folder"
        )
    return Path(given)


def machine_key() -> bytes | None:
    """This machine's key, or None if no engine was built here before.

    Raises:
        BadInput: see `key_file`.
        BackendUnavailable: the file holds no key, belongs to another user, or others may read it.
    """
    try:
        path = key_file()
    except BackendUnavailable:
        return None  # nowhere to lie, so there is none
    return _read(path)


def ensure_machine_key() -> bytes:
    """This machine's key; if there is none, a new one of 32 random bytes. Of several processes at once, one makes it.

    Raises:
        BadInput: see `key_file`.
        BackendUnavailable: as `machine_key`, or it cannot be written; says how to choose another place.
    """
    path = key_file()
    found = _read(path)
    if found is not None:
        return found
    if os.environ.get(KEY_VARIABLE):
        with suppress(OSError):  # what cannot be made cannot be written to either, which is told below
            path.parent.mkdir(mode=0o700, exist_ok=True)
    else:
        private_folder(path.parent.parent, path.parent.name, remedy=REMEDY)
    try:
        _make(path)
        made = _read(path)
    except OSError as error:
        raise BackendUnavailable(
            f"cannot write this machine's engine key, {path}: {error.strerror}; {REMEDY}"
        ) from error
    if made is None:
        raise BackendUnavailable(f"this machine's engine key, {path}, was removed while it was made; build again")
    return made


def _make(path: Path) -> None:
    """Write a new key file in one step, and never over one that is there: only one process can make the link."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(32).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path) -> bytes | None:
    try:
        with open_regular(path, follow_links=False) as file:
            state, text = os.fstat(file.fileno()), file.read(SEAL_BYTES * 2 + 2)
    except FileNotFoundError:
        return None
    except OSError as error:
        said = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise BackendUnavailable(
            f"cannot read this machine's engine key, {path}: {said}; remove it, or {REMEDY}"
        ) from error
    again = "remove it, and build the engines again"
    if state.st_uid != os.geteuid():
        raise BackendUnavailable(
            f"this machine's engine key, {path}, belongs to another user ({state.st_uid}); run as that user, or "
            f"{REMEDY}"
        )
    if state.st_mode & OTHERS_MAY:
        mode = f"{stat.S_IMODE(state.st_mode):o}"
        raise BackendUnavailable(
            f"expected this machine's engine key, {path}, to be yours alone (mode 600), got mode {mode}: others know "
            f"it; {again}"
        )
    found = KEY_TEXT.fullmatch(text)
    if found is None:
        raise BackendUnavailable(
            f"expected 64 hexadecimal digits in this machine's engine key, {path}, got something else; {again}"
        )
    return bytes.fromhex(found[1].decode())


def seal_of(document: Mapping[str, object], key: bytes) -> str:
    """The seal of a sidecar, in hex: over all its fields but the seal itself, as JSON with sorted keys and no
    blanks."""
    content = msgspec.json.encode({name: value for name, value in document.items() if name != "seal"}, order="sorted")
    return hmac.new(key, ENGINE + content, hashlib.sha256).hexdigest()


def is_built_here(document: Mapping[str, object]) -> bool:
    """Did this machine seal this sidecar? Raises what `machine_key` does."""
    seal = document.get("seal")
    key = machine_key() if isinstance(seal, str) and SHA256.fullmatch(seal) else None
    return key is not None and hmac.compare_digest(seal_of(document, key), str(seal))


def check_trusted(document: Mapping[str, object], where: str, trusted: Collection[str]) -> None:
    """Check that the engine that this sidecar names may be loaded. The caller still has to compare its content's
    sha256.

    Raises:
        BundleError: this machine did not build it, and `trusted` does not name it; says its sha256.
        BadInput, BackendUnavailable: this machine's key cannot be used (see `machine_key`).
    """
    sha256 = str(document.get("engine_sha256"))
    if sha256 in trusted or is_built_here(document):
        return
    if not SHA256.fullmatch(sha256):
        raise BundleError(f"{where}: its sidecar names no sha256; build it again with: resnet-deploy build BUNDLE")
    before = "" if document.get("seal") else " (or by an earlier version, which left no seal)"
    raise BundleError(
        f"{where} was not built on this machine{before}, and engines are code, so it is not loaded; "
        f"build it here with: resnet-deploy build BUNDLE, or, if you trust its builder, give --trust-engine {sha256}"
    )


def trusted_engines(names: str | Collection[str]) -> frozenset[str]:
    """Check the sha256 of engines to trust, in hex; returns them in lower case.

    Raises:
        BadInput: one is no sha256.
    """
    given = (names,) if isinstance(names, str) else names
    for name in given:
        if not SHA256.fullmatch(name.lower()):
            raise BadInput(
                f"expected the sha256 of an engine, 64 hexadecimal digits, got {name!r}; resnet-deploy inspect ENGINE "
                "shows it"
            )
    return frozenset(name.lower() for name in given)


def with_seal(kernels: bytes, engine_sha256: str, key: bytes) -> bytes:
    """An engine's compiled kernels, preceded by the seal that says that this machine compiled them."""
    return _seal_of_kernels(kernels, engine_sha256, key) + kernels


def without_seal(data: bytes, engine_sha256: str, key: bytes) -> bytes | None:
    """The kernels of sealed data, or None if this machine did not compile them for this engine."""
    seal, kernels = data[:SEAL_BYTES], data[SEAL_BYTES:]
    return kernels if hmac.compare_digest(seal, _seal_of_kernels(kernels, engine_sha256, key)) else None


def _seal_of_kernels(kernels: bytes, engine_sha256: str, key: bytes) -> bytes:
    return hmac.digest(key, KERNELS + engine_sha256.encode() + kernels, "sha256")
