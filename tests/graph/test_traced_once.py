"""What the tests share of exports: a graph is taken again for the same program, and for no other."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import traced_once
from onnx import helper
from torch import nn
from torch.export import ExportedProgram

from exporter.graph.trace import program_from_module
from runtimes.specs import BatchRange

BATCH = BatchRange(1, 2, 4)


def program(change: Callable[[nn.Sequential], object] = lambda module: None, name: str = "head") -> ExportedProgram:
    torch.manual_seed(0)
    module = nn.Sequential()
    module.add_module("conv", nn.Conv2d(1, 2, 3))
    module.add_module("norm", nn.BatchNorm2d(2))
    module.add_module(name, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    change(module)
    return program_from_module(module, (1, 8, 8))


def one_weight(module: nn.Sequential) -> None:
    with torch.no_grad():
        module.get_parameter("conv.weight")[1, 0, 2, 2] += 1e-6


def one_statistic(module: nn.Sequential) -> None:
    module.get_buffer("norm.running_mean")[1] += 1e-6


def another_stride(module: nn.Sequential) -> None:
    conv = module.get_submodule("conv")
    assert isinstance(conv, nn.Conv2d)
    conv.stride = (2, 2)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Asks for graphs, and says the numbers of those that were made, which count up."""
    made: list[int] = []

    def make(program: ExportedProgram, *, opset: int, batch: BatchRange, outputs: Sequence[str]) -> onnx.ModelProto:
        made.append(len(made))
        return helper.make_model(helper.make_graph([], str(made[-1]), [], []))

    build: Any = types.ModuleType("build")
    build.onnx_from_program = make
    monkeypatch.setitem(sys.modules, traced_once.BUILD, build)
    for _ in range(2):
        traced_once.trace_once(tmp_path)

    def ask(*programs: ExportedProgram, **request: Any) -> list[int]:
        given = {"opset": 20, "batch": BATCH, "outputs": ("logits",), **request}
        return [int(build.onnx_from_program(one, **given).graph.name) for one in programs]

    return ask


def test_equal_programs_share_a_graph(asked: Callable[..., list[int]]) -> None:
    assert asked(program(), program()) == [0, 0]
    assert asked(program()) == [0]


def test_whatever_differs_is_another_graph(asked: Callable[..., list[int]]) -> None:
    others = (program(one_weight), program(one_statistic), program(another_stride), program(name="top"))
    assert asked(program(), *others) == [0, 1, 2, 3, 4]
    assert asked(program(), opset=21) == [5]
    assert asked(program(), batch=BatchRange(1, 1, 1)) == [6]
    assert asked(program(), outputs=("features",)) == [7]
