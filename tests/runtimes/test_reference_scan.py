"""Of a `reference.pt2` only what our own programs hold is read: operators on tensors, sizes, and weights."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_archives import (  # noqa: F401  # pytest finds the fixture by its name
    CONSTANTS_CONFIG,
    MODEL,
    SAMPLES,
    WEIGHTS,
    WEIGHTS_CONFIG,
    Parts,
    changed,
    good_fixture,
    nodes,
    parts_of,
    run_by_us,
    signature,
    write_parts,
)
from torch import nn
from torchvision.ops import deform_conv2d

from exporter.graph.trace import program_from_module, save_program
from runtimes.backends.pytorch import PyTorchRuntime
from runtimes.errors import BadInput, BundleError, TraceError
from runtimes.reference_fields import OPERATOR
from runtimes.reference_scan import plain_program

# --- what does not belong there ---


def with_target(good: Parts, target: str) -> Parts:
    def change(document: Any) -> None:
        nodes(document)[-1]["target"] = target

    return changed(good, change)


def test_every_public_operator_of_aten_is_read_but_for_those_that_touch_more_than_tensors() -> None:
    names = [
        name.removeprefix("aten::").partition(".")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::")
    ]
    public = {(name, overload or "default") for name, _, overload in names if not name.startswith("_")}
    assert {"numpy_T", "mT", "mH", "matrix_H"} < {name for name, _ in public}
    for name, overload in public:
        assert OPERATOR.fullmatch(f"torch.ops.aten.{name}.{overload}"), name


@pytest.mark.parametrize(
    "target",
    [
        "torch.serialization.os.system",
        "torch.ops.aten.save.default",
        "torch.ops.aten.from_file.out",
        "torch.ops.aten._sparse_coo_tensor_unsafe.default",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.relu.__call__",
        "torch.ops.load_library",
        "torch.ops.torchvision.nms.default",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation",
        "torch.hub.load",
        "torch.sym_float.__globals__",
        "_operator.methodcaller",
        "_operator.__builtins__.get",
        "math.__loader__.load_module",
        "#namespace:operator",
        "os.system",
        "torch.ops.aten.relu.default\n",
        "",
    ],
)
def test_an_operator_that_is_no_arithmetic_is_named(target: str, good: Parts, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds an operator"):
        plain_program(write_parts(tmp_path / "reference.pt2", with_target(good, target)))


@pytest.mark.parametrize(
    "text",
    [
        "().__class__",
        "Symbol('s0').args",
        "Symbol('__import__(1)')",
        "Symbol('s0', integer=print(1))",
        "Symbol('s0', key=True)",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "9**9**9",
        "lambda: 1",
        "[Integer(1)][0]",
        "Integer(1); 1",
        "(" * 400 + "1" + ")" * 400,
        "Integer(" * 200 + "1" + ")" * 200,
        "Add(" + "Integer(1)," * 1000 + ")",
        "1.5",
        "\u0405ymbol('s0')",
    ],
    ids=lambda text: text[:30],
)
def test_a_size_that_is_more_than_a_sum_or_product_is_refused(text: str, good: Parts, tmp_path: Path) -> None:
    def change(document: Any) -> None:
        document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text

    with pytest.raises(BundleError, match="holds a size"):
        plain_program(write_parts(tmp_path / "reference.pt2", changed(good, change)))


def keyword_of_an_operator(document: Any) -> None:
    nodes(document)[0]["inputs"][0]["name"] = "input=__import__('os')"


def text_for_an_input(document: Any) -> None:
    document["graph_module"]["graph"]["inputs"].append({"as_string": "' or print(1) or '"})


def constant_for_an_input(document: Any) -> None:
    document["graph_module"]["signature"]["input_specs"].append(
        {"constant_input": {"name": "t", "value": {"as_string": "t"}}}
    )


def torchscript_object(document: Any) -> None:
    document["graph_module"]["graph"]["custom_obj_values"] = {"o": {"name": "o", "class_fqn": "__torch__.Class"}}


def name_of_an_argument(document: Any) -> None:
    signature(document)["forward_arg_names"] = ["x=print(1)"]


def name_among_the_arguments(document: Any) -> None:
    context = json.dumps(["x'] or print(1) or ['"])
    signature(document)["out_spec"] = json.dumps(
        [1, {"type": "builtins.dict", "context": context, "children_spec": []}]
    )


def named_tuple(document: Any) -> None:
    signature(document)["out_spec"] = json.dumps(
        [1, {"type": "collections.namedtuple", "context": "os.system", "children_spec": []}]
    )


def functions_of_the_source(document: Any) -> None:
    nodes(document)[0]["metadata"]["source_fn_stack"] = "conv2d,torch.hub.load"


def part_of_pythons_own(document: Any) -> None:
    specs = document["graph_module"]["signature"]["input_specs"]
    next(spec for spec in specs if "parameter" in spec)["parameter"]["parameter_name"] = "forward.__globals__.x"


def size_of_a_number_without_end(document: Any) -> None:
    document["range_constraints"]["u999999999"] = {"min_val": 0, "max_val": None}


def field_of_a_later_version(document: Any) -> None:
    nodes(document)[0]["hook"] = "import os; os.system('true')"


CHANGES = [
    keyword_of_an_operator,
    text_for_an_input,
    constant_for_an_input,
    torchscript_object,
    name_of_an_argument,
    name_among_the_arguments,
    named_tuple,
    functions_of_the_source,
    part_of_pythons_own,
    size_of_a_number_without_end,
    field_of_a_later_version,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_pytorch_would_look_up_or_compile_is_refused(
    change: Callable[[Any], None], good: Parts, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="nothing of it was run"):
        plain_program(write_parts(tmp_path / "reference.pt2", changed(good, change)))


def test_fields_of_a_later_pytorch_that_are_names_or_numbers_pass(good: Parts, tmp_path: Path) -> None:
    def change(document: Any) -> None:
        document["later"] = {"count": 7, "kind": "plain", "none": None, "list": [1.5, True]}

    run_by_us(write_parts(tmp_path / "reference.pt2", changed(good, change)))


@pytest.mark.parametrize(
    "name",
    [
        "data/aotinductor/model/model.so",
        "data/constants/custom_obj_0",
        "data/weights/weight_0.so",
        "data/weights/../../outside",
        "models/other.json",
        "extra/evil.py",
        "code/__torch__.py",
        "",
    ],
)
def test_an_entry_that_no_program_of_ours_has_is_named(name: str, good: Parts, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"holds an entry '{name}'"):
        plain_program(write_parts(tmp_path / "reference.pt2", {**good, name: b"x"}))


def test_packed_double_and_overlapping_entries_are_refused(good: Parts, tmp_path: Path) -> None:
    bomb = write_parts(
        tmp_path / "bomb.pt2", {**good, f"{WEIGHTS}weight_0": bytes(1 << 20)}, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(BundleError, match="that lie in one another, or are packed"):
        plain_program(bomb)
    noise = np.random.default_rng(0).bytes(1 << 20)  # which packs into no less
    with zipfile.ZipFile(tmp_path / "packed.pt2", "w") as archive:
        for name, content in {**good, f"{WEIGHTS}weight_0": noise}.items():
            archive.writestr(
                f"reference/{name}", content, zipfile.ZIP_DEFLATED if content is noise else zipfile.ZIP_STORED
            )
    with pytest.raises(
        BundleError, match="'reference/data/weights/weight_0' that is packed, encrypted, double or outside"
    ):
        plain_program(tmp_path / "packed.pt2")
    twice = write_parts(tmp_path / "twice.pt2", good)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"reference/{MODEL}", good[MODEL])
    with pytest.raises(BundleError, match="double"):
        plain_program(twice)


def test_a_tensor_of_more_values_than_the_archive_has_is_refused(good: Parts, tmp_path: Path) -> None:
    def change(config: Any) -> None:
        config["config"]["conv1.weight"]["tensor_meta"]["sizes"] = [{"as_int": 1 << 40}]

    for parts in (good, {**good, f"{WEIGHTS}weight_0": b""}):  # PyTorch makes one of zeros where there are none
        with pytest.raises(BundleError, match="'conv1.weight' of more values than are there"):
            plain_program(write_parts(tmp_path / "reference.pt2", changed(parts, change, WEIGHTS_CONFIG)))


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{}", b"null", b"{", b'{"config": 7}', b"[" * 100_000],
    ids=lambda content: content[:15].decode(),
)
@pytest.mark.parametrize("name", [MODEL, WEIGHTS_CONFIG, CONSTANTS_CONFIG])
def test_json_that_is_no_program_is_bad_input(name: str, content: bytes, good: Parts, tmp_path: Path) -> None:
    path = write_parts(tmp_path / "reference.pt2", {**good, name: content})
    with pytest.raises(BadInput, match="pytorch cannot load") as caught:
        PyTorchRuntime.open(path)
    assert "\n" not in str(caught.value)


# --- what our own programs hold ---


class Odd(nn.Module):
    """What else is in traces: names that are no identifiers, constants, texts, infinities, sizes that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same")
        self.branches = nn.ModuleDict({"3x3": nn.Conv2d(8, 8, 3, padding=1)})
        self.add_module("norm-1", nn.BatchNorm2d(8))
        self.größe: torch.Tensor
        self.register_buffer("größe", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            x = self.stem(x + torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)) * 2
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        x = nn.functional.pad(self.branches["3x3"](x), (1, 1, 1, 1), mode="reflect")
        x = nn.functional.gelu(getattr(self, "norm-1")(x)) * self.größe
        x = torch.where(x > 0, x, float("-inf")).clamp(min=-5)
        rows = x.flatten(0, 1).view(batch * channels, -1).mean(1).view(batch, channels)
        return torch.einsum("bchw,bchw->bc", x, x) + rows


def test_an_odd_network_and_its_names_pass_and_give_the_same(tmp_path: Path) -> None:
    network = Odd().eval()
    save_program(program_from_module(network, (3, 16, 16)), tmp_path / "reference.pt2")
    inputs = np.random.default_rng(0).standard_normal((3, 3, 16, 16), np.float32)
    with PyTorchRuntime.open(tmp_path / "reference.pt2") as model, torch.no_grad():
        np.testing.assert_allclose(
            model.run({"input": inputs})["logits"], network(torch.from_numpy(inputs)).numpy(), rtol=1e-4, atol=1e-4
        )


def test_a_program_that_pytorch_itself_saved_passes_and_its_example_inputs_are_left_out(
    tiny_model: Path, tmp_path: Path
) -> None:
    program = torch.export.export(Odd().eval(), (torch.zeros(2, 3, 16, 16),))
    torch.export.save(program, tmp_path / "mine.pt2")
    with PyTorchRuntime.open(tmp_path / "mine.pt2") as model:
        assert model.run({"input": np.zeros((2, 3, 16, 16), np.float32)})["logits"].shape == (2, 8)
    with zipfile.ZipFile(plain_program(tmp_path / "mine.pt2")) as archive:
        assert archive.read(f"reference/{SAMPLES}") == b""


@pytest.mark.parametrize("features", [None, "stages"])
def test_the_shipped_models_program_is_what_pytorch_alone_would_read(features: str | None, shipped_bundle: Any) -> None:
    path = shipped_bundle("fp32", features).file("reference.pt2")
    archive = plain_program(path)
    assert {name: content for name, content in parts_of(archive).items() if name != SAMPLES} == {
        name: content for name, content in parts_of(path).items() if name != SAMPLES
    }


def test_a_network_whose_operators_a_reference_may_not_hold_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    class Foreign(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = deform_conv2d(x, x.repeat(1, 6, 1, 1), torch.ones(4, 3, 3, 3), padding=1)
            return answer

    program = program_from_module(Foreign(), (3, 8, 8))
    with pytest.raises(TraceError, match="the traced program holds an operator 'torch.ops.torchvision"):
        save_program(program, tmp_path / "reference.pt2")
