"""Lint a Q/DQ graph for processors: find what keeps a convolution, an addition or a classifier from an integer kernel.

The rules are those that `exporter.lowering.qdq.targets.cpu` places pairs by; `tests/lowering/test_lint_cpu.py` holds
them against the kernels that onnxruntime runs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from exporter.graph.blocks import Block, blocks, residuals
from exporter.graph.facts import inline_functions
from exporter.graph.inference import inferred_graphs
from exporter.lowering.lint.findings import Finding, Problem, findings_at
from exporter.lowering.lint.rules import RULES
from exporter.lowering.qdq.lint import BlockReport, Int8Count, QdqReport
from exporter.lowering.qdq.targets._float import places_left_in_float
from exporter.lowering.qdq.targets.cpu import ACTIVATIONS, first_convolutions
from exporter.lowering.qdq.view import DEQUANTIZE, QUANTIZE, View

BYTES = ("INT8", "UINT8")
OVERFLOWS = "x86 processors without VNNI may overflow"
LARGEST_SAFE = 64
"""Of the weights, whose products with unsigned bytes add up in 16 bits: 2 * 255 * 64 < 2**15."""


def lint_for_processors(model: onnx.ModelProto) -> QdqReport | None:
    """Find how onnxruntime's and OpenVINO's CPU kernels run a quantized graph; None for one without quantization.

    A block's `shortcut` says whether its addition runs on integers. Graphs inside of nodes are not looked at.
    """
    model = inline_functions(model)
    if not any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in model.graph.node):
        return None
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    linted = _LintedGraph(View(inferred_graphs(model)[0], None, opset))
    return QdqReport(tuple(linted.report(block) for block in blocks(model.graph)))


class _LintedGraph:
    def __init__(self, view: View) -> None:
        self.view, graph = view, view.scope.graph
        self.left_in_float = places_left_in_float(graph)
        self.additions = {residual.addition.output[0] for residual in residuals(graph)}
        self.outputs = {value.name for value in graph.output}
        self.first = {node.output[0] for node in first_convolutions(graph)}

    def report(self, block: Block) -> BlockReport:
        findings: list[Finding] = []
        integers, convolutions, addition = 0, 0, None
        for place in block.nodes:
            node = self.view.nodes[place]
            is_addition = bool(node.output) and node.output[0] in self.additions
            if node.op_type not in ("Conv", "Gemm") and not is_addition:
                continue
            problems = list(self._problems(place, node))
            runs = not any(RULES[rule].kind in ("runs in float", "left in float") for rule, _ in problems)
            if is_addition:
                addition = runs
            elif node.op_type == "Conv":
                convolutions, integers = convolutions + 1, integers + runs
            findings += findings_at(place, node, problems)
        return BlockReport(block.name, Int8Count(integers, convolutions), addition, tuple(findings))

    def _problems(self, place: int, node: onnx.NodeProto) -> Iterator[Problem]:
        if place in self.left_in_float:
            yield "RE710", self.left_in_float[place]
            return
        if node.op_type == "Gemm":
            yield from self._classifier_problems(node)
            return
        pairs = [self.view.producer(name) for name in node.input[:2]]
        names = ("input", "weight") if node.op_type == "Conv" else ("first input", "second input")
        for name, pair in zip(names, pairs, strict=True):
            if pair is None or pair.op_type != DEQUANTIZE:
                yield "RE701", f"its {name} is not quantized; quantize it"
            elif self.view.type(pair.input[1]) != "FLOAT":
                yield "RE702", f"the scale of its {name} is {self.view.type(pair.input[1])}; take FLOAT"
            elif self.view.type(pair.input[0]) not in BYTES:
                yield "RE703", f"its {name} is {self.view.type(pair.input[0])}; take UINT8 or INT8"
        ends = self._ends(node.output[0])
        if not ends or any(end.op_type != QUANTIZE for end, _ in ends):
            yield "RE704", "not all that reads its output reads it quantized; quantize it once, for all"
            return
        read = self.view.type(pairs[0].input[0]) if pairs[0] is not None and pairs[0].op_type == DEQUANTIZE else "?"
        for end, is_activated in ends:
            made, zero = self.view.quantized_type(end), self._zero_point(end)
            if read in BYTES and made != read:
                yield "RE705", f"it reads {read} and makes {made}; take one type for both"
            elif is_activated and zero != {"UINT8": 0, "INT8": -128}.get(made):
                yield "RE706", f"its ReLU stays, since zero is {zero} in {made}; take UINT8 with zero point 0"
        if node.op_type == "Conv" and node.output[0] in self.first and self._is_wide(pairs[1]):
            yield "RE708", f"{OVERFLOWS}: its input is full-range, and its weights have 8 bits; take 7"

    def _classifier_problems(self, node: onnx.NodeProto) -> Iterator[Problem]:
        """Of a matrix product whose input and weight are quantized."""
        pairs = [self.view.producer(name) for name in node.input[:2]]
        if any(pair is None or pair.op_type != DEQUANTIZE for pair in pairs):
            return
        bias, ends = [self.view.producer(name) for name in node.input[2:]], self._ends(node.output[0])
        has_float_bias = any(one is None or one.op_type != DEQUANTIZE for one in bias)
        if has_float_bias and not (ends and all(end.op_type == QUANTIZE for end, _ in ends)):
            yield "RE707", "its bias is float, and its output is not quantized; add the bias behind it"
        elif self._is_wide(pairs[1]):
            yield "RE709", f"{OVERFLOWS}: its weights have 8 bits; take 7"

    def _ends(self, tensor: str) -> list[tuple[onnx.NodeProto, bool]]:
        """What reads a tensor, or what its only reader makes of it, if that is an activation; and whether it is one."""
        found = self.view.users(tensor)
        if tensor in self.outputs:
            return []
        if len(found) == 1 and found[0].op_type in ACTIVATIONS:
            return [(node, True) for node, _ in self._ends(found[0].output[0])]
        return [(node, False) for node in found]

    def _zero_point(self, node: onnx.NodeProto) -> int | None:
        if len(node.input) < 3 or not node.input[2]:
            return 0
        value = self.view.constants.value(node.input[2])
        return None if value is None or value.size != 1 else int(value.ravel()[0])

    def _is_wide(self, pair: onnx.NodeProto | None) -> bool:
        value = None if pair is None else self.view.constants.value(pair.input[0])
        return value is not None and value.dtype == np.int8 and int(np.abs(value.astype(np.int16)).max()) > LARGEST_SAFE
