"""Read any Q/DQ graph, ours or a stranger's, and say what TensorRT will refuse, and what it will not fuse.

What is refused was tried on TensorRT-RTX's parser, which says the same as TensorRT's; what is not fused follows NVIDIA's placement rules
(see `exporter.qdq.placement`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from exporter.qdq.blocks import Block, blocks, residuals
from exporter.qdq.placement import left_in_float

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Finding:
    """One thing to know of a node: TensorRT refuses the graph for it, leaves something unfused at it, or it is better left in float."""

    kind: Literal["refused", "not fused", "left in float"]
    node: str
    message: str


@dataclass(frozen=True)
class BlockReport:
    """What TensorRT makes of the stem, a residual block or the head.

    Attributes:
        name: `layer1.0`, say.
        convolutions: (those that run in INT8, all).
        shortcut: is the shortcut of its addition INT8? None without an addition.
        findings: what is refused, not fused, or left in float in it; empty where everything fuses.
    """

    name: str
    convolutions: tuple[int, int]
    shortcut: bool | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class QdqReport:
    """A quantized graph, block by block."""

    blocks: tuple[BlockReport, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for block in self.blocks for finding in block.findings)

    @property
    def convolutions(self) -> tuple[int, int]:
        """(Those that run in INT8, all) of the whole graph."""
        return sum(block.convolutions[0] for block in self.blocks), sum(block.convolutions[1] for block in self.blocks)

    @property
    def shortcuts(self) -> tuple[int, int]:
        """(Those in INT8, all) of the whole graph."""
        known = [block.shortcut for block in self.blocks if block.shortcut is not None]
        return sum(known), len(known)

    @property
    def refused(self) -> bool:
        return any(finding.kind == "refused" for finding in self.findings)


def lint(model: onnx.ModelProto) -> QdqReport | None:
    """What TensorRT makes of a quantized graph; None for one without quantization."""
    graph = _Graph(model)
    operators = {node.op_type for node in graph.nodes}
    if not any(name in operators for name in (QUANTIZE, DEQUANTIZE)) and not any(
        name.startswith("QLinear") or name.endswith("Integer") for name in operators
    ):
        return None
    return QdqReport(tuple(_block_report(graph, block) for block in blocks(model.graph)))


def _block_report(graph: _Graph, block: Block) -> BlockReport:
    nodes = [graph.nodes[place] for place in block.nodes]
    findings = [finding for node in nodes for finding in _refusals(graph, node)]
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    quantized = [node for node in convolutions if graph.is_quantized(node.input[0]) and graph.is_quantized(node.input[1])]
    for node in convolutions:
        findings += _convolution_findings(graph, node)
    shortcut = None
    if block.addition is not None:
        addition = graph.nodes[block.addition]
        place = graph.shortcuts[addition.output[0]]
        shortcut = graph.is_quantized(addition.input[place])
        findings += _addition_findings(graph, addition, place)
    for node in nodes:
        findings += _other_findings(graph, node)
    return BlockReport(block.name, (len(quantized), len(convolutions)), shortcut, tuple(findings))


class _Graph:
    """A graph with what is asked of it most."""

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(model)
        self.shortcuts = {residual.addition.output[0]: residual.shortcut for residual in residuals(model.graph)}
        self.left_in_float = left_in_float(model.graph)
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producers = {name: node for node in self.nodes for name in node.output}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self._types = {
            value.name: value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *model.graph.input, *model.graph.output)
        }

    def users(self, name: str) -> list[onnx.NodeProto]:
        return self._users.get(name, [])

    def is_quantized(self, name: str) -> bool:
        """Does the tensor come out of a DequantizeLinear?"""
        node = self._producers.get(name)
        return node is not None and str(node.op_type) == DEQUANTIZE

    def producer(self, name: str) -> onnx.NodeProto | None:
        return self._producers.get(name)

    def elem_type(self, name: str) -> int:
        if name in self.constants:
            return int(self.constants[name].data_type)
        return int(self._types.get(name, TensorProto.UNDEFINED))


def _refusals(graph: _Graph, node: onnx.NodeProto) -> list[Finding]:
    def refused(message: str) -> Finding:
        return Finding("refused", node.name or node.op_type, message)

    if node.op_type.startswith("QLinear") or node.op_type in ("ConvInteger", "MatMulInteger"):
        return [refused(f"{node.op_type} is not supported; quantize to Q/DQ format")]
    if node.op_type in (QUANTIZE, DEQUANTIZE):
        found = []
        if node.op_type == DEQUANTIZE and graph.elem_type(node.input[0]) == TensorProto.INT32:
            found.append(refused(f"'{node.input[0]}' is INT32 (a quantized bias); leave biases in float"))
        zero_point = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero_point is not None and np.any(numpy_helper.to_array(zero_point)):
            found.append(refused(f"zero point '{zero_point.name}' is not zero; quantize symmetrically to INT8"))
        scale = graph.constants.get(node.input[1])
        if scale is not None and not np.all(numpy_helper.to_array(scale).astype(np.float32) > 0):
            found.append(refused(f"scale '{scale.name}' is not positive; calibrate again"))
        return found
    if node.op_type in ("Conv", "Gemm"):
        types = {graph.elem_type(name) for name in node.input if name} - {TensorProto.UNDEFINED}
        if len(types) > 1:
            names = " and ".join(sorted(str(TensorProto.DataType.Name(one)) for one in types))
            return [refused(f"its inputs are {names}; input, weight and bias must share one type")]
    return []


def _convolution_findings(graph: _Graph, node: onnx.NodeProto) -> list[Finding]:
    found = []
    names = [what for what, name in (("input", node.input[0]), ("weight", node.input[1])) if not graph.is_quantized(name)]
    if len(names) == 2 and node.name in graph.left_in_float:
        found.append(Finding("left in float", node.name, graph.left_in_float[node.name]))
    elif names:
        found.append(Finding("not fused", node.name, f"runs in float: its {' and '.join(names)} {'is' if len(names) == 1 else 'are'} not quantized"))
    for pair in graph.users(node.output[0]):
        if pair.op_type == QUANTIZE:
            after = {user.op_type for back in graph.users(pair.output[0]) for user in graph.users(back.output[0])}
            if "Relu" in after:
                found.append(
                    Finding("not fused", node.name, f"'{pair.name or pair.op_type}' stands between it and its ReLU; quantize after the ReLU")
                )
    return found


def _addition_findings(graph: _Graph, node: onnx.NodeProto, shortcut: int) -> list[Finding]:
    sides = graph.is_quantized(node.input[shortcut]), graph.is_quantized(node.input[1 - shortcut])
    main = graph.producer(node.input[1 - shortcut])
    if not any(sides) and (main is None or main.op_type != "Conv"):
        before = "the graph's input" if main is None else f"'{main.name or main.op_type}' ({main.op_type})"
        return [Finding("left in float", node.name, f"it follows {before}: there is no convolution to take it in")]
    message = {
        (True, False): None,
        (True, True): "both inputs are quantized, so the convolution before it cannot take it in; quantize the shortcut alone",
        (False, True): "the convolution's branch is quantized in place of the shortcut; quantize the shortcut alone",
        (False, False): "the shortcut is not quantized, so the addition runs in float; quantize it",
    }[sides]
    return [] if message is None else [Finding("not fused", node.name, message)]


def _other_findings(graph: _Graph, node: onnx.NodeProto) -> list[Finding]:
    users = {user.op_type for user in graph.users(node.output[0])}
    if node.op_type == "MaxPool" and not graph.is_quantized(node.input[0]) and users == {QUANTIZE}:
        return [Finding("not fused", node.name, "the pool runs in float between INT8 layers; quantize its input")]
    if node.op_type in ("GlobalAveragePool", "Gemm", "ReduceMean") and graph.is_quantized(node.input[0]):
        return [Finding("not fused", node.name, f"a quantized {node.op_type} gains little and costs accuracy; leave it in float")]
    return []
