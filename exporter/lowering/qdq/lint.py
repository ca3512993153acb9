"""Read any Q/DQ graph, ours or a stranger's, and say what TensorRT will refuse, and what it will not fuse.

What is refused, and what a convolution reads, was measured on TensorRT-RTX's parser and builder (`exporter.lowering.qdq.refusals`, `exporter.lowering.qdq.reading`);
what is fused follows NVIDIA's placement rules (see `exporter.lowering.qdq.targets.tensorrt`), since TensorRT-RTX fuses none of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from exporter.graph.blocks import ADDITIONS, Block, blocks, residuals
from exporter.graph.facts import CONVOLUTIONS, inline_functions
from exporter.graph.inference import InferredGraph, inferred_graphs
from exporter.lowering.qdq.reading import Readings
from exporter.lowering.qdq.refusals import Finding, refusals
from exporter.lowering.qdq.targets.tensorrt import places_left_in_float
from exporter.lowering.qdq.view import DEQUANTIZE, QUANTIZE, UNKNOWN, View, told

QUANTIZED = re.compile(r"Q[A-Z]|.*([Qq]uantize|Integer$|NBits)")
"""Operators that a graph without quantization has none of: ONNX's, and ONNX Runtime's own."""
ACTIVATIONS = (
    "Relu",
    "Clip",
    "LeakyRelu",
    "PRelu",
    "Elu",
    "Selu",
    "Celu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Gelu",
    "Mish",
    "Softplus",
    "Swish",
)
AFFINE = ("BatchNormalization", "Add", "Sub", "Mul", "Div", "Identity", "Cast")
"""What TensorRT takes into the convolution before it, where all but one of its inputs are constant: batch norms, biases, scales."""
BIASES = ("BatchNormalization", "Add", "Sub", "Identity", "Cast")
"""Those behind which it takes an addition in as well, as far as NVIDIA says; our own placement leaves additions behind others in float."""


@dataclass(frozen=True)
class BlockReport:
    """What TensorRT makes of the stem, a residual block, the head, or a graph inside of an If or a Loop.

    Attributes:
        name: `layer1.0`, say.
        convolutions: (those that run in INT8, all); transposed ones are among them.
        shortcut: is the shortcut of its addition INT8? None without an addition.
        findings: what is refused, computed otherwise, not fused, left in float, or not known in it; empty where everything fuses.
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

    @property
    def unknown(self) -> bool:
        """Is there something that cannot be told, in a graph that is not refused anyway?"""
        return not self.refused and any(finding.kind == "unknown" for finding in self.findings)


def lint(model: onnx.ModelProto) -> QdqReport | None:
    """What TensorRT makes of a quantized graph; None for one without quantization. Weights in files beside it may be left unread."""
    model = inline_functions(model)
    found = inferred_graphs(model)
    if not any(QUANTIZED.match(node.op_type) for scope in found for node in scope.graph.node):
        return None
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), onnx.defs.onnx_opset_version())
    linted: list[_Linted] = []
    for scope in found:
        outer = None if scope.owner is None else linted[scope.owner.graph].view
        linted.append(_Linted(View(scope, outer, opset)))
    reports = [linted[0].report(block) for block in blocks(model.graph)]
    for one in linted[1:]:
        report = one.report(Block(_inner_name(found, one.view.scope), tuple(range(len(one.view.nodes))), None, ()))
        reports += [report] if report.convolutions[1] or report.findings else []
    return QdqReport(tuple(reports))


def int8_convolutions(model: onnx.ModelProto) -> dict[int, bool]:
    """Of the model's own graph: the place of every convolution, and whether it reads INT8."""
    linted = _Linted(View(inferred_graphs(inline_functions(model))[0], None, onnx.defs.onnx_opset_version()))
    return {place: linted.is_int8(node) for place, node in enumerate(linted.view.nodes) if node.op_type in CONVOLUTIONS}


def _inner_name(found: tuple[InferredGraph, ...], scope: InferredGraph) -> str:
    if scope.owner is None:
        return ""
    outer, place = scope.owner
    return f"{told(found[outer].graph.node[place])}.{scope.attribute}"


class _Linted:
    """A graph with what was found of it."""

    def __init__(self, view: View) -> None:
        self.view, self.readings = view, Readings(view)
        self.shortcuts = {residual.addition.output[0]: residual.shortcut for residual in residuals(view.scope.graph)}
        self.left_in_float = places_left_in_float(view.scope.graph)

    def report(self, block: Block) -> BlockReport:
        nodes = [(place, self.view.nodes[place]) for place in block.nodes]
        findings = [finding for place, _ in nodes for finding in refusals(self.view, self.readings, place)]
        convolutions = [(place, node) for place, node in nodes if node.op_type in CONVOLUTIONS]
        for place, node in convolutions:
            findings += self._of_convolution(place, node)
        shortcut = None
        if block.addition is not None:
            addition = self.view.nodes[block.addition]
            side = self.shortcuts[addition.output[0]]
            shortcut = self.readings.is_dequantized(addition.input[side])
            findings += self._of_addition(block.addition, addition, side)
        for place, node in nodes:
            findings += self._of_other(place, node)
        return BlockReport(block.name, (sum(self.is_int8(node) for _, node in convolutions), len(convolutions)), shortcut, tuple(findings))

    def is_int8(self, node: onnx.NodeProto) -> bool:
        """Does a convolution read INT8? TensorRT-RTX's transposed ones never do."""
        return node.op_type == "Conv" and self.readings.of_input(node.input[0]).type == self.readings.of_weight(node.input[1]).type == "INT8"

    def _of_convolution(self, place: int, node: onnx.NodeProto) -> Iterator[Finding]:
        if node.op_type not in ("Conv", "ConvTranspose"):
            return  # refused
        both = {"input": self.readings.of_input(node.input[0]), "weight": self.readings.of_weight(node.input[1])}
        floats = [what for what, reading in both.items() if not reading.is_quantized]
        reasons = [reading.reason for reading in both.values() if reading.reason]
        if any(reading.type == UNKNOWN for reading in both.values()):
            yield Finding("unknown", told(node), f"whether it runs in INT8 cannot be told: {'; '.join(reasons)}", place)
        elif reasons:
            yield Finding("not fused", told(node), f"runs in float: {'; '.join(reasons)}", place)
        elif len(floats) == 2 and place in self.left_in_float:
            yield Finding("left in float", told(node), self.left_in_float[place], place)
        elif floats:
            yield Finding(
                "not fused", told(node), f"runs in float: its {' and '.join(floats)} {'is' if len(floats) == 1 else 'are'} not quantized", place
            )
        elif node.op_type == "ConvTranspose":
            yield Finding("not fused", told(node), "runs in float: TensorRT-RTX has no transposed convolution of INT8; leave it in float", place)
        for pair, activation in self._pairs_before_activation(node.output[0]):
            message = f"'{pair.name or pair.op_type}' stands between it and its {_called(activation)}; quantize after the {_called(activation)}"
            yield Finding("not fused", told(node), message, place)

    def _pairs_before_activation(self, tensor: str) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
        """The QuantizeLinear nodes between a convolution, with its batch norm and bias, and its activation."""
        for user in self.view.users(tensor):
            if user.op_type == QUANTIZE:
                behind = [one for back in self.view.users(user.output[0]) for one in self.view.users(back.output[0])]
                yield from ((user, one) for one in behind if one.op_type in ACTIVATIONS)
            elif self._is_affine(user, tensor):
                yield from self._pairs_before_activation(user.output[0])

    def _is_affine(self, node: onnx.NodeProto, tensor: str) -> bool:
        others = [name for name in node.input if name and name != tensor]
        return node.op_type in AFFINE and self.view.constants.names.issuperset(others) and tensor in node.input

    def _convolution_behind(self, name: str) -> onnx.NodeProto | None:
        """What makes a tensor; of a batch norm or a bias, the node whose output it is of."""
        node = self.view.producer(name)
        while node is not None and node.op_type in BIASES:
            computed = [one for one in node.input if one and one not in self.view.constants.names]
            before = self.view.producer(computed[0]) if len(computed) == 1 else None
            if before is None:
                break
            node = before
        return node

    def _of_addition(self, place: int, node: onnx.NodeProto, shortcut: int) -> Iterator[Finding]:
        sides = self.readings.is_dequantized(node.input[shortcut]), self.readings.is_dequantized(node.input[1 - shortcut])
        main = self._convolution_behind(node.input[1 - shortcut])
        if not any(sides) and (main is None or main.op_type not in CONVOLUTIONS):
            before = "the graph's input" if main is None else f"{_quoted(main)} ({main.op_type})"
            yield Finding("left in float", told(node), f"it follows {before}: there is no convolution to take it in", place)
            return
        message = {
            (True, False): None,
            (True, True): "both inputs are quantized, so the convolution before it cannot take it in; quantize the shortcut alone",
            (False, True): "the convolution's branch is quantized in place of the shortcut; quantize the shortcut alone",
            (False, False): "the shortcut is not quantized, so the addition runs in float; quantize it",
        }[sides]
        if message is not None:
            yield Finding("not fused", told(node), message, place)

    def _of_other(self, place: int, node: onnx.NodeProto) -> Iterator[Finding]:
        users = {user.op_type for user in self.view.users(node.output[0])} if node.output else set()
        if node.op_type == "MaxPool" and not self.readings.is_quantized(node.input[0]) and users == {QUANTIZE}:
            yield Finding("not fused", told(node), "the pool runs in float between INT8 layers; quantize its input", place)
        if node.op_type in ("GlobalAveragePool", "Gemm", "ReduceMean") and self.readings.is_quantized(node.input[0]):
            yield Finding("not fused", told(node), f"a quantized {node.op_type} gains little and costs accuracy; leave it in float", place)
        computed = [name for name in node.input if name not in self.view.constants.names]
        if node.op_type in ADDITIONS and len(computed) > 2 and any(self.readings.is_quantized(name) for name in computed):
            yield Finding("unknown", told(node), f"which of {len(computed)} tensors a convolution takes in is not known; add two at a time", place)


def _called(node: onnx.NodeProto) -> str:
    return "ReLU" if node.op_type == "Relu" else str(node.op_type)


def _quoted(node: onnx.NodeProto) -> str:
    return f"'{node.name}'" if node.name else told(node)


__all__ = ["DEQUANTIZE", "QUANTIZE", "BlockReport", "Finding", "QdqReport", "int8_convolutions", "lint"]
