"""Values in a graph that do not depend on its inputs: initializers, Constant nodes, and what is computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

LARGEST = 1 << 16
"""Elements of a tensor that is computed: scales and zero points have at most one per channel; weights are not
computed."""
MOST_GROWTH = 4
DEEPEST = 50
"""Nodes in a row that a value is computed through."""


class Constants:
    """The constants of a graph and, inside an If or a Loop, of the graphs around it; values are computed on demand.

    Args:
        nodes: tensor -> the node that makes it.
        tensors: the initializers, by name.
        names: the constant tensors (`exporter.graph.facts.constant_names`).
    """

    def __init__(
        self, nodes: Mapping[str, onnx.NodeProto], tensors: Mapping[str, TensorProto], names: frozenset[str], opset: int
    ) -> None:
        self._nodes, self._tensors, self.names, self._opset = nodes, tensors, names, opset
        self._values: dict[str, NDArray[Any] | None] = {}

    def tensor(self, name: str) -> TensorProto | None:
        """The tensor if it is stored, in an initializer or a Constant node."""
        if name in self._tensors:
            return self._tensors[name]
        node = self._nodes.get(name)
        return constant_tensor(node) if node is not None and node.op_type == "Constant" else None

    def value(self, name: str) -> NDArray[Any] | None:
        """The value of a tensor; None if it is not constant, in another file, too large, or cannot be computed."""
        return self._value(name, DEEPEST) if name in self.names else None

    def _value(self, name: str, depth: int) -> NDArray[Any] | None:
        if name not in self._values:
            self._values[name] = self._compute(name, depth) if depth else None
        return self._values[name]

    def _compute(self, name: str, depth: int) -> NDArray[Any] | None:
        stored = self.tensor(name)
        if stored is not None:
            return _array(stored)
        node = self._nodes.get(name)
        if node is None:
            return None
        given = {one: self._value(one, depth - 1) for one in node.input if one}
        if any(value is None for value in given.values()):
            return None
        return evaluate(node, name, {one: value for one, value in given.items() if value is not None}, self._opset)


def _array(tensor: TensorProto) -> NDArray[Any] | None:
    """The values of a tensor; None if they are in another file, too large, or do not fit its shape."""
    if tensor.data_location == TensorProto.EXTERNAL or math.prod(tensor.dims) > LARGEST:
        return None
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (TypeError, ValueError):
        return None


def constant_tensor(node: onnx.NodeProto) -> TensorProto | None:
    """The tensor of a Constant node; None for strings and sparse tensors."""
    for attribute in node.attribute:
        if attribute.name == "value":
            tensor: TensorProto = attribute.t
            return tensor
        if attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
            kind = np.float32 if "float" in attribute.name else np.int64
            return numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), kind))
    return None


def evaluate(node: onnx.NodeProto, name: str, given: Mapping[str, NDArray[Any]], opset: int) -> NDArray[Any] | None:
    """Compute one node with onnx's reference implementation; None if that fails, or makes far more elements
    than it is given, and than LARGEST."""
    most = max(LARGEST, MOST_GROWTH * sum(value.size for value in given.values()))
    try:
        if _elements(_model_of(node, name, given, opset, fed=False)) > most:
            return None
        model = _model_of(node, name, given, opset, fed=True)
        with np.errstate(all="ignore"):
            results: Any = ReferenceEvaluator(model).run(None, dict(given))
            return np.asarray(results[0])
    except Exception:  # any node of a foreign graph: whatever goes wrong, the value is not known
        return None


def _model_of(
    node: onnx.NodeProto, name: str, given: Mapping[str, NDArray[Any]], opset: int, *, fed: bool
) -> onnx.ModelProto:
    """A model of one node, which gives the tensor `name`; its inputs are fed, or stand in it."""
    inputs = [onnx.ValueInfoProto(name=one) for one in given] if fed else []
    stored = [] if fed else [numpy_helper.from_array(value, one) for one, value in given.items()]
    graph = onnx.helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=name)], stored)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])


def _elements(model: onnx.ModelProto) -> float:
    """How many elements the output of a model has: a few numbers may tell a node to make billions. Infinite where that
    cannot be told."""
    (output,) = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
    shape = output.type.tensor_type.shape
    if not output.type.tensor_type.HasField("shape") or not all(one.HasField("dim_value") for one in shape.dim):
        return math.inf
    return float(math.prod(int(one.dim_value) for one in shape.dim))
