"""What the linter finds: a rule, a node, and a message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx

from exporter.lowering.lint.rules import RULES, Kind, Severity
from exporter.lowering.qdq.view import node_label

Problem = tuple[str, str]
"""The id of a rule, and what is wrong and what to do in this place."""
OF_THE_FILE = -1
"""The place of a finding that belongs to no node."""


@dataclass(frozen=True)
class Finding:
    """One finding about a node, or about the file.

    Attributes:
        kind: `refused`: TensorRT refuses the graph for it; `other values`: it computes other values than ONNX there;
            `not fused`: it leaves something unfused; `left in float`: the node is better left in float; `slower`: it
            costs time; `out of range`: a number is not what was meant; `unknown`: none of these can be told. `other
            values in onnxruntime`, `refused by onnxruntime`: TensorRT is right, a plain session of onnxruntime not.
            On processors, `runs in float`: it has no integer kernel; `may overflow`: it has one that is wrong on some.
            `not on DLA`: it runs on the GPU.
        node: the node's name, or a description of one without; the file's part, such as `opset`, without a node.
        message: what is wrong, and what to do.
        place: the node's place in its graph: names may be missing, or the same twice; -1 without a node.
        rule: the id of the rule, such as `RE101`.
    """

    kind: Kind
    node: str
    message: str
    place: int
    rule: str

    @property
    def severity(self) -> Severity:
        """`error`, `warning` or `note`: the rule's."""
        return RULES[self.rule].severity


def finding(problem: Problem, node: str, place: int = OF_THE_FILE) -> Finding:
    """The finding of a problem."""
    rule, message = problem
    return Finding(RULES[rule].kind, node, message, place, rule)


def findings_at(place: int, node: onnx.NodeProto, problems: Iterable[Problem]) -> Iterator[Finding]:
    """The findings of a node's problems."""
    for problem in problems:
        yield finding(problem, node_label(node), place)
