"""Find the nodes that must stay in FP32 when the rest of a graph is lowered to a narrower type.

A node stays in FP32 if the narrower type has no form of its operator, or would lose one of its constants. A type loses
a number if it holds it as zero or with at most half of the type's significant bits: FP16 loses those below 2**-19, such
as the 1e-8 that guards a division. One lost number is enough, with two exceptions:

- the weight of a convolution or a matrix product, and an added or subtracted constant, are lost only if all their
  numbers are, since a tiny one among others is lost in the sum anyway;
- the bias of a convolution or a Gemm is never lost.

A lost constant guards a division, so what is computed from it stays in FP32 too, through every operator, up to and
including a product or a quotient with another tensor; it is not followed into a convolution, a matrix product or a
quantized tensor. A lost number in an attribute (the epsilon of a normalisation) keeps its own node alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, defs, numpy_helper

from runtimes.errors import LowerError

FLOAT = TensorProto.FLOAT
SMALLEST_KEPT: dict[int, float] = {TensorProto.FLOAT16: 2.0**-19, TensorProto.BFLOAT16: 2.0**-129}
"""Type -> the smallest magnitude that it does not lose; below, 5 of FP16's 11 significant bits are left, and 4 of
BF16's 8."""
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SUMS = (*PRODUCTS, "Add", "Sub", "Sum")
ENDS = (*PRODUCTS, "QuantizeLinear", "DequantizeLinear")
"""Operators where following a guard ends."""
QUOTIENTS = ("Mul", "Div")
TYPE_ATTRIBUTES = ("dtype", "output_datatype")
"""Attributes in which random numbers, windows and the like state their type."""

Operand = tuple[str, str]
"""A tensor of a node, and its type in the node's schema: a type variable, or `tensor(float)` if no other type is
allowed."""


class Typing:
    """The types that the operators' schemas allow for a graph's nodes.

    Attributes:
        floats: the graph's FP32 tensors, including constants.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(model)
        values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
        self.version = next(entry.version for entry in model.opset_import if not entry.domain)
        self.floats = {value.name for value in values if value.type.tensor_type.elem_type == FLOAT}
        self.floats |= {tensor.name for tensor in model.graph.initializer if tensor.data_type == FLOAT}

    def schema(self, node: onnx.NodeProto) -> defs.OpSchema:
        """The schema of a node's operator.

        Raises:
            LowerError: the graph's opset has no such operator.
        """
        try:
            return defs.get_schema(node.op_type, self.version, node.domain)
        except defs.SchemaError as error:
            raise LowerError(f"{_node_text(node)} is no operator of opset {self.version}; export in fp32") from error

    def inputs(self, node: onnx.NodeProto) -> list[Operand]:
        """Every input of a node with its type in the schema."""
        return list(_operands(node.input, self.schema(node).inputs))

    def outputs(self, node: onnx.NodeProto) -> list[Operand]:
        """Every output of a node with its type in the schema."""
        return list(_operands(node.output, self.schema(node).outputs))

    def is_fixed(self, kind: str) -> bool:
        """Whether a type in a schema is FP32 alone, as that of Resize's scales."""
        return kind == "tensor(float)"

    def has_form(self, node: onnx.NodeProto, elem_type: int) -> bool:
        """Whether the operator allows `elem_type` wherever the node has FP32, except where it is always FP32."""
        allowed = {
            constraint.type_param_str: constraint.allowed_type_strs for constraint in self.schema(node).type_constraints
        }
        narrow = f"tensor({TensorProto.DataType.Name(elem_type).lower()})"
        used = {
            kind
            for name, kind in (*self.inputs(node), *self.outputs(node))
            if name in self.floats and not self.is_fixed(kind)
        }
        return all(narrow in allowed[kind] for kind in used)


def nodes_in_fp32(graph: onnx.GraphProto, typing: Typing, elem_type: int) -> set[int]:
    """The places of the nodes that must stay in FP32; nodes must be in topological order.

    Raises:
        LowerError: a node contains graphs, as If and Loop do; names it.
    """
    constants = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.data_type == FLOAT
    }
    kept: set[int] = set()
    guards: set[str] = set()  # computed from a lost constant, before the division
    for place, node in enumerate(graph.node):
        if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute):
            raise LowerError(f"{_node_text(node)} holds a graph of its own, which cannot be lowered; export in fp32")
        computed = {name for name in node.input if name in typing.floats and name not in constants}
        loses = _loses_constant(node, constants, elem_type)
        if loses or (computed & guards and node.op_type not in ENDS):
            kept.add(place)
            divides = node.op_type in QUOTIENTS and not loses and computed - guards
            if not divides and node.op_type not in PRODUCTS:
                guards |= typing.floats.intersection(node.output)
        elif (
            _loses_attribute(node, elem_type) or _states_its_type(node, typing) or not typing.has_form(node, elem_type)
        ):
            kept.add(place)
    return kept | _casts_read_by(kept, graph)


def is_lost(values: NDArray[np.float32], elem_type: int) -> NDArray[np.bool_]:
    """Which of `values` the type holds as zero or with at most half of its significant bits; of their shape."""
    return np.asarray((values != 0) & (np.abs(values) < SMALLEST_KEPT[elem_type]))


def _loses_constant(node: onnx.NodeProto, constants: Mapping[str, NDArray[np.float32]], elem_type: int) -> bool:
    places = 2 if node.op_type in PRODUCTS else len(node.input)
    for values in (constants[name] for name in node.input[:places] if name in constants):
        lost = is_lost(values, elem_type)
        if lost.any() and (node.op_type not in SUMS or lost[values != 0].all()):
            return True
    if node.op_type == "Constant" and _loses_attribute(node, elem_type):
        return True
    tensors = [
        numpy_helper.to_array(one.t)
        for one in node.attribute
        if one.type == AttributeProto.TENSOR and one.t.data_type == FLOAT
    ]
    return any(bool(is_lost(values, elem_type).any()) for values in tensors)


def _loses_attribute(node: onnx.NodeProto, elem_type: int) -> bool:
    numbers = [
        value for one in node.attribute for value in ([one.f] if one.type == AttributeProto.FLOAT else one.floats)
    ]
    return bool(is_lost(np.array(numbers, np.float32), elem_type).any())


def _states_its_type(node: onnx.NodeProto, typing: Typing) -> bool:
    """Whether the node's output is FP32 by an attribute or that attribute's default."""
    if node.op_type == "Constant":
        return any(one.name in ("value_float", "value_floats") for one in node.attribute)
    return not typing.floats.isdisjoint(node.output) and any(
        name in typing.schema(node).attributes for name in TYPE_ATTRIBUTES
    )


def _casts_read_by(kept: Collection[int], graph: onnx.GraphProto) -> set[int]:
    """The casts to FP32 that only nodes in FP32 read: a count (the end of a Range) may be beyond the narrower type."""
    users: dict[str, set[int]] = {}
    for place, node in enumerate(graph.node):
        for name in node.input:
            users.setdefault(name, set()).add(place)
    outputs = {value.name for value in graph.output}
    return {
        place
        for place, node in enumerate(graph.node)
        if node.op_type == "Cast" and node.output[0] not in outputs and users.get(node.output[0], set()) <= set(kept)
    }


def _operands(names: Collection[str], formals: Collection[defs.OpSchema.FormalParameter]) -> Iterator[Operand]:
    """Pair tensors with their types in the schema, whose last parameter stands for any number of tensors."""
    known = list(formals)
    for place, name in enumerate(names):
        yield name, str(known[min(place, len(known) - 1)].type_str)


def _node_text(node: onnx.NodeProto) -> str:
    return f"'{node.name or node.output[0]}' ({node.op_type})"
