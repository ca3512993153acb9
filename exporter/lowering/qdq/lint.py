"""Lint any Q/DQ graph, made here or elsewhere: find what TensorRT will refuse, and what it will not fuse.

The rules for what is refused and for what a convolution reads were measured on TensorRT-RTX's parser and builder
(`exporter.lowering.qdq.refusals`, `exporter.lowering.qdq.reading`); those for what is fused are NVIDIA's placement
rules (`exporter.lowering.qdq.targets.tensorrt`), since TensorRT-RTX fuses nothing. One more rule is for those who
open the file in a plain session of onnxruntime (`exporter.lowering.qdq.onnxruntime_biases`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx

from exporter.graph.blocks import ADDITIONS, Block, blocks, residuals
from exporter.graph.facts import CONVOLUTIONS, inline_functions
from exporter.graph.inference import inferred_graphs
from exporter.lowering.lint.findings import Finding, Problem, findings_at
from exporter.lowering.qdq.onnxruntime_biases import bias_problems
from exporter.lowering.qdq.reading import Readings
from exporter.lowering.qdq.refusals import refusals
from exporter.lowering.qdq.targets.tensorrt import places_left_in_float
from exporter.lowering.qdq.view import DEQUANTIZE, QUANTIZE, UNKNOWN, View, node_label

QUANTIZED = re.compile(r"Q[A-Z]|.*([Qq]uantize|Integer$|NBits)")
"""Operators of quantized graphs alone: ONNX's, and ONNX Runtime's own."""
# fmt: off
ACTIVATIONS = (
    "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu",
    "Mish", "Softplus", "Swish",
)
# fmt: on
AFFINE = ("BatchNormalization", "Add", "Sub", "Mul", "Div", "Identity", "Cast")
"""Operators that TensorRT fuses into the convolution before them, if all but one of their inputs are constant."""
BIASES = ("BatchNormalization", "Add", "Sub", "Identity", "Cast")
"""Those behind which it fuses an addition too, as NVIDIA documents; our placement leaves additions behind others in
float."""


class Int8Count(NamedTuple):
    """How many of `total` are INT8."""

    int8: int
    total: int


@dataclass(frozen=True)
class BlockReport:
    """How TensorRT runs the stem, a residual block, the head, or a graph inside an If or a Loop.

    Attributes:
        name: such as `layer1.0`.
        convolutions: how many run in INT8, of all, including transposed ones.
        shortcut: whether the shortcut of its addition is INT8; None without an addition.
        findings: everything that is refused, computed otherwise, not fused, left in float, or not known; empty if all
            of it fuses. `other values in onnxruntime` is none of TensorRT's.
    """

    name: str
    convolutions: Int8Count
    shortcut: bool | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class QdqReport:
    """How TensorRT runs a quantized graph, block by block."""

    blocks: tuple[BlockReport, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of all blocks."""
        return tuple(finding for block in self.blocks for finding in block.findings)

    @property
    def convolutions(self) -> Int8Count:
        """How many convolutions of the graph run in INT8."""
        counts = [block.convolutions for block in self.blocks]
        return Int8Count(sum(count.int8 for count in counts), sum(count.total for count in counts))

    @property
    def shortcuts(self) -> Int8Count:
        """How many residual shortcuts of the graph are INT8."""
        known = [block.shortcut for block in self.blocks if block.shortcut is not None]
        return Int8Count(sum(known), len(known))

    @property
    def refused(self) -> bool:
        """Whether TensorRT refuses the graph."""
        return any(finding.kind == "refused" for finding in self.findings)

    @property
    def unknown(self) -> bool:
        """Whether it cannot be told how TensorRT runs the graph; false for one that it refuses anyway."""
        return not self.refused and any(finding.kind == "unknown" for finding in self.findings)


def lint(model: onnx.ModelProto) -> QdqReport | None:
    """Find how TensorRT runs a quantized graph; None for a graph without quantization.

    Weights in other files need not be loaded.
    """
    model = inline_functions(model)
    return report_of_views(model, views_of(model))


def views_of(model: onnx.ModelProto) -> tuple[View, ...]:
    """The model's own graph, followed by every graph inside a node; local functions must be inlined."""
    opset = next(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        onnx.defs.onnx_opset_version(),
    )
    functions = frozenset((one.domain, one.name) for one in model.functions)
    views: list[View] = []
    for scope in inferred_graphs(model):
        views.append(View(scope, None if scope.owner is None else views[scope.owner.graph], opset, functions))
    return tuple(views)


def report_of_views(model: onnx.ModelProto, views: Sequence[View]) -> QdqReport | None:
    """As `lint`, for a model without local functions and its views."""
    if not any(QUANTIZED.match(node.op_type) for view in views for node in view.nodes):
        return None
    linted = [_LintedGraph(view) for view in views]
    reports = [linted[0].report(block) for block in blocks(model.graph)]
    for one in linted[1:]:
        report = one.report(Block(inner_name(views, one.view), tuple(range(len(one.view.nodes))), None, ()))
        reports += [report] if report.convolutions.total or report.findings else []
    return QdqReport(tuple(reports))


def int8_convolutions(model: onnx.ModelProto) -> dict[int, bool]:
    """The convolutions of the model's own graph: place among its nodes -> whether it reads INT8."""
    linted = _LintedGraph(View(inferred_graphs(inline_functions(model))[0], None, onnx.defs.onnx_opset_version()))
    return {place: linted.is_int8(node) for place, node in enumerate(linted.view.nodes) if node.op_type in CONVOLUTIONS}


def inner_name(views: Sequence[View], view: View) -> str:
    """The name of a graph inside a node, for messages: the node's and the attribute's; empty for the model's own."""
    if view.scope.owner is None:
        return ""
    outer, place = view.scope.owner
    return f"{node_label(views[outer].nodes[place])}.{view.scope.attribute}"


class _LintedGraph:
    """A graph with the readings of its tensors."""

    def __init__(self, view: View) -> None:
        self.view, self.readings = view, Readings(view)
        self.shortcuts = {residual.addition.output[0]: residual.shortcut for residual in residuals(view.scope.graph)}
        self.left_in_float = places_left_in_float(view.scope.graph)

    def report(self, block: Block) -> BlockReport:
        """How TensorRT runs a block of the graph."""
        nodes = [(place, self.view.nodes[place]) for place in block.nodes]
        findings = [finding for place, _ in nodes for finding in refusals(self.view, self.readings, place)]
        convolutions = [(place, node) for place, node in nodes if node.op_type in CONVOLUTIONS]
        for place, node in convolutions:
            findings += findings_at(place, node, self._check_convolution(place, node))
        shortcut = None
        if block.addition is not None:
            addition = self.view.nodes[block.addition]
            side = self.shortcuts[addition.output[0]]
            shortcut = self.readings.is_dequantized(addition.input[side])
            findings += findings_at(block.addition, addition, self._check_addition(addition, side))
        for place, node in nodes:
            findings += findings_at(place, node, self._check_other(node))
            findings += findings_at(place, node, bias_problems(self.view, node))
        return BlockReport(
            block.name,
            Int8Count(sum(self.is_int8(node) for _, node in convolutions), len(convolutions)),
            shortcut,
            tuple(findings),
        )

    def is_int8(self, node: onnx.NodeProto) -> bool:
        """Whether a convolution reads INT8; TensorRT-RTX's transposed ones never do."""
        return (
            node.op_type == "Conv"
            and self.readings.of_input(node.input[0]).type == self.readings.of_weight(node.input[1]).type == "INT8"
        )

    def _check_convolution(self, place: int, node: onnx.NodeProto) -> Iterator[Problem]:
        if node.op_type not in ("Conv", "ConvTranspose"):
            return  # such as ConvInteger, which is refused
        both = {"input": self.readings.of_input(node.input[0]), "weight": self.readings.of_weight(node.input[1])}
        floats = [what for what, reading in both.items() if not reading.is_quantized]
        reasons = [(reading.rule, reading.reason) for reading in both.values() if reading.reason]
        if node.op_type == "ConvTranspose" and (reasons or not floats):
            yield "RE212", "runs in float: TensorRT-RTX has no transposed convolution of INT8; leave it in float"
        elif any(reading.type == UNKNOWN for reading in both.values()):
            yield "RE220", f"whether it runs in INT8 cannot be told: {'; '.join(reason for _, reason in reasons)}"
        elif reasons:
            for rule, reason in reasons:
                yield rule, f"runs in float: {reason}"
        elif len(floats) == 2 and place in self.left_in_float:
            yield "RE221", self.left_in_float[place]
        elif floats:
            verb = "is" if len(floats) == 1 else "are"
            yield "RE201", f"runs in float: its {' and '.join(floats)} {verb} not quantized"
        for pair, activation in self._pairs_before_activation(node.output[0]):
            name = _activation_name(activation)
            yield (
                "RE213",
                f"'{pair.name or pair.op_type}' stands between it and its {name}; quantize after the {name}",
            )

    def _pairs_before_activation(self, tensor: str) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
        """The QuantizeLinear nodes between a convolution's output and its activation, each with that activation.

        The convolution's batch norm and bias belong to it.
        """
        for user in self.view.users(tensor):
            if user.op_type == QUANTIZE:
                behind = [one for back in self.view.users(user.output[0]) for one in self.view.users(back.output[0])]
                yield from ((user, one) for one in behind if one.op_type in ACTIVATIONS)
            elif self._is_affine(user, tensor):
                yield from self._pairs_before_activation(user.output[0])

    def _is_affine(self, node: onnx.NodeProto, tensor: str) -> bool:
        others = [name for name in node.input if name and name != tensor]
        return node.op_type in AFFINE and self.view.constants.names.issuperset(others) and tensor in node.input

    def _convolution_before(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, or, if that is a batch norm or a bias, the node before it."""
        node = self.view.producer(name)
        while node is not None and node.op_type in BIASES:
            computed = [one for one in node.input if one and one not in self.view.constants.names]
            before = self.view.producer(computed[0]) if len(computed) == 1 else None
            if before is None:
                break
            node = before
        return node

    def _check_addition(self, node: onnx.NodeProto, shortcut: int) -> Iterator[Problem]:
        is_quantized = self.readings.is_dequantized(node.input[shortcut])
        main_is_quantized = self.readings.is_dequantized(node.input[1 - shortcut])
        main = self._convolution_before(node.input[1 - shortcut])
        if is_quantized and main_is_quantized:
            both = "both inputs are quantized, so the convolution before it cannot take it in"
            yield "RE214", f"{both}; quantize the shortcut alone"
        elif main_is_quantized:
            other = "the convolution's branch is quantized in place of the shortcut"
            yield "RE215", f"{other}; quantize the shortcut alone"
        elif not is_quantized and (main is None or main.op_type not in CONVOLUTIONS):
            before = "the graph's input" if main is None else f"{_quoted_label(main)} ({main.op_type})"
            yield "RE222", f"it follows {before}: there is no convolution to take it in"
        elif not is_quantized:
            yield "RE216", "the shortcut is not quantized, so the addition runs in float; quantize it"

    def _check_other(self, node: onnx.NodeProto) -> Iterator[Problem]:
        users = {user.op_type for user in self.view.users(node.output[0])} if node.output else set()
        if node.op_type == "MaxPool" and not self.readings.is_quantized(node.input[0]) and users == {QUANTIZE}:
            yield "RE217", "the pool runs in float between INT8 layers; quantize its input"
        if node.op_type in ("GlobalAveragePool", "Gemm", "ReduceMean") and self.readings.is_quantized(node.input[0]):
            yield "RE218", f"a quantized {node.op_type} gains little and costs accuracy; leave it in float"
        computed = [name for name in node.input if name not in self.view.constants.names]
        is_wide = node.op_type in ADDITIONS and len(computed) > 2
        if is_wide and any(self.readings.is_quantized(name) for name in computed):
            many = f"which of {len(computed)} tensors a convolution takes in is not known"
            yield "RE219", f"{many}; add two at a time"


def _activation_name(node: onnx.NodeProto) -> str:
    return "ReLU" if node.op_type == "Relu" else str(node.op_type)


def _quoted_label(node: onnx.NodeProto) -> str:
    return f"'{node.name}'" if node.name else node_label(node)


__all__ = ["DEQUANTIZE", "QUANTIZE", "BlockReport", "Finding", "QdqReport", "int8_convolutions", "lint"]
