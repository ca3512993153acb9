"""`reference.pt2` is data: a program that brings code is refused before PyTorch reads it. Each archive here leaves a mark where its code is run."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import deform_conv2d

from exporter.graph.trace import program_from_module, save_program
from runtimes.backends.pytorch import PyTorchRuntime
from runtimes.bundle_writing import write_manifest
from runtimes.errors import BadInput, BundleError, TraceError
from runtimes.manifest import Manifest
from runtimes.reference_fields import OPERATOR
from runtimes.reference_scan import plain_program

MODEL, WEIGHTS, CONSTANTS = "models/model.json", "data/weights/", "data/constants/"
WEIGHTS_CONFIG, CONSTANTS_CONFIG = f"{WEIGHTS}model_weights_config.json", f"{CONSTANTS}model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"
Parts = dict[str, bytes]
MODULE = "stranger_that_leaves_a_mark"


class Mark:
    """Whoever unpickles it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def code(place: Path) -> str:
    """An expression that makes the folder; without dots, which part the names of parameters."""
    return f"getattr(__import__('os'),'mkdir')('{place}')"


def pickled(place: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"conv1.weight": Mark(place)}, buffer)
    return buffer.getvalue()


def parts_of(path: Path | io.BytesIO) -> Parts:
    with zipfile.ZipFile(path) as archive:
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


def write(path: Path, parts: Parts, *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(f"reference/{name}", content)
    return path


def changed(parts: Parts, change: Callable[[Any], None], name: str = MODEL) -> Parts:
    document = json.loads(parts[name])
    change(document)
    return {**parts, name: json.dumps(document).encode()}


def nodes(document: Any) -> Any:
    return document["graph_module"]["graph"]["nodes"]


def signature(document: Any) -> Any:
    return document["graph_module"]["module_call_graph"][0]["signature"]


# --- ways in: each takes a good archive and the place of the mark ---


def a_pickled_weight(parts: Parts, place: Path) -> Parts:
    def change(config: Any) -> None:
        config["config"]["conv1.weight"]["use_pickle"] = True

    return changed({**parts, f"{WEIGHTS}weight_0": pickled(place)}, change, WEIGHTS_CONFIG)


def with_constant(parts: Parts, file: str, content: bytes, *, as_pickle: bool) -> Parts:
    config = {"config": {"c": {"path_name": file, "is_param": False, "use_pickle": as_pickle, "tensor_meta": None}}}
    return {**parts, f"{CONSTANTS}{file}": content, CONSTANTS_CONFIG: json.dumps(config).encode()}


def a_pickled_constant(parts: Parts, place: Path) -> Parts:
    return with_constant(parts, "tensor_0", pickled(place), as_pickle=True)


def an_opaque_object(parts: Parts, place: Path) -> Parts:
    return with_constant(parts, "opaque_obj_0", pickle.dumps(Mark(place)), as_pickle=True)


def weights_of_an_older_form(parts: Parts, place: Path) -> Parts:
    return {**parts, f"{WEIGHTS}model.pt": pickled(place)}


def constants_of_an_older_form(parts: Parts, place: Path) -> Parts:
    return {**parts, f"{CONSTANTS}model.pt": pickled(place)}


def example_inputs(parts: Parts, place: Path) -> Parts:
    return {**parts, SAMPLES: pickled(place)}


def a_size(parts: Parts, place: Path) -> Parts:
    def change(document: Any) -> None:
        document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = code(place)

    return changed(parts, change)


def the_name_of_an_input(parts: Parts, place: Path) -> Parts:
    return {**parts, MODEL: parts[MODEL].replace(b'"x"', json.dumps(f"x={code(place)}").encode())}


def the_name_of_a_parameter(parts: Parts, place: Path) -> Parts:
    name = f'w"+str({code(place)})+"'
    parts = {
        **parts,
        MODEL: parts[MODEL].replace(b'"parameter_name": "fc.bias"', f'"parameter_name": {json.dumps(name)}'.encode()),
    }
    return {**parts, WEIGHTS_CONFIG: parts[WEIGHTS_CONFIG].replace(b'"fc.bias":', f"{json.dumps(name)}:".encode())}


def a_guard(parts: Parts, place: Path) -> Parts:
    samples = io.BytesIO()
    torch.save(((torch.zeros(2, 1, 28, 28),), {}), samples)  # without them PyTorch leaves guards out
    return changed(
        {**parts, SAMPLES: samples.getvalue()}, lambda document: document.update(guards_code=[f"{code(place)} is None"])
    )


def an_operator_that_makes_a_file(parts: Parts, place: Path) -> Parts:
    def change(document: Any) -> None:
        given = {"filename": {"as_string": str(place)}, "shared": {"as_bool": True}, "size": {"as_int": 8}}
        inputs = [{"name": name, "arg": value, "kind": 1 if name == "filename" else 2} for name, value in given.items()]
        outputs = [{"as_tensor": {"name": "made"}}]
        node = {
            "target": "torch.ops.aten.from_file.default",
            "inputs": inputs,
            "outputs": outputs,
            "metadata": {},
            "name": "made",
        }
        nodes(document).insert(0, node)
        values = document["graph_module"]["graph"]["tensor_values"]
        values["made"] = {**values["linear"], "sizes": [{"as_int": 8}], "strides": [{"as_int": 1}]}

    return changed(parts, change)


def a_type_of_the_arguments(parts: Parts, place: Path) -> Parts:
    def change(document: Any) -> None:
        context = {"default_factory_module": MODULE, "default_factory_name": "dict", "dict_context": []}
        tree = {"type": "collections.defaultdict", "context": context, "children_spec": []}
        signature(document)["out_spec"] = json.dumps([1, tree])

    return changed(parts, change)


def an_enumeration_among_the_arguments(parts: Parts, place: Path) -> Parts:
    def change(document: Any) -> None:
        context = json.dumps([{"__enum__": True, "fqn": f"{MODULE}:Kind", "name": "ONE"}])
        signature(document)["out_spec"] = json.dumps(
            [1, {"type": "builtins.dict", "context": context, "children_spec": []}]
        )

    return changed(parts, change)


RUN_BY_PYTORCH = [
    a_pickled_weight,
    a_pickled_constant,
    an_opaque_object,
    weights_of_an_older_form,
    constants_of_an_older_form,
    example_inputs,
    a_size,
    the_name_of_an_input,
    the_name_of_a_parameter,
    a_guard,
    an_operator_that_makes_a_file,
    a_type_of_the_arguments,
    an_enumeration_among_the_arguments,
]


@pytest.fixture(scope="module")
def good(tiny_model: Path) -> Parts:
    return parts_of(tiny_model / "reference.pt2")


@pytest.fixture
def quiet() -> Iterator[None]:
    """Of what PyTorch itself says when it reads a stranger's archive."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def run_by_pytorch(path: Path) -> None:
    with suppress(Exception):
        torch.export.load(path).module()(torch.zeros(2, 1, 28, 28))


def run_by_us(path: Path) -> None:
    with PyTorchRuntime.open(path) as model:
        model.run({"input": np.zeros((2, 1, 28, 28), np.float32)})


@pytest.mark.parametrize("way_in", RUN_BY_PYTORCH, ids=lambda way_in: way_in.__name__)
def test_code_that_pytorch_would_run_is_refused_and_not_run(
    way_in: Callable[[Parts, Path], Parts], good: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    place = tmp_path / "mark"
    (tmp_path / f"{MODULE}.py").write_text(f"import os\nos.mkdir({str(place)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path / "reference.pt2", way_in(good, place))
    with pytest.raises(BundleError, match="nothing of it was run: do not use this file") as caught:
        run_by_us(path)
    assert caught.value.exit_code == 1
    assert not place.exists()
    assert MODULE not in sys.modules
    run_by_pytorch(path)
    assert place.exists()  # a way in it is
    sys.modules.pop(MODULE, None)


def test_check_ends_with_1_and_runs_nothing_of_a_strangers_bundle(
    good: Parts, manifest: Manifest, tiny_model: Path, tmp_path: Path, deploy: Any
) -> None:
    place, folder = tmp_path / "mark", tmp_path / "bundle"
    folder.mkdir()
    write(folder / "reference.pt2", a_pickled_weight(good, place))
    np.savez(folder / "golden.npz", inputs=np.zeros((2, 1, 28, 28), np.float32), logits=np.zeros((2, 10), np.float32))
    write_manifest(folder, manifest)  # its digests are right: they say who changed nothing, not who made it
    ran = deploy("check", folder, "--backend", "pytorch", "--quiet")
    assert ran.code == 1
    assert "pytorch      failed" in ran.out
    assert "'conv1.weight' as a pickle or an object" in ran.out
    assert not place.exists()


# --- what else does not belong there ---


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
        plain_program(write(tmp_path / "reference.pt2", with_target(good, target)))


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
        plain_program(write(tmp_path / "reference.pt2", changed(good, change)))


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
        plain_program(write(tmp_path / "reference.pt2", changed(good, change)))


def test_fields_of_a_later_pytorch_that_are_names_or_numbers_pass(good: Parts, tmp_path: Path) -> None:
    def change(document: Any) -> None:
        document["later"] = {"count": 7, "kind": "plain", "none": None, "list": [1.5, True]}

    run_by_us(write(tmp_path / "reference.pt2", changed(good, change)))


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
        plain_program(write(tmp_path / "reference.pt2", {**good, name: b"x"}))


def test_packed_double_and_overlapping_entries_are_refused(good: Parts, tmp_path: Path) -> None:
    bomb = write(
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
    twice = write(tmp_path / "twice.pt2", good)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"reference/{MODEL}", good[MODEL])
    with pytest.raises(BundleError, match="double"):
        plain_program(twice)


def test_a_tensor_of_more_values_than_the_archive_has_is_refused(good: Parts, tmp_path: Path) -> None:
    def change(config: Any) -> None:
        config["config"]["conv1.weight"]["tensor_meta"]["sizes"] = [{"as_int": 1 << 40}]

    for parts in (good, {**good, f"{WEIGHTS}weight_0": b""}):  # PyTorch makes one of zeros where there are none
        with pytest.raises(BundleError, match="'conv1.weight' of more values than are there"):
            plain_program(write(tmp_path / "reference.pt2", changed(parts, change, WEIGHTS_CONFIG)))


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{}", b"null", b"{", b'{"config": 7}', b"[" * 100_000],
    ids=lambda content: content[:15].decode(),
)
@pytest.mark.parametrize("name", [MODEL, WEIGHTS_CONFIG, CONSTANTS_CONFIG])
def test_json_that_is_no_program_is_bad_input(name: str, content: bytes, good: Parts, tmp_path: Path) -> None:
    path = write(tmp_path / "reference.pt2", {**good, name: content})
    with pytest.raises(BadInput, match="pytorch cannot load") as caught:
        PyTorchRuntime.open(path)
    assert "\n" not in str(caught.value)


# --- what our own programs hold ---


class Odd(nn.Module):
    """What traces of networks hold beside convolutions: names that are no identifiers, constants, texts, infinities, sizes that are computed."""

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
