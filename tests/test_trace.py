"""The traced graph is clean, readable, and refused where torch got it wrong."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from exporter.at_work import layers_at_work
from exporter.models.cifar import CifarResNet
from exporter.trace import IR_VERSION, onnx_from_program, program_from_module, save_program
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
        return type("Exported", (), {"model_proto": proto, "model": exported.model, "optimize": lambda: None})

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
        return type("Exported", (), {"model_proto": proto, "model": exported.model, "optimize": lambda: None})

    monkeypatch.setattr(torch.onnx, "export", bent)
    with pytest.raises(TraceError, match=r"expected a bias of shape \(16,\), got \(3,\)"):
        onnx_from_program(program, opset=20, batch=BatchRange(1, 8, 32))


class Doubled(torch.autograd.Function):
    """Its backward is of no matter here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(2 * x.detach().numpy())


class Odd(nn.Module):
    """Does what cannot be traced, in the way that it is told."""

    def __init__(self, does: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.does = does

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.does(x)
        return result


def failing_when_traced(x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        raise RuntimeError("no traces here\nand more that nobody needs")
    return x


VALUES = "what it does depends on a tensor's values, which a trace does not have; compute every case and choose with torch.where"
NUMPY = "it leaves PyTorch for NumPy, where a trace cannot follow; compute it with tensors"
UNTRACEABLE: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "control flow": (lambda x: x if x.sum() > 0 else -x, VALUES),
    "item": (lambda x: x * 2 if x.max().item() > 1 else x, VALUES),
    "length": (lambda x: x[:, : int(x.sum())], VALUES),
    "numpy": (lambda x: torch.from_numpy(x.detach().numpy() * 2), NUMPY),
    "autograd function": (Doubled.apply, NUMPY),
    "exception": (failing_when_traced, "no traces here"),
}


@pytest.mark.parametrize("kind", UNTRACEABLE)
def test_a_layer_that_cannot_be_traced_is_named_with_the_line_of_its_source(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    does, reason = UNTRACEABLE[kind]
    network = nn.Sequential(OrderedDict(stem=nn.Conv2d(1, 4, 3), layer2=nn.Sequential(nn.ReLU(), Odd(does))))
    with pytest.raises(TraceError) as refused:
        program_from_module(network, SHAPE)
    said = re.fullmatch(r"torch\.export cannot trace Sequential in its layer 'layer2\.1' \(test_trace\.py, line (\d+)\): (.*)", str(refused.value))
    assert said is not None, refused.value
    assert said[2] == reason
    line = Path(__file__).read_text().splitlines()[int(said[1]) - 1]
    assert {"autograd function": "x.detach().numpy()", "exception": "raise RuntimeError"}.get(kind, f'"{kind}": (lambda x') in line
    assert capfd.readouterr() == ("", "")


def test_of_a_module_that_fails_itself_there_is_no_layer_to_name() -> None:
    with pytest.raises(TraceError, match=r"^torch\.export cannot trace Odd \(test_trace\.py, line \d+\): what it does depends"):
        program_from_module(Odd(lambda x: x if x.sum() > 0 else -x), SHAPE)


def test_a_layer_that_raised_inside_of_one_that_went_on_is_not_blamed() -> None:
    class Trying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(9, 9)

        def forward(self, x: Tensor) -> Tensor:
            with suppress(RuntimeError):
                return self.inner(x)  # type: ignore[no-any-return]  # nn.Module's call is untyped
            return x

    network = nn.Sequential(nn.Sequential(Trying()), nn.Sequential(nn.Linear(4, 4)))
    with layers_at_work(network) as inside, pytest.raises(RuntimeError):
        network(torch.zeros(1, 3))
    assert inside == ["", "1", "1.0"]


def test_a_batch_of_one_size_is_said_to_be_so() -> None:
    with pytest.raises(TraceError, match="cannot trace Odd: it works for one size of the batch alone; take the size from the input's shape"):
        program_from_module(Odd(lambda x: x.reshape(2, -1)), SHAPE)


@pytest.mark.parametrize(("inside", "where"), [(True, " in its layer '1.0'"), (False, "")])
def test_an_operator_that_onnx_lacks_is_named_with_its_layer(*, inside: bool, where: str) -> None:
    odd = Odd(lambda x: torch.linalg.qr(x)[0])
    program = program_from_module(nn.Sequential(nn.ReLU(), nn.Sequential(odd)) if inside else odd, SHAPE)
    with pytest.raises(TraceError) as refused:
        onnx_from_program(program, opset=20, batch=BatchRange(1, 8, 32))
    assert str(refused.value) == (
        f"torch.onnx cannot export the traced program{where}: ONNX has nothing for aten.linalg_qr.default; compute it from other operators"
    )


def test_watching_the_layers_changes_no_byte_of_the_program_and_leaves_nothing_behind(tmp_path: Path) -> None:
    network = CifarResNet(1, 1, 10).eval()
    save_program(program_from_module(network, SHAPE), tmp_path / "watched.pt2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exporter.trace.layers_at_work", lambda module: nullcontext([]))
        save_program(program_from_module(network, SHAPE), tmp_path / "alone.pt2")
    assert (tmp_path / "watched.pt2").read_bytes() == (tmp_path / "alone.pt2").read_bytes()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
