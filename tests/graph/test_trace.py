"""The traced graph is clean, readable, and refused where torch got it wrong."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from exporter.graph.trace import IR_VERSION, onnx_from_program, program_from_module, save_program
from exporter.models.failing_layer import watch_layers
from exporter.models.sources.cifar import CifarResNet
from runtimes import BatchRange
from runtimes.backends.onnxruntime import OnnxRuntime
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
    assert [value.type.tensor_type.shape.dim[0].dim_value for value in (*model.graph.input, *model.graph.output)] == [
        4,
        4,
    ]


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


class Shapes(nn.Module):
    """Global pools; a module called three times, and one that is named as its second call was; guards of a division."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.relu_1, self.conv = nn.ReLU(), nn.ReLU(), nn.Conv2d(8, 8, 1)
        self.whole = nn.AvgPool2d(28)
        self.head = nn.Conv2d(8, 6, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(self.relu(self.conv(self.relu(x.expand(-1, 8, -1, -1))))))
        x = self.relu_1(x - 0.1)
        pooled = x.mean((2, 3), keepdim=True)
        pairs = pooled.view(-1, 4).sum(1).view(-1, 2)
        flat = self.whole(x).flatten(1) + pooled.view(-1, 8)
        even = flat / (1e-12 + flat.square().sum(1, keepdim=True))
        result: Tensor = even.sum(1, keepdim=True) + self.head(pooled).view(-1, 3).sum(1).view(-1, 2) + pairs
        return result


def test_names_are_distinct_and_a_reshape_that_does_not_flatten_and_a_guard_stay() -> None:
    torch.manual_seed(0)
    network = Shapes().eval()
    model = onnx_from_program(program_from_module(network, SHAPE), opset=20, batch=BatchRange(1, 8, 32))
    onnx.checker.check_model(model, full_check=True)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"relu", "relu_2", "relu_3", "relu_1", "conv", "conv_1"} <= set(names)
    tensors = [tensor.name for tensor in model.graph.initializer] + [
        name for node in model.graph.node for name in node.output
    ]
    assert len(set(tensors)) == len(tensors)
    inputs = torch.rand(4, *SHAPE)
    inputs[0] = 0
    with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime, torch.inference_mode():
        np.testing.assert_allclose(
            runtime.run({"input": inputs.numpy()})["logits"], network(inputs).numpy(), rtol=1e-4, atol=1e-5
        )
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("GlobalAveragePool") == 2
    assert kinds.count("Flatten") == 2


@pytest.mark.parametrize("guard", [1e-8, 1e-12])
def test_the_guard_of_a_division_is_kept_in_fp32(guard: float) -> None:
    """torch's optimiser takes it for zero."""
    network = Odd(lambda x: x / (guard + x.square().sum((1, 2, 3), keepdim=True)).sqrt())
    model = onnx_from_program(program_from_module(network, SHAPE), opset=20, batch=BatchRange(1, 8, 32))
    with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime:
        assert not runtime.run({"input": np.zeros((2, *SHAPE), np.float32)})["logits"].any()


def test_a_head_of_grouped_or_shared_convolutions_stays_one() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.grouped = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            pooled = x.expand(-1, 4, -1, -1).mean((2, 3), keepdim=True) * torch.arange(4.0)[:, None, None]
            result: Tensor = self.grouped(self.shared(self.shared(pooled)).relu().mean((2, 3), keepdim=True)).flatten(1)
            return result

    torch.manual_seed(0)
    network = Head().eval()
    model = onnx_from_program(program_from_module(network, SHAPE), opset=20, batch=BatchRange(1, 8, 32))
    inputs = torch.rand(2, *SHAPE)
    with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime, torch.inference_mode():
        np.testing.assert_allclose(
            runtime.run({"input": inputs.numpy()})["logits"], network(inputs).numpy(), rtol=1e-4, atol=1e-5
        )


def change_what_torch_exports(monkeypatch: pytest.MonkeyPatch, change: Callable[[onnx.ModelProto], object]) -> None:
    """torch.onnx.export gives a model that is changed, and that nothing optimises."""
    original = torch.onnx.export

    def export(*arguments: object, **options: object) -> object:
        exported = original(*arguments, **options)  # type: ignore[arg-type]  # passed on as they came
        assert exported is not None
        proto = exported.model_proto
        change(proto)
        return type("Exported", (), {"model_proto": proto, "model": exported.model, "optimize": lambda: None})

    monkeypatch.setattr(torch.onnx, "export", export)


def test_a_batch_that_became_a_number_is_refused(
    program: torch.export.ExportedProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    def freeze(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    change_what_torch_exports(monkeypatch, freeze)
    with pytest.raises(TraceError, match="'input' with a free batch dimension, got 1"):
        onnx_from_program(program, opset=20, batch=BatchRange(1, 8, 32))


def test_a_convolution_bias_of_impossible_shape_is_refused(
    program: torch.export.ExportedProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bend(proto: onnx.ModelProto) -> None:
        node = next(node for node in proto.graph.node if node.op_type == "Conv")
        del node.input[2:]
        node.input.append("bent")
        proto.graph.initializer.append(onnx.numpy_helper.from_array(torch.zeros(3).numpy(), "bent"))

    change_what_torch_exports(monkeypatch, bend)
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
def test_a_layer_that_cannot_be_traced_is_named_with_the_line_of_its_source(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    does, reason = UNTRACEABLE[kind]
    network = nn.Sequential(OrderedDict(stem=nn.Conv2d(1, 4, 3), layer2=nn.Sequential(nn.ReLU(), Odd(does))))
    with pytest.raises(TraceError) as refused:
        program_from_module(network, SHAPE)
    said = re.fullmatch(
        r"torch\.export cannot trace Sequential in its layer 'layer2\.1' \(test_trace\.py, line (\d+)\): (.*)",
        str(refused.value),
    )
    assert said is not None, refused.value
    assert said[2] == reason
    line = Path(__file__).read_text().splitlines()[int(said[1]) - 1]
    assert {"autograd function": "x.detach().numpy()", "exception": "raise RuntimeError"}.get(
        kind, f'"{kind}": (lambda x'
    ) in line
    assert capfd.readouterr() == ("", "")


def test_of_a_module_that_fails_itself_there_is_no_layer_to_name() -> None:
    with pytest.raises(
        TraceError, match=r"^torch\.export cannot trace Odd \(test_trace\.py, line \d+\): what it does depends"
    ):
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
    with watch_layers(network) as inside, pytest.raises(RuntimeError):
        network(torch.zeros(1, 3))
    assert inside == ["", "1", "1.0"]


def test_a_batch_of_one_size_is_said_to_be_so() -> None:
    with pytest.raises(
        TraceError,
        match="cannot trace Odd: it works for one size of the batch alone; take the size from the input's shape",
    ):
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
        patch.setattr("exporter.graph.trace.watch_layers", lambda module: nullcontext([]))
        save_program(program_from_module(network, SHAPE), tmp_path / "alone.pt2")
    assert (tmp_path / "watched.pt2").read_bytes() == (tmp_path / "alone.pt2").read_bytes()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
