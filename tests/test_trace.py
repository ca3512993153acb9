"""The traced graph is clean, readable, and refused where torch got it wrong."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from exporter.models.cifar import CifarResNet
from exporter.trace import IR_VERSION, onnx_from_program, program_from_module
from runtimes import BatchRange
from runtimes.errors import TraceError

SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return program_from_module(CifarResNet(1, 1, 10), SHAPE)


def test_the_graph_has_the_names_versions_and_free_batch_of_the_contract(program: torch.export.ExportedProgram) -> None:
    model = onnx_from_program(program, opset=20, batch=BatchRange(1, 8, 32))
    (source,), (result,) = model.graph.input, model.graph.output
    assert (source.name, result.name) == ("input", "logits")
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in (source, result)] == ["batch", "batch"]
    assert model.ir_version == IR_VERSION
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]


def test_a_static_batch_is_a_number_in_the_graph(program: torch.export.ExportedProgram) -> None:
    model = onnx_from_program(program, opset=20, batch=BatchRange(4, 4, 4))
    assert [value.type.tensor_type.shape.dim[0].dim_value for value in (*model.graph.input, *model.graph.output)] == [4, 4]


def test_opset_19_is_written_as_asked(program: torch.export.ExportedProgram) -> None:
    model = onnx_from_program(program, opset=19, batch=BatchRange(1, 8, 32))
    assert model.opset_import[0].version == 19
    onnx.checker.check_model(model, full_check=True)


def test_no_path_of_this_machine_and_no_stack_trace_is_left_in_the_graph(program: torch.export.ExportedProgram) -> None:
    content = onnx_from_program(program, opset=20, batch=BatchRange(1, 8, 32)).SerializeToString()
    for trail in (b"site-packages", b"stack_trace", b".py", b"s77", b"node_Conv"):
        assert trail not in content


def test_global_pooling_is_written_with_the_operators_people_know(program: torch.export.ExportedProgram) -> None:
    model = onnx_from_program(program, opset=20, batch=BatchRange(1, 8, 32))
    operators = [node.op_type for node in model.graph.node]
    assert operators[-3:] == ["GlobalAveragePool", "Flatten", "Gemm"]
    assert not {"ReduceMean", "Reshape"} & set(operators)
    assert {tensor.name.rsplit(".", 1)[-1] for tensor in model.graph.initializer} <= {"weight", "bias"}


def test_a_mean_that_is_no_global_pooling_stays_what_it_is() -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=3).flatten(1)

    model = onnx_from_program(program_from_module(Mean(), SHAPE), opset=20, batch=BatchRange(1, 8, 32))
    assert "ReduceMean" in [node.op_type for node in model.graph.node]


def test_a_batch_that_became_a_number_is_refused(program: torch.export.ExportedProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.onnx.export

    def frozen(*arguments: object, **options: object) -> object:
        exported = original(*arguments, **options)  # type: ignore[arg-type]  # passed on as they came
        assert exported is not None
        proto = exported.model_proto
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        return type("Exported", (), {"model_proto": proto})

    monkeypatch.setattr(torch.onnx, "export", frozen)
    with pytest.raises(TraceError, match="'input' with a free batch dimension, got 1"):
        onnx_from_program(program, opset=20, batch=BatchRange(1, 8, 32))


def test_a_convolution_bias_of_impossible_shape_is_refused(program: torch.export.ExportedProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.onnx.export

    def bent(*arguments: object, **options: object) -> object:
        exported = original(*arguments, **options)  # type: ignore[arg-type]  # passed on as they came
        assert exported is not None
        proto = exported.model_proto
        node = next(node for node in proto.graph.node if node.op_type == "Conv")
        del node.input[2:]
        node.input.append("bent")
        proto.graph.initializer.append(onnx.numpy_helper.from_array(torch.zeros(3).numpy(), "bent"))
        return type("Exported", (), {"model_proto": proto})

    monkeypatch.setattr(torch.onnx, "export", bent)
    with pytest.raises(TraceError, match=r"expected a bias of shape \(16,\), got \(3,\)"):
        onnx_from_program(program, opset=20, batch=BatchRange(1, 8, 32))


def test_a_module_that_cannot_be_traced_is_named() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(TraceError, match="cannot trace Branching"):
        program_from_module(Branching(), SHAPE)
