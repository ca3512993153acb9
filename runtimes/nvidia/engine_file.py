"""Engine files and their sidecars, read and checked without TensorRT.

An engine is a plan, as TensorRT serialises it and trtexec loads it. The `.json` beside it, its sidecar, says what it
was built from and for. Plans are executable code: one is loaded only if its sha256 is the sidecar's, its ONNX file is
the bundle's, and this machine built it or the user named its sha256 (see `trust`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from runtimes.board.memory import MemoryUse
from runtimes.board.power import Power
from runtimes.errors import BadInput, BundleError, PlanError
from runtimes.locks import folder_lock
from runtimes.nvidia.plan_files import HEADER_BYTES, PlanHeader, plan_header, sidecar_of
from runtimes.nvidia.trust import seal_of
from runtimes.private import open_regular, read_regular
from runtimes.specs import BatchRange

SCHEMA_VERSION = 1
BUILD_AGAIN = "build the engine again with: resnet-deploy build BUNDLE"
NOT_LOADED = "engines are executable, so it is not loaded; build it again with: resnet-deploy build BUNDLE"
MOST_SIDECAR_BYTES = 1 << 20


@dataclass(frozen=True)
class DeviceFacts:
    """The GPU an engine was built on."""

    name: str
    target: str
    driver: str


@dataclass(frozen=True)
class LayerFacts:
    """In which data types an engine's layers run.

    Attributes:
        kernels: kind of layer -> data type of its input -> how many.
        convolutions: data type -> how many of the graph's convolutions read it.
        fallback: convolutions that do not run in the precision that the bundle promises.
        on_gpu: if DLA was asked for, the graph's layers that run on the GPU all the same.
        on_dla: likewise, those that run on DLA.
    """

    kernels: dict[str, dict[str, int]]
    convolutions: dict[str, int]
    fallback: tuple[str, ...]
    on_gpu: tuple[str, ...] = ()
    on_dla: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineFacts:
    """An engine's sidecar.

    Attributes:
        backend, version: the library that built it, whose exact version must load it (newer ones too with
            `version_compatible`).
        targets: compute capabilities it runs on, `sm87`.
        platform: `linux-aarch64`.
        device: the GPU it was built on; None where it was built ahead of time.
        typing: `strong`, or `weak` where TensorRT 10 could not import the typed graph.
        options: the builder's, as given.
        checked: after the build, the golden logits were compared and found within budget.
        key: equal keys mean that a new build would change nothing.
        typed_refusal: why the parser refused the typed graph, if typing is `weak`.
        seal: proves that this machine built it (see `trust`); empty if there is no proof.
        power: the state of the Jetson before the build; None elsewhere, and in sidecars of earlier versions.
        memory: what the build took of the machine's memory; None where the system does not tell.
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
    typed_refusal: str = ""
    seal: str = ""
    power: Power | None = None
    memory: MemoryUse | None = None

    @property
    def version_compatible(self) -> bool:
        return bool(self.options.get("version_compatible", False))

    @property
    def stripped(self) -> bool:
        """Does the engine take its weights from the bundle's ONNX when it is loaded?"""
        return bool(self.options.get("strip_weights", False))


class Engine(NamedTuple):
    """An engine that was read: its sidecar, and its bytes, which have the sidecar's sha256."""

    facts: EngineFacts
    data: bytes


class OpenEngine(NamedTuple):
    """An engine's open file, its sidecar as JSON, and the sidecar parsed."""

    file: BinaryIO
    document: Mapping[str, object]
    facts: EngineFacts


def json_from_facts(facts: EngineFacts) -> bytes:
    """Indented UTF-8 JSON."""
    return msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n"


def seal_facts(facts: EngineFacts, key: bytes) -> EngineFacts:
    """The sidecar with the seal of the machine that has this key."""
    return replace(facts, seal=seal_of(msgspec.to_builtins(facts), key))


def facts_of(engine: Path) -> EngineFacts:
    """The sidecar of an engine, validated, and checked against the engine's content, which is not kept in memory.
    Raises as `read_engine`."""
    with open_engine(engine) as (file, _, facts):
        _check_content(engine, facts, file)
    return facts


def read_engine(engine: Path) -> Engine:
    """Read an engine: its sidecar, validated, and its bytes, whose sha256 is the sidecar's.

    Raises:
        BadInput: the engine is no plan.
        BundleError: no sidecar, a malformed one, or an engine that was changed since.
    """
    with open_engine(engine) as (file, _, facts):
        return Engine(facts, engine_content(engine, facts, file))


@contextmanager
def open_engine(engine: Path) -> Iterator[OpenEngine]:
    """Open an engine; yields the file, its sidecar as JSON, and the sidecar parsed."""
    with ExitStack() as owned:
        file, header, document = _opened_pair(engine, owned)
        facts = facts_from_document(document, sidecar_of(engine))
        if header.backend != facts.backend:
            raise BundleError(
                f"{engine} is a {header.backend} engine, expected {facts.backend} by its sidecar; {NOT_LOADED}"
            )
        if os.fstat(file.fileno()).st_size != facts.engine_bytes:
            raise _changed_error(engine)
        yield OpenEngine(file, document, facts)


def _opened_pair(engine: Path, owned: ExitStack) -> tuple[BinaryIO, PlanHeader, Mapping[str, object]]:
    """An engine's file, its header, and its sidecar as JSON, of one build: while another puts both into place, neither
    is opened."""
    try:
        with folder_lock(engine.parent, shared=True):
            file = owned.enter_context(open_regular(engine))
            header = plan_header(file.read(HEADER_BYTES), str(engine))
            file.seek(0)
            return file, header, sidecar_document(sidecar_of(engine))
    except OSError as error:
        raise _unreadable(engine, error) from error


def _unreadable(engine: Path, error: OSError) -> BadInput:
    return BadInput(f"cannot read {engine} ({error.strerror}); give an engine that resnet-deploy build wrote")


def engine_content(engine: Path, facts: EngineFacts, file: BinaryIO) -> bytes:
    try:
        data = file.read(facts.engine_bytes)
    except OSError as error:
        raise _unreadable(engine, error) from error
    if hashlib.sha256(data).hexdigest() != facts.engine_sha256:
        raise _changed_error(engine)
    return data


def _check_content(engine: Path, facts: EngineFacts, file: BinaryIO) -> None:
    digest = hashlib.sha256()
    try:
        while piece := file.read(1 << 20):
            digest.update(piece)
    except OSError as error:
        raise _unreadable(engine, error) from error
    if digest.hexdigest() != facts.engine_sha256:
        raise _changed_error(engine)


def _changed_error(engine: Path) -> BundleError:
    return BundleError(
        f"{engine} was changed after it was built: its content is not what its sidecar names; {NOT_LOADED}"
    )


def read_sidecar(path: Path) -> EngineFacts:
    """Read and validate a sidecar.

    Raises:
        BundleError: it is missing, of another schema version, or malformed.
    """
    return facts_from_document(sidecar_document(path), path)


def sidecar_document(path: Path) -> Mapping[str, object]:
    """A sidecar as JSON. Seals are over this form, so that they stay valid when a later version adds fields. Raises as
    `read_sidecar`."""
    try:
        document = msgspec.json.decode(read_regular(path, MOST_SIDECAR_BYTES), type=dict[str, object])
    except OSError as error:
        raise BundleError(
            f"cannot read {path} ({error.strerror}), which says what the engine beside it is; engines are executable, "
            "so one without is not loaded; build it again with: resnet-deploy build BUNDLE"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {error}; {BUILD_AGAIN}") from error
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(f"{path}: expected schema_version {SCHEMA_VERSION}, got {version!r}; {BUILD_AGAIN}")
    return document


def facts_from_document(document: Mapping[str, object], path: Path) -> EngineFacts:
    try:
        return msgspec.convert(document, EngineFacts)
    except (ValueError, RecursionError, PlanError) as error:
        raise BundleError(f"{path}: {error}; {BUILD_AGAIN}") from error
