"""Find what a stranger's file gives, and take the Softmax behind its logits off, in place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from exporter.graph.intake.wiring import Wiring, drop_unused, rename_tensor, replace_nodes
from exporter.graph.naming import distinct
from runtimes.parity.compare import LOGITS, PROBABILITIES
from runtimes.source_runtime import CLASSIFIERS, INPUT

THROUGH = (
    "Identity", "Cast", "Flatten", "Reshape", "Squeeze", "Softmax", "LogSoftmax", "Sigmoid", "QuantizeLinear",
    "DequantizeLinear", "Add", "Mul", "Div",
)  # fmt: skip
"""What may stand between the matrix product of a classifier and the graph's output."""
PRODUCTS = ("Gemm", "MatMul", "Conv", "QGemm", "QLinearMatMul", "QLinearConv")
SCORES = ("Softmax", "LogSoftmax", "Sigmoid")
"""They turn logits into other scores."""


@dataclass(frozen=True)
class Head:
    """What a file gives.

    Attributes:
        outputs: the bundle's name of each output -> the tensor of the file that it is.
        classes: of the logits; 0 where there are none, or other outputs beside them.
        softmax: the operator that was behind the logits and is to be taken off; empty where there is none.
    """

    outputs: dict[str, str]
    classes: int
    softmax: str = ""


def head_of(graph: onnx.GraphProto, answers: Mapping[str, NDArray[Any]], *, keep_softmax: bool) -> Head:
    """What a graph gives: logits where an output has classes, features elsewhere.

    An output has classes where it has one row of several values an image, and a matrix product or a 1x1 convolution
    makes it, a Softmax ends it, or it is called `logits` or `probabilities`. Those names are for such outputs alone.

    Args:
        answers: the outputs for one image, by name.
        keep_softmax: a Softmax behind the logits stays; they are `probabilities` then. So it does where something else
            than a change of shape stands behind it.
    """
    wiring = Wiring(graph)
    scored = {name: tensor for name in answers if (tensor := _logits_behind(wiring, name, answers[name])) is not None}
    if len(scored) == 1:
        ((name, tensor),) = scored.items()
        score = _score_operator(wiring, name)
        is_kept = bool(score) and (keep_softmax or score != "Softmax" or tensor == name)
        called, of = (PROBABILITIES, name) if is_kept else (LOGITS, tensor)
    else:
        name, called, of, score, is_kept = "", "", "", "", True
    outputs: dict[str, str] = {}
    for one in answers:
        wish = called if one == name else _clean(one)
        is_scores = wish in CLASSIFIERS and one in scored and called in ("", wish) and answers[one].ndim == 2
        is_taken = wish in (*CLASSIFIERS, INPUT) and one != name and not is_scores
        outputs[distinct(wish, {*outputs, wish} if is_taken else set(outputs))] = of if one == name else one
    alone = len(answers) == 1 and name
    return Head(outputs, int(answers[name].size) if alone else 0, "" if is_kept else score)


def take_off_softmax(graph: onnx.GraphProto, outputs: Mapping[str, str]) -> str:
    """Let a graph return its logits in place of what a Softmax makes of them.

    Returns:
        what was done, in words.
    """
    tensor = outputs[LOGITS]
    wiring = Wiring(graph)
    for value in graph.output:
        if _logits_behind_softmax(wiring, value.name) == tensor:
            value.name = tensor
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            value.type.tensor_type.ClearField("shape")
    drop_unused(graph)
    return "Softmax behind the logits removed"


def flatten_logits(graph: onnx.GraphProto, tensor: str) -> str:
    """Let a graph return logits (batch, classes) in place of (batch, classes, 1, 1).

    Returns:
        what was done, in words.
    """
    inner = f"{tensor}.unflattened"
    rename_tensor(graph, tensor, inner)
    last = helper.make_node("Flatten", [inner], [tensor], name=f"{tensor}.flatten", axis=1)
    replace_nodes(graph, [*graph.node, last])
    value = next(one for one in graph.output if one.name == tensor)
    value.type.tensor_type.ClearField("shape")
    return "logits of (batch, classes, 1, 1) flattened"


def _logits_behind(wiring: Wiring, name: str, answer: NDArray[Any]) -> str | None:
    """The tensor of logits that an output is, or is made from; None for an output without classes."""
    if not 2 <= answer.ndim <= 4 or len(answer) != 1 or answer.shape[1] < 2 or answer.size != answer.shape[1]:
        return None
    chain = list(_chain(wiring, name))
    if _clean(name) in CLASSIFIERS or any(node.op_type in ("Softmax", "LogSoftmax") for node in chain):
        return _logits_behind_softmax(wiring, name)
    if not chain or chain[-1].op_type not in PRODUCTS:
        return None
    if chain[-1].op_type in ("Conv", "QLinearConv") and answer.ndim == 2 and not _is_pooled(wiring, chain[-1]):
        return None
    return _logits_behind_softmax(wiring, name)


def _chain(wiring: Wiring, name: str) -> Iterator[onnx.NodeProto]:
    """The nodes that make an output, from the last one on to the first that is not to be looked through."""
    node = wiring.makers.get(name)
    while node is not None:
        yield node
        computed = [one for one in node.input if one and one not in wiring.constants]
        is_one = len(computed) == 1 or (computed and node.op_type in ("QuantizeLinear", "DequantizeLinear"))
        node = wiring.makers.get(computed[0]) if node.op_type in THROUGH and is_one else None


def _is_pooled(wiring: Wiring, node: onnx.NodeProto) -> bool:
    """Is a convolution that of a head: does it read one pixel?"""
    before = wiring.makers.get(node.input[0])
    while before is not None and before.op_type in ("QuantizeLinear", "DequantizeLinear", "Reshape", "Relu"):
        before = wiring.makers.get(before.input[0])
    return before is not None and ("Pool" in before.op_type or before.op_type.startswith("Reduce"))


def _logits_behind_softmax(wiring: Wiring, name: str) -> str:
    """The input of the Softmax that makes an output, also through a Reshape; the output where there is none."""
    tensor = name
    while (node := wiring.makers.get(tensor)) is not None:
        if node.op_type == "Softmax":
            return str(node.input[0])
        if node.op_type not in ("Identity", "Reshape", "Flatten", "Squeeze"):
            break
        tensor = node.input[0]
    return name


def _score_operator(wiring: Wiring, name: str) -> str:
    """The operator that turns logits into the scores of an output; empty where it gives logits."""
    return next((str(node.op_type) for node in _chain(wiring, name) if node.op_type in SCORES), "")


def _clean(name: str) -> str:
    """A name of letters, digits, dots, dashes and underscores; an output number of 0 is left out."""
    return re.sub(r"[^\w.-]+", "_", name.removesuffix(":0")).strip("_") or "output"
