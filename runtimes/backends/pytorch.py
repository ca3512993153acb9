"""PyTorch: runs `reference.pt2`, the exported FP32 program, which is the reference of every parity check."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from runtimes.backends._torch_memory import nothing_kept
from runtimes.backends._torch_settings import SETTINGS
from runtimes.base import Runtime
from runtimes.bundle import Bundle
from runtimes.errors import BackendUnavailable, BadInput
from runtimes.forks import check_own_import
from runtimes.manifest import Manifest
from runtimes.processor import processor
from runtimes.reference_scan import plain_program
from runtimes.specs import BatchRange, TensorSpec
from runtimes.tuning import DEFAULT_TUNING, Tuning

# What PyTorch up to 2.11 says of itself, for each program that it loads.
warnings.filterwarnings("ignore", r"The given buffer is not writable|`isinstance\(treespec, LeafSpec\)` is deprecated")
INPUT, OUTPUT = "input", "logits"
OUTPUTS_FILE = "outputs"
"""The entry of the file with the names of a feature model's outputs, one a line (see
`exporter.graph.trace.save_program`)."""


@final
class PyTorchRuntime(Runtime):
    """A `torch.export` program on the CPU or a GPU, in true FP32: TF32 is off while it runs."""

    FILE = "reference.pt2"
    VARIANTS = ("bf16", "compile", "compile-bf16")
    """By PyTorch's autocast in BF16, by torch.compile (TorchInductor, which needs a C++ compiler), and by both."""

    def __init__(
        self,
        program: ExportedProgram,
        names: Sequence[str],
        provider: str,
        batch: BatchRange | None,
        threads: int,
    ) -> None:
        inputs, outputs = _values(program)
        super().__init__(
            [_spec(INPUT, inputs[0])], [_spec(name, value) for name, value in zip(names, outputs, strict=True)], batch
        )
        self._module = program.module().to(provider)
        for parameter in self._module.parameters():
            if parameter.ndim == 4:  # channels last is what convolutions on CPUs and GPUs are fastest in
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._provider = provider
        self._call: Callable[..., Any] = self._module
        self._variant = ""
        self._threads = threads

    @classmethod
    def file_of(cls, bundle: Bundle, trusted: Collection[str] = ()) -> Path:
        if cls.FILE not in bundle.manifest.files:
            why = (
                "it was left out on purpose, as by --no-reference or `resnet-deploy deepstream`; run another backend, "
                "or export the bundle without --no-reference"
                if bundle.manifest.source_file is None
                else "the bundle was made of a model file; run another backend"
            )
            raise BackendUnavailable(f"{bundle.folder} has no {cls.FILE}, the FP32 program that pytorch runs: {why}")
        return super().file_of(bundle)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        provider: str | None = None,
        batch: BatchRange | None = None,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> PyTorchRuntime:
        check_own_import("torch")
        device = provider or "cpu"
        if device not in ("cpu", "cuda"):
            raise BackendUnavailable(f"pytorch has no provider '{device}' here; choose from cpu, cuda")
        if device == "cuda" and not torch.cuda.is_available():
            raise BackendUnavailable(
                "pytorch sees no CUDA device; use --provider cpu, or install a driver for this build of torch"
            )
        with SETTINGS.exact(tuning.cores), nothing_kept():
            program, names = program_from_file(path)
            return cls(program, names, device, batch, tuning.cores)

    @classmethod
    def check_bundle(cls, manifest: Manifest, provider: str | None) -> None:
        if manifest.source_file is not None:
            raise BackendUnavailable(
                f"there is no PyTorch program: the bundle was made from the ONNX file {manifest.model.name}; choose "
                "another backend"
            )

    @classmethod
    def providers(cls) -> tuple[str, ...]:
        return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

    @property
    def provider(self) -> str:
        return self._provider

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        tensors = self._tensors(feeds)
        with self._settings():
            result = self._call(*tensors)
        outputs = (result,) if isinstance(result, torch.Tensor) else tuple(result)
        # A copy on the CPU too, where an output may lie in the same memory as an input.
        return {
            spec.name: value.float().to("cpu", copy=True).numpy()
            for spec, value in zip(self.outputs, outputs, strict=True)
        }

    def _tensors(self, feeds: dict[str, NDArray[Any]]) -> list[torch.Tensor]:
        """The inputs on the device, pictures laid out as the weights are: a convolution would do so at each use."""
        tensors = [torch.from_numpy(_writable(feeds[spec.name])) for spec in self.inputs]
        return [
            one.to(self._provider, memory_format=torch.channels_last if one.ndim == 4 else torch.preserve_format)
            for one in tensors
        ]

    def _prepared(self, feeds: dict[str, NDArray[Any]]) -> Callable[[], None]:
        tensors = self._tensors(feeds)

        def call() -> None:
            with self._settings():
                self._call(*tensors)
            if self._provider == "cuda":
                torch.cuda.synchronize()

        return call

    def use(self, variant: str) -> None:
        if variant not in self.VARIANTS:
            super().use(variant)
        if "bf16" in variant and not _has_bf16(self._provider):
            raise BackendUnavailable(f"expected arithmetic in BF16, got {_device_text(self._provider)}, which has none")
        if "compile" in variant:
            if self._provider == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
                raise BackendUnavailable("torch.compile needs a C++ compiler (g++, or what CXX names); install one")
            self._call = torch.compile(self._module)
        self._variant = variant

    @contextmanager
    def _settings(self) -> Iterator[None]:
        bf16 = "bf16" in self._variant
        with (
            torch.inference_mode(),
            SETTINGS.exact(self._threads),
            torch.autocast(self._provider, torch.bfloat16) if bf16 else nullcontext(),
        ):
            yield

    def _sibling(self) -> PyTorchRuntime:
        found = copy(self)  # of the same module
        Runtime.__init__(found, self.inputs, self.outputs, self.batch)
        return found

    def _close(self) -> None:
        del self._call, self._module


class SavedProgram(NamedTuple):
    """A program from a `.pt2` file, and the names of its outputs."""

    program: ExportedProgram
    outputs: list[str]


def program_from_file(path: str | Path) -> SavedProgram:
    """Load the program in a `.pt2` file. No code from the file is run (see `runtimes.reference_scan`).

    Raises:
        BadInput: the file is no such program.
        BundleError: it holds something else than plain tensors and ATen operators.
    """
    archive, extra = plain_program(Path(path)), {OUTPUTS_FILE: ""}
    try:
        with _silent_loader(), nothing_kept():
            program = torch.export.load(archive, extra_files=extra)
    except Exception as error:  # whatever its parts raise: zip, json, pickle and runtime errors
        raise BadInput(
            f"pytorch cannot load {path}: expected a torch.export program (.pt2), got {type(error).__name__}: {error}"
        ) from error
    return SavedProgram(program, extra[OUTPUTS_FILE].splitlines() or [OUTPUT])


@contextmanager
def _silent_loader() -> Iterator[None]:
    """Stop torch.export from logging the traceback of an error that it also raises."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _has_bf16(provider: str) -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False) if provider == "cuda" else processor().has_bf16


def _device_text(provider: str) -> str:
    return torch.cuda.get_device_name() if provider == "cuda" else str(processor())


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    """The array, or a copy if it is read-only: torch warns about such memory, though the program never writes to it."""
    return array if array.flags.writeable else array.copy()


def _values(program: ExportedProgram) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The program's user inputs and outputs, as the symbolic tensors of its graph."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    signature = program.graph_signature
    return [values[str(name)] for name in signature.user_inputs], [values[str(name)] for name in signature.user_outputs]


def _spec(name: str, value: torch.Tensor) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else "batch" for size in value.shape)
    return TensorSpec(name, str(value.dtype).removeprefix("torch."), shape)


RUNTIME = PyTorchRuntime
