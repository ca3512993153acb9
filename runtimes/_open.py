"""Find a backend by its name, and open a model on it."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import runtimes.backends as backends
from runtimes._plugins import load_plugin, plugin_names
from runtimes.base import Runtime
from runtimes.board.jetpack import this_board
from runtimes.bundle import Bundle, path_from_given
from runtimes.errors import BackendUnavailable, BadInput, BundleError, PlanError, UnknownName
from runtimes.nvidia.trust import trusted_engines
from runtimes.server_url import BACKEND as TRITON
from runtimes.server_url import is_url
from runtimes.source_runtime import SourceFileRuntime
from runtimes.tuning import DEFAULT_TUNING, Tuning

AUTO = "auto"
"""In place of a backend's name: the fastest that is here."""
REMEDIES = {
    "tensorrt": "on a Jetson use JetPack's own, in a venv made with --system-site-packages; "
    "elsewhere pip install 'resnet-export[tensorrt]'",
    "pytorch": "pip install 'resnet-export[export]'",
    "onnxruntime": "pip install 'resnet-export[export]' for the CPU or 'resnet-export[gpu]' for NVIDIA GPUs",
}


def backend_names() -> tuple[str, ...]:
    """All backends by name, installed or not; imports none of them."""
    return plugin_names(backends.__file__)


def local_backend_names() -> tuple[str, ...]:
    """All backends that run a model on this machine, which is all but `triton`: what "every backend" means where no
    server is named."""
    return tuple(name for name in backend_names() if name != TRITON)


def available_backends() -> tuple[str, ...]:
    """The backends that can run here: their packages are installed, and their devices present. Not among them is
    `triton`, which runs on a server."""
    found = []
    for name in local_backend_names():
        try:
            backend_class(name).check_here()
        except BackendUnavailable:
            continue
        found.append(name)
    return tuple(found)


def backend_class(name: str) -> type[Runtime]:
    """The `Runtime` class of a backend.

    Raises:
        UnknownName: there is no such backend.
        BackendUnavailable: its package is not installed.
    """
    if not isinstance(name, str):
        raise UnknownName("backend", str(name), backend_names())
    module = load_plugin(backends, name, kind="backend", remedy=remedy_for(name))
    runtime: type[Runtime] = module.RUNTIME
    return runtime


def remedy_for(name: str) -> str:
    """The command that installs a backend's package."""
    return REMEDIES.get(name, f"pip install 'resnet-export[{name}]'")


def open_runtime(
    model: str | Path | Bundle,
    backend: str = "onnxruntime",
    *,
    provider: str | None = None,
    trust_engine: str | Collection[str] = (),
    tuning: Tuning = DEFAULT_TUNING,
) -> Runtime:
    """Open a bundle, a single model file, or a model on a server, on a backend.

    Args:
        model: a bundle (its folder, verified file by file first) or a model file of the backend's own kind; for the
            backend `triton` a bundle, or the URL of a model, as `grpc://HOST:8001/MODEL[/VERSION]`.
        backend: a name from `backend_names()`; or `auto`, for a bundle: the fastest that `resnet-deploy bench` measured
            here, or the first that can run it of tensorrt, tensorrt-rtx, onnxruntime on cuda, openvino, onnxruntime on
            the cpu, and pytorch. The runtime's `choice` says which, why, and what was skipped.
        provider: where it runs, for example `cpu` or `cuda`; None is the backend's default. For a bundle on `triton` it
            is the URL of its model, which is held against the bundle's manifest.
        trust_engine: the sha256 of an engine, or of several, that may be loaded though this machine did not build it.
            Engines are code.
        tuning: how many threads it may use, and whether latency or throughput counts.

    Raises:
        UnknownName, BackendUnavailable: the backend or provider is not there.
        BundleError: the bundle is not what its manifest says, was rejected by its export, or lacks the backend's file;
            an engine was changed, or nobody vouches for it.
        BadInput: the file is no model of this backend, the provider is an empty text, or `trust_engine` is no sha256.
        ResnetExportError: the server's model is not the bundle's.
    """
    if not isinstance(provider, str | None):
        raise BadInput(f"expected a provider's name, got {type(provider).__name__}; name one, as cpu or cuda")
    if provider is not None and not provider.strip():
        raise BadInput("expected a provider, got nothing; leave it out, or name one, as cpu or cuda")
    trusted = trusted_engines(trust_engine)
    if is_url(model):
        return _open_url(str(model), backend, provider, tuning)
    if backend == AUTO:
        return _open_fastest(model, provider, trusted, tuning)
    runtime = backend_class(backend)
    if not isinstance(model, Bundle):
        path = path_from_given(model, "a bundle folder or a model file")
        if os.path.isfile(path):
            return _opened(runtime, path, provider, trusted, tuning)
        if not os.path.exists(path):  # a name that no file can have, too
            raise BadInput(f"{path} does not exist; give a bundle folder or a model file")
        model = Bundle.open(path)
    model.check_accepted()
    return _opened(runtime, model, provider, trusted, tuning)


def _open_url(url: str, backend: str, provider: str | None, tuning: Tuning) -> Runtime:
    """Open a server's model, of which there is no bundle here."""
    if provider is not None or backend == AUTO:
        raise BadInput("expected a URL with the backend triton alone, and no provider; leave the others out")
    runtime = backend_class(backend).open_url(url)
    runtime.tuning = tuning
    return runtime


def _open_fastest(
    model: str | Path | Bundle, provider: str | None, trusted: Collection[str], tuning: Tuning
) -> Runtime:
    """Open a bundle on the first backend that can run it, of those that `runtimes.choice` names.

    Raises:
        BackendUnavailable: none can; gives each one's reason.
    """
    from runtimes.choice import candidates

    if not isinstance(model, Bundle):
        path = path_from_given(model, "a bundle folder")
        if os.path.isfile(path):
            raise BadInput(f"expected a bundle for the backend auto, got the file {path}; name a backend")
        model = Bundle.open(path)
    skipped: list[str] = []
    absent: dict[str, str] = {}
    for choice in candidates(model, tuning, provider):
        try:
            backend_class(choice.backend).check_here()
            found = open_runtime(
                model, choice.backend, provider=choice.provider or provider, trust_engine=trusted, tuning=tuning
            )
        except (BackendUnavailable, UnknownName, BadInput, BundleError) as error:
            # a plug-in that was measured may be gone, a library may not take the graph, an engine not be trusted
            skipped.append(f"{choice.backend}: {error}")
            if isinstance(error.__cause__, ImportError):
                absent[skipped[-1]] = choice.backend
            continue
        found.choice = replace(choice, provider=found.provider, skipped=tuple(skipped))
        return found
    said = [one for one in skipped if one not in absent]
    if said and absent:  # what is here and cannot says more than what is not
        said.append(f"not installed: {', '.join(dict.fromkeys(absent.values()))}")
    if not said and absent:
        missing = ", ".join(dict.fromkeys(absent.values()))
        remedy = remedy_for("onnxruntime" if this_board() is None else "tensorrt")
        raise BackendUnavailable(f"no backend can run {model.folder} here, not installed: {missing}; {remedy}")
    raise BackendUnavailable(f"no backend can run {model.folder} here: {'; '.join(said)}")


def open_as_evidence(bundle: Bundle, backend: str, *, tuning: Tuning = DEFAULT_TUNING) -> Runtime:
    """Open a bundle as `open_runtime` does, also one that its export rejected: to find out what is wrong with it.

    Raises:
        UnknownName, BackendUnavailable, BundleError: as `open_runtime`.
    """
    return _opened(backend_class(backend), bundle, None, (), tuning)


def open_reference(bundle: Bundle, *, tuning: Tuning = DEFAULT_TUNING) -> Runtime:
    """Open what a bundle was held against, also one that its export rejected: its PyTorch program, or the file that it
    was made from.

    Raises:
        BackendUnavailable: PyTorch or onnxruntime is not installed, or the bundle has no reference.
        BundleError, BadInput: it cannot be opened.
    """
    facts = bundle.manifest.source_file
    if facts is None:
        return open_as_evidence(bundle, "pytorch", tuning=tuning)
    path, manifest = SourceFileRuntime.file_of(bundle), bundle.manifest
    runtime = SourceFileRuntime.of(path, facts, manifest.preprocess.shape, manifest.batch, tuning)
    runtime.tuning, runtime.preprocess = tuning, manifest.preprocess
    _check_same(bundle, runtime)
    return runtime


def _opened(
    kind: type[Runtime], model: Path | Bundle, provider: str | None, trusted: Collection[str], tuning: Tuning
) -> Runtime:
    """The model on a backend, which is told how it is used and, where it is known, how pictures are prepared for it."""
    try:
        runtime = kind.open_model(model, provider=provider, trusted=trusted, tuning=tuning)
    except PlanError as error:
        if isinstance(model, Bundle):
            raise
        raise BadInput(f"{model}: {error}") from error  # its own batch is none
    runtime.tuning = tuning
    if isinstance(model, Bundle):
        runtime.preprocess = model.manifest.preprocess
        _check_same(model, runtime)
    return runtime


def _check_same(bundle: Bundle, runtime: Runtime) -> None:
    """Close a runtime whose bundle was replaced while it was opened: nobody knows whose file it runs.

    Raises:
        BundleError: it was.
    """
    try:
        bundle.check_same()
    except BundleError:
        runtime.close()
        raise
