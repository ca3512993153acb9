"""Repairs of a network's quantization that cost nothing at run time, each measured, and kept only where it helps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from calibration.histogram import not_finite_text
from calibration.observers import observers
from calibration.table import CalibrationTable
from exporter.graph.probe import open_session, run_session
from exporter.lowering.equalize import Factors, factors_from, factors_of_tensors, streams, with_factors
from exporter.lowering.output_error import RUN_BATCH, Outputs, output_error
from exporter.lowering.qdq.pairs import placement, with_pairs
from exporter.lowering.request import CALIBRATOR
from runtimes.errors import CalibrationError

REPAIR_PICTURES = 32
"""How many pictures a repair is measured on."""


@dataclass(frozen=True)
class Bench:
    """What repairs are measured with: where pairs go, and inputs as the graph takes them, (pictures, ...)."""

    target: str
    inputs: NDArray[Any]


def find_factors(model: onnx.ModelProto, bench: Bench, expected: Outputs) -> tuple[Factors, str]:
    """The factors that equalize the channels of a float graph, none where that does not help; and what they bring, in
    words, empty where there is nothing to equalize.

    Whether they help is measured with the largest values as ranges: they are known without another pass.

    Args:
        expected: what the graph gives for the bench's inputs.
    """
    found = streams(model)
    if not found:
        return {}, ""
    observed = placement(model, bench.target).observed
    wanted = {*(name for stream in found for name in stream.tensors), *observed}
    made = (name for node in model.graph.node for name in node.output)
    tensors = [name for name in (*(value.name for value in model.graph.input), *made) if name in wanted]
    largest = largest_by_channel(model, tensors, bench.inputs)
    infinite = next((name for name, values in largest.items() if not np.isfinite(values).all()), None)
    if infinite is not None:
        raise CalibrationError(not_finite_text(infinite))
    factors = factors_from(model, found, largest)
    equalized = with_factors(model, factors)
    divided = factors_of_tensors(equalized, factors)
    before, after = (
        output_error(with_pairs(graph, thresholds, bench.target), bench.inputs, expected).share
        for graph, thresholds in (
            (model, {name: float(largest[name].max()) for name in observed}),
            (equalized, {name: float((largest[name] / divided.get(name, 1)).max()) for name in observed}),
        )
    )
    if not after < before:
        return {}, ""
    return factors, f"equalized the channels of {len(found)} streams: {decibels(before, after)}"


def choose_calibrator(
    model: onnx.ModelProto, table: CalibrationTable, bench: Bench, expected: Outputs
) -> tuple[str, str]:
    """The calibrator whose ranges, taken for all tensors, put the outputs nearest to FP32's; and that in words.

    It is the error of the outputs that decides: chosen tensor by tensor by the error behind the next convolution,
    ranges came out too small, since clipping harms more further on than rounding does (measured on a ResNet-20: 36.4 dB
    so, 36.7 with `mse` everywhere). Every second picture is enough to tell them apart.
    """
    inputs, every = bench.inputs[::2], {name: values[::2] for name, values in expected.items()}
    thresholds = {name: table.thresholds(name) for name in (CALIBRATOR, *observers())}
    errors = {
        name: output_error(with_pairs(model, each, bench.target), inputs, every).share
        for name, each in thresholds.items()
    }
    best = min(errors, key=lambda name: errors[name])
    if best == CALIBRATOR:
        return best, ""
    return best, f"took the ranges of {best}: {decibels(errors[CALIBRATOR], errors[best])}"


def largest_by_channel(
    model: onnx.ModelProto, tensors: list[str], inputs: NDArray[Any]
) -> dict[str, NDArray[np.float32]]:
    """The largest magnitude of each channel of some tensors, (images, channels, ...), of a float graph: (channels,)."""
    reduced = onnx.ModelProto()
    reduced.CopyFrom(model)
    del reduced.graph.output[:]
    for name in tensors:
        absolute, rows, most = (f"{name}.equalize_{what}" for what in ("abs", "rows", "max"))
        reduced.graph.node.extend(
            (
                helper.make_node("Abs", [name], [absolute]),
                helper.make_node("Constant", [], [f"{rows}_shape"], value_ints=[0, 0, -1]),
                helper.make_node("Reshape", [absolute, f"{rows}_shape"], [rows]),
                helper.make_node("Constant", [], [f"{most}_axes"], value_ints=[0, 2]),
                helper.make_node("ReduceMax", [rows, f"{most}_axes"], [most], keepdims=0),
            )
        )
        reduced.graph.output.append(onnx.ValueInfoProto(name=most))
    session = open_session(reduced)
    source = session.get_inputs()[0].name
    found: dict[str, NDArray[np.float32]] = {}
    for start in range(0, len(inputs), RUN_BATCH):
        for name, values in run_session(session, {source: inputs[start : start + RUN_BATCH]}).items():
            found[name] = np.maximum(found.get(name, values), values)
    return {name: found[f"{name}.equalize_max"] for name in tensors}


def decibels(before: float, after: float) -> str:
    """Two shares of error as the SQNR of the outputs before and after."""
    return f"{-10 * np.log10(before):.1f} -> {-10 * np.log10(after):.1f} dB"
