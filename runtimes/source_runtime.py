"""Run the ONNX file that a bundle was made from, as the bundle's reference.

`reference.onnx` is the file as it came, in its own layout and under its own names; a file that kept its weights in
others holds them here. onnxruntime runs it on the CPU without optimising it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from runtimes._plugins import needed_for
from runtimes.base import Runtime
from runtimes.errors import BackendUnavailable, BadInput, first_line
from runtimes.parity.compare import LOGITS, PROBABILITIES
from runtimes.source_file import SourceFile
from runtimes.specs import BatchRange, TensorSpec
from runtimes.tuning import DEFAULT_TUNING, Tuning

if TYPE_CHECKING:
    import onnxruntime as ort

INPUT = "input"
CLASSIFIERS = (LOGITS, PROBABILITIES)
NHWC = (0, 2, 3, 1)
"""The axes of (batch, channels, height, width) in the order (batch, height, width, channels)."""


@final
class SourceFileRuntime(Runtime):
    """The file as a reference: takes and gives what its bundle does, whatever its own layout, names and batch are."""

    FILE = "reference.onnx"

    def __init__(
        self, session: ort.InferenceSession, facts: SourceFile, shape: Sequence[int], batch: BatchRange | None
    ) -> None:
        """A session whose outputs are the file's tensors in `facts.outputs`; `shape` is (channels, height, width)."""
        shapes = {value.name: value.shape for value in session.get_outputs()}
        super().__init__(
            [TensorSpec(INPUT, "float32", (facts.batch or "batch", *shape))],
            [_output_spec(name, shapes[tensor], facts.batch) for name, tensor in facts.outputs.items()],
            BatchRange(facts.batch, facts.batch, facts.batch) if facts.batch else batch,
        )
        self._session, self._facts = session, facts

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        provider: str | None = None,
        batch: BatchRange | None = None,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> SourceFileRuntime:
        raise BackendUnavailable(f"{path} is run as a bundle's reference alone; open the bundle's folder")

    @classmethod
    def of(
        cls,
        model: Path | bytes,
        facts: SourceFile,
        shape: Sequence[int],
        batch: BatchRange | None = None,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> SourceFileRuntime:
        """Open the file, by its path or its content.

        Args:
            shape: (channels, height, width) of one input.
            batch: how many images to run at once, where the file leaves that free.

        Raises:
            BackendUnavailable: onnxruntime is not installed.
            BadInput: onnxruntime cannot run it.
        """
        return cls(_open_session(model, list(facts.outputs.values()), tuning), facts, shape, batch)

    @property
    def provider(self) -> str:
        return "cpu"

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        given = feeds[INPUT]
        if self._facts.layout == "nhwc":
            given = np.ascontiguousarray(given.transpose(NHWC))
        tensors = list(dict.fromkeys(self._facts.outputs.values()))
        found = dict(zip(tensors, self._session.run(tensors, {self._facts.input: given}), strict=True))
        return {name: _as_given(name, found[tensor]) for name, tensor in self._facts.outputs.items()}

    def _close(self) -> None:
        del self._session


def _open_session(model: Path | bytes, tensors: Sequence[str], tuning: Tuning) -> ort.InferenceSession:
    """A session that optimises nothing, and gives these tensors."""
    with needed_for("the bundle's reference, an ONNX file,", "pip install 'resnet-export[export]'"):
        import onnxruntime as ort
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and said by whoever tried it
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = tuning.cores, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    where = "the graph" if isinstance(model, bytes) else model.name
    try:
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
        if {value.name for value in session.get_outputs()}.issuperset(tensors):
            return session
        content = _with_outputs(model, tensors)
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no base class below this one
        said = first_line(error)
        said = said if isinstance(model, bytes) else said.replace(str(model), where)
        raise BadInput(f"onnxruntime cannot run {where}: {said}") from error


def _with_outputs(model: Path | bytes, tensors: Sequence[str]) -> bytes:
    """The file's content, with inner tensors among its outputs."""
    import onnx

    found = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(model)
    given = {value.name for value in found.graph.output}
    found.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in given)
    return bytes(found.SerializeToString())


def _output_spec(name: str, shape: Sequence[int | str | None], batch: int | None) -> TensorSpec:
    sizes = tuple(size if isinstance(size, int) else f"dim{place}" for place, size in enumerate(shape))
    if name in CLASSIFIERS and len(sizes) > 2:  # (batch, classes, 1, 1)
        sizes = sizes[:2]
    return TensorSpec(name, "float32", (batch or "batch", *sizes[1:]))


def _as_given(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """An output in float32; scores as (batch, classes), where the file gives (batch, classes, 1, 1)."""
    values = values.astype(np.float32, copy=False)  # inner tensors may be FP16
    return values.reshape(len(values), -1) if name in CLASSIFIERS and values.ndim > 2 else values
