"""Engines in a bundle: built where they will run, proven on the spot, and not built again while nothing has changed."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from exporter.engines import builders, timings
from exporter.engines.builders._layers import check_dla, check_precision, layer_facts, layers_on_gpu
from exporter.engines.builders._network import BuildOptions, Built, Job
from runtimes._open import backend_class, remedy_for
from runtimes._plugins import load_plugin, plugin_names
from runtimes.bundle import Bundle
from runtimes.bundle_writing import write_in_one_step
from runtimes.errors import BackendUnavailable, BundleError, ParityError, PlanError, ResnetExportError
from runtimes.nvidia.engine_file import SCHEMA_VERSION, EngineFacts, LayerFacts, facts_of, json_from_facts, seal_facts, sidecar_document
from runtimes.nvidia.plan_files import FOLDER, engine_name, platform_text, sidecar_of
from runtimes.nvidia.trust import ensure_machine_key, is_built_here
from runtimes.parity.compare import ParityReport
from runtimes.parity.golden import golden_report
from runtimes.progress import Progress

ONNX = "model.onnx"

REVISION = 1
"""Of what this package does with a graph; part of every key, so that a new one builds anew."""
DLA_PRECISIONS = ("fp16", "int8")
LEFT_OVER_S = 86400.0
"""So old is what a build that was killed has left behind: its check takes minutes at most."""
NEWEST_OPSETS = {"tensorrt": ((10, 3), 20)}
"""Up to this version, the newest opset that the parser reads (onnx-tensorrt's operators.md); later ones read more."""


@dataclass(frozen=True)
class Engine:
    """A built engine: where it is, what is known of it, whether it was there already, and its answers to the golden inputs.

    Attributes:
        report: None where no device is here to run it, or where it was there already.
    """

    path: Path
    facts: EngineFacts
    cached: bool
    report: ParityReport | None


@dataclass(frozen=True)
class BuildPlan:
    """A bundle, and what is to be built from it.

    Attributes:
        allow_fallback_layers: accept convolutions in another precision than the bundle promises, or on the GPU where DLA was asked for.
        timing_cache: a file that keeps what was measured, for the next build; version and device are added to its name.
        force: build even if nothing has changed.
    """

    bundle: Bundle
    backend: str
    options: BuildOptions = field(default_factory=BuildOptions)
    allow_fallback_layers: bool = False
    timing_cache: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        manifest, options = self.bundle.manifest, self.options
        if options.strip_weights and manifest.precision == "int8":
            raise PlanError("--strip-weights does not go with int8: TensorRT gives up fusions whose scales might change (docs, refitting)")
        if options.workspace_bytes is not None and options.workspace_bytes < 1:
            raise PlanError("expected --workspace of at least 1 MiB")
        if options.dla_core is not None and manifest.precision not in DLA_PRECISIONS:
            raise PlanError(
                f"DLA computes in FP16 and INT8, and the bundle is {manifest.precision}; export it with --fp16 or --int8, or leave out --dla"
            )


def builder_names() -> tuple[str, ...]:
    """The builders there is a file for."""
    return plugin_names(builders.__file__)


def load_builder(name: str) -> Any:
    """The plug-in of a builder.

    Raises:
        UnknownName: there is none of that name.
        BackendUnavailable: its package is not installed.
    """
    return load_plugin(builders, name, kind="builder", remedy=remedy_for(name))


def build_engine(plan: BuildPlan, on_step: Progress) -> Engine:
    """Build, prove and keep an engine in the bundle's `engines/`; one that is there already and would come out the same is kept.

    The new engine takes the place of an earlier one only when it is proven: a build that fails leaves that as it was.

    Raises:
        BackendUnavailable: no such library or device here, or it is too old for the bundle; no place for this machine's engine key.
        BundleError: the bundle has no graph.
        BuildError: the library refuses the graph, or the engine does not run in the bundle's precision.
        ParityError: the engine answers out of budget; it is not kept.
        PlanError, UnknownName, BadInput: options that do not go together or are not known, or a file that cannot be used.
    """
    plan.bundle.file(ONNX)
    builder = load_builder(plan.backend)
    _check_opset(plan, builder.VERSION)
    targets, device = builder.here(plan.options)
    manifest = plan.bundle.manifest
    key = _key(plan, builder.VERSION, targets)
    path = plan.bundle.folder / FOLDER / engine_name(plan.backend, builder.VERSION, targets, manifest.batch, _given(plan.options))
    machine_key = ensure_machine_key()  # asked for now: nobody wants to hear after the work that there is no place for it
    _check_folder(path.parent)
    if not plan.force and (facts := _cached(path, key)) is not None:
        return Engine(path, facts, cached=True, report=None)
    start = time.perf_counter()
    cache = None if plan.timing_cache is None else timings.timing_file(plan.timing_cache, builder.VERSION, targets)
    built, layers = _built(builder, plan, timings.earlier(cache), on_step)
    facts = EngineFacts(
        schema_version=SCHEMA_VERSION,
        backend=plan.backend,
        version=builder.VERSION,
        targets=targets,
        platform=platform_text(),
        device=device,
        batch=manifest.batch,
        precision=manifest.precision,
        typing=built.typing,
        options=_given(plan.options),
        layers=layers,
        seconds=round(time.perf_counter() - start, 3),
        checked=False,
        onnx_sha256=manifest.files[ONNX].sha256,
        engine_sha256=hashlib.sha256(built.plan).hexdigest(),
        engine_bytes=len(built.plan),
        key=key,
        typed_refusal=built.typed_refusal,
    )
    kept = _kept(path, built.plan, lambda facts: seal_facts(facts, machine_key), facts, plan, on_step)
    if cache is not None and built.timing_cache:
        timings.keep(cache, built.timing_cache)
    return kept


def _built(builder: Any, plan: BuildPlan, measured: bytes | None, on_step: Progress) -> tuple[Built, LayerFacts]:
    """The plan, in which precision its layers run, and where."""
    manifest, core = plan.bundle.manifest, plan.options.dla_core
    job = Job(plan.bundle.file(ONNX).read_bytes(), manifest.precision, manifest.inputs, manifest.batch, replace(plan.options, timing_cache=measured))
    built, layers = builder.build(job, on_step)
    facts = layer_facts(layers, built.convolutions, manifest.precision, built.left_in_float)
    if core is not None:
        facts = replace(facts, on_gpu=layers_on_gpu(layers, built.order))
    if not plan.allow_fallback_layers:
        if core is not None:
            check_dla(layers, built.convolutions, core)
        check_precision(facts, manifest.precision)
    return built, facts


def _check_folder(folder: Path) -> None:
    """
    Raises:
        BundleError: engines cannot be kept there; asked before the work.
    """
    if folder.is_symlink():
        raise BundleError(f"{folder} is a link, so that engines would be written elsewhere; remove it, and build again")
    if folder.exists() and not folder.is_dir():
        raise _not_written(folder, os.strerror(errno.ENOTDIR))
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise _not_written(folder, os.strerror(errno.EACCES))


def _kept(path: Path, engine: bytes, seal: Callable[[EngineFacts], EngineFacts], facts: EngineFacts, plan: BuildPlan, on_step: Progress) -> Engine:
    """Write the engine and its sidecar under names that nobody looks for, check it where a device is, and put both in their place."""
    report = None
    staged = path.with_name(f".{path.stem}.partial-{secrets.token_hex(8)}{path.suffix}")
    try:
        path.parent.mkdir(exist_ok=True)
        _remove_left_over(path)
        write_in_one_step(staged, engine)
        write_in_one_step(sidecar_of(staged), json_from_facts(seal(facts)))
        if facts.device is not None:
            on_step("check")
            with backend_class(plan.backend).open(staged) as runtime:
                report = golden_report(plan.bundle, plan.backend, runtime)
            if not report:
                said = ", ".join(report.backends[plan.backend].violations)
                raise ParityError(f"the engine's answers to the golden inputs are out of budget: {said}; it was not kept", report)
            facts = replace(facts, checked=True)
            write_in_one_step(sidecar_of(staged), json_from_facts(seal(facts)))
        with _alone(path.parent):
            # Between the two the sidecar is another engine's, which nobody takes for whole: it names another sha256.
            staged.replace(path)
            sidecar_of(staged).replace(sidecar_of(path))
    except OSError as error:
        raise _not_written(path, error.strerror) from error
    finally:
        for left in path.parent.glob(f"{glob.escape(staged.stem)}.*"):
            with suppress(OSError):
                left.unlink()
    return Engine(path, seal(facts), cached=False, report=report)


def _not_written(path: Path, why: str | None) -> BundleError:
    return BundleError(f"cannot write {path}: {why}; free some room, or copy the bundle to where you may write")


def _remove_left_over(path: Path) -> None:
    """What builds of this engine that were killed have left."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}.partial-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT_OVER_S:
                left.unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One build at a time, where the file system has locks: two would leave the engine of one with the sidecar of the other."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _cached(path: Path, key: str) -> EngineFacts | None:
    """The engine that is there, if this machine built it and a build would give the same; anything wrong with it means that it is built again."""
    try:
        facts = facts_of(path)
        built_here = is_built_here(sidecar_document(sidecar_of(path)))
    except ResnetExportError:
        return None
    proven = facts.checked or facts.device is None
    if not (facts.key == key and proven and built_here):
        return None
    with suppress(OSError):
        os.utime(path)  # of several, the one that was asked for last is loaded
    return facts


def _key(plan: BuildPlan, version: str, targets: tuple[str, ...]) -> str:
    """Equal for builds that would give the same engine, up to the builder's own measurements."""
    manifest = plan.bundle.manifest
    parts = [
        REVISION,
        manifest.files[ONNX].sha256,
        manifest.precision,
        asdict(manifest.batch),
        plan.backend,
        version,
        targets,
        platform_text(),
        _given(plan.options),
        plan.allow_fallback_layers,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _given(options: BuildOptions) -> dict[str, str | int | bool]:
    """The options that were chosen, but for the targets and the cache, which are said elsewhere."""
    return {
        name: value for name, value in asdict(options).items() if value is not None and value is not False and name not in ("targets", "timing_cache")
    }


def _check_opset(plan: BuildPlan, version: str) -> None:
    """
    Raises:
        BackendUnavailable: this library's parser is too old for the graph.
    """
    opset = plan.bundle.manifest.opset
    numbers = tuple(int(part) for part in version.split(".")[:2])
    last, newest = NEWEST_OPSETS.get(plan.backend, ((0, 0), opset))
    if numbers <= last and opset > newest:
        raise BackendUnavailable(
            f"the bundle needs opset {opset} ({plan.bundle.manifest.precision}), and TensorRT {version} reads none above {newest}; "
            "update TensorRT, or export with --fp16 or --int8"
        )
