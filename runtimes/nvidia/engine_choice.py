"""Which engines load here: those for this library, version, platform and GPU that this machine built or the user names.

Checked before TensorRT reads anything of an engine: of a wrong one it only logs a line and returns None.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from runtimes.bundle import Bundle
from runtimes.errors import BackendUnavailable, BundleError
from runtimes.nvidia.engine_file import (
    Engine,
    EngineFacts,
    engine_content,
    facts_from_document,
    open_engine,
    sidecar_document,
)
from runtimes.nvidia.plan_files import FOLDER, platform_text, sidecar_of
from runtimes.nvidia.trust import check_trusted


@dataclass(frozen=True)
class Here:
    """What an engine is to be loaded with: the library, its version, and the GPU's compute capability (`sm87`)."""

    backend: str
    version: str
    target: str


def loadable_engine(engine: Path, here: Callable[[], Here], trusted: Collection[str]) -> Engine:
    """Read an engine that may be loaded here, as `read_engine`; of any other only the header is read.

    Args:
        here: called once the file is known to be an engine.
        trusted: sha256 of engines that may be loaded though this machine did not build them.

    Raises:
        BadInput, BundleError: as `read_engine`; or this machine did not build it, and `trusted` does not name it.
        BackendUnavailable: it is for another library, version, platform or GPU.
    """
    with open_engine(engine) as (file, document, facts):
        check_loadable(facts, here(), str(engine))
        check_trusted(document, str(engine), trusted)
        return Engine(facts, engine_content(engine, facts, file))


def check_loadable(facts: EngineFacts, here: Here, where: str) -> None:
    """Check that an engine will load here, by its sidecar alone.

    Raises:
        BackendUnavailable: another library, version, platform or GPU; says which, and the command that rebuilds.
    """
    rebuild = f"build it here with: resnet-deploy build BUNDLE --backend {here.backend}"
    if facts.backend != here.backend:
        raise BackendUnavailable(f"{where} is a {facts.backend} engine, expected one for {here.backend}; {rebuild}")
    same = facts.version == here.version or (
        facts.version_compatible and _numbers(facts.version) <= _numbers(here.version)
    )
    if not same:
        raise BackendUnavailable(
            f"{where} was built with {facts.backend} {facts.version}, this is {here.version}, and engines load in the "
            f"same version alone; {rebuild}"
        )
    if facts.platform != platform_text():
        raise BackendUnavailable(f"{where} was built for {facts.platform}, this is {platform_text()}; {rebuild}")
    if here.target not in facts.targets and not _is_compatible(facts, here.target):
        built_on = f" ({facts.device.name})" if facts.device else ""
        raise BackendUnavailable(
            f"{where} was built for {', '.join(facts.targets)}{built_on}, this GPU is {here.target}; {rebuild}"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _is_compatible(facts: EngineFacts, target: str) -> bool:
    """Was the engine built for this and newer GPUs too (`--hardware-compatible ampere-plus`)?"""
    oldest = 80
    return facts.options.get("hardware_compatible") == "ampere-plus" and int(target.removeprefix("sm")) >= oldest


def engine_for(bundle: Bundle, here: Here, trusted: Collection[str] = ()) -> Path:
    """Choose the bundle's engine that loads here: one that `trusted` names by sha256, or else the last one built or
    asked for.

    Raises:
        BackendUnavailable: there is none; says what there is, and the command that builds one.
        BundleError: the engines that would load were built from another ONNX file, or the bundle has no ONNX file.
    """
    build = f"build one here with: resnet-deploy build {bundle.folder} --backend {here.backend}"
    model = bundle.manifest.files.get("model.onnx")
    if model is None:
        raise BundleError(f"{bundle.folder} has no model.onnx, so no engine of it either; export the bundle again")
    fitting: dict[Path, EngineFacts] = {}
    foreign, stale, problems = [], [], []
    for path in sorted((bundle.folder / FOLDER).glob(f"{here.backend}-[0-9]*.engine")):
        try:
            document = sidecar_document(sidecar_of(path))
            facts = facts_from_document(document, sidecar_of(path))
            check_loadable(facts, here, path.name)
        except (BackendUnavailable, BundleError) as error:
            problems.append(str(error))
            continue
        if facts.onnx_sha256 != model.sha256:
            stale.append(path)
            continue
        try:
            check_trusted(document, path.name, trusted)
        except (BackendUnavailable, BundleError) as error:
            foreign.append(str(error))
            continue
        fitting[path] = facts
    if fitting:
        return max(
            fitting,
            key=lambda path: (fitting[path].engine_sha256 in trusted, _write_time(path), -len(fitting[path].options)),
        )
    if stale and not foreign:
        raise BundleError(f"{stale[0]} was built from another model.onnx; {build}")
    raise BackendUnavailable(
        f"{bundle.folder} has no engine for {here.backend} {here.version} on {here.target}; "
        f"{[*foreign, *problems, build][0]}"
    )


def _write_time(path: Path) -> float:
    """When a file was last written, in seconds since 1970."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # gone, or a link to nothing: opening it will say so
