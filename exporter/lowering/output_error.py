"""How far a quantized graph's outputs are from the FP32 graph's on a few pictures: what every repair is measured by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.graph.probe import open_session, run_session
from runtimes.parity.compare import is_classifier
from runtimes.parity.evidence import joined
from runtimes.parity.flips import centred

RUN_BATCH = 8
Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class OutputError:
    """The error of a graph's outputs.

    Attributes:
        share: the error's power relative to the outputs', on average over the outputs. Of logits, without their mean
            over classes, and without what is the same for every picture, since the classifier's bias takes that off.
            Infinite where an output is not finite.
        mean: the mean error over the pictures, by output, float64 (...).
    """

    share: float
    mean: Mapping[str, NDArray[np.float64]]

    @property
    def sqnr_db(self) -> float:
        return float(-10 * np.log10(self.share)) if self.share > 0 else float("inf")


def outputs_of(model: onnx.ModelProto, inputs: NDArray[Any]) -> Outputs:
    """The outputs by name, each (pictures, ...), for inputs as the graph takes them, (pictures, ...)."""
    return joined(list(run_in_batches(model, inputs)))


def run_in_batches(model: onnx.ModelProto, inputs: NDArray[Any]) -> Iterator[Outputs]:
    """The outputs by name for `RUN_BATCH` inputs after the other; the last batch may be smaller."""
    session = open_session(model)
    source = session.get_inputs()[0].name
    for start in range(0, len(inputs), RUN_BATCH):
        yield run_session(session, {source: inputs[start : start + RUN_BATCH]})


def output_error(model: onnx.ModelProto, inputs: NDArray[Any], expected: Outputs) -> OutputError:
    """The error of a graph's outputs for `inputs`, (pictures, ...), of which FP32 gives `expected`."""
    found = outputs_of(model, inputs)
    shares, means = [], {}
    for name, values in expected.items():
        exact, got = values.astype(np.float64), found[name].astype(np.float64)
        if not np.isfinite(got).all():
            return OutputError(float("inf"), {})
        means[name] = (got - exact).mean(0)
        if is_classifier(expected):
            exact, got = centred(exact), centred(got)
            got -= (got - exact).mean(0)
        shares.append(float(((got - exact) ** 2).sum()) / (float((exact**2).sum()) or 1.0))
    return OutputError(float(np.mean(shares)), means)
