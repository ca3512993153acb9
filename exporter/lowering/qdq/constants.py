"""Values of a graph that do not depend on its inputs, wherever they stand: in initializers, in Constant nodes, behind what computes them."""

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
"""Elements: scales and zero points have no more than channels; weights are not computed here."""
DEEPEST = 50
"""Nodes in a row that a value is followed through."""


class Constants:
    """The constants of a graph and, inside of an If or a Loop, of the graphs around it; values are computed when asked for.

    Args:
        nodes: the producer of every tensor.
        tensors: initializers, by name.
        names: the tensors that are constant (`exporter.graph.facts.constant_names`).
    """

    def __init__(
        self, nodes: Mapping[str, onnx.NodeProto], tensors: Mapping[str, TensorProto], names: frozenset[str], opset: int
    ) -> None:
        self._nodes, self._tensors, self.names, self._opset = nodes, tensors, names, opset
        self._values: dict[str, NDArray[Any] | None] = {}

    def tensor(self, name: str) -> TensorProto | None:
        """The tensor as it is stored, where one is: an initializer, or what a Constant node holds."""
        if name in self._tensors:
            return self._tensors[name]
        node = self._nodes.get(name)
        return _held(node) if node is not None and node.op_type == "Constant" else None

    def value(self, name: str) -> NDArray[Any] | None:
        """None where it is not constant, or cannot be told: in a file that is not here, too large, of an operator that nothing here computes."""
        return self._value(name, DEEPEST) if name in self.names else None

    def _value(self, name: str, depth: int) -> NDArray[Any] | None:
        if name not in self._values:
            self._values[name] = self._computed(name, depth) if depth else None
        return self._values[name]

    def _computed(self, name: str, depth: int) -> NDArray[Any] | None:
        stored = self.tensor(name)
        if stored is not None:
            return _array(stored)
        node = self._nodes.get(name)
        if node is None:
            return None
        given = {one: self._value(one, depth - 1) for one in node.input if one}
        if any(value is None for value in given.values()):
            return None
        return _evaluated(node, name, {one: value for one, value in given.items() if value is not None}, self._opset)


def _array(tensor: TensorProto) -> NDArray[Any] | None:
    """None for one that is elsewhere, too large, or whose data do not fit its sizes."""
    if tensor.data_location == TensorProto.EXTERNAL or math.prod(tensor.dims) > LARGEST:
        return None
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (TypeError, ValueError):
        return None


def _held(node: onnx.NodeProto) -> TensorProto | None:
    """What a Constant node holds; None for strings and sparse tensors."""
    for attribute in node.attribute:
        if attribute.name == "value":
            tensor: TensorProto = attribute.t
            return tensor
        if attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
            kind = np.float32 if "float" in attribute.name else np.int64
            return numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), kind))
    return None


def _evaluated(node: onnx.NodeProto, name: str, given: Mapping[str, NDArray[Any]], opset: int) -> NDArray[Any] | None:
    """One node, as onnx's reference computes it."""
    inputs = [onnx.ValueInfoProto(name=one) for one in given]
    graph = onnx.helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=name)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            results: Any = ReferenceEvaluator(model).run(None, dict(given))
            return np.asarray(results[0])
    except Exception:  # a stranger's node: whatever the reference makes of it, the value is not known
        return None
