"""Equalization: give each channel of a tensor a factor of its own, so that one INT8 scale serves all channels.

A tensor has one INT8 scale, which its largest channel sets; a channel whose values are a hundredth of those keeps one
or two levels. But ReLU, pooling and addition let a positive factor through: to divide a channel by s where it is
written, and to multiply it by s where it is read, changes nothing in exact arithmetic (Nagel et al. 2019, arXiv
1906.04721, section 4.1). Writers divide the rows of their weights and their biases, which costs nothing, since each row
has a scale of its own; readers multiply columns.

With s as large as the channel all channels would be alike, but the columns of the readers, whose rows have one scale
each, would not. So s = a^t / w^(1-t), where a is the channel's largest value and w the largest weight that reads it
(Xiao et al. 2023, arXiv 2211.10438, section 4.1, who take t = 0.5). Measured with t of 0.5, 0.75 and 1 on a ResNet-20,
the same with its channels rescaled, and a ResNet-50 of half width: 0.75 was first or within 0.3 dB of the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from exporter.graph.facts import constant_names
from exporter.graph.inference import Shape, inferred_graphs

PASSING = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Add")
"""Operators that let a positive factor through, from all computed inputs to the output."""
ACTIVATION_SHARE = 0.75
"""The exponent t."""
SMALLEST_SHARE = 2.0**-10
"""Of the largest channel. Smaller ones, dead ones among them, count as this large: their factor stays within FP16."""
LARGEST_VALUE = 2.0**13
"""That a factor may make of a bias or an activation, unless it was larger: within FP16, whose largest is 2^16."""
DIGITS = 6

Factors = Mapping[str, NDArray[np.float32]]
"""For each stream, by the name of its first tensor, what its channels are divided by: float32 (channels,)."""


@dataclass(frozen=True)
class Stream:
    """Tensors tied together by operators that let factors through, such as all those of a residual stage.

    Attributes:
        tensors: in the graph's order.
        channels: how many each of them has.
        writers: the names of the convolutions that write it.
        readers: the names of the convolutions and the Gemm that read it.
    """

    tensors: tuple[str, ...]
    channels: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]


def streams(model: onnx.ModelProto) -> tuple[Stream, ...]:
    """The streams of a float graph that can be scaled: only convolutions write them, only convolutions and a Gemm read
    them, and each has its weights for itself.

    A stream that anything else takes part in is left out, as are one that is an input or an output of the graph.
    """
    shapes = inferred_graphs(model)[0].shapes
    found = _Ties(model.graph)
    for node in model.graph.node:
        found.add(node, shapes)
    return tuple(
        Stream(tuple(names), int(shapes[names[0]][1] or 0), tuple(writers), tuple(readers))
        for names, writers, readers in found.groups()
        if writers and readers and len({shapes[name][1] for name in names}) == 1 and shapes[names[0]][1]
    )


class _Ties:
    """Which tensors are tied together, by union-find, and who writes and reads them."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = constant_names(graph)
        self.uses: dict[str, int] = {}
        for node in graph.node:
            for name in node.input:
                self.uses[name] = self.uses.get(name, 0) + 1
        self.weights = {tensor.name for tensor in graph.initializer if self.uses.get(tensor.name) == 1}
        self.parents: dict[str, str] = {}
        self.fixed = {value.name for value in (*graph.input, *graph.output)}
        self.writers: dict[str, str] = {}
        self.readers: dict[str, list[str]] = {}

    def add(self, node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> None:
        """Take in the next node of the graph."""
        computed = [name for name in node.input if name and name not in self.constants]
        for name in (*computed, *node.output):
            self.parents.setdefault(name, name)
        has_weights = len(computed) == 1 and all(name in self.weights for name in node.input[1:])
        if node.op_type == "Conv" and has_weights:
            self.readers.setdefault(computed[0], []).append(node.name)
            self.writers[node.output[0]] = node.name
        elif node.op_type == "Gemm" and has_weights and computed[0] == node.input[0] and not _flag(node, "transA"):
            self.readers.setdefault(computed[0], []).append(node.name)
            self.fixed.update(node.output)
        elif _passes(node, computed, shapes):
            for name in computed:
                self.parents[self._root(name)] = self._root(node.output[0])
        else:
            self.fixed.update((*computed, *node.output))

    def groups(self) -> list[tuple[list[str], list[str], list[str]]]:
        """The tensors of each stream that nothing else takes part in, with its writers and readers."""
        tensors: dict[str, list[str]] = {}
        for name in self.parents:
            tensors.setdefault(self._root(name), []).append(name)
        return [
            (
                names,
                [self.writers[name] for name in names if name in self.writers],
                [reader for name in names for reader in self.readers.get(name, ())],
            )
            for names in tensors.values()
            if self.fixed.isdisjoint(names)
        ]

    def _root(self, name: str) -> str:
        while self.parents[name] != name:
            self.parents[name] = self.parents[self.parents[name]]
            name = self.parents[name]
        return name


def _passes(node: onnx.NodeProto, computed: Sequence[str], shapes: Mapping[str, Shape]) -> bool:
    """Whether a node lets factors of the channels through: every input is computed, and of the output's channels."""
    if len(node.output) != 1 or len(computed) != len(node.input):
        return node.op_type == "Reshape" and _flattens(shapes, computed, node)
    if node.op_type == "Flatten":
        return _flattens(shapes, computed, node)
    known = [shapes.get(name, ()) for name in (*computed, node.output[0])]
    return node.op_type in PASSING and all(len(shape) > 2 and shape[1] == known[0][1] for shape in known)


def _flattens(shapes: Mapping[str, Shape], computed: Sequence[str], node: onnx.NodeProto) -> bool:
    """Whether a node drops the height and width of a single pixel, so that channels stay what they are."""
    before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
    return list(computed) == [node.input[0]] and before[2:] == (1, 1) and len(after) == 2 and after[1] == before[1]


def factors_from(
    model: onnx.ModelProto, found: Sequence[Stream], largest: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """The factors of streams.

    Args:
        found: what `streams` gave for the model.
        largest: the largest magnitude of each channel of every tensor of the streams, (channels,), on real images.
    """
    nodes = {node.name: node for node in model.graph.node}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    result = {}
    for stream in found:
        read = [name for name in stream.tensors if any(name in nodes[reader].input for reader in stream.readers)]
        activation = np.max([_shares(largest[name]) for name in read], axis=0)
        weight = np.max(
            [_shares(_by_column(nodes[name], values[nodes[name].input[1]])) for name in stream.readers], axis=0
        )
        factors = activation**ACTIVATION_SHARE / weight ** (1 - ACTIVATION_SHARE)
        factors /= np.exp(np.log(factors).mean())
        biases = [np.abs(values[name]) for writer in stream.writers for name in nodes[writer].input[2:]]
        reached = np.max([*(largest[name] for name in stream.tensors), *biases], axis=0)
        factors = np.maximum(factors, reached / max(LARGEST_VALUE, float(reached.max())))
        result[stream.tensors[0]] = np.array([float(f"{value:.{DIGITS}g}") for value in factors], np.float32)
    return result


def with_factors(model: onnx.ModelProto, factors: Factors) -> onnx.ModelProto:
    """A copy of a float graph whose streams are divided by `factors`; what it computes stays the same."""
    if not factors:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = {node.name: node for node in result.graph.node}
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}

    def multiply(name: str, by: NDArray[np.float32]) -> None:
        product = numpy_helper.to_array(tensors[name]) * by
        tensors[name].CopyFrom(numpy_helper.from_array(product.astype(np.float32), name))

    for stream in streams(model):
        each = factors.get(stream.tensors[0])
        if each is None:
            continue
        for name in stream.writers:
            for place, tensor in enumerate(nodes[name].input[1:3]):
                axes = len(tensors[tensor].dims) - 1 if place == 0 else 0
                multiply(tensor, np.reciprocal(each).reshape(-1, *[1] * axes))
        for name in stream.readers:
            tensor = nodes[name].input[1]
            multiply(tensor, _for_columns(nodes[name], tuple(tensors[tensor].dims), each))
    return result


def factors_of_tensors(model: onnx.ModelProto, factors: Factors) -> dict[str, NDArray[np.float32]]:
    """What each tensor of an equalized graph was divided by: tensor -> float32 (channels,); others are as they were."""
    return {
        name: factors[stream.tensors[0]]
        for stream in (streams(model) if factors else ())
        if stream.tensors[0] in factors
        for name in stream.tensors
    }


def _shares(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Each value's share of the largest, at least `SMALLEST_SHARE`; all 1 where all are zero."""
    most = float(values.max())
    if not most > 0 or not math.isfinite(most):
        return np.ones(len(values))
    return np.asarray(np.maximum(values.astype(np.float64) / most, SMALLEST_SHARE))


def _by_column(node: onnx.NodeProto, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest weight that reads each channel, relative to the largest of its row: float32 (channels,)."""
    if node.op_type == "Gemm":
        rows = np.abs(weight if _flag(node, "transB") else weight.T)
        return np.asarray((rows / _not_zero(rows.max(1, keepdims=True))).max(0))
    groups = _flag(node, "group", 1)
    rows = np.abs(weight.reshape(*weight.shape[:2], -1)).max(2)
    relative = rows / _not_zero(rows.max(1, keepdims=True))
    return np.asarray(relative.reshape(groups, -1, rows.shape[1]).max(1).ravel())


def _for_columns(node: onnx.NodeProto, shape: Sequence[int], factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The factors in a shape that multiplies the columns of a reader's weight."""
    if node.op_type == "Gemm":
        return factors[None, :] if _flag(node, "transB") else factors[:, None]
    groups = _flag(node, "group", 1)
    each = np.repeat(factors.reshape(groups, -1), shape[0] // groups, axis=0)
    return each.reshape(*each.shape, *[1] * (len(shape) - 2))


def _not_zero(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.where(values > 0, values, np.float32(1)))


def _flag(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return next((int(one.i) for one in node.attribute if one.name == name), default)


def bias_sizes(model: onnx.ModelProto) -> dict[str, int]:
    """How many values the bias of each convolution and Gemm has, or would have: node -> outputs of its weight."""
    dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return {
        node.name: dims[node.input[1]][0 if node.op_type == "Conv" or _flag(node, "transB") else -1]
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm") and node.input[1] in dims
    }
