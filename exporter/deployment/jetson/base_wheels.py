"""Collect the wheels of the base install for a board, with pip, so that it needs no network."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path
from typing import Any

from runtimes.errors import BackendUnavailable, BadInput

FORM = re.compile(r"linux-(aarch64|x86_64)-cp3(10|11|12|13)")
NEWEST_GLIBC = 35
"""Of Ubuntu 22.04, which JetPack 6 is; JetPack 7's is newer."""
OLDEST_GLIBC = 17
MOST_ROUNDS = 5


@dataclass(frozen=True)
class WheelPlatform:
    """A platform that wheels are collected for: `linux-aarch64-cp310`."""

    machine: str
    minor: int

    @classmethod
    def from_text(cls, text: str) -> WheelPlatform:
        """Raises BadInput where the text names none."""
        found = FORM.fullmatch(text)
        if found is None:
            raise BadInput(
                f"expected --wheels as linux-aarch64-cp310 (JetPack 6), linux-aarch64-cp312 (JetPack 7), or for "
                f"x86_64 or Python 3.11 or 3.13 likewise, got '{text}'; the package runs on no other platform"
            )
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"linux-{self.machine}-cp3{self.minor}"

    @property
    def python(self) -> str:
        return f"3.{self.minor}"

    @property
    def pip_options(self) -> list[str]:
        """What pip is told, since it looks for wheels of its own platform otherwise."""
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)]
        tags += [f"manylinux2014_{self.machine}", "any"]
        abis = [f"cp3{self.minor}", "abi3", "none"]
        return [
            *("--only-binary=:all:", "--implementation", "cp", "--python-version", self.python),
            *(word for abi in abis for word in ("--abi", abi)),
            *(word for tag in tags for word in ("--platform", tag)),
        ]

    @property
    def environment(self) -> dict[str, str]:
        """Values of environment markers (PEP 508) there."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }


def collect_wheels(platform: WheelPlatform, requires: Sequence[str]) -> dict[str, bytes]:
    """Download what `requires` (PEP 508) needs on a platform, with all that needs in turn.

    pip judges environment markers by the Python that it runs in, so what is missing for the other one is added and
    asked for again, and what that does not need is left out.

    Returns:
        the wheels by their file names, in order.

    Raises:
        BackendUnavailable: this Python has no pip, or there is no wheel; gives pip's reason.
    """
    parse = _requirement_class()
    wanted = [one for one in map(parse, requires) if _applies(one, platform)]
    for _ in range(MOST_ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            _download(platform, [_bare(one) for one in wanted], Path(folder))
            found = {_name(path.name.split("-")[0]): path for path in Path(folder).glob("*.whl")}
            needed, missing = _closure(wanted, found, platform, parse)
            if not missing:
                return {found[name].name: found[name].read_bytes() for name in sorted(needed)}
        wanted += missing
    raise BackendUnavailable(
        f"the packages for {platform} need ever more others, at last {', '.join(map(_bare, missing))}; leave out "
        "--wheels, and give the board a network"
    )


def _closure(
    wanted: Iterable[Any], found: dict[str, Path], platform: WheelPlatform, parse: Any
) -> tuple[set[str], list[Any]]:
    """The names of the wheels that are needed there, and the requirements that none of those meets."""
    needed: set[str] = set()
    missing: dict[str, Any] = {}
    seen: set[str] = set()
    left = list(wanted)
    while left:
        one = left.pop()
        if str(one) in seen:
            continue
        seen.add(str(one))
        name = _name(one.name)
        if name not in found:
            missing[name] = one
            continue
        needed.add(name)
        left += [other for other in map(parse, _requires(found[name])) if _applies(other, platform, one.extras)]
    return needed, [missing[name] for name in sorted(missing)]


def _requires(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(one for one in archive.namelist() if one.endswith(".dist-info/METADATA") and one.count("/") == 1)
        return list(map(str, BytesParser().parsebytes(archive.read(name)).get_all("Requires-Dist", [])))


def _applies(requirement: Any, platform: WheelPlatform, extras: Iterable[str] = ()) -> bool:
    marker = requirement.marker
    return marker is None or any(
        marker.evaluate({**platform.environment, "extra": extra}) for extra in (*sorted(extras), "")
    )


def _bare(requirement: Any) -> str:
    """A requirement without its marker, which applies."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _name(text: str) -> str:
    """A package's name in its normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", text).lower()


def _requirement_class() -> Any:
    try:
        return importlib.import_module("pip._vendor.packaging.requirements").Requirement
    except ImportError as error:
        raise BackendUnavailable(
            "--wheels needs pip, which this Python has not; python -m ensurepip brings it"
        ) from error


def _download(platform: WheelPlatform, requirements: list[str], folder: Path) -> None:
    quietly = ("--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir")
    command = [sys.executable, "-m", "pip", "download", *quietly, *platform.pip_options, "--dest", str(folder)]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = said[-1] if said else f"it ended with exit code {done.returncode}"
        raise BackendUnavailable(
            f"pip cannot collect the wheels for {platform}: {reason}; check the network and the package index, or "
            "leave out --wheels"
        )
