"""The child's side: load one backend, or NVIDIA's driver, and say in JSON what came of it."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from runtimes._open import backend_class
from runtimes.base import Runtime
from runtimes.bundle import ONNX, Bundle, read_manifest
from runtimes.doctor.facts import BackendFacts, ProviderFacts
from runtimes.doctor.nvidia import ask_driver
from runtimes.errors import ResnetExportError, first_line
from runtimes.nvidia.plan_files import FOLDER as ENGINES

DRIVER = "driver"
RELU = (
    b'\x08\x07\x12\x00:;\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08'
    b"\x01\n\x02\x08\x04b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x04B\x04\n\x00\x10\r"
)
"""An ONNX file with one ReLU of four numbers: the smallest that any provider runs."""


def main(question: str) -> None:
    """Answer a question, a JSON list of words: `driver` and the path of its library, or a backend's name and a bundle's
    folder, which may be empty."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print
    words = msgspec.json.decode(question, type=list[str])
    answer = ask_driver(words[1]) if words[0] == DRIVER else backend_facts(words[0], words[1])
    answers.write(msgspec.json.encode(answer))
    answers.close()
    sys.stderr.flush()
    os._exit(0)  # no library's end can spoil the answer


def backend_facts(name: str, bundle: str) -> BackendFacts:
    """Load a backend, try each of its providers, and ask whether it runs the bundle in a folder, if one is given."""
    try:
        kind = backend_class(name)
    except Exception as error:  # a broken library raises anything
        return BackendFacts(name, reason=_reason(error))
    version = str(getattr(getattr(kind, "API", None), "__version__", ""))
    try:
        kind.check_here()
    except Exception as error:
        return BackendFacts(name, version, loads=True, reason=_reason(error), refusal=_refusal(kind, bundle))
    try:
        providers = tuple(_tried(kind, one) for one in kind.providers())
    except Exception as error:
        return BackendFacts(name, version, loads=True, reason=_reason(error), refusal=_refusal(kind, bundle))
    if kind.FILE == ENGINES:
        return BackendFacts(name, version, True, True, refusal=_refusal(kind, bundle), unbuilt=_unbuilt(kind, bundle))
    broken = [one for one in providers if not one.works]
    runs = not providers or len(broken) < len(providers)
    reason = "" if runs else "; ".join(f"{one.name}: {one.reason}" for one in broken)
    return BackendFacts(name, version, True, runs, reason, providers, _refusal(kind, bundle))


def _tried(kind: type[Runtime], provider: str) -> ProviderFacts:
    """A provider, with a model opened on it; a backend that runs no ONNX file is believed."""
    if kind.FILE != ONNX:
        return ProviderFacts(provider, works=True)
    with ExitStack() as stack:
        try:
            path = Path(stack.enter_context(TemporaryDirectory())) / ONNX
            path.write_bytes(RELU)
        except OSError as error:
            return ProviderFacts(provider, works=True, reason=f"not tried, for want of a file: {_reason(error)}")
        try:
            kind.open(path, provider=provider).close()
        except Exception as error:
            return ProviderFacts(provider, works=False, reason=_reason(error))
    return ProviderFacts(provider, works=True)


def _refusal(kind: type[Runtime], bundle: str) -> str:
    """Why a backend does not run a bundle; whether an engine is there is another question."""
    if not bundle:
        return ""
    try:
        manifest = read_manifest(Path(bundle))
        kind.check_bundle(manifest, None)
    except ResnetExportError as error:
        return _reason(error)
    return (
        f"it runs {kind.FILE}, which the bundle has not" if "." in kind.FILE and kind.FILE not in manifest.files else ""
    )


def _unbuilt(kind: type[Runtime], bundle: str) -> str:
    """Why a bundle has no engine that this backend loads here."""
    if not bundle:
        return ""
    try:
        kind.file_of(Bundle(Path(bundle), read_manifest(Path(bundle))))
    except Exception as error:
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    with suppress(Exception):
        said = first_line(error)
        return said if isinstance(error, ResnetExportError) else f"{type(error).__name__}: {said}"
    return type(error).__name__
