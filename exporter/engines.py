"""Engines in a bundle: built where they will run, proven on the spot, and not built again while nothing has changed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from exporter import builders
from exporter.builders._layers import check_precision, layer_facts
from exporter.builders._network import BuildOptions, Built, Job, OnStep
from runtimes._open import backend_class, remedy_for
from runtimes._plugins import load_plugin, plugin_names
from runtimes.bundle import Bundle, write_in_one_step
from runtimes.engine import FOLDER, SCHEMA_VERSION, EngineFacts, LayerFacts, engine_name, facts_of, json_from_facts, platform_text, sidecar_of
from runtimes.errors import BackendUnavailable, BundleError, ParityError, PlanError, ResnetExportError
from runtimes.golden import golden_report
from runtimes.parity import ParityReport

ONNX = "model.onnx"

REVISION = 1
"""Of what this package does with a graph; part of every key, so that a new one builds anew."""
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
        allow_fallback_layers: accept convolutions in another precision than the bundle promises.
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


def build_engine(plan: BuildPlan, on_step: OnStep) -> Engine:
    """Build, prove and keep an engine in the bundle's `engines/`; one that is there already and would come out the same is kept.

    Raises:
        BackendUnavailable: no such library or device here, or it is too old for the bundle.
        BundleError: the bundle has no graph.
        BuildError: the library refuses the graph, or the engine does not run in the bundle's precision.
        ParityError: the engine answers out of budget; it is not kept.
        PlanError, UnknownName: options that do not go together or are not known.
    """
    plan.bundle.file(ONNX)
    builder = load_builder(plan.backend)
    _check_opset(plan, builder.VERSION)
    targets, device = builder.here(plan.options)
    key = _key(plan, builder.VERSION, targets)
    path = plan.bundle.folder / FOLDER / engine_name(plan.backend, builder.VERSION, targets, plan.bundle.manifest.batch)
    if not plan.force and (facts := _cached(path, key)) is not None:
        return Engine(path, facts, cached=True, report=None)
    start = time.perf_counter()
    built, layers = _built(builder, plan, targets, on_step)
    manifest = plan.bundle.manifest
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
    )
    return _kept(path, built.plan, facts, plan, on_step)


def timing_file(cache: Path, version: str, targets: tuple[str, ...]) -> Path:
    """Where the measurements of one library version and GPU are kept: they are of no use to another, which would begin the file anew."""
    return cache.with_name(f"{cache.name}.{version}-{'+'.join(targets)}")


def _built(builder: Any, plan: BuildPlan, targets: tuple[str, ...], on_step: OnStep) -> tuple[Built, LayerFacts]:
    """The plan, and in which precision its layers run."""
    manifest = plan.bundle.manifest
    cache = None if plan.timing_cache is None else timing_file(plan.timing_cache, builder.VERSION, targets)
    earlier = None if cache is None else cache.read_bytes() if cache.is_file() else b""
    job = Job(plan.bundle.file(ONNX).read_bytes(), manifest.precision, manifest.inputs, manifest.batch, replace(plan.options, timing_cache=earlier))
    built, layers = builder.build(job, on_step)
    facts = layer_facts(layers, built.convolutions, manifest.precision, built.left_in_float)
    if not plan.allow_fallback_layers:
        check_precision(facts, manifest.precision)
    if cache is not None and built.timing_cache:
        write_in_one_step(cache, built.timing_cache)
    return built, facts


def _kept(path: Path, engine: bytes, facts: EngineFacts, plan: BuildPlan, on_step: OnStep) -> Engine:
    """Write the engine and its sidecar, and check it where a device is; of one that fails nothing stays."""
    report = None
    sidecar = sidecar_of(path)
    with _removed_on_failure(path, sidecar):
        path.parent.mkdir(exist_ok=True)
        sidecar.unlink(missing_ok=True)  # without it an engine is none, whatever happens next
        write_in_one_step(path, engine)
        write_in_one_step(sidecar, json_from_facts(facts))
        if facts.device is not None:
            on_step("check")
            with backend_class(plan.backend).open(path) as runtime:
                report = golden_report(plan.bundle, plan.backend, runtime)
            if not report:
                said = ", ".join(report.backends[plan.backend].violations)
                raise ParityError(f"the engine's answers to the golden inputs are out of budget: {said}; it was not kept", report)
            facts = replace(facts, checked=True)
            write_in_one_step(sidecar, json_from_facts(facts))
    return Engine(path, facts, cached=False, report=report)


@contextmanager
def _removed_on_failure(*paths: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        for path in paths:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BundleError(f"cannot write {paths[0]}: {error.strerror}; free some room, or copy the bundle to where you may write") from error
        raise


def _cached(path: Path, key: str) -> EngineFacts | None:
    """The engine that is there, if a build would give the same; anything wrong with it means that it is built again."""
    try:
        facts = facts_of(path)
    except ResnetExportError:
        return None
    proven = facts.checked or facts.device is None  # a build that was killed before its check leaves an engine that nobody has proven
    return facts if facts.key == key and proven else None


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
