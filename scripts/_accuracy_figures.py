"""What `scripts/accuracy.py` measures of a lowering: its logits, and how they differ from FP32's and from ours."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from exporter.lowering.registry import load_precision
from runtimes.parity.intervals import tango_interval
from runtimes.parity.measures import LARGEST_SQNR_DB, sqnr_db

RUN_BATCH = 16
ERRORS_ONLY = 3
Floats = NDArray[np.float32]
Marks = NDArray[np.bool_]


@dataclass(frozen=True)
class Answers:
    """Logits, float32 (images, classes).

    Attributes:
        exact: Q/DQ pairs as they are written, and what is FP16 rounded as a device does.
        plain: the model file in a plain session of ONNX Runtime, which fuses the pairs into its own INT8 kernels.
    """

    exact: Floats
    plain: Floats


@dataclass(frozen=True)
class Paired:
    """Of the images that only one of two gets right, how many each does."""

    first: int
    second: int

    def fall(self, images: int) -> tuple[float, float, float]:
        """The first's top-1 minus the second's, and its 95 % interval by Tango, -1..1."""
        return ((self.first - self.second) / images, *tango_interval(self.first, self.second, images))


def answers_of(model: onnx.ModelProto, precision: str, inputs: Floats) -> Answers:
    """Run a lowered graph in both ways."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    simulation = load_precision(precision).simulation(inferred)
    assert simulation is not None, "a precision that rounds differently from a CPU"
    levels = ort.GraphOptimizationLevel
    return Answers(logits(simulation, inputs, levels.ORT_DISABLE_ALL), logits(model, inputs, levels.ORT_ENABLE_ALL))


def logits(model: onnx.ModelProto, inputs: Floats, level: Any) -> Floats:
    """Outputs of ONNX Runtime on the CPU, float32 (images, classes), with graph optimisations up to `level`."""
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the machine may do other work
    options.graph_optimization_level = level
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name, starts = session.get_inputs()[0].name, range(0, len(inputs), RUN_BATCH)
    return np.concatenate([session.run(None, {name: inputs[start : start + RUN_BATCH]})[0] for start in starts])


def centred(outputs: Floats) -> NDArray[np.float64]:
    """Logits without their mean over classes, which softmax ignores."""
    wide = outputs.astype(np.float64)
    result: NDArray[np.float64] = wide - wide.mean(1, keepdims=True)
    return result


def right(outputs: Floats, labels: NDArray[np.int64]) -> Marks:
    """Which images are classified right, bool (images,)."""
    found: Marks = outputs.argmax(1) == labels
    return found


def paired(first: Marks, second: Marks) -> dict[str, int]:
    """Of the images that only one of two gets right, how many each does, as `Paired` reads it."""
    return asdict(Paired(int((first & ~second).sum()), int((second & ~first).sum())))


def figures(outputs: Floats, reference: Floats, labels: NDArray[np.int64] | None) -> dict[str, Any]:
    """How a lowering's logits differ from FP32's; counts of images, SQNR in dB of logits without their mean.

    Logits that are not finite (an overflow in FP16) have the lowest SQNR there is, and a probability that is wholly wrong.
    """
    finite = bool(np.isfinite(outputs).all())
    error = np.abs(probabilities(outputs) - probabilities(reference)).mean() if finite else 1.0
    found: dict[str, Any] = {
        "sqnr_db": round(sqnr_db(centred(reference), centred(outputs)), 2) if finite else -LARGEST_SQNR_DB,
        "agree": int((outputs.argmax(1) == reference.argmax(1)).sum()),
        "probability_error": float(f"{error:.3g}"),
    }
    if labels is not None:
        marks = right(outputs, labels)
        found |= {"right": int(marks.sum()), "fp32_and_it": paired(right(reference, labels), marks)}
    return found


def probabilities(outputs: Floats) -> NDArray[np.float64]:
    """Softmax, float64 (images, classes)."""
    powers = np.exp(outputs.astype(np.float64) - outputs.max(1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return result
