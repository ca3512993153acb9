"""PyTorch: runs `reference.pt2`, the exported FP32 program, which is the reference of every parity check."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from runtimes.base import Runtime
from runtimes.errors import BackendUnavailable, BadInput
from runtimes.reference_scan import plain_program
from runtimes.specs import BatchRange, TensorSpec
from runtimes.tuning import DEFAULT_TUNING, Tuning

INPUT, OUTPUT = "input", "logits"
OUTPUTS_FILE = "outputs"
"""The entry of the file with the names of a feature model's outputs, one a line (see
`exporter.graph.trace.save_program`)."""


@final
class PyTorchRuntime(Runtime):
    """A `torch.export` program on the CPU or a GPU, in true FP32: TF32 is off while it runs."""

    FILE = "reference.pt2"

    def __init__(self, program: ExportedProgram, names: Sequence[str], provider: str, batch: BatchRange | None) -> None:
        inputs, outputs = _values(program)
        super().__init__(
            [_spec(INPUT, inputs[0])], [_spec(name, value) for name, value in zip(names, outputs, strict=True)], batch
        )
        self._module = program.module().to(provider)
        for parameter in self._module.parameters():
            if parameter.ndim == 4:  # channels last is what convolutions on CPUs and GPUs are fastest in
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._provider = provider

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        provider: str | None = None,
        batch: BatchRange | None = None,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> PyTorchRuntime:
        device = provider or "cpu"
        if device not in ("cpu", "cuda"):
            raise BackendUnavailable(f"pytorch has no provider '{device}' here; choose from cpu, cuda")
        if device == "cuda" and not torch.cuda.is_available():
            raise BackendUnavailable(
                "pytorch sees no CUDA device; use --provider cpu, or install a driver for this build of torch"
            )
        program, names = program_from_file(path)
        return cls(program, names, device, batch)

    @property
    def provider(self) -> str:
        return self._provider

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        tensors = [torch.from_numpy(_writable(feeds[spec.name])).to(self._provider) for spec in self.inputs]
        with torch.inference_mode(), _true_fp32():
            result = self._module(*tensors)
        outputs = (result,) if isinstance(result, torch.Tensor) else tuple(result)
        return {spec.name: np.array(value.cpu().numpy()) for spec, value in zip(self.outputs, outputs, strict=True)}

    def _close(self) -> None:
        del self._module


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
        with _silent_loader():
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


@contextmanager
def _true_fp32() -> Iterator[None]:
    """Turn off TF32, which cuDNN's convolutions use by default, and matrix products where a program asked for it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


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
