"""Repairs of a network's quantization that cost nothing at run time, each measured, and kept only where it helps.

They are fitted to some pictures, and others decide. On one and the same 32 pictures a ResNet-50's channels looked
equalized by 2 dB, with factors for channels that were dead in these pictures alone; on others it fell from 28 dB to 4.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from calibration.histogram import not_finite_text
from calibration.observers import observers
from calibration.order import spread_places
from calibration.table import CalibrationTable
from exporter.graph.counts import macs_by_node
from exporter.lowering.equalize import Factors, factors_from, factors_of_tensors, streams, with_factors
from exporter.lowering.output_error import OutputError, Outputs, output_error, outputs_of, run_in_batches
from exporter.lowering.picture_count import affordable_pictures
from exporter.lowering.qdq.pairs import placement, with_pairs
from exporter.lowering.request import CALIBRATOR
from runtimes.errors import CalibrationError

FEWEST_DECIDING = 16
"""Pictures, however large the network."""
ENOUGH_DB, LITTLE_DB = 40.0, 1.0
"""The SQNR that a quantized classifier has to leave, or the most that it may cost: errors of a hundredth of the outputs
turn few classes, and 1 dB more error turns an eighth more."""
REPAIR_FORWARDS = 16
"""In forward passes of the FP32 graph, what all repairs together cost a picture that decides."""


@dataclass(frozen=True)
class Bench:
    """What repairs are measured with.

    Attributes:
        target: where pairs go.
        fitting: the inputs that repairs are fitted to, as the graph takes them, (pictures, ...).
        deciding: others, which decide, likewise.
        expected: what the float graph gives for those that decide, by name, each (pictures, ...).
        heads: the classifiers that stay in float, by their nodes' names.
    """

    target: str
    fitting: NDArray[Any]
    deciding: NDArray[Any]
    expected: Outputs
    heads: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: onnx.ModelProto, target: str, inputs: NDArray[Any]) -> Bench:
        """The bench of a float graph, which is run. Every second input is to fit to, of the others all decide or, of a
        network whose passes cost much, fewer; a single input does both."""
        count = affordable_pictures(REPAIR_FORWARDS * sum(macs_by_node(model).values()), FEWEST_DECIDING)
        others = inputs[1::2] if len(inputs) > 1 else inputs
        deciding = others[spread_places(len(others), count)]
        return cls(target, inputs[::2], deciding, outputs_of(model, deciding))

    def error(
        self, model: onnx.ModelProto, thresholds: Mapping[str, float], float_nodes: Collection[str] = ()
    ) -> OutputError:
        """The outputs' error of a float graph, repaired or not, with these ranges and with some nodes in float."""
        pairs = with_pairs(model, thresholds, self.target, self.heads.union(float_nodes))
        return output_error(pairs, self.deciding, self.expected)


def find_factors(model: onnx.ModelProto, bench: Bench) -> tuple[Factors, str]:
    """The factors that equalize the channels of a float graph, none where that does not help; and what they bring, in
    words, empty where there is nothing to equalize.

    Whether they help is measured with the largest values as ranges: they are known without another pass.
    """
    found = streams(model)
    if not found:
        return {}, ""
    observed = placement(model, bench.target).observed
    wanted = {*(name for stream in found for name in stream.tensors), *observed}
    made = (name for node in model.graph.node for name in node.output)
    tensors = [name for name in (*(value.name for value in model.graph.input), *made) if name in wanted]
    largest = largest_by_channel(model, tensors, bench.fitting)
    infinite = next((name for name, values in largest.items() if not np.isfinite(values).all()), None)
    if infinite is not None:
        raise CalibrationError(not_finite_text(infinite))
    factors = factors_from(model, found, largest)
    equalized = with_factors(model, factors)
    divided = factors_of_tensors(equalized, factors)
    before = bench.error(model, {name: float(largest[name].max()) for name in observed}).share
    ranges = {name: float((largest[name] / divided.get(name, 1)).max()) for name in observed}
    after = bench.error(equalized, ranges).share
    if not after < before:
        return {}, ""
    return factors, f"equalized the channels of {len(found)} streams: {decibels(before, after)}"


class Choice(NamedTuple):
    """The calibrator chosen, what that brings in words, and the error that is left."""

    calibrator: str
    said: str
    error: OutputError


def choose_calibrator(model: onnx.ModelProto, table: CalibrationTable, bench: Bench) -> Choice:
    """Choose the calibrator whose ranges, taken for all tensors, put the outputs nearest to FP32's.

    It is the error of the outputs that decides: chosen tensor by tensor by the error behind the next convolution,
    ranges came out too small, since clipping harms more further on than rounding does (measured on a ResNet-20: 36.4 dB
    so, 36.7 with `mse` everywhere).
    """
    errors = {name: bench.error(model, table.thresholds(name)) for name in dict.fromkeys((CALIBRATOR, *observers()))}
    best = min(errors, key=lambda name: errors[name].share)
    if best == CALIBRATOR:
        return Choice(best, "", errors[best])
    said = f"took the ranges of {best}: {decibels(errors[CALIBRATOR].share, errors[best].share)}"
    return Choice(best, said, errors[best])


class Heads(NamedTuple):
    """The classifiers that stay in float, by their nodes' names, and why or what integers cost them, in words."""

    in_float: frozenset[str]
    said: str


def choose_heads(model: onnx.ModelProto, thresholds: Mapping[str, float], bench: Bench) -> Heads:
    """Choose whether the classifiers that a target can quantize are: where that leaves enough, or costs little.

    They are a few percent of the time, and each rounding error of theirs is one of the logits.
    """
    heads = frozenset(placement(model, bench.target).classifiers)
    if not heads:
        return Heads(heads, "")
    before, after = bench.error(model, thresholds, heads), bench.error(model, thresholds)
    change = decibels(before.share, after.share)
    if after.sqnr_db >= min(ENOUGH_DB, before.sqnr_db - LITTLE_DB):
        return Heads(frozenset(), f"quantized the classifier: {change}")
    return Heads(heads, f"left the classifier in float: integers would have cost {change}")


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
    found: dict[str, NDArray[np.float32]] = {}
    for batch in run_in_batches(reduced, inputs):
        for name, values in batch.items():
            found[name] = np.maximum(found.get(name, values), values)
    return {name: found[f"{name}.equalize_max"] for name in tensors}


def decibels(before: float, after: float) -> str:
    """Two shares of error as the SQNR of the outputs before and after."""
    return f"{-10 * np.log10(before):.1f} -> {-10 * np.log10(after):.1f} dB"
