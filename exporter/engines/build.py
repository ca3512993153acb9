"""Build engines into a bundle where they will run, prove each one, and build none again while nothing has changed."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

from exporter.engines import builders, timings
from exporter.engines.apart import check_loads, watched_build
from exporter.engines.builders import BuildOptions, BuiltNetwork, EngineBuild, EngineBuilder, Job
from exporter.engines.folder import cached_facts, check_folder, keep_engine, staged_engine
from exporter.engines.layers import (
    check_dla,
    check_dla_stretch,
    check_precision,
    layer_facts,
    layers_on_dla,
    layers_on_gpu,
)
from runtimes._open import backend_class, remedy_for
from runtimes._plugins import load_plugin, plugin_names
from runtimes.board.memory import MemoryUse, board_workspace
from runtimes.board.power import power
from runtimes.bundle import ONNX, Bundle
from runtimes.bundle_writing import write_synced
from runtimes.errors import BackendUnavailable, ParityError, PlanError
from runtimes.nvidia.engine_file import SCHEMA_VERSION, EngineFacts, LayerFacts, json_from_facts, seal_facts
from runtimes.nvidia.plan_files import FOLDER, engine_name, platform_text, sidecar_of
from runtimes.nvidia.trust import ensure_machine_key
from runtimes.parity.compare import ParityReport
from runtimes.parity.golden import golden_report
from runtimes.progress import Progress

REVISION = 1
"""Version of how this package builds; part of every cache key, so that raising it builds every engine again."""
DLA_PRECISIONS = ("fp16", "int8")
NEWEST_OPSETS = {"tensorrt": ((10, 3), 20)}
"""Backend -> (version, opset): up to that version its parser reads no newer opset (onnx-tensorrt's operators.md)."""


@dataclass(frozen=True)
class Engine:
    """An engine in a bundle.

    Attributes:
        cached: it was there already, and was not built again.
        report: parity on the golden inputs; None where no device is here to run it, or where it was there already.
    """

    path: Path
    facts: EngineFacts
    cached: bool
    report: ParityReport | None


@dataclass(frozen=True)
class BuildPlan:
    """A bundle, and the engine to build from it.

    Attributes:
        allow_fallback_layers: accept convolutions in another precision than the bundle's, or layers on the GPU that are
            meant to run on DLA.
        timing_cache: file for the builder's measurements, read by the next build; version and device are added to its
            name.
        force: build even if nothing has changed.
        own_process: build in a new interpreter: a script that asks for it needs `if __name__ == "__main__"`.

    Raises:
        PlanError: an option does not fit the bundle's precision, or is out of range.
        BundleError: the bundle was rejected by its export.
    """

    bundle: Bundle
    backend: str
    options: BuildOptions = field(default_factory=BuildOptions)
    allow_fallback_layers: bool = False
    timing_cache: Path | None = None
    force: bool = False
    own_process: bool = False

    def __post_init__(self) -> None:
        self.bundle.check_accepted()
        manifest, options = self.bundle.manifest, self.options
        if manifest.kernels is not None:
            raise PlanError(
                f"the bundle is for {manifest.target}, and TensorRT refuses its unsigned numbers; export it again with "
                "--target tensorrt"
            )
        if options.strip_weights and manifest.precision == "int8":
            raise PlanError(
                "--strip-weights does not go with int8: "
                "TensorRT gives up fusions whose scales might change (docs, refitting)"
            )
        if options.workspace_bytes is not None and options.workspace_bytes < 1:
            raise PlanError("expected --workspace of at least 1 MiB")
        if options.dla_core is not None and manifest.precision not in DLA_PRECISIONS:
            raise PlanError(
                f"DLA computes in FP16 and INT8, and the bundle is {manifest.precision}; "
                "export it with --fp16 or --int8, or leave out --dla"
            )
        if options.dla_core is not None and self.backend == "tensorrt" and not manifest.batch.is_static:
            raise PlanError(
                f"DLA runs one batch size alone, the bundle has {manifest.batch}; export it with --batch N, or leave "
                "out --dla"
            )


def builder_names() -> tuple[str, ...]:
    """Names of all builders."""
    return plugin_names(builders.__file__)


def load_builder(name: str) -> EngineBuilder:
    """The builder of this name.

    Raises:
        UnknownName: there is no such builder.
        BackendUnavailable: its package is not installed.
    """
    return cast(EngineBuilder, load_plugin(builders, name, kind="builder", remedy=remedy_for(name)))


def build_engine(plan: BuildPlan, on_step: Progress) -> Engine:
    """Build an engine, prove it, and keep it in the bundle's `engines/`; the same engine is not built twice.

    A new engine replaces an earlier one only once it is proven: a build that fails leaves the earlier one as it was.

    Raises:
        BackendUnavailable: no such library or device is here, it is too old for the bundle, or this machine's engine
            key has no place.
        BundleError: the bundle has no graph, or `engines/` cannot be written.
        BuildError: the library refuses the graph, or the engine does not run in the bundle's precision.
        ParityError: the engine's answers are out of budget; it is not kept.
        PlanError: the options do not go together.
        UnknownName: there is no such builder or target.
        BadInput: the timing cache cannot be used.
    """
    plan.bundle.file(ONNX)
    if plan.own_process and f"{builders.__name__}.{plan.backend.replace('-', '_')}" not in sys.modules:
        check_loads(load_builder, plan.backend)
    builder = _builder_for(plan)
    check_opset(plan, builder.VERSION)
    targets, device = builder.choose_targets(plan.options)
    manifest = plan.bundle.manifest
    key = _cache_key(plan, builder.VERSION, targets)
    path = (
        plan.bundle.folder
        / FOLDER
        / engine_name(plan.backend, builder.VERSION, targets, manifest.batch, _given_options(plan.options))
    )
    machine_key = ensure_machine_key()  # made now: a key that cannot be kept is an error before the work, not after it
    check_folder(path.parent)
    if not plan.force and (facts := cached_facts(path, key)) is not None:
        return Engine(path, facts, cached=True, report=None)
    start = time.perf_counter()
    cache = None if plan.timing_cache is None else timings.timing_file(plan.timing_cache, builder.VERSION, targets)
    state = power()
    built, layers, memory = _build(plan, timings.read_timings(cache), on_step)
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
        options=_given_options(plan.options),
        layers=layers,
        seconds=round(time.perf_counter() - start, 3),
        checked=False,
        onnx_sha256=manifest.files[ONNX].sha256,
        engine_sha256=hashlib.sha256(built.plan).hexdigest(),
        engine_bytes=len(built.plan),
        key=key,
        typed_refusal=built.typed_refusal,
        power=state,
        memory=memory,
    )
    kept = _prove_and_keep(path, built.plan, lambda facts: seal_facts(facts, machine_key), facts, plan, on_step)
    if cache is not None and built.timing_cache:
        timings.write_timings(cache, built.timing_cache)
    return kept


def _builder_for(plan: BuildPlan) -> EngineBuilder:
    """The builder of a plan; one that is missing is no matter where it could not do what is asked for.

    Raises:
        BackendUnavailable: it is not installed.
        PlanError: it is not installed, and --target asks for the other one.
    """
    try:
        return load_builder(plan.backend)
    except BackendUnavailable:
        if plan.backend == "tensorrt" and plan.options.targets:
            raise PlanError(
                "--target is for tensorrt-rtx, and tensorrt builds for the GPU that is here; "
                "add --backend tensorrt-rtx, or leave out --target"
            ) from None
        raise


def build_here(backend: str, job: Job, on_step: Progress) -> EngineBuild:
    """Build with the builder of this name, in this process."""
    return load_builder(backend).build(job, on_step)


def _build(
    plan: BuildPlan, measured: bytes | None, on_step: Progress
) -> tuple[BuiltNetwork, LayerFacts, MemoryUse | None]:
    """Build the engine, and check in which precision its layers run, and that DLA runs what it was asked to run."""
    manifest, core = plan.bundle.manifest, plan.options.dla_core
    workspace = plan.options.workspace_bytes
    if workspace is None and (workspace := board_workspace()) is not None:
        on_step(f"a kernel may have {workspace >> 20} MiB of scratch memory, by the board's memory")
    job = Job(
        plan.bundle.read(ONNX),
        manifest.precision,
        manifest.inputs,
        manifest.batch,
        replace(plan.options, timing_cache=measured, workspace_bytes=workspace),
    )
    (built, layers), memory = watched_build(build_here, plan.backend, job, on_step, own_process=plan.own_process)
    facts = layer_facts(layers, built.convolutions, manifest.precision, built.left_in_float)
    if core is not None:
        on_dla, on_gpu = layers_on_dla(layers, built.order), layers_on_gpu(layers, built.order)
        facts = replace(facts, on_dla=on_dla, on_gpu=on_gpu)
    if not plan.allow_fallback_layers:
        if core is not None:
            check_dla(facts, built.convolutions, core)
            if manifest.asked.dla_friendly:
                check_dla_stretch(facts, built.convolutions, built.order, core)
        check_precision(facts, manifest.precision)
    return built, facts, memory


def _prove_and_keep(
    path: Path,
    engine: bytes,
    seal: Callable[[EngineFacts], EngineFacts],
    facts: EngineFacts,
    plan: BuildPlan,
    on_step: Progress,
) -> Engine:
    """Write the engine and its sidecar under hidden names, check the engine on a device, and rename both into place.

    Without a device here the engine is kept unchecked.
    """
    report = None
    with staged_engine(path) as staged:
        write_synced(staged, engine)
        write_synced(sidecar_of(staged), json_from_facts(seal(facts)))
        if facts.device is not None:
            on_step("check")
            with backend_class(plan.backend).open(staged) as runtime:
                report = golden_report(plan.bundle, plan.backend, runtime)
            if not report:
                said = ", ".join(report.backends[plan.backend].violations)
                raise ParityError(
                    f"the engine's answers to the golden inputs are out of budget: {said}; it was not kept", report
                )
            plan.bundle.check_same()  # else the folder is gone, too
            facts = replace(facts, checked=True)
            write_synced(sidecar_of(staged), json_from_facts(seal(facts)))
        plan.bundle.check_same()
        keep_engine([(staged, path), (sidecar_of(staged), sidecar_of(path))])
    return Engine(path, seal(facts), cached=False, report=report)


def _cache_key(plan: BuildPlan, version: str, targets: tuple[str, ...]) -> str:
    """Hash of all that decides which engine a build gives, apart from the builder's own measurements."""
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
        _given_options(plan.options),
        plan.allow_fallback_layers,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _given_options(options: BuildOptions) -> dict[str, str | int | bool]:
    """The options that were given, without targets and timing cache, which are recorded elsewhere."""
    return {
        name: value
        for name, value in asdict(options).items()
        if value is not None and value is not False and name not in ("targets", "timing_cache")
    }


def newest_opset(backend: str, version: str) -> int | None:
    """The newest opset that the parser of this version reads; None where it reads all that bundles have."""
    last, newest = NEWEST_OPSETS.get(backend, ((0, 0), 0))
    return newest if tuple(int(part) for part in version.split(".")[:2]) <= last else None


def check_opset(plan: BuildPlan, version: str) -> None:
    """Check that the library's parser reads the bundle's opset.

    Raises:
        BackendUnavailable: it is too old.
    """
    opset, newest = plan.bundle.manifest.opset, newest_opset(plan.backend, version)
    if newest is not None and opset > newest:
        raise BackendUnavailable(
            f"the bundle needs opset {opset} ({plan.bundle.manifest.precision}), "
            f"and TensorRT {version} reads none above {newest}; update TensorRT, or export with --fp16 or --int8"
        )
