"""Make the float network behind a quantized one whole again: activations that a zero point had taken in, and what
stands behind convolutions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporter.graph.inference import inferred_graphs
from exporter.graph.intake.wiring import drop_unused
from exporter.lowering.qdq.targets import Edge
from exporter.lowering.qdq.targets._signs import tensors_without_negatives
from exporter.lowering.qdq.targets.cpu import GEMM, PLAIN_GEMM
from exporter.lowering.requantize.plain import unused_name
from exporter.lowering.requantize.trained import REMOVED, TrainedNetwork, TrainedWeight, note, readers

AFFINE = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sum", "Sub", "Mul", "Div", "BatchNormalization")
"""Operators behind which a pair without negative values stands for a ReLU."""
RELU6 = 6.0
STEPS = 127
"""Of INT8 above zero."""
FOLDED = ("BatchNormalization", "Mul", "Div", "Add", "Sub")


def with_scales_of_weights(network: TrainedNetwork) -> TrainedNetwork:
    """Where a file quantizes activations alone, give each convolution's weight the scales of its largest values, by
    output channel.

    TensorFlow's quantization-aware training is written so by tf2onnx, which computes the weights' rounding ahead: they
    stand on that grid already.
    """
    if network.weights:
        return network
    tensors = {tensor.name: tensor for tensor in network.model.graph.initializer}
    found: dict[str, TrainedWeight] = {}
    for node in network.model.graph.node:
        if node.op_type != "Conv" or node.input[1] not in tensors or Edge(node.name, 0) not in network.pairs:
            continue
        values = numpy_helper.to_array(tensors[node.input[1]])
        most = np.abs(values).reshape(len(values), -1).max(1)
        scales = np.where(most > 0, most / STEPS, 1).astype(np.float32)
        found[node.input[1]] = TrainedWeight(scales, np.zeros(len(values), np.int32), "INT8", node.name)
        what = "weight stored in float quantized by the largest value of each output channel"
        note(network.notes, what, node.name)
    return replace(network, weights=found)


def with_activations(network: TrainedNetwork) -> TrainedNetwork:
    """Write the ReLUs that tools leave out where a pair holds no negative values, and ReLU6 where its range ends at 6.

    What it computes between its pairs does not change.
    """
    graph, notes = network.model.graph, network.notes
    positive = tensors_without_negatives(graph)
    makers = {name: node for node in graph.node for name in node.output}
    read, taken = readers(graph), {name for node in graph.node for name in (*node.input, *node.output, node.name)}
    behind: dict[str, list[onnx.NodeProto]] = {}
    nodes = {node.name: node for node in graph.node}
    for tensor, maker in makers.items():
        edges = (edge for edge in read.get(tensor, ()) if nodes[edge.node].op_type not in ("Relu", "Clip"))
        cut = [edge for edge in edges if edge in network.pairs and network.pairs[edge].low == 0]
        if not cut or tensor in positive or maker.op_type not in AFFINE:
            continue
        is_six = all(abs(network.pairs[edge].top / RELU6 - 1) < 1e-3 for edge in cut)
        name = unused_name(f"{maker.name}.relu", taken)
        output = unused_name(f"{tensor}.relu", taken)
        bounds = [unused_name(f"{name}.{which}", taken) for which in ("low", "high")] if is_six else []
        for bound, value in zip(bounds, (0.0, RELU6), strict=False):
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), bound))
        operator = "Clip" if is_six else "Relu"
        behind[tensor] = [helper.make_node(operator, [tensor, *bounds], [output], name=name)]
        for edge in cut:
            nodes[edge.node].input[edge.place] = output
        note(
            notes,
            "ReLU behind it written out, which the file leaves to a Q/DQ pair without negative values",
            maker.name,
        )
    ordered = [
        one for node in graph.node for one in (node, *(new for name in node.output for new in behind.get(name, ())))
    ]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)
    return network


def with_affine_folded(network: TrainedNetwork) -> TrainedNetwork:
    """Fold batch norms, and factors and terms for each channel, into the convolutions before them.

    A quantized weight keeps its integers: its scales take the factor. A pair between the two is taken off.
    """
    graph = network.model.graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | set(tensors)
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    makers: dict[str, onnx.NodeProto] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        place = _computed_place(node, tensors)
        before = makers.get(node.input[place]) if place is not None else None
        is_alone = before is not None and before.op_type == "Conv" and uses[before.output[0]] == 1
        factors = (
            _factors(node, tensors, len(tensors[before.input[1]]))
            if before is not None
            and is_alone
            and (before.input[1] in tensors and all(name in tensors for name in before.input[2:]))
            else None
        )
        if before is None or factors is None or place is None:
            nodes.append(node)
            makers.update((name, node) for name in node.output)
            continue
        _fold(network, before, factors, tensors, taken)
        pair = network.pairs.pop(Edge(node.name, place), None)
        if pair is not None:
            note(network.notes, f"{REMOVED} between a convolution and what is folded into it", pair.node)
        note(network.notes, f"{node.op_type} folded into the convolution before it", node.name)
        before.output[0] = node.output[0]
        makers[node.output[0]] = before
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    read = {name for node in copies for name in node.input} | {value.name for value in graph.output}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(copies)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in tensors.items() if name in read)
    return network


def _computed_place(node: onnx.NodeProto, tensors: dict[str, NDArray[np.float32]]) -> int | None:
    """The place of the only input of an affine node that is not constant."""
    if node.op_type not in FOLDED:
        return None
    places = [place for place, name in enumerate(node.input) if name not in tensors]
    is_first = places == [0] or (places == [1] and node.op_type in ("Add", "Mul"))
    is_plain = node.op_type != "BatchNormalization" or not any(node.output[1:])
    return places[0] if is_first and is_plain else None


def _factors(
    node: onnx.NodeProto, tensors: dict[str, NDArray[np.float32]], channels: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """What a node multiplies each channel by, and what it adds then, each float32 (channels,); None if it does other
    things."""
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    if node.op_type == "BatchNormalization":
        epsilon = next((one.f for one in node.attribute if one.name == "epsilon"), 1e-5)
        weight, bias, mean, variance = (tensors[name].astype(np.float64) for name in node.input[1:])
        factor = weight / np.sqrt(variance + epsilon)
        return factor.astype(np.float32), (bias - mean * factor).astype(np.float32)
    constant = tensors[next(name for name in node.input if name in tensors)]
    is_by_channel = constant.ndim in (3, 4) and constant.shape[-3:] == (channels, 1, 1) and constant.size == channels
    if constant.dtype != np.float32 or not (constant.size == 1 or is_by_channel):
        return None
    value = np.broadcast_to(constant.reshape(-1), (channels,)).astype(np.float32)
    if node.op_type in ("Add", "Sub"):
        return ones, value if node.op_type == "Add" else -value
    if node.op_type == "Div" and not value.all():
        return None
    return (value if node.op_type == "Mul" else (1 / value).astype(np.float32)), zeros


def _fold(
    network: TrainedNetwork,
    convolution: onnx.NodeProto,
    factors: tuple[NDArray[np.float32], NDArray[np.float32]],
    tensors: dict[str, NDArray[np.float32]],
    taken: set[str],
) -> None:
    factor, term = factors
    name = convolution.input[1]
    weight = tensors[name]
    folded = unused_name(f"{name}.folded", taken)
    tensors[folded] = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    convolution.input[1] = folded
    stored = network.weights.get(name)
    if stored is not None:
        network.weights[folded] = _scaled(stored, factor)
    bias = tensors[convolution.input[2]] if len(convolution.input) > 2 else np.zeros(len(weight), np.float32)
    added = unused_name(f"{convolution.name}.bias.folded", taken)
    tensors[added] = (bias * factor + term).astype(np.float32)
    convolution.input[:] = [*convolution.input[:2], added]


def _scaled(stored: TrainedWeight, factor: NDArray[np.float32]) -> TrainedWeight:
    """A weight times a factor for each channel, on the same integers, or on their opposites."""
    sums = -1 if stored.type == "INT8" else 255  # of a number and its opposite, which has another zero point
    turned = np.where((factor < 0) & (stored.zero_points != 0), sums - stored.zero_points, stored.zero_points)
    scales = (
        None if stored.scales is None else np.where(factor == 0, 1, np.abs(factor)).astype(np.float32) * stored.scales
    )
    return replace(stored, scales=scales, zero_points=turned.astype(np.int32))


def with_row_classifiers(network: TrainedNetwork) -> TrainedNetwork:
    """Write quantized matrix products of features, with what is added behind them, as a Gemm whose weight's rows are
    the classes; other Gemm nodes get a float weight."""
    graph = network.model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | set(tensors)
    shapes = inferred_graphs(network.model)[0].shapes
    for node in list(graph.node):
        if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in network.weights:
            continue
        name, form = node.input[1], gemm_form(node)
        if node.op_type == "MatMul" and len(shapes.get(node.input[0], ())) == 2 and len(tensors[name].dims) == 2:
            node.op_type = "Gemm"
            _take_bias(network, node, tensors)
        if node.op_type != "Gemm" or {**form, "transB": 1} != PLAIN_GEMM:
            continue
        if not form["transB"]:
            rows = unused_name(f"{name}.rows", taken)
            value = np.ascontiguousarray(numpy_helper.to_array(tensors[name]).T)
            graph.initializer.append(numpy_helper.from_array(value, rows))
            network.weights[rows], node.input[1] = network.weights[name], rows
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("transB", 1))
    drop_unused(graph)
    return network


def gemm_form(gemm: onnx.NodeProto) -> dict[str, float]:
    """A Gemm's attributes; those of a MatMul are the defaults."""
    return {**GEMM, **{one.name: helper.get_attribute_value(one) for one in gemm.attribute}}


def _take_bias(network: TrainedNetwork, product: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> None:
    """Take the constant that is added behind a matrix product into it."""
    graph = network.model.graph
    behind = [node for node in graph.node if product.output[0] in node.input]
    if len(behind) != 1 or behind[0].op_type != "Add" or product.output[0] in {one.name for one in graph.output}:
        return
    addition = behind[0]
    place = list(addition.input).index(product.output[0])
    constant = tensors.get(addition.input[1 - place])
    if constant is None or len(constant.dims) != 1 or Edge(addition.name, place) in network.pairs:
        return
    product.input.append(constant.name)
    product.output[0] = addition.output[0]
    graph.node.remove(addition)
