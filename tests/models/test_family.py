"""The family beyond torchvision's ten: names by pattern, strides, shortcuts, small stems, and anybody's modules."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50, resnext50_32x4d, wide_resnet50_2

from exporter import ExportPlan
from exporter.graph.trace import program_from_module, save_program
from exporter.lowering.precisions import fp16
from exporter.models.loaded import LoadedModel
from exporter.models.loading import load_model
from exporter.models.registry import MODELS, find_model
from exporter.models.sources import cifar, torchvision
from exporter.models.sources.cifar import CifarResNet, PadShortcut
from exporter.models.spec import ModelSpec
from runtimes.errors import BadInput, PlanError, UnknownName


def created(spec: ModelSpec, classes: int | None = None, channels: int | None = None) -> nn.Module:
    source = cifar if spec.source == "cifar" else torchvision
    module: nn.Module = source.create(spec, classes, channels)
    return module


def counted(module: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Parameters with the batch norms folded, and multiply-accumulates, counted on the layers as they run."""
    macs = 0

    def count(part: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal macs
        if isinstance(part, nn.Conv2d):
            macs += output[0].numel() * part.weight[0].numel()
        elif isinstance(part, nn.Linear):
            macs += part.weight.numel()

    layers = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(count)
    module.eval()(torch.zeros(1, *shape, device="meta"))
    return sum(layer.weight.numel() + layer.weight.shape[0] for layer in layers), macs


@pytest.mark.parametrize("spec", MODELS.values(), ids=lambda spec: spec.name)
def test_the_listed_counts_are_the_networks(spec: ModelSpec) -> None:
    with torch.device("meta"):
        module = created(spec)
    channels = 1 if spec.name == "resnet20" else 3
    assert spec.size is not None
    assert counted(module, (channels, spec.size, spec.size)) == (spec.parameters, spec.macs)


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_a_cifar_network_has_as_many_layers_as_its_name_says(depth: int) -> None:
    with torch.device("meta"):
        module = created(find_model(f"resnet{depth}"))
    inside = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear) and "downsample" not in name
    ]
    assert len(inside) == depth


@pytest.mark.parametrize(
    ("name", "make"),
    [("resnet50", resnet50), ("resnext50_32x4d", resnext50_32x4d), ("wide_resnet50_2", wide_resnet50_2)],
)
def test_models_are_torchvisions_own(name: str, make: Any) -> None:
    torch.manual_seed(5)
    ours = created(find_model(name), 9, 3).eval()
    torch.manual_seed(5)
    theirs = make(num_classes=9).eval()
    example = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(example), theirs(example))


def test_names_of_the_pattern_are_models_of_any_width() -> None:
    with torch.device("meta"):
        grouped, wide = created(find_model("resnext152_8x14d")), created(find_model("wide_resnet101_4"))
    assert [len(stage) for stage in (grouped.layer1, grouped.layer2, grouped.layer3, grouped.layer4)] == [3, 8, 36, 3]  # type: ignore[arg-type]  # torch types submodules loosely
    conv = grouped.get_submodule("layer1.0.conv2")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.groups, conv.out_channels) == (8, 8 * 14)
    assert wide.get_parameter("layer1.0.conv2.weight").shape == (256, 256, 3, 3)
    for name in (
        "resnext18_32x4d",
        "resnext50",
        "resnext50_0x4d",
        "wide_resnet34_2",
        "wide_resnet50",
        "resnet50_2",
        "resnet51",
        "resnext50_32x4",
    ):
        with pytest.raises(UnknownName):
            find_model(name)


def strides(module: nn.Module) -> list[tuple[int, ...]]:
    return [
        tuple(part.stride[0] for name, part in block.named_children() if isinstance(part, nn.Conv2d))
        for block in (module.get_submodule(f"layer{stage}.0") for stage in range(1, 5))
    ]


def test_the_variant_moves_the_stride_and_nothing_else() -> None:
    with torch.device("meta"):
        new, old = created(find_model("resnet50")), created(find_model("resnet50", "v1"))
    assert strides(new) == [(1, 1, 1), (1, 2, 1), (1, 2, 1), (1, 2, 1)]
    assert strides(old) == [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]
    assert {key: value.shape for key, value in new.state_dict().items()} == {
        key: value.shape for key, value in old.state_dict().items()
    }


def test_the_padded_shortcut_is_the_papers() -> None:
    x = torch.arange(2 * 3 * 5 * 5, dtype=torch.float32).reshape(2, 3, 5, 5)
    padded = PadShortcut(3)(x)
    assert padded.shape == (2, 6, 3, 3)
    assert torch.equal(padded[:, 1:4], x[:, :, ::2, ::2])
    assert padded[:, 0].abs().sum() == padded[:, 4:].abs().sum() == 0
    padding = CifarResNet(1, 3, 10, shortcut="pad")
    assert sum(isinstance(part, PadShortcut) for part in padding.modules()) == 2
    assert padding.eval()(torch.randn(1, 3, 33, 31)).shape == (1, 10)


@pytest.mark.parametrize("name", ["resnet18_cifar", "resnet34_cifar", "resnet50_cifar"])
def test_the_small_stem_keeps_the_pixels(name: str) -> None:
    with torch.device("meta"):
        module = created(find_model(name)).eval()
        seen: list[Tensor] = []
        module.layer1.register_forward_pre_hook(lambda part, inputs: seen.append(inputs[0]))  # type: ignore[union-attr]  # torch types submodules loosely
        module(torch.zeros(1, 3, 32, 32))
    assert seen[0].shape == (1, 64, 32, 32)


PLANS: list[tuple[str, dict[str, Any], str]] = [
    (
        "resnet18",
        {"variant": "v1", "weights": "random"},
        "'v1' means nothing for resnet18: its basic blocks are the same in v1 and v1.5",
    ),
    ("resnet50", {"variant": "pad", "weights": "random"}, "resnet50 comes as v1.5 or v1, not as 'pad'"),
    ("resnet56", {"variant": "v1", "weights": "random"}, "resnet56 comes as projection or pad, not as 'v1'"),
    ("a:b", {"variant": "v1", "image_size": (32, 32)}, "'v1' means nothing for a:b: it comes in one form"),
    ("resnet50", {"variant": "v1"}, "the default weights are those of v1.5, not of v1"),
    ("resnet20", {"variant": "pad"}, "the default weights are those of projection, not of pad"),
    ("resnet56", {}, "resnet56 has no default weights; give --weights random or FILE"),
    ("resnext50_16x8d", {}, "resnext50_16x8d has no default weights"),
    ("a:b", {}, "expected --image-size with a:b, got none"),
    ("resnet18", {"image_size": (31, 64)}, "expected --image-size of at least 32 pixels for resnet18, got 31x64"),
    ("resnet18_cifar", {"image_size": (7, 8), "weights": "random"}, "at least 8 pixels for resnet18_cifar, got 7x8"),
]


@pytest.mark.parametrize(("model", "changes", "says"), PLANS)
def test_what_means_nothing_is_refused_when_it_is_planned(model: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError) as refused:
        ExportPlan(model, Path("unused"), **changes)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("model", "size"),
    [("resnet18", (32, 32)), ("resnet50", (32, 32)), ("resnet18_cifar", (8, 8)), ("resnet20", (8, 8))],
)
def test_the_smallest_size_is_taken(tmp_path: Path, model: str, size: tuple[int, int]) -> None:
    loaded = load_model(ExportPlan(model, tmp_path, weights="random", image_size=size, classes=3).model_request)
    with torch.inference_mode():
        assert loaded.module(torch.zeros(1, *loaded.preprocess.shape)).isfinite().all()


def test_a_bundle_is_called_after_what_was_chosen() -> None:
    assert ExportPlan("resnet50", Path(), weights="random", variant="v1", precision="fp16").name == "resnet50-v1-fp16"
    assert ExportPlan("resnet50", Path(), weights="random", variant="v1.5").name == "resnet50-fp32"
    assert ExportPlan("my.nets:make", Path(), image_size=(8, 8)).name == "make-fp32"


# --- package.module:factory ---

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=5, channels=2):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(channels, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(8, classes)
    def forward(self, x):
        return self.head(self.model(x).mean((2, 3)))

class Deep(Net):
    def __init__(self):
        super().__init__()
        self.model.append(nn.Sequential(nn.Conv2d(8, 8, 9)))

class Gate(nn.Module):
    def forward(self, x):
        return x if x.sum() > -1 else -x

class Branching(Net):
    def __init__(self):
        super().__init__()
        self.model.append(nn.Sequential(nn.ReLU(), Gate()))

class Island(Net):
    def forward(self, x):
        return self.head(self.model(x).mean((2, 3)).half().float())

class Map(Net):
    def forward(self, x):
        return self.model(x)

def lazy(): return nn.Sequential(nn.LazyConv2d(8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
def wrong(): return "a network"
def broken(): raise ValueError("no such dataset\\nand more")
def leaving(): raise SystemExit(3)
def half(): return Net().half()
def grey(): return Net(channels=1)
def last(): return Net().to(memory_format=torch.channels_last)
def trained():
    net = Net()
    nn.init.constant_(net.head.weight, 7.0)
    return net
net = Net()
number = 3
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in with a package of networks, imported afresh."""
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(NETS)
    (package / "typo.py").write_text("def net(:\n")
    (package / "needy.py").write_text("import no_such_package_at_all\n")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def made(factory: str, **changes: Any) -> LoadedModel:
    changes = {"image_size": (16, 16), **changes}
    return load_model(ExportPlan(f"my_package.{factory}", Path("out"), **changes).model_request)


CUSTOM = [
    ("nothing:Net", "there is no module 'my_package.nothing' in this folder or among the installed packages"),
    ("typo:net", "importing my_package.typo failed: SyntaxError: "),
    ("needy:net", "importing my_package.needy failed: it needs 'no_such_package_at_all', which is not installed"),
    ("nets:Nett", "my_package.nets has no 'Nett'; did you mean Net"),
    ("nets:", "my_package.nets has no ''"),
    ("nets:number", "expected my_package.nets:number to be a function or class that makes a module, got int"),
    ("nets:net", "expected my_package.nets:net to be a function or class that makes a module, got Net"),
    ("nets:wrong", "expected my_package.nets:wrong to return a torch.nn.Module, got str"),
    ("nets:broken", "my_package.nets:broken raised ValueError: no such dataset"),
    ("nets:leaving", "my_package.nets:leaving raised SystemExit: 3"),
    ("nets:lazy", "returns a module with lazy layers that have no shape yet"),
    (
        "nets:Deep",
        "does not take an image of 2x16x16 in its layer 'model.4.0' (nets.py, line 11): Calculated padded input size",
    ),
    ("nets:Map", "to answer one image with logits of shape (1, classes), got a tensor of shape (1, 8, 7, 7)"),
]


@pytest.mark.parametrize(("factory", "says"), CUSTOM)
def test_a_factory_that_does_not_do_is_refused_in_one_line(nets: Path, factory: str, says: str) -> None:
    with pytest.raises(BadInput) as refused:
        made(factory)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(nets) not in sys.path


def test_the_factorys_own_weights_are_the_default_and_seeded(nets: Path) -> None:
    one, same, other = made("nets:Net"), made("nets:Net"), made("nets:Net", seed=1)
    assert (one.facts.source, one.facts.classes, one.facts.weights.kind, one.labels) == ("custom", 5, "default", None)
    assert one.facts.weights.sha256 == same.facts.weights.sha256 != other.facts.weights.sha256
    assert (one.preprocess.shape, one.preprocess.mean, one.preprocess.std) == ((2, 16, 16), (0.0, 0.0), (1.0, 1.0))
    assert made("nets:Net", mean=(0.5,), std=(0.1, 0.2)).preprocess.std == (0.1, 0.2)
    assert {value.dtype for value in made("nets:half").module.parameters()} == {torch.float32}


def test_a_network_in_channels_last_is_saved_without_a_warning(nets: Path) -> None:
    module = made("nets:last", image_size=(16, 16)).module
    assert all(tensor.is_contiguous() for tensor in module.state_dict().values())
    save_program(program_from_module(module, (2, 16, 16)), nets / "reference.pt2")  # a warning is an error here


def test_random_weights_replace_the_factorys_own(nets: Path) -> None:
    own, random = made("nets:trained"), made("nets:trained", weights="random")
    assert (own.facts.weights.kind, random.facts.weights.kind) == ("default", "random")
    assert torch.all(own.module.get_parameter("head.weight") == 7)
    assert random.module.get_parameter("head.weight").abs().max() < 1
    with pytest.raises(PlanError, match="--num-classes says 7, but my_package.nets:Net has 5 classes"):
        made("nets:Net", weights="random", classes=7)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "anything.at.all."])
def test_a_checkpoint_is_loaded_under_the_modules_own_names_behind_any_prefix(nets: Path, prefix: str) -> None:
    """`model.` is a part of the module, too."""
    state = made("nets:Net", seed=9).module.state_dict()
    path = nets / "c.pth"
    torch.save({"state_dict": {f"{prefix}{key}": value for key, value in state.items()}}, path)
    loaded = made("nets:Net", weights=str(path))
    assert loaded.facts.weights.kind == "file"
    assert all(
        torch.equal(value, state[key])
        for key, value in loaded.module.state_dict().items()
        if not key.endswith("num_batches_tracked")
    )


def test_a_checkpoint_of_another_module_says_what_differs(nets: Path) -> None:
    path = nets / "c.pth"
    torch.save(
        {**made("nets:Net").module.state_dict(), "tail.weight": torch.ones(1), "head.weight": torch.ones(5, 9)}, path
    )
    with pytest.raises(
        BadInput,
        match=r"does not fit my_package.nets:Net: 1 unexpected: tail.weight; 1 of another shape: head.weight \(5, 9\) instead",
    ):
        made("nets:Net", weights=str(path))


def test_a_model_that_cannot_be_traced_is_named_and_leaves_nothing(nets: Path, run: Any) -> None:
    ran = run("my_package.nets:Branching", "--image-size", "16", "--weights", "random")
    assert ran.code == 1
    line = next(place for place, said in enumerate(NETS.splitlines(), 1) if "x.sum() > -1" in said)
    assert (
        f"torch.export cannot trace Branching in its layer 'model.4.1' (nets.py, line {line}): what it does depends on a tensor's values"
        in ran.error
    )
    assert "def forward" not in ran.err
    assert "import my_package.nets:Branching, which runs its code" in ran.err
    assert sorted(path.name for path in nets.iterdir()) == ["my_package"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_custom_module_is_exported_in_budget(nets: Path, run: Any, precision: str) -> None:
    (nets / "class_indices.json").write_text('{"0": "a", "1": "b", "2": "c", "3": "d", "4": "e"}')
    options = [
        "--image-size",
        "28",
        "--mean",
        "0.3",
        "--std",
        "0.3",
        "--labels",
        "class_indices.json",
        "--data",
        "built-in",
        "--weights",
        "random",
    ]
    ran = run("my_package.nets:grey", f"--{precision}", *options, "--json", "--quiet")
    assert ran.code == 0, ran.err
    assert ran.json["bundle"] == f"grey-{precision}"
    assert ran.json["parity"]["ok"]
    assert ran.json["model"]["name"] == "my_package.nets:grey"
    assert (nets / f"grey-{precision}" / "labels.txt").read_text() == "a\nb\nc\nd\ne\n"
    assert ran.json["accuracy"] is None
    assert "got 10 others ('T-shirt/top', 'Trouser', 'Pullover', ...); rename them" in ran.json["no_accuracy"]
    assert (
        "accuracy is not measured: built-in (train): expected classes"
        in (nets / f"grey-{precision}" / "report.html").read_text()
    )


def test_a_network_with_a_half_precision_part_may_cost_what_half_precision_does(nets: Path, run: Any) -> None:
    """PyTorch and ONNX Runtime differ in FP32's last bit, and rounding to half makes that a thousand times larger."""
    ran = run("my_package.nets:Island", "--image-size", "16", "--weights", "random", "--json", "--quiet")
    assert ran.code == 0, ran.err
    assert ran.json["parity"]["budget"]["max_relative_error"] == fp16.BUDGET.max_relative_error


def test_planning_and_listing_run_nobodys_code(nets: Path, run: Any) -> None:
    (nets / "my_package" / "nets.py").write_text("raise SystemExit(9)")
    assert run("my_package.nets:Net", "--image-size", "16", "--dry-run", "--json").json["output"] == "Net-fp32"
    assert "my_package.nets" not in sys.modules
