"""The installed package as a wheel again, as PyPA's binary distribution format lays one out: equal files, equal
bytes."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import runtimes
from runtimes._plugins import OWN_PACKAGES
from runtimes.errors import BackendUnavailable

DISTRIBUTION = "resnet-export"
EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip archive can hold."""
MODE = 0o100644
REMEDY = "install it again: pip install --force-reinstall --no-deps resnet-export"


class Wheel(NamedTuple):
    """A wheel: its file name and content, and what the base install needs, as `Requires-Dist` lines."""

    name: str
    data: bytes
    requires: tuple[str, ...]


def own_wheel() -> Wheel:
    """This package, as it runs here, as a wheel for any platform.

    An install by pip is checked against the list of files that pip wrote; of a checkout (an editable install) it is
    what lies in the packages' folders.

    Raises:
        BackendUnavailable: the package is not installed, or its files were changed.
    """
    try:
        installed = distribution(DISTRIBUTION)
    except PackageNotFoundError as error:
        raise BackendUnavailable(
            f"a kit holds the installed package, and {DISTRIBUTION} is not installed in this Python; pip install it"
        ) from error
    described = sorted(_about(installed))  # first, since without it there is no version either
    name = f"{DISTRIBUTION.replace('-', '_')}-{installed.version}"
    about = {f"{name}.dist-info/{path}": data for path, data in described}
    about[f"{name}.dist-info/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: {DISTRIBUTION} {installed.version}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    ).encode()
    files = {**dict(sorted(_package_files(installed))), **about}
    base = tuple(line for line in installed.requires or () if "extra ==" not in line)
    return Wheel(f"{name}-py3-none-any.whl", _archive(files, f"{name}.dist-info/RECORD"), base)


def _about(installed: Distribution) -> Iterator[tuple[str, bytes]]:
    """What a wheel's `.dist-info` folder holds of the installed one, which has notes of its installer, too."""
    for needed in ("METADATA", "entry_points.txt"):
        text = installed.read_text(needed)
        if text is None:
            raise BackendUnavailable(f"the installed {DISTRIBUTION} has no {needed}; {REMEDY}")
        yield needed, text.encode()
    for file in installed.files or ():
        if file.parts[0].endswith(".dist-info") and file.parts[1] == "licenses":
            yield "/".join(file.parts[1:]), Path(str(file.locate())).read_bytes()


def _package_files(installed: Distribution) -> Iterator[tuple[str, bytes]]:
    root = Path(runtimes.__file__).resolve().parent.parent
    listed = [one for one in installed.files or () if one.parts[0] in OWN_PACKAGES and "__pycache__" not in one.parts]
    if not listed or Path(str(installed.locate_file(""))).resolve() != root:
        for package in OWN_PACKAGES:
            for path in (root / package).rglob("*"):
                inside = path.relative_to(root)
                hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
                if path.is_file() and not hidden and path.suffix != ".pyc":
                    yield inside.as_posix(), path.read_bytes()
        return
    for file in listed:
        path = Path(str(file.locate()))
        data = path.read_bytes() if path.is_file() else None
        if data is None or (file.hash is not None and file.hash.value != _digest(data)):
            said = "is missing" if data is None else "was changed since"
            raise BackendUnavailable(f"{path} {said}, and a kit holds the package as it was installed; {REMEDY}")
        yield file.as_posix(), data


def _archive(files: dict[str, bytes], record: str) -> bytes:
    lines = [f"{_quoted(name)},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    content = {**files, record: "".join(f"{line}\n" for line in [*lines, f"{record},,"]).encode()}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, EARLIEST)
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, MODE << 16
            archive.writestr(entry, data)
    return made.getvalue()


def _quoted(name: str) -> str:
    return f'"{name}"' if "," in name else name


def _digest(data: bytes) -> str:
    """As RECORD has it: URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
