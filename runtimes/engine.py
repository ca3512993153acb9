"""Engine files: what is known of one without loading it. Needs no TensorRT.

An engine is a plan, as TensorRT serialises it and trtexec loads it, with a `.json` beside it (its sidecar) that says what it was
built from and for. Plans are executable code, so that only one whose content its sidecar names is ever loaded, from a bundle
whose ONNX it was built from.
"""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtimes.bundle import Bundle
from runtimes.errors import BackendUnavailable, BadInput, BundleError, PlanError
from runtimes.specs import BatchRange

FOLDER = "engines"
SCHEMA_VERSION = 1
HEADER_BYTES = 28
ONNX_FIRST_BYTE = 0x08
"""The field `ir_version`, which every writer puts first."""
TAGS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}


@dataclass(frozen=True)
class PlanHeader:
    """The first 28 bytes of a plan: which library wrote it, and its version (major, minor, patch, build)."""

    backend: str
    version: tuple[int, int, int, int]

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


@dataclass(frozen=True)
class DeviceFacts:
    """The GPU an engine was built on."""

    name: str
    target: str
    driver: str


@dataclass(frozen=True)
class LayerFacts:
    """What the builder made of the graph, by data type.

    Attributes:
        kernels: kind of layer -> data type of what it reads -> how many.
        convolutions: data type -> how many of the graph's convolutions read it.
        fallback: convolutions that do not run in the precision that the bundle promises.
    """

    kernels: dict[str, dict[str, int]]
    convolutions: dict[str, int]
    fallback: tuple[str, ...]


@dataclass(frozen=True)
class EngineFacts:
    """An engine's sidecar.

    Attributes:
        backend, version: the library that built it, whose exact version must load it (newer ones too with `version_compatible`).
        targets: compute capabilities it runs on, `sm87`.
        platform: `linux-aarch64`.
        device: the GPU it was built on; None where it was built ahead of time.
        typing: `strong`, or `weak` where TensorRT 10 could not import the typed graph.
        options: the builder's, as given.
        checked: the golden logits were compared on the spot and found within budget.
        key: equal keys mean that a new build would change nothing.
    """

    schema_version: int
    backend: str
    version: str
    targets: tuple[str, ...]
    platform: str
    device: DeviceFacts | None
    batch: BatchRange
    precision: str
    typing: str
    options: dict[str, str | int | bool]
    layers: LayerFacts
    seconds: float
    checked: bool
    onnx_sha256: str
    engine_sha256: str
    engine_bytes: int
    key: str

    @property
    def version_compatible(self) -> bool:
        return bool(self.options.get("version_compatible", False))

    @property
    def stripped(self) -> bool:
        """Does the engine take its weights from the bundle's ONNX when it is loaded?"""
        return bool(self.options.get("strip_weights", False))


@dataclass(frozen=True)
class Here:
    """Where an engine is to be loaded: the library, its version, and the GPU's compute capability (`sm87`)."""

    backend: str
    version: str
    target: str


def plan_header(data: bytes, where: str) -> PlanHeader:
    """Read a plan's header, as trtexec --getPlanVersionOnly does (TensorRT's samples/common/sampleEngines.cpp; RTX has a tag of its own).

    Raises:
        BadInput: not a plan; says what it looks like.
    """
    backend = TAGS.get(data[:4])
    if backend is None or len(data) < HEADER_BYTES:
        raise BadInput(f"{where} is no TensorRT engine: {_looks_like(data)}; build one with: resnet-deploy build BUNDLE")
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


def engine_name(backend: str, version: str, targets: tuple[str, ...], batch: BatchRange) -> str:
    """The file name of an engine in a bundle's `engines/`."""
    return f"{backend}-{version}-{'+'.join(targets)}-b{batch.min}-{batch.opt}-{batch.max}.engine"


def sidecar_of(engine: Path) -> Path:
    """The `.json` beside an engine."""
    return engine.with_suffix(".json")


def json_from_facts(facts: EngineFacts) -> bytes:
    """Indented UTF-8 JSON."""
    return msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n"


def facts_of(engine: Path) -> EngineFacts:
    """The sidecar of an engine; raises what `read_engine` does."""
    return read_engine(engine)[0]


def read_engine(engine: Path) -> tuple[EngineFacts, bytes]:
    """The sidecar of an engine, validated, and the engine's bytes, found to be those it names.

    Raises:
        BadInput: the engine is no plan.
        BundleError: no sidecar, a malformed one, or an engine that was changed since.
    """
    try:
        data = engine.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {engine} ({error.strerror}); give an engine that resnet-deploy build wrote") from error
    header = plan_header(data, str(engine))
    facts = read_sidecar(sidecar_of(engine))
    rebuild = "engines are executable, so it is not loaded; build it again with: resnet-deploy build BUNDLE"
    if header.backend != facts.backend:
        raise BundleError(f"{engine} is a {header.backend} engine, expected {facts.backend} by its sidecar; {rebuild}")
    if hashlib.sha256(data).hexdigest() != facts.engine_sha256:
        raise BundleError(f"{engine} was changed after it was built: its content is not what its sidecar names; {rebuild}")
    return facts, data


def read_sidecar(path: Path) -> EngineFacts:
    """
    Raises:
        BundleError: not there, of another schema version, or malformed.
    """
    again = "build the engine again with: resnet-deploy build BUNDLE"
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=dict[str, object]).get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(f"{path}: expected schema_version {SCHEMA_VERSION}, got {version!r}; {again}")
        return msgspec.json.decode(data, type=EngineFacts)
    except OSError as error:
        raise BundleError(
            f"cannot read {path} ({error.strerror}), which says what the engine beside it is; engines are executable, so one without is not loaded; "
            "build it again with: resnet-deploy build BUNDLE"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, PlanError) as error:
        raise BundleError(f"{path}: {error}; {again}") from error


def check_loadable(facts: EngineFacts, here: Here, where: str) -> None:
    """Will this engine load here? Asked before anything of it is read by TensorRT, whose own answers are None and a line in a log.

    Raises:
        BackendUnavailable: another library, version, platform or GPU; says which, and the command that rebuilds.
    """
    rebuild = f"build it here with: resnet-deploy build BUNDLE --backend {here.backend}"
    if facts.backend != here.backend:
        raise BackendUnavailable(f"{where} is a {facts.backend} engine, expected one for {here.backend}; {rebuild}")
    same = facts.version == here.version or (facts.version_compatible and _numbers(facts.version) <= _numbers(here.version))
    if not same:
        raise BackendUnavailable(
            f"{where} was built with {facts.backend} {facts.version}, this is {here.version}, and engines load in the same version alone; {rebuild}"
        )
    if facts.platform != platform_text():
        raise BackendUnavailable(f"{where} was built for {facts.platform}, this is {platform_text()}; {rebuild}")
    if here.target not in facts.targets and not _is_compatible(facts, here.target):
        built_on = f" ({facts.device.name})" if facts.device else ""
        raise BackendUnavailable(f"{where} was built for {', '.join(facts.targets)}{built_on}, this GPU is {here.target}; {rebuild}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _is_compatible(facts: EngineFacts, target: str) -> bool:
    """Was the engine built for newer GPUs too (`--hardware-compatible ampere-plus`)?"""
    oldest = 80
    return facts.options.get("hardware_compatible") == "ampere-plus" and int(target.removeprefix("sm")) >= oldest


def engine_for(bundle: Bundle, here: Here) -> Path:
    """The bundle's engine that loads here, the newest where there are several.

    Raises:
        BackendUnavailable: there is none; says what there is, and the command that builds one.
        BundleError: those that load were built from another ONNX file, or the bundle has none.
    """
    build = f"build one here with: resnet-deploy build {bundle.folder} --backend {here.backend}"
    model = bundle.manifest.files.get("model.onnx")
    if model is None:
        raise BundleError(f"{bundle.folder} has no model.onnx, so no engine of it either; export the bundle again")
    found = sorted((bundle.folder / FOLDER).glob(f"{here.backend}-[0-9]*.engine"), key=os.path.getmtime, reverse=True)
    problems, stale = [], []
    for path in found:
        try:
            facts = read_sidecar(sidecar_of(path))
            check_loadable(facts, here, path.name)
        except (BackendUnavailable, BundleError) as error:
            problems.append(str(error))
            continue
        if facts.onnx_sha256 == model.sha256:
            return path
        stale.append(path)
    if stale:
        raise BundleError(f"{stale[0]} was built from another model.onnx; {build}")
    raise BackendUnavailable(
        f"{bundle.folder} has no engine for {here.backend} {here.version} on {here.target}; {problems[0] if problems else build}"
    )
