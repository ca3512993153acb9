"""Which libraries the dynamic loader finds, and which it will not: read from files, nothing is loaded."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from runtimes.doctor.elf import Dynamic, dynamic_of
from runtimes.doctor.facts import LibraryFacts, Missing
from runtimes.doctor.host import Host
from runtimes.errors import BadInput

CACHE, CONFIGURATION = "/etc/ld.so.cache", "/etc/ld.so.conf"
CACHE_MAGIC, CACHE_HEADER, CACHE_ENTRY = b"glibc-ld.so.cache1.1", 48, 24
MOST_CACHE = 64 << 20
ELSEWHERE = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/*/lib", "/usr/lib/wsl/lib", "/opt/nvidia/**/lib64")
"""Where libraries of CUDA lie that the loader may not know of."""


@dataclass(frozen=True)
class Part:
    """A library that is loaded late, or not at all, so that its package may seem to be well.

    Attributes:
        pattern: of its file, below a folder that Python imports from.
        beside: patterns of folders whose libraries its package loads before it.
    """

    backend: str
    name: str
    pattern: str
    needed: bool = False
    beside: tuple[str, ...] = ()


NOTHING = Dynamic((), ())
NVIDIA = ("nvidia/*/lib", "nvidia/*/*/lib")
PARTS = (
    Part(
        "onnxruntime", "onnxruntime's cuda provider", "onnxruntime/capi/libonnxruntime_providers_cuda.so", beside=NVIDIA
    ),
    Part(
        "onnxruntime",
        "onnxruntime's tensorrt provider",
        "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
        beside=(*NVIDIA, "tensorrt_libs"),
    ),
    Part("openvino", "OpenVINO's cpu plugin", "openvino/libs/libopenvino_intel_cpu_plugin.so", needed=True),
    Part("openvino", "OpenVINO's gpu plugin", "openvino/libs/libopenvino_intel_gpu_plugin.so"),
    Part("pytorch", "PyTorch's CUDA part", "torch/lib/libtorch_cuda.so", beside=NVIDIA),
    Part("tensorrt", "TensorRT", "tensorrt_libs/libnvinfer.so.*", needed=True, beside=NVIDIA),
    Part("tensorrt", "TensorRT's bindings", "tensorrt_bindings/tensorrt.so", needed=True, beside=("tensorrt_libs",)),
    Part("tensorrt", "TensorRT's bindings", "tensorrt/tensorrt.so", needed=True),
    Part("tensorrt-rtx", "TensorRT-RTX", "tensorrt_rtx_libs/libtensorrt_rtx.so.*", needed=True),
    Part(
        "tensorrt-rtx",
        "TensorRT-RTX's bindings",
        "tensorrt_rtx_bindings/tensorrt_rtx.so",
        needed=True,
        beside=("tensorrt_rtx_libs",),
    ),
)


class Loader:
    """The dynamic loader of a machine (ld.so(8)): it finds libraries by their names, as the loader would."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._first = tuple(filter(None, host.environment.get("LD_LIBRARY_PATH", "").split(":")))
        self._cache = _cached(host)
        triplet = f"{host.machine}-linux-gnu"
        defaults = (f"/lib/{triplet}", f"/usr/lib/{triplet}", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
        configured = () if self._cache is not None else (*_configured(host, CONFIGURATION), "/usr/local/lib")
        self._last = (*configured, *defaults)

    def find(self, name: str, own: Dynamic = NOTHING, origin: Path | None = None) -> Path | None:
        """The file that a library's name stands for; None where the loader finds none.

        Args:
            own: of the library that needs it; `origin` is its folder.
        """
        if "/" in name:
            return self._host.path(name) if self._host.exists(name) else None
        folders = tuple(self._own_folder(one.replace("${ORIGIN}", "$ORIGIN"), origin) for one in own.folders)
        given = tuple(map(self._host.path, self._first))
        order = (*folders, *given) if own.before_environment else (*given, *folders)
        cached = self._cached_path(name)
        for path in (
            *(folder / name for folder in order),
            *cached,
            *(self._host.path(one) / name for one in self._last),
        ):
            if _is_file(path):
                return path
        return None

    def _own_folder(self, folder: str, origin: Path | None) -> Path:
        """A folder that a library names; `$ORIGIN` in it is the library's own."""
        return Path(folder.replace("$ORIGIN", str(origin))) if "$ORIGIN" in folder else self._host.path(folder)

    def _cached_path(self, name: str) -> tuple[Path, ...]:
        path = (self._cache or {}).get(name)
        return () if path is None else (self._host.path(path),)

    def elsewhere(self, name: str, folders: Sequence[str] = ()) -> str:
        """Where a library lies that the loader does not find; empty if nowhere that is known."""
        for pattern in (*folders, *ELSEWHERE):
            found = self._host.names(f"{pattern}/{name}")
            if found:
                return found[0]
        return ""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _configured(host: Host, name: str, depth: int = 0) -> Iterator[str]:
    """The folders that `/etc/ld.so.conf` names (ldconfig(8))."""
    for line in host.text(name).splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["include"] and depth < 4:
            for pattern in words[1:]:
                absolute = pattern if pattern.startswith("/") else f"/etc/{pattern}"
                for found in host.names(absolute):
                    yield from _configured(host, found, depth + 1)
        elif words and words[0].startswith("/"):
            yield words[0]


def _cached(host: Host) -> dict[str, str] | None:
    """Names and paths of glibc's cache; None where there is none (elf/cache.c and sysdeps/generic/dl-cache.h)."""
    try:
        with host.path(CACHE).open("rb") as file:
            data = file.read(MOST_CACHE)
        start = data.index(CACHE_MAGIC)
        (count,) = struct.unpack_from("<I", data, start + len(CACHE_MAGIC))
        found: dict[str, str] = {}
        for place in range(count):
            _flags, name, path = struct.unpack_from("<iII", data, start + CACHE_HEADER + place * CACHE_ENTRY)
            found.setdefault(_text(data, start + name), _text(data, start + path))
    except (OSError, ValueError, struct.error):
        return None
    return found


def _text(data: bytes, place: int) -> str:
    return data[place : data.index(b"\0", place)].decode("utf-8", "replace")


def library_facts(host: Host, loader: Loader) -> tuple[LibraryFacts, ...]:
    """Each of `PARTS` that is installed, with what it lacks."""
    found = []
    for part in PARTS:
        for base in map(Path, host.paths):
            for file in sorted(_matches(base, part.pattern))[:1]:
                beside = [folder for pattern in part.beside for folder in sorted(_matches(base, pattern))]
                found.append(_facts(part, file, loader, beside))
    return tuple({one.file: one for one in found}.values())


def _matches(base: Path, pattern: str) -> Iterator[Path]:
    try:
        yield from base.glob(pattern)
    except (OSError, ValueError):
        return


def _facts(part: Part, file: Path, loader: Loader, beside: Sequence[Path]) -> LibraryFacts:
    try:
        names = missing_of(file, loader, beside)
    except (OSError, BadInput) as error:
        return LibraryFacts(str(file), part.name, part.backend, part.needed, problem=str(error))
    return LibraryFacts(
        str(file), part.name, part.backend, part.needed, tuple(Missing(name, loader.elsewhere(name)) for name in names)
    )


def missing_of(file: Path, loader: Loader, beside: Sequence[Path] = ()) -> tuple[str, ...]:
    """The libraries that are not found for this one, itself or what it needs, sorted.

    Args:
        beside: folders whose libraries are loaded before it.

    Raises:
        BadInput: it is no library.
        OSError: it cannot be read.
    """
    missing: set[str] = set()
    seen: set[str] = set()
    left = [file]
    while left:
        path = left.pop()
        own = _read(path) if path != file else dynamic_of(path)
        if own is None:
            continue
        for name in own.needed:
            if name in seen:
                continue
            seen.add(name)
            found = next((folder / name for folder in beside if _is_file(folder / name)), None)
            found = found or loader.find(name, own, path.parent)
            if found is None:
                missing.add(name)
            else:
                left.append(found)
    return tuple(sorted(missing))


@cache
def _read(path: Path) -> Dynamic | None:
    """A library that another needs; None for one that cannot be read, which is not what is asked here."""
    try:
        return dynamic_of(path)
    except (OSError, BadInput):
        return None


def version_of_file(path: Path) -> str:
    """The version in the name of a library's file, links followed: `9.3.0` of `libcudnn.so.9.3.0`; empty where it has
    none."""
    try:
        name = path.resolve().name
    except (OSError, RuntimeError):
        return ""
    found = re.search(r"\.so\.([\d.]+)$", name)
    return found[1] if found else ""
