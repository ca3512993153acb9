"""Checkpoints as training scripts write them: wrapped, prefixed, in their own names, or not fitting at all."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import shaken
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import ResNet, resnet18
from torchvision.models.resnet import BasicBlock

from exporter import ExportPlan
from exporter.models.checkpoints import state_from_file
from exporter.models.loaded import LoadedModel
from exporter.models.loading import load_model
from exporter.models.registry import MODELS, find_model
from exporter.models.sources import torchvision
from exporter.models.sources.cifar import CifarResNet
from exporter.models.state_names import spec_from_state
from runtimes.errors import BadInput

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(3)
    return dict(shaken(CifarResNet(3, 1, 7)).state_dict())


def load(value: object, folder: Path, model: str = "resnet20", **changes: Any) -> LoadedModel:
    path = folder / "c.pth"
    torch.save(value, path)
    return load_model(ExportPlan(model, folder / "out", weights=str(path), **changes).model_request)


def said(value: object, folder: Path, model: str = "resnet20", **changes: Any) -> str:
    with pytest.raises(BadInput) as refused:
        load(value, folder, model, **changes)
    message = str(refused.value)
    assert "\n" not in message
    return message


# --- wrappers and prefixes ---

WRAPPED: dict[str, Callable[[State], object]] = {
    "plain": lambda state: state,
    "model_state_dict with an optimizer": lambda state: {
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {0: {"m": torch.ones(3)}}},
    },
    "net with a numpy figure": lambda state: {"net": state, "acc": np.float64(94.5), "epoch": 3},
    "model with its script's options": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
    "ema alone": lambda state: {"ema": state, "updates": 5},
    "ema beside the model": lambda state: {
        "model": state,
        "model_ema": {key: torch.zeros_like(value) for key, value in state.items()},
    },
    "ema in a module": lambda state: {"ema": {"module": state}},
    "state_dict_ema": lambda state: {
        "state_dict_ema": {f"module.{key}": value for key, value in state.items()} | {"n_averaged": torch.tensor(3)}
    },
    "Lightning": lambda state: {
        "state_dict": {f"model.{key}": value for key, value in state.items()},
        "pytorch-lightning_version": "2.5.0",
    },
    "Lightning, head apart": lambda state: {
        "state_dict": {key if key.startswith("fc") else f"backbone.{key}": value for key, value in state.items()}
    },
    "DataParallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled in DataParallel": lambda state: {
        "state_dict": {f"module._orig_mod.{key}": value for key, value in state.items()}
    },
    "without batch counters": lambda state: {
        key: value for key, value in state.items() if not key.endswith("num_batches_tracked")
    },
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_weights_are_found_however_they_are_wrapped(
    state: State, tmp_path: Path, wrap: Callable[[State], object]
) -> None:
    loaded = load(wrap(state), tmp_path).module.state_dict()
    assert all(
        torch.equal(value, state[key]) for key, value in loaded.items() if not key.endswith("num_batches_tracked")
    )


def test_fp16_is_read_as_fp32_from_either_format(state: State, tmp_path: Path) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save(half, tmp_path / "h.pth")
    save_file(half, tmp_path / "h.safetensors")
    one, other = state_from_file(tmp_path / "h.pth"), state_from_file(tmp_path / "h.safetensors")
    assert one.keys() == other.keys() == state.keys()
    assert one["conv1.weight"].dtype == torch.float32
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_two_networks_told_apart_by_prefix_alone_are_refused(state: State, tmp_path: Path) -> None:
    both = {f"{prefix}.{key}": value for prefix in ("model", "net") for key, value in state.items()}
    assert said(both, tmp_path).endswith(
        "holds 2 networks, told apart by prefix alone: 'model.' and 'net.'; save the one to export"
    )


@pytest.mark.parametrize("ending", ["pth", "pt2"])
def test_programs_given_as_weights_are_recognised_and_their_remedy_works(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = nn.Sequential(nn.Conv2d(1, 1, 1)).eval()
    path = tmp_path / f"program.{ending}"
    torch.export.save(torch.export.export(module, (torch.zeros(1, 1, 4, 4),)), tmp_path / "p.pt2")
    (tmp_path / "p.pt2").rename(path)
    with pytest.raises(
        BadInput, match=r"is a program of torch.export \(.pt2\), not a checkpoint; take its weights out with from "
    ) as refused:
        state_from_file(path)
    monkeypatch.chdir(tmp_path)
    exec(str(refused.value).split("take its weights out with ")[1], {"torch": torch})
    assert set(state_from_file(Path("program.weights.pth"))) == {"0.weight", "0.bias"}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_given_as_weights_is_recognised_and_its_remedy_works(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = CifarResNet(3, 1, 7).eval()
    module.load_state_dict(state)
    traced = torch.jit.trace(module, torch.zeros(1, 1, 28, 28))  # type: ignore[no-untyped-call]  # torch's own signature lacks types
    torch.jit.save(traced, "script.pt")
    with pytest.raises(
        BadInput,
        match="is a TorchScript archive, not a checkpoint; .*runs code of the file: only where you trust its maker",
    ) as refused:
        state_from_file(Path("script.pt"))
    remedy = re.search(r"torch\.save\(.*\)$", str(refused.value))
    assert remedy
    exec(remedy[0], {"torch": torch})
    assert torch.equal(state_from_file(Path("script.weights.pth"))["conv1.weight"], state["conv1.weight"])


# --- names ---


def as_kuangliu(key: str) -> str:
    return key.replace("downsample", "shortcut").replace("fc.", "linear.")


def as_stem_conv(key: str) -> str:
    return re.sub(r"^conv1\.", "conv.", re.sub(r"^bn1\.", "bn.", key))


def as_residual_function(key: str) -> str:
    key = re.sub(r"^layer(\d)", lambda match: f"conv{int(match[1]) + 1}_x", key)
    key = re.sub(r"^(conv|bn)1\.", lambda match: f"conv1.{int(match[1] == 'bn')}.", key)
    key = re.sub(
        r"\.(conv|bn)(\d)\.", lambda match: f".residual_function.{3 * int(match[2]) - 3 + (match[1] == 'bn')}.", key
    )
    return as_kuangliu(key).replace("linear.", "fc.")


def as_finetuned(key: str) -> str:
    return key.replace("fc.", "fc.1.")


@pytest.mark.parametrize("name", [as_kuangliu, as_stem_conv, as_residual_function, as_finetuned])
@pytest.mark.parametrize("model", ["resnet20", "resnet18_cifar", "resnet50"])
def test_tutorials_names_are_mapped(tmp_path: Path, name: Callable[[str], str], model: str) -> None:
    spec = find_model(model)
    torch.manual_seed(0)
    source = CifarResNet(3, 3, 5) if model == "resnet20" else torchvision.create(spec, 5, 3)
    own = shaken(source).state_dict()
    loaded = load(
        {name(key): value for key, value in own.items()}, tmp_path, model, image_size=(32, 32)
    ).module.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in loaded.items() if not key.endswith("num_batches_tracked"))


def test_a_network_cut_into_numbered_parts_is_mapped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = [*shaken(resnet18(num_classes=4)).children()]
    own = nn.Sequential(*parts[:-1], nn.Flatten(), parts[-1]).eval()
    loaded = load(own.state_dict(), tmp_path, "resnet18", image_size=(64, 64))
    example = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.module(example), own(example))


class Residual(nn.Module):
    """The block of d2l.ai's chapter: convolutions with bias, and a third one alone as the shortcut."""

    def __init__(self, inputs: int, outputs: int, *, use_1x1conv: bool) -> None:
        super().__init__()
        stride = 2 if use_1x1conv else 1
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv3 = nn.Conv2d(inputs, outputs, 1, stride=stride) if use_1x1conv else None
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (x if self.conv3 is None else self.conv3(x)))


def tutorial_parts(*, small: bool) -> tuple[nn.Sequential, list[nn.Sequential], nn.Linear]:
    stem = [nn.Conv2d(1, 64, 3, padding=1)] if small else [nn.Conv2d(1, 64, 7, stride=2, padding=3)]
    pool = [] if small else [nn.MaxPool2d(3, stride=2, padding=1)]
    widths = (64, 64, 128, 256, 512)
    stages = [
        nn.Sequential(Residual(before, after, use_1x1conv=before != after), Residual(after, after, use_1x1conv=False))
        for before, after in pairwise(widths)
    ]
    return nn.Sequential(*stem, nn.BatchNorm2d(64), nn.ReLU(), *pool), stages, nn.Linear(512, 10)


def tutorial_in_a_row() -> nn.Module:
    stem, stages, head = tutorial_parts(small=False)
    return nn.Sequential(stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def tutorial_as_a_class() -> nn.Module:
    stem, stages, head = tutorial_parts(small=False)
    net = nn.Sequential(stem)
    for place, stage in enumerate(stages):
        net.add_module(f"b{place + 2}", stage)
    net.add_module("last", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head))
    return nn.ModuleDict({"net": net})


def tutorial_with_a_small_stem() -> nn.Module:
    stem, stages, head = tutorial_parts(small=True)
    for place, stage in enumerate(stages):
        stem.add_module(f"resnet_block{place + 1}", stage)
    stem.add_module("global_avg_pool", nn.AdaptiveAvgPool2d(1))
    stem.add_module("fc", nn.Sequential(nn.Flatten(), head))
    return stem


@pytest.mark.parametrize(
    ("make", "model"),
    [
        (tutorial_in_a_row, "resnet18"),
        (tutorial_as_a_class, "resnet18"),
        (tutorial_with_a_small_stem, "resnet18_cifar"),
    ],
)
def test_convolutions_with_bias_before_batch_norm_compute_the_same_folded(
    tmp_path: Path, make: Callable[[], nn.Module], model: str
) -> None:
    torch.manual_seed(0)
    own = shaken(make())
    loaded = load(own.state_dict(), tmp_path, model, image_size=(64, 64))
    assert (loaded.preprocess.channels, loaded.facts.classes) == (1, 10)
    example = torch.randn(4, 1, 64, 64)
    with torch.inference_mode():
        expected = (own["net"] if isinstance(own, nn.ModuleDict) else own)(example)
        error = (loaded.module(example) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5


def test_a_head_without_bias_is_one_with_zeros(state: State, tmp_path: Path) -> None:
    loaded = load({key: value for key, value in state.items() if key != "fc.bias"}, tmp_path)
    assert torch.equal(loaded.module.get_parameter("fc.bias"), torch.zeros(7))


# --- without a head ---


def test_a_checkpoint_without_a_head_says_what_can_be_exported(state: State, tmp_path: Path) -> None:
    headless = {key: value for key, value in state.items() if not key.startswith("fc.")}
    assert "without a head, so there are no logits; give --features pool or stages" in said(headless, tmp_path)
    loaded = load(headless, tmp_path, features="pool")
    with torch.inference_mode():
        assert loaded.module(torch.zeros(1, 1, 28, 28)).shape == (1, 64)


# --- what fits nothing ---


def near(name: str, **changes: Any) -> State:
    with torch.device("cpu"):
        return {
            key: torch.zeros(()).expand(value.shape).clone()
            for key, value in torchvision.create(find_model(name), 5, 3).state_dict().items()
        }


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("resnet34", "resnet50"),
        ("resnet50", "resnet34"),
        ("resnet18", "resnet18_cifar"),
        ("wide_resnet50_2", "resnet50"),
        ("resnext50_16x8d", "resnet50"),
    ],
)
def test_a_near_miss_is_told_by_its_name(tmp_path: Path, given: str, asked: str) -> None:
    assert said(near(given), tmp_path, asked).endswith(f"is a checkpoint of {given}, not of {asked}; export {given}")


def test_the_other_kind_of_shortcut_is_told_with_its_option(state: State, tmp_path: Path) -> None:
    padded = CifarResNet(3, 1, 7, shortcut="pad").state_dict()
    assert said(padded, tmp_path).endswith(
        "is a checkpoint of resnet20 --shortcut pad, not of resnet20; export resnet20 --shortcut pad"
    )
    assert said(state, tmp_path, variant="pad").endswith(
        "is a checkpoint of resnet20, not of resnet20 --shortcut pad; export resnet20"
    )
    assert load(padded, tmp_path, variant="pad").facts.variant == "pad"


def test_what_fits_nothing_is_compared_with_the_closest(state: State, tmp_path: Path) -> None:
    odd = ResNet(BasicBlock, [2, 2, 3, 2], num_classes=4).state_dict()
    message = said(odd, tmp_path, "resnet50")
    assert "does not fit resnet50: the closest known is resnet18, with torchvision's or a tutorial's names" in message
    assert "10 unexpected: layer3.2.conv1.weight" in message
    assert message.endswith("export the network that it belongs to as package.module:factory, with these --weights")
    two = {key: value for key, value in state.items() if not key.startswith("fc.")} | {
        "fc.0.weight": torch.ones(9, 64),
        "fc.2.weight": torch.ones(7, 9),
    }
    assert (
        "a head of more than one linear layer (fc.0.weight, fc.2.weight); export the network that it belongs to as package.module:factory"
        in said(two, tmp_path)
    )
    assert "does not look like a ResNet checkpoint" in said({"features.0.weight": torch.ones(64, 3, 3, 3)}, tmp_path)


@pytest.mark.parametrize("name", [*MODELS, "resnext101_16x8d", "wide_resnet101_4", "wide_resnet152_2"])
def test_every_model_is_told_by_its_tensors(name: str) -> None:
    from exporter.models.sources import cifar

    for variant in (
        find_model(name).variants
        if MODELS.get(name) and MODELS[name].source == "cifar" and "pad" in MODELS[name].variants
        else (None,)
    ):
        spec = find_model(name, variant)
        with torch.device("meta"):
            state = (cifar if spec.source == "cifar" else torchvision).create(spec, 3, 3).state_dict()
        assert spec_from_state(state) == spec
