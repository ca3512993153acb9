"""Strangers' networks: wrapped or odd, each is exported as what it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from strangers import PICTURE, Does, Net, made_fixture, refused  # noqa: F401  # pytest finds it by its name
from torch import Tensor, nn
from torch.nn import functional

from exporter.graph.trace import program_from_module
from exporter.models.backbone import with_features
from exporter.models.sources.cifar import CifarResNet
from runtimes.errors import BadInput, PlanError

# --- wrapped ---


class Forwarding(nn.Module):
    """A wrapper of somebody's own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.inner(*inputs, **options)


def with_part(part: Callable[[nn.Module], Any]) -> nn.Module:
    net = Net()
    net.norm = part(net.norm)
    return net


def compiled(net: nn.Module) -> nn.Module:
    net.forward = torch.compile(net.forward)
    net.get_submodule("norm").compile()
    return net


def in_autocast(device: str) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Any:
        with torch.autocast(device, torch.bfloat16):
            return net.head(net.features(x)).float()

    return Does(forward)


def returning_nothing_from_train() -> nn.Module:
    class Net2(Net):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)

    return Net2()


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "DataParallel": lambda: nn.DataParallel(Net()),
    "DataParallel twice": lambda: nn.DataParallel(nn.DataParallel(Net())),
    "moving average": lambda: torch.optim.swa_utils.AveragedModel(Net()),
    "compiled": lambda: torch.compile(Net()),  # type: ignore[dict-item, return-value]  # which torch types as a function
    "compiled and parallel": lambda: torch.compile(nn.DataParallel(Net())),  # type: ignore[dict-item, return-value]
    "parallel part": lambda: with_part(nn.DataParallel),
    "compiled part": lambda: with_part(torch.compile),
    "compiled forward": lambda: compiled(Net()),
    "autocast": lambda: in_autocast("cpu"),
    "half": lambda: Net().half(),
    "double": lambda: Net().double(),
    "train returns nothing": returning_nothing_from_train,
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapped_network_is_traced_as_the_one_within(kind: str, made: Any) -> None:
    loaded = made(WRAPPED[kind])
    program = program_from_module(loaded.module, (3, 16, 16))
    expected = Net().eval()
    expected.load_state_dict(program.state_dict)
    assert {value.dtype for value in program.state_dict.values()} == {torch.float32, torch.int64}
    x = torch.from_numpy(PICTURE)[None]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), expected(x))
    assert "autocast" not in str(program.graph)


def test_a_forward_of_any_arguments_is_traced(made: Any) -> None:
    assert made(lambda: Forwarding(Net())).facts.classes == 5
    program_from_module(made(lambda: Forwarding(Net())).module, (3, 16, 16))


@pytest.mark.parametrize(
    "answer",
    [
        lambda y: {"aux": y[:, :2], "logits": y},
        lambda y: [y],
        lambda y: {"out": y},
        lambda y: type("Output", (), {"logits": y, "hidden_states": None})(),
    ],
)
def test_logits_that_can_be_told_from_the_rest_are_taken(answer: Callable[[Tensor], Any], made: Any) -> None:
    loaded = made(lambda: Does(lambda net, x: answer(net.head(net.features(x)))))
    assert loaded.facts.classes == 5
    found = program_from_module(loaded.module, (3, 16, 16)).module()(torch.from_numpy(PICTURE)[None])
    assert isinstance(found, Tensor)
    assert found.shape == (1, 5)


# --- channels ---


def folded(x: Tensor) -> Tensor:
    return functional.pixel_unshuffle(x, 4)


def with_coordinates(x: Tensor) -> Tensor:
    return torch.cat([x, torch.linspace(-1, 1, x.shape[3]).expand(x.shape[0], 2, *x.shape[2:])], 1)


CHANNELS: dict[str, tuple[Callable[[Tensor], Tensor], int, int]] = {
    "plain": (lambda x: x, 3, 3),
    "grey": (lambda x: x, 1, 1),
    "bands": (lambda x: x, 13, 13),
    "normalised bands": (lambda x: x - torch.zeros(1, 13, 1, 1), 13, 13),
    "space to depth": (folded, 48, 3),
    "coordinates": (with_coordinates, 5, 3),
    "grey with coordinates": (with_coordinates, 3, 1),
    "grey to colour": (lambda x: x.repeat(1, 3, 1, 1), 3, 1),
    "colour to grey": (lambda x: x.mean(1, keepdim=True), 1, 3),
}


@pytest.mark.parametrize("kind", CHANNELS)
def test_a_network_is_given_as_many_channels_as_it_takes_whatever_its_first_convolution_does(
    kind: str, made: Any
) -> None:
    stem, of_convolution, expected = CHANNELS[kind]
    loaded = made(lambda: Does(lambda net, x: net.head(net.features(stem(x))), channels=of_convolution))
    assert loaded.preprocess.shape == (expected, 16, 16)
    assert len(loaded.preprocess.std) == expected


def test_as_many_channels_as_mean_has_values_are_tried_first(made: Any) -> None:
    either: Callable[[], nn.Module] = lambda: Does(lambda net, x: net.head(net.features(x[:, :2])), channels=2)  # noqa: E731  # has no name to give
    assert made(either).preprocess.channels == 3
    assert made(either, mean=(0.5, 0.5)).preprocess.channels == 2
    assert "expected --mean with 1 or 3 values, got 2; the model has 3 input channels" in refused(
        lambda: made(Net, mean=(0.5, 0.5)), PlanError
    )


def test_of_attempts_that_fail_the_one_that_came_farthest_is_told(made: Any) -> None:
    said = refused(
        lambda: made(lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(3 * 64 * 64, 2))), BadInput
    )
    assert re.search(
        "does not take an image of 2x16x16 in its layer '2': .*; choose another --image-size, 64 for one$", said
    )


# --- features ---


@pytest.mark.parametrize("kind", ["pool", "stages"])
def test_features_of_parts_that_do_not_fit_together_are_refused(kind: str, made: Any) -> None:
    class Two(CifarResNet):
        def forward(self, x: Tensor) -> Any:
            return self.fc(
                self.avgpool(self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)), None)))).flatten(1)
            )

    def factory() -> nn.Module:
        net = Two(1, 3, 10)
        net.layer1 = Forwarding(net.layer1)  # type: ignore[assignment]  # whose part takes one argument
        return net

    loaded = made(factory, features=kind)
    assert "--features expects a network that runs its parts conv1, bn1, relu" in refused(
        lambda: with_features(loaded, kind), PlanError
    )
