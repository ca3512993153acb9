"""Equalization: give each channel of a tensor a scale of its own, so that one INT8 scale serves all of them.

A tensor has one INT8 scale, set by its largest channels; a channel whose values are a hundredth of theirs keeps one or
two levels. But ReLU, pooling and addition let a positive factor through: dividing a channel by s where it is written,
and multiplying by s where it is read, changes nothing in exact arithmetic (Nagel et al. 2019, arXiv 1906.04721, section
4.1). What is written and read in one place here is a *stream*: all tensors that such operators tie together, as all
tensors of a residual stage are. The convolutions that write it divide the rows of their weights and their biases by s,
which costs nothing, since weights have a scale for each row; those that read it multiply the columns of theirs.

How far to go: with s equal to each channel's largest value all channels are alike, but the readers' columns are then
uneven, and a row of a weight has one scale too. s = a^t / w^(1-t), a the largest value of the channel and w that of
the columns that read it, weighs one against the other (Xiao et al. 2023, arXiv 2211.10438, section 4.1); t is chosen
for each stream by the noise that rounding makes behind the convolutions that read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from exporter.graph.facts import constant_names
from exporter.graph.inference import inferred_graphs

PASS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Dropout", "Add")
"""Operators through which a positive factor of a channel goes unchanged, from every input to the output."""


@dataclass(frozen=True)
class Edge:
    node: int
    groups: int = 1


@dataclass
class Stream:
    """Tensors whose channels can be scaled together.

    Attributes:
        tensors: in the graph's order.
        channels: how many.
        writers: indices of the convolutions that write it.
        readers: indices of the convolutions and the Gemm that read it.
    """

    tensors: list[str]
    channels: int
    writers: list[int] = field(default_factory=list)
    readers: list[int] = field(default_factory=list)


def find_streams(model: onnx.ModelProto) -> list[Stream]:
    graph = model.graph
    shapes = inferred_graphs(model)[0].shapes
    constants = constant_names(graph)
    weights = {t.name for t in graph.initializer}
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    frozen: set[str] = {v.name for v in (*graph.input, *graph.output)}
    writers: dict[str, list[int]] = {}
    readers: dict[str, list[int]] = {}
    order: list[str] = []
    for place, node in enumerate(graph.node):
        computed = [n for n in node.input if n and n not in constants]
        out = node.output[0] if node.output else ""
        order += [n for n in node.output if n and n not in constants]
        own = all(uses[n] == 1 for n in node.input[1:] if n in weights)
        if node.op_type == "Conv" and len(computed) == 1 and node.input[1] in weights and own:
            readers.setdefault(computed[0], []).append(place)
            writers.setdefault(out, []).append(place)
        elif node.op_type == "Gemm" and len(computed) == 1 and node.input[1] in weights and own and not _attr(node, "transA"):
            readers.setdefault(computed[0], []).append(place)
            frozen.add(out)
        elif node.op_type in PASS and len(node.output) == 1 and len(computed) == len(node.input) and len({shapes.get(n) for n in computed}) == 1 and shapes.get(computed[0]) and len(shapes[computed[0]]) == 4:
            for n in computed:
                parent[find(n)] = find(out)
        elif node.op_type in ("Flatten", "Reshape") and _is_flat(shapes.get(computed[0]), shapes.get(out)):
            parent[find(computed[0])] = find(out)
        else:
            frozen.update(computed)
            frozen.update(node.output)
    groups: dict[str, list[str]] = {}
    for name in order:
        groups.setdefault(find(name), []).append(name)
    found = []
    for names in groups.values():
        if frozen.intersection(names):
            continue
        w = [p for n in names for p in writers.get(n, ())]
        r = [p for n in names for p in readers.get(n, ())]
        sizes = {shapes[n][1] for n in names if shapes.get(n)}
        if w and r and len(sizes) == 1 and None not in sizes:
            found.append(Stream(names, sizes.pop(), w, r))
    return found


def _attr(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _is_flat(before, after) -> bool:
    return bool(before and after and len(before) == 4 and before[2:] == (1, 1) and len(after) == 2 and after[1] == before[1])


def columns(node: onnx.NodeProto, weight: NDArray[Any]) -> NDArray[Any]:
    """The weight as (outputs, channels of its input, taps); zeros where a group does not read a channel."""
    if node.op_type == "Gemm":
        w = weight if _attr(node, "transB") else weight.T
        return w[:, :, None]
    groups = _attr(node, "group", 1)
    if groups == 1:
        return weight.reshape(*weight.shape[:2], -1)
    rows, per, taps = weight.shape[0], weight.shape[1], int(np.prod(weight.shape[2:]))
    full = np.zeros((rows, per * groups, taps), weight.dtype)
    for g in range(groups):
        out = slice(g * rows // groups, (g + 1) * rows // groups)
        full[out, g * per : (g + 1) * per] = weight[out].reshape(rows // groups, per, taps)
    return full


def scale_columns(node: onnx.NodeProto, weight: NDArray[Any], s: NDArray[Any]) -> NDArray[Any]:
    if node.op_type == "Gemm":
        return weight * (s[None, :] if _attr(node, "transB") else s[:, None])
    groups = _attr(node, "group", 1)
    if groups == 1:
        return weight * s[None, :, None, None]
    rows, per = weight.shape[0], weight.shape[1]
    each = np.repeat(s.reshape(groups, per), rows // groups, axis=0)
    return weight * each[:, :, None, None]


def apply_scales(model: onnx.ModelProto, scaled: Iterable[tuple[Stream, NDArray[np.float32]]]) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    tensors = {t.name: t for t in graph.initializer}
    for stream, s in scaled:
        for place in stream.writers:
            node = graph.node[place]
            for name in node.input[1:3]:
                v = numpy_helper.to_array(tensors[name])
                tensors[name].CopyFrom(numpy_helper.from_array((v / s.reshape(-1, *[1] * (v.ndim - 1))).astype(np.float32), name))
        for place in stream.readers:
            node = graph.node[place]
            v = numpy_helper.to_array(tensors[node.input[1]])
            tensors[node.input[1]].CopyFrom(numpy_helper.from_array(scale_columns(node, v, s).astype(np.float32), node.input[1]))
    return result
