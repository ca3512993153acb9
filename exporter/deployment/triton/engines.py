"""A bundle's engines as Triton serves them: one for each kind of GPU, the plan of one model's version."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtimes.bundle import Bundle
from runtimes.errors import BackendUnavailable, BadInput, BundleError, PlanError
from runtimes.nvidia.engine_file import EngineFacts, engine_content, open_engine
from runtimes.nvidia.plan_files import FOLDER
from runtimes.nvidia.trust import check_trusted

LIBRARY = "tensorrt"
TARGET = re.compile(r"sm[0-9]{2,3}")
EVERY_GPU = "model.plan"
"""The file that Triton loads on a GPU for which the configuration names none."""


@dataclass(frozen=True)
class ServedEngine:
    """An engine, read and trusted.

    Attributes:
        capability: the GPU's compute capability, as Triton writes it (`8.7`); empty for every GPU from Ampere on.
        file: its name in the version's folder.
    """

    path: Path
    facts: EngineFacts
    data: bytes
    capability: str
    file: str


def has_engines(bundle: Bundle) -> bool:
    """Has the bundle engines for TensorRT?"""
    return bool(_engine_files(bundle))


def served_engines(bundle: Bundle, names: Sequence[str], trusted: Collection[str]) -> tuple[ServedEngine, ...]:
    """The engines of a bundle for TensorRT, one for each kind of GPU.

    Args:
        names: files in `engines/` to take; all of them if there are none.
        trusted: sha256 of engines to take though this machine did not build them.

    Raises:
        BackendUnavailable: there is none; says the command that builds one.
        BadInput: `names` has one that is not there, or no engine.
        BundleError: one was built from another ONNX file, was not proven, or is not trusted.
        PlanError: there are two for one kind of GPU, or the server could not load one.
    """
    found = [_read(bundle, path, trusted) for path in _chosen(bundle, names)]
    for place, engine in enumerate(found):
        for other in found[:place]:
            if engine.file == other.file:
                raise PlanError(
                    f"expected one engine for each kind of GPU, got {other.path.name} and {engine.path.name}; name "
                    "those to serve with --engine"
                )
    return tuple(found)


def _engine_files(bundle: Bundle) -> list[Path]:
    return sorted((bundle.folder / FOLDER).glob(f"{LIBRARY}-[0-9]*.engine"))


def _chosen(bundle: Bundle, names: Sequence[str]) -> list[Path]:
    files = _engine_files(bundle)
    if not files:
        others = "; its engines are for TensorRT-RTX, which Triton does not run" if _any_engine(bundle) else ""
        raise BackendUnavailable(
            f"{bundle.folder} has no engine for TensorRT{others}; build one on the server's GPU with: "
            f"resnet-deploy build {bundle.folder}"
        )
    there = {path.name: path for path in files}
    for name in names:
        if name not in there:
            raise BadInput(f"{bundle.folder} has no engine {name}; it has {', '.join(there)}")
    return [path for path in files if path.name in names] if names else files


def _any_engine(bundle: Bundle) -> bool:
    return any((bundle.folder / FOLDER).glob("*.engine"))


def _read(bundle: Bundle, path: Path, trusted: Collection[str]) -> ServedEngine:
    with open_engine(path) as (file, document, facts):
        _check(bundle, path, facts)
        check_trusted(document, str(path), trusted)
        data = engine_content(path, facts, file)
    if facts.options.get("hardware_compatible") == "ampere-plus":
        return ServedEngine(path, facts, data, "", EVERY_GPU)
    (target,) = facts.targets
    return ServedEngine(path, facts, data, f"{target[2:-1]}.{target[-1]}", f"{target}.plan")


def _check(bundle: Bundle, path: Path, facts: EngineFacts) -> None:
    again = f"build it again with: resnet-deploy build {bundle.folder}"
    if facts.backend != LIBRARY or len(facts.targets) != 1 or TARGET.fullmatch(facts.targets[0]) is None:
        found = f"{facts.backend} for {', '.join(facts.targets) or 'none'}"
        raise BundleError(f"{path}: expected an engine for TensorRT and one kind of GPU, got {found}; {again}")
    if facts.onnx_sha256 != bundle.manifest.files["model.onnx"].sha256:
        raise BundleError(f"{path} was built from another model.onnx than the bundle's; {again}, or remove it")
    if facts.batch != bundle.manifest.batch:
        raise BundleError(
            f"{path}: expected an engine for batches of {bundle.manifest.batch}, as the bundle says, got {facts.batch}"
            f"; {again}, or remove it"
        )
    if not facts.checked:
        raise BundleError(f"{path} was never held against the bundle's golden outputs; {again}")
    if facts.stripped:
        raise PlanError(
            f"{path} has its weights in model.onnx, and Triton does not put them in; {again}, without --strip-weights"
        )
