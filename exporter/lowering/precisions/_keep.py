"""Which nodes of an FP32 graph stay in FP32 where the rest is lowered: the narrower type has no form of them, or would lose a constant of theirs.

A number is lost in a type that holds it with at most half of its significant bits, or as zero: in FP16 one below 2**-19, such as the 1e-8 that
guards a division. One is enough, but for two kinds of constant:

- the weight of a convolution or of a matrix product, and what is added or subtracted, are lost only where all of their numbers are. A tiny
  one among others is lost in the sum as well;
- the bias of a convolution or of a Gemm never is.

A guard is of use until it has divided, so what is computed from it stays in FP32 too: through every operator, up to a product or a quotient with
something else, and not into a convolution, a matrix product or a quantized tensor. A lost number in an attribute (the epsilon of a normalisation)
keeps its own node alone.
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
"""Below it, 5 of FP16's 11 significant bits are left, and 4 of BF16's 8."""
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SUMS = (*PRODUCTS, "Add", "Sub", "Sum")
ENDS = (*PRODUCTS, "QuantizeLinear", "DequantizeLinear")
"""What a guard is not followed into."""
QUOTIENTS = ("Mul", "Div")
TYPE_ATTRIBUTES = ("dtype", "output_datatype")
"""Where random numbers, windows and their like say their type."""

Operand = tuple[str, str]
"""A tensor of a node, and what its schema calls the type there: a variable, or `tensor(float)` where no other is allowed."""


class Typing:
    """What the operators' schemas say of the types of a graph's nodes.

    Attributes:
        floats: the graph's FP32 tensors, constants among them.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(model)
        values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
        self.version = next(entry.version for entry in model.opset_import if not entry.domain)
        self.floats = {value.name for value in values if value.type.tensor_type.elem_type == FLOAT}
        self.floats |= {tensor.name for tensor in model.graph.initializer if tensor.data_type == FLOAT}

    def schema(self, node: onnx.NodeProto) -> defs.OpSchema:
        """
        Raises:
            LowerError: the graph's opset has no such operator.
        """
        try:
            return defs.get_schema(node.op_type, self.version, node.domain)
        except defs.SchemaError as error:
            raise LowerError(f"{_said(node)} is no operator of opset {self.version}; export in fp32") from error

    def inputs(self, node: onnx.NodeProto) -> list[Operand]:
        """Every place of a node's inputs."""
        return list(_operands(node.input, self.schema(node).inputs))

    def outputs(self, node: onnx.NodeProto) -> list[Operand]:
        """Every place of a node's outputs."""
        return list(_operands(node.output, self.schema(node).outputs))

    def is_fixed(self, kind: str) -> bool:
        """Does the operator take or give FP32 alone there, as Resize does for its scales?"""
        return kind == "tensor(float)"

    def has_form(self, node: onnx.NodeProto, elem_type: int) -> bool:
        """Is there a form of the operator in which what is FP32 has the narrower type, but for what is FP32 in every form?"""
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
    """The places of the nodes that stay in FP32; nodes must be in topological order.

    Raises:
        LowerError: a node holds graphs of its own, as If and Loop do; names it.
    """
    constants = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.data_type == FLOAT
    }
    kept: set[int] = set()
    guards: set[str] = set()  # what is computed from a constant that would be lost, and has not divided yet
    for place, node in enumerate(graph.node):
        if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute):
            raise LowerError(f"{_said(node)} holds a graph of its own, which cannot be lowered; export in fp32")
        computed = {name for name in node.input if name in typing.floats and name not in constants}
        loses = _loses_constant(node, constants, elem_type)
        if loses or (computed & guards and node.op_type not in ENDS):
            kept.add(place)
            divides = node.op_type in QUOTIENTS and not loses and computed - guards
            if not divides and node.op_type not in PRODUCTS:
                guards |= typing.floats.intersection(node.output)
        elif _loses_attribute(node, elem_type) or _says_its_type(node, typing) or not typing.has_form(node, elem_type):
            kept.add(place)
    return kept | _casts_read_by(kept, graph)


def is_lost(values: NDArray[np.float32], elem_type: int) -> NDArray[np.bool_]:
    """Which numbers the type holds with at most half of its significant bits, or as zero."""
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


def _says_its_type(node: onnx.NodeProto, typing: Typing) -> bool:
    """Does an attribute say that what it gives is FP32, or does it for want of one?"""
    if node.op_type == "Constant":
        return any(one.name in ("value_float", "value_floats") for one in node.attribute)
    return not typing.floats.isdisjoint(node.output) and any(
        name in typing.schema(node).attributes for name in TYPE_ATTRIBUTES
    )


def _casts_read_by(kept: Collection[int], graph: onnx.GraphProto) -> set[int]:
    """The casts to FP32 that nodes in FP32 alone read: a count (the end of a Range) may be more than the narrower type holds."""
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
    """The last formal parameter stands for all that follow, where the operator takes any number."""
    known = list(formals)
    for place, name in enumerate(names):
        yield name, str(known[min(place, len(known) - 1)].type_str)


def _said(node: onnx.NodeProto) -> str:
    return f"'{node.name or node.output[0]}' ({node.op_type})"
