"""An index of a graph: the nodes that make and read a tensor, its type, its shape, and its value."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from exporter.graph.facts import type_name
from exporter.graph.inference import InferredGraph
from exporter.lowering.qdq.constants import Constants

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
UNKNOWN = "?"


class View:
    """One graph of a model. Nodes are identified by their places: in foreign graphs names may be missing or double.

    Args:
        functions: the model's local functions that could not be inlined, by domain and name.
    """

    def __init__(
        self,
        scope: InferredGraph,
        outer: View | None,
        opset: int,
        functions: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        self.scope, self.opset, self.functions = scope, opset, functions
        self.nodes: Sequence[onnx.NodeProto] = scope.graph.node
        self._places = {name: place for place, node in enumerate(self.nodes) for name in node.output if name}
        self._users: dict[str, list[int]] = {}
        for place, node in enumerate(self.nodes):
            for name in dict.fromkeys(node.input):
                self._users.setdefault(name, []).append(place)
        self._all: dict[str, onnx.NodeProto] = dict(outer._all) if outer else {}
        self._all.update((name, self.nodes[place]) for name, place in self._places.items())
        self._tensors: dict[str, onnx.TensorProto] = dict(outer._tensors) if outer else {}
        self._tensors.update((tensor.name, tensor) for tensor in scope.graph.initializer)
        self.constants = Constants(self._all, self._tensors, scope.constants, opset)

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node of this graph that makes a tensor; quantization is not carried into or out of an If or a Loop."""
        place = self._places.get(name)
        return None if place is None else self.nodes[place]

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, in this graph or in one around it."""
        return self._all.get(name)

    def users(self, name: str) -> list[onnx.NodeProto]:
        """The nodes of this graph that read a tensor."""
        return [self.nodes[place] for place in self._users.get(name, [])]

    def type(self, name: str) -> str:
        """FLOAT, INT8 ..., or `?`; those of Q and DQ of other domains, unknown to onnx, are inferred here."""
        known = self.scope.types.get(name, UNKNOWN)
        node = self.maker(name)
        if known not in (UNKNOWN, "UNDEFINED") or node is None:
            return UNKNOWN if known == "UNDEFINED" else known
        if node.op_type == DEQUANTIZE:
            return self.type(node.input[1])
        if node.op_type == QUANTIZE:
            return self.quantized_type(node)
        return UNKNOWN

    def quantized_type(self, node: onnx.NodeProto) -> str:
        """The output type of a QuantizeLinear: its zero point's type, else `output_dtype`, else UINT8."""
        if len(node.input) > 2 and node.input[2]:
            return self.type(node.input[2])
        return type_name(int_attribute(node, "output_dtype", 0) or onnx.TensorProto.UINT8)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """The shape of a tensor, with None for a size that is not known; None if nothing is known of it."""
        value = self.constants.value(name)
        return tuple(value.shape) if value is not None else self.scope.shapes.get(name)


def int_attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """The value of an integer attribute, or `default`."""
    return next((int(one.i) for one in node.attribute if one.name == name), default)


def node_label(node: onnx.NodeProto) -> str:
    """A node's name for messages; a node without one is named by its operator and its output."""
    return node.name or f"{node.op_type} of '{next((name for name in node.output if name), '')}'"
