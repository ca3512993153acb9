"""The Q/DQ linter against TensorRT-RTX: residual blocks, local functions and branches."""

from __future__ import annotations

import re

import pytest
import qdq_graphs as made
from lint_judge import held_against, judged

from exporter.lowering.qdq.lint import lint

LATER = "the shortcut is not quantized, so the addition runs in float"
BOTH = "both inputs are quantized, so the convolution before it cannot take it in"
BLOCKS: list[tuple[tuple[str, ...], dict[str, str], list[tuple[str, str]]]] = [
    ((), {}, []),
    (("float shortcut",), {}, [("Add", LATER)]),
    (("main",), {}, [("Add", BOTH)]),
    ((), {"addition": "Sum"}, []),
    (("float shortcut",), {"addition": "Sum"}, [("Sum", LATER)]),
    (("main",), {"addition": "Sum"}, [("Sum", BOTH)]),
    (("norm",), {}, []),
    (("norm", "float shortcut"), {}, [("Add", LATER)]),
    (("norm", "inside"), {}, [("Conv", "'QuantizeLinear' stands between it and its ReLU")]),
    (("bias",), {}, []),
    (("bias", "float shortcut"), {}, [("Add", LATER)]),
    (("bias", "inside"), {}, [("Conv", "'QuantizeLinear' stands between it and its ReLU")]),
    (("inside",), {"activation": "Clip"}, [("Conv", "'QuantizeLinear' stands between it and its Clip")]),
    (("inside",), {"activation": "LeakyRelu"}, [("Conv", "'QuantizeLinear' stands between it and its LeakyRelu")]),
]


@pytest.mark.parametrize(("turns", "more", "said"), BLOCKS)
def test_what_keeps_a_residual_block_from_fusing_is_told_by_its_node(
    turns: tuple[str, ...], more: dict[str, str], said: list[tuple[str, str]]
) -> None:
    model = made.residual(*turns, **more)
    report = held_against(model)
    assert [(model.graph.node[one.place].op_type, one.message.split(";")[0]) for one in report.findings] == said
    assert (len(report.blocks), report.convolutions) == (3, (3, 3))
    assert report.shortcuts == (0 if "float shortcut" in turns else 1, 1)


def test_nodes_without_names_are_told_apart() -> None:
    model = made.residual("gate", "float shortcut")
    report = held_against(model)
    assert [(finding.kind, model.graph.node[finding.place].op_type) for finding in report.findings] == [
        ("left in float", "Conv"),  # the gate's, and it alone, whose ReduceMean has its axes as an attribute
        ("left in float", "Add"),
    ]
    assert len({finding.node for finding in report.findings}) == 2
    assert all(finding.node.endswith("'") for finding in report.findings)
    assert report.convolutions == (3, 4)


def test_three_tensors_added_at_once_are_no_residual_block() -> None:
    report = held_against(made.residual("third", addition="Sum"))
    assert [finding.kind for finding in report.findings] == ["unknown"]
    assert report.shortcuts == (0, 0)


def test_what_stands_in_a_local_function_is_read_like_the_rest() -> None:
    model = made.in_function()
    report, verdict = lint(model), judged(model)
    assert report is not None
    assert (report.convolutions, report.findings, verdict.refusal) == ((1, 1), (), "")
    assert set.union(*verdict.reads.values()) == {"int8"}


@pytest.mark.parametrize(("where", "quantized"), [("inside", 1), ("outside", 0)])
def test_quantization_is_not_carried_into_an_if(where: str, quantized: int) -> None:
    model = made.branching(where)
    report, verdict = lint(model), judged(model)
    assert report is not None
    assert not report.refused
    found = {block.name.rpartition(".")[2]: block.convolutions for block in report.blocks if block.convolutions[1]}
    assert found == {"then_branch": (quantized, 1), "else_branch": (0, 1)}
    reads = {
        match[1]: kinds
        for name, kinds in verdict.reads.items()
        if (match := re.search(r"\| (quantized|float) \(", name))
    }
    assert reads == {"quantized": {"int8" if quantized else "fp32"}, "float": {"fp32"}}
