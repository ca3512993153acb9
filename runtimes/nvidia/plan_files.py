"""What an engine file tells without its sidecar: where it lies, its name, and its header."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from runtimes.errors import BadInput
from runtimes.specs import BatchRange

FOLDER = "engines"
CHECK_JSON = ".check.json"
"""What follows an engine's name in that of the check which came with it from another machine."""
HEADER_BYTES = 28
ONNX_FIRST_BYTE = 0x08
"""The field `ir_version`, which every writer puts first."""
TAGS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}
OPTION_WORDS: Mapping[str, Callable[[str | int | bool], str]] = {
    "dla_core": lambda core: f"dla{core}",
    "version_compatible": lambda _: "version-compatible",
    "hardware_compatible": str,
    "strip_weights": lambda _: "stripped",
    "optimization_level": lambda level: f"o{level}",
    "workspace_bytes": lambda size: f"w{int(size) >> 20}" if int(size) % (1 << 20) == 0 else f"w{size}b",
}
"""What a builder's option, if given, adds to an engine's file name."""


@dataclass(frozen=True)
class PlanHeader:
    """The first 28 bytes of a plan: which library wrote it, and its version (major, minor, patch, build)."""

    backend: str
    version: tuple[int, int, int, int]

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


def plan_header(data: bytes, where: str) -> PlanHeader:
    """Read a plan's header, as trtexec --getPlanVersionOnly does (TensorRT's samples/common/sampleEngines.cpp; RTX has
    a tag of its own).

    Raises:
        BadInput: not a plan; says what it looks like.
    """
    backend = TAGS.get(data[:4])
    if backend is None or len(data) < HEADER_BYTES:
        raise BadInput(
            f"{where} is no TensorRT engine: {_looks_like(data)}; build one with: resnet-deploy build BUNDLE"
        )
    major, minor, patch, build = data[24:28]
    return PlanHeader(backend, (major, minor, patch, build))


def _looks_like(data: bytes) -> str:
    if not data:
        return "it is empty"
    if data[:4] in TAGS:
        return f"it ends after {len(data)} bytes"
    if data[0] == ONNX_FIRST_BYTE:
        return "it looks like an ONNX model"
    return "its first bytes are not a plan's"


def platform_text() -> str:
    """`linux-x86_64`: engines do not cross platforms."""
    return f"{platform.system().lower()}-{platform.machine()}"


def engine_name(
    backend: str,
    version: str,
    targets: tuple[str, ...],
    batch: BatchRange,
    options: Mapping[str, str | int | bool] = MappingProxyType({}),
) -> str:
    """The file name of an engine in a bundle's `engines/`; engines with different options have different names."""
    words = [word(options[name]) for name, word in OPTION_WORDS.items() if name in options]
    return "-".join([backend, version, "+".join(targets), f"b{batch.min}-{batch.opt}-{batch.max}", *words]) + ".engine"


def finished(bundle: Path, pattern: str) -> list[Path]:
    """The files in a bundle's `engines/` whose names match, in order; without those of a build that is not done, whose
    names are hidden."""
    return sorted(path for path in (bundle / FOLDER).glob(pattern) if not path.name.startswith("."))


def sidecar_of(engine: Path) -> Path:
    """The `.json` beside an engine."""
    return engine.with_suffix(".json")
