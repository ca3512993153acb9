"""Take a file that is quantized already, mend what a target does not take, and keep its scales: the face of this room.

    is_quantized(model)       whether there is anything to keep
    dequantized(model)        the float network behind it
    mended(model, target)     the same scales in the form of this project's own graphs, and what was changed
    trained_ranges(model)     the largest magnitude that each tensor's pair holds

A file is read once into a float network with a pair beside every input that was read quantized
(`exporter.lowering.requantize.trained`). Pairs are moved and taken off there, and `exporter.lowering.qdq.insert` writes
them again as it does for graphs that are calibrated here; so the result has the same form, names and types.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import onnx
from onnx import helper

from exporter.lowering.precisions.int8 import with_remainder
from exporter.lowering.qdq.fit import TOO_SMALL
from exporter.lowering.qdq.insert import insert_pairs
from exporter.lowering.qdq.targets import DEFAULT_TARGET, SIGNED, Placement, Stored
from exporter.lowering.qdq.targets._signs import tensors_without_negatives
from exporter.lowering.qdq.view import node_label
from exporter.lowering.registry import load_target
from exporter.lowering.requantize.floats import (
    with_activations,
    with_affine_folded,
    with_row_classifiers,
    with_scales_of_weights,
)
from exporter.lowering.requantize.for_targets import check_bytes, fit_processors, fit_tensorrt
from exporter.lowering.requantize.operators import is_on_integers, is_quantized, with_pairs
from exporter.lowering.requantize.plain import at_known_opset, unused_name
from exporter.lowering.requantize.reader import read_trained
from exporter.lowering.requantize.rules import Desk, move_pairs
from exporter.lowering.requantize.trained import Pair, TrainedNetwork, note
from runtimes.errors import PlanError


@dataclass(frozen=True)
class Mended:
    """A quantized graph in the form of this project's own ones.

    Attributes:
        model: for TensorRT with an FP16 remainder, for processors with an FP32 one.
        exact: the float network that it rounds, in FP32; its nodes and tensors have the same names.
        said: what was changed, a sentence for each kind of change, which names its nodes.
    """

    model: onnx.ModelProto
    exact: onnx.ModelProto
    said: tuple[str, ...]


def dequantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float network behind a quantized model: its weights as they are stored, in FP32, and no pairs.

    A ReLU that a tool left out because the pair behind it holds no negative values is written down again. Batch norms
    behind convolutions are folded.

    Raises:
        BadInput: the file quantizes by ranges that are measured as it runs, has an operator on integers that is not
            known here, or has scales that are computed; names the node.
    """
    return _checked(_read(model).model)


def mended(model: onnx.ModelProto, target: str = DEFAULT_TARGET) -> Mended:
    """The same network with the same scales, as `target` wants its pairs.

    Integers of weights stay what they are, but for scales that FP16 does not hold and the 7 bits that processors want
    of the first convolution and of classifiers.

    Raises:
        BadInput: as `dequantized`.
        PlanError: there is no convolution with a quantized input and weight; or the target cannot hold the file's
            integers (zero points for TensorRT, types of other than eight bits, scales for each channel of an
            activation): names the node and the remedy.
        LowerError: a scale or a constant is beyond the range of FP16.
        UnknownName: there is no such target.
    """
    plugin = load_target(target)
    desk = move_pairs(_read(model))
    check_bytes(desk)
    if plugin.ON_INTEGERS:
        fit_processors(desk)
    else:
        fit_tensorrt(desk)
    _part_tensors(desk)
    network = desk.network
    placed = _placement(desk, target)
    weights = {name: one.given() for name, one in network.weights.items()}
    pairs = insert_pairs(
        network.model,
        placed,
        {
            desk.tensor(edge): _threshold(pair, placed.stored.get(desk.tensor(edge), SIGNED))
            for edge, pair in desk.pairs.items()
        },
        {name: one for name, one in weights.items() if one is not None},
    )
    _note_left_in_float(pairs, placed, network)
    result = with_remainder(_checked(pairs), placed)
    said = tuple(f"{what}: {_names_text(nodes)}" for what, nodes in network.notes.items())
    return Mended(_checked(result), _checked(network.model), said)


def trained_ranges(model: onnx.ModelProto) -> dict[str, float]:
    """The largest magnitude that the pair of each tensor holds: tensor of `dequantized(model)` -> value.

    Raises:
        BadInput: as `dequantized`.
    """
    desk = move_pairs(_read(model))
    found: dict[str, float] = {}
    for edge, pair in desk.pairs.items():
        name = desk.tensor(edge)
        found[name] = max(found.get(name, 0.0), pair.scale * max(pair.high, -pair.low - 1))
    return found


def _read(model: onnx.ModelProto) -> TrainedNetwork:
    integers = [node_label(node) for node in model.graph.node if is_on_integers(node)]
    network = read_trained(with_pairs(model))
    network = replace(network, model=at_known_opset(network.model))
    for name in integers:
        note(network.notes, "operator on integers written as a float one between Q/DQ pairs", name)
    network = with_row_classifiers(with_affine_folded(with_activations(with_scales_of_weights(network))))
    return network


def _placement(desk: Desk, target: str) -> Placement:
    """What `insert_pairs` is told: all that a pair was read through, and the weights that are quantized with it.

    Raises:
        PlanError: no convolution is quantized.
    """
    graph, plugin = desk.graph, load_target(target)
    quantized = list(desk.quantized())
    if not any(node.op_type == "Conv" for node in quantized):
        raise PlanError(
            "expected a convolution whose input and weight are quantized, got none in this file; take --recalibrate to "
            "quantize the float network behind it"
        )
    made = (name for node in graph.node for name in node.output)
    read = {desk.tensor(edge): pair for edge, pair in desk.pairs.items()}
    ordered = tuple(name for name in (*(value.name for value in graph.input), *made) if name in read)
    classifiers = tuple(node.name for node in quantized if node.op_type == "Gemm")
    own = plugin.place_pairs(desk.network.model)
    _note_narrow(desk, own.narrow)
    return Placement(
        frozenset(desk.pairs),
        ordered,
        {name: name for name in ordered},
        tuple(node.name for node in quantized),
        classifiers,
        stored={} if own.half else _unsigned(desk, {name: read[name] for name in ordered}),
        narrow=own.narrow,
        half=own.half,
    )


def _note_left_in_float(pairs: onnx.ModelProto, placed: Placement, network: TrainedNetwork) -> None:
    """Say which convolutions lost their pairs, since FP16 does not hold their scales."""
    made = {name for node in pairs.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    for node in pairs.graph.node:
        if node.name in placed.weights and node.input[1] not in made:
            note(network.notes, f"left in float: {TOO_SMALL}", node.name)


def _unsigned(desk: Desk, pairs: Mapping[str, Pair]) -> dict[str, Stored]:
    """The forms of pairs in UINT8, with the same steps; zero is 0 where there are no negative values, so that an
    integer kernel's rounding does for the ReLU before it."""
    positive, found = tensors_without_negatives(desk.graph), {}
    for name, pair in pairs.items():
        zero_point = max(0, min(255, -pair.low))
        if zero_point and name in positive:
            what = f"range widened from {pair.high} steps above zero to 255: values that the file clips pass"
            note(desk.notes, what, pair.node)
            zero_point = 0
        found[name] = Stored("uint8", zero_point, max(1, 255 - zero_point))
    return found


def _note_narrow(desk: Desk, narrow: Collection[str]) -> None:
    """Say which weights are rounded to 7 bits, so that processors without VNNI do not overflow."""
    for node in desk.quantized():
        if node.name in narrow and desk.is_wide(node.input[1]):
            note(desk.notes, "weight rounded to 7 bits, lest it overflow on processors without VNNI", node.name)


def _threshold(pair: Pair, stored: Stored) -> float:
    return pair.scale * stored.levels


def _part_tensors(desk: Desk) -> None:
    """Give the readers of a tensor that read it through different pairs a tensor each, since a tensor has one pair."""
    taken = {name for node in desk.graph.node for name in (*node.input, *node.output, node.name)}
    for tensor in list(desk.readers):
        grids = list(dict.fromkeys(desk.pairs[edge].grid for edge in desk.edges(tensor) if edge in desk.pairs))
        for grid in grids[1:]:
            name = unused_name(f"{tensor}.copy", taken)
            copy = helper.make_node("Identity", [tensor], [name], name=f"{name}.identity")
            for edge in desk.edges(tensor):
                if edge in desk.pairs and desk.pairs[edge].grid == grid:
                    desk.nodes[edge.node].input[edge.place] = name
            desk.insert_behind(tensor, copy)


def _names_text(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its shapes inferred."""
    result = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(result)
    return result


__all__ = ["Mended", "dequantized", "is_quantized", "mended", "trained_ranges", "with_pairs"]
