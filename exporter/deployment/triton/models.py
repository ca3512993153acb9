"""Bundles to the models of a Triton repository: their names, backends, configurations and files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from exporter.deployment.triton.backends import GPU, ServerBackend, server_backend
from exporter.deployment.triton.config import Serving, batches_freely, ci_config_text, config_text, model_file
from exporter.deployment.triton.engines import ServedEngine, has_engines, served_engines
from exporter.deployment.triton.ensemble import (
    check_ensemble,
    decoder_code,
    decoder_config,
    decoder_name,
    ensemble_config,
    ensemble_name,
)
from runtimes.bundle import LABELS, Bundle
from runtimes.errors import BundleError, PlanError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Model names that stand in a URL, and in a path, as they are."""
CONFIG, CI_CONFIG = "config.pbtxt", "configs/ci.pbtxt"
NEWEST_VERSION = (1 << 63) - 1
"""A server with a larger one in its repository does not start."""
KEEP = ".keep"
"""An empty file: an ensemble's version has none, and neither git nor a bucket keeps an empty folder."""


@dataclass(frozen=True)
class TritonPlan:
    """Bundles, and how they are to be served.

    Attributes:
        backends: of Triton's; none chooses `tensorrt` for a bundle with engines for it, else `onnxruntime`.
        name: the model's, in place of the bundle's own.
        version: the number that each model has in the repository.
        engines: files in `engines/` to serve; none serves all.
        trusted: sha256 of engines to serve though this machine did not build them.
        ensemble: also serve a decoder of picture files, and it and the model as one.

    Raises:
        PlanError: an option is out of range, or does not go with the bundles.
    """

    bundles: tuple[Bundle, ...]
    backends: tuple[str, ...] = ()
    name: str | None = None
    version: int = 1
    serving: Serving = field(default_factory=Serving)
    engines: tuple[str, ...] = ()
    trusted: frozenset[str] = frozenset()
    ensemble: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.version <= NEWEST_VERSION:
            raise PlanError(f"expected a version of 1 to {NEWEST_VERSION}, got {self.version}")
        if len(self.bundles) > 1 and (self.name is not None or self.engines):
            option = "--engine" if self.name is None else "--name"
            raise PlanError(f"expected one bundle with {option}, got {len(self.bundles)}; write each by itself")
        if len(set(self.backends)) < len(self.backends):
            raise PlanError(f"expected each --backend once, got {', '.join(self.backends)}")


@dataclass(frozen=True)
class TritonModel:
    """A model of the repository.

    Attributes:
        beside: the files in its folder, which all its versions share, by their names.
        version: the files of the version; one that is a path is copied.
        source: the bundle that it is from.
        served: what runs it, in words.
        needs_gpu: does the server need one?
        largest_batch: images in one request, or put together from several; 0 for no limit.
    """

    name: str
    beside: Mapping[str, bytes]
    version: Mapping[str, bytes | Path]
    source: Bundle
    served: str
    needs_gpu: bool
    largest_batch: int

    @property
    def bundle(self) -> Path:
        """The bundle's folder."""
        return self.source.folder


def triton_models(plan: TritonPlan) -> list[TritonModel]:
    """The models of a plan, each with all that it needs.

    Raises:
        PlanError: a backend does not serve a bundle (says why), or two models have one name, or one that no model can
            have.
        UnknownName: there is no such backend.
        BundleError, BadInput, BackendUnavailable: see `served_engines`; or a bundle was rejected by its export.
    """
    found: list[TritonModel] = []
    for bundle in plan.bundles:
        bundle.check_accepted()
        backends = [server_backend(name) for name in plan.backends or (_default_backend(bundle),)]
        _check_engines_are_served(plan, bundle, backends)
        for backend in backends:
            name = plan.name or bundle.manifest.name
            found += _models(plan, bundle, backend, f"{name}-{backend.name}" if len(backends) > 1 else name)
    _check_names(found)
    return found


def _check_engines_are_served(plan: TritonPlan, bundle: Bundle, backends: Sequence[ServerBackend]) -> None:
    names = [backend.name for backend in backends]
    if (plan.engines or plan.trusted) and "tensorrt" not in names:
        if not plan.backends:
            served_engines(bundle, plan.engines, plan.trusted)  # says that there is none
        option = "--engine" if plan.engines else "--trust-engine"
        raise PlanError(f"{option} is about what tensorrt serves, got {', '.join(names)}; leave it out, or the backend")


def _default_backend(bundle: Bundle) -> str:
    refused = server_backend("onnxruntime").refusal(bundle.manifest)
    return "tensorrt" if has_engines(bundle) or refused else "onnxruntime"


def _models(plan: TritonPlan, bundle: Bundle, backend: ServerBackend, name: str) -> list[TritonModel]:
    """A bundle on one backend, and what is asked for in front of it."""
    _check_served(plan, bundle, backend)
    takes_plans = backend.name == "tensorrt"
    engines = served_engines(bundle, plan.engines, plan.trusted) if takes_plans else ()
    labels = {} if bundle.labels is None else {LABELS: bundle.read(LABELS)}
    batching = batches_freely(bundle, backend)
    served = TritonModel(
        name=name,
        beside={
            CONFIG: config_text(name, bundle, backend, engines, plan.serving).encode(),
            CI_CONFIG: ci_config_text(name, bundle, backend, plan.serving).encode(),
            **labels,
        },
        version=_plans(engines) if takes_plans else {model_file(backend): bundle.file("model.onnx")},
        source=bundle,
        served=f"{backend.name}: {_served_text(engines, backend)}",
        needs_gpu=backend.kind(bundle.manifest) == GPU,
        largest_batch=bundle.manifest.batch.max if batching or bundle.manifest.batch.is_static else 0,
    )
    return [served, *(_in_front(plan, bundle, backend, served, labels) if plan.ensemble else ())]


def _check_served(plan: TritonPlan, bundle: Bundle, backend: ServerBackend) -> None:
    manifest = bundle.manifest
    refusal = backend.refusal(manifest)
    if refusal:
        raise PlanError(f"Triton's {backend.name} backend does not serve {bundle.folder}: {refusal}")
    if "model.onnx" not in manifest.files:
        raise BundleError(f"{bundle.folder} has no model.onnx; export the bundle again")
    if manifest.batch.min > 1 and not manifest.batch.is_static:
        raise PlanError(
            f"{bundle.folder} takes batches of {manifest.batch}, and a server sends what comes, one image too; "
            f"export it with --batch 1:{manifest.batch.opt}:{manifest.batch.max}"
        )
    if plan.serving.max_delay_us is not None and not batches_freely(bundle, backend):
        raise PlanError(
            f"--max-delay-us waits for a batch, and the server makes none for {bundle.folder} on {backend.name}; leave "
            "it out"
        )
    if plan.ensemble:
        check_ensemble(bundle)


def _plans(engines: Sequence[ServedEngine]) -> dict[str, bytes | Path]:
    return {engine.file: engine.data for engine in engines}


def _served_text(engines: Sequence[ServedEngine], backend: ServerBackend) -> str:
    if not engines:
        bf16 = ", in BF16 where the processor has it: this backend has no setting against that"
        return model_file(backend) + bf16 * (backend.name == "openvino")
    return ", ".join(
        f"{engine.file} (TensorRT {engine.facts.version}"
        f"{', or newer with --backend-config=tensorrt,version-compatible=true' * engine.facts.version_compatible})"
        for engine in engines
    )


def _in_front(
    plan: TritonPlan, bundle: Bundle, backend: ServerBackend, served: TritonModel, labels: Mapping[str, bytes]
) -> list[TritonModel]:
    """The decoder for a model, and both as one."""
    decoder = decoder_config(served.name, bundle, backend, plan.serving).encode()
    ensemble = ensemble_config(served.name, bundle, backend, plan.serving).encode()
    largest = served.largest_batch
    return [
        TritonModel(
            decoder_name(served.name),
            {CONFIG: decoder},
            {"model.py": decoder_code()},
            bundle,
            "python: picture files to pixels; the server's Python needs Pillow",
            needs_gpu=False,
            largest_batch=largest,
        ),
        TritonModel(
            ensemble_name(served.name),
            {CONFIG: ensemble, **labels},
            {KEEP: b""},
            bundle,
            f"ensemble: {decoder_name(served.name)}, {served.name}",
            needs_gpu=False,
            largest_batch=largest,
        ),
    ]


def _check_names(models: Sequence[TritonModel]) -> None:
    """Check that each model has a name of its own that Triton takes."""
    first: dict[str, TritonModel] = {}
    for model in models:
        if not NAME.fullmatch(model.name):
            raise PlanError(
                "expected a model's name of at most 128 letters, digits, '.', '_' and '-', as it stands in URLs, got "
                f"'{model.name}' of {model.bundle}; give --name"
            )
        other = first.setdefault(model.name, model)
        if other is not model:
            raise PlanError(
                f"expected models of different names, got '{model.name}' of {other.bundle} and of {model.bundle}; "
                "write one of them by itself, with --name"
            )
