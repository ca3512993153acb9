"""Strangers' networks: one that answers by chance or by its neighbours is refused, and the layer named."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strangers import PICTURE, Does, refused
from torch import Tensor, nn
from torch.nn import functional

from exporter.models.determinism import check_deterministic
from exporter.models.sources.cifar import CifarResNet
from runtimes.errors import TraceError


class Layer(nn.Module):
    """A function as a layer."""

    def __init__(self, does: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.does = does

    def forward(self, x: Tensor) -> Tensor:
        return self.does(x)


@dataclass(frozen=True)
class Unsteady:
    network: Callable[[], nn.Module]
    says: str


def seldom(x: Tensor) -> Tensor:
    return x if random.random() < 0.9 else 2 * x


def seldom_in_numpy(x: Tensor) -> Tensor:
    return x if np.random.random() < 0.9 else 2 * x


class Counting(nn.Module):
    """Answers by what it saw before."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x * self.seen


def network(layer: nn.Module, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def always_training() -> nn.Module:
    net = network(nn.ReLU())
    frozen: Any = net[1]
    frozen.train = lambda mode=True: frozen  # as somebody's own way of freezing may have it
    return net


HERE = r"\(test_unsteady_networks\.py, line \d+\)"
BY_CHANCE, BY_NEIGHBOURS = (
    "answers the same picture differently each time",
    "'s answer to a picture depends on the others of its batch",
)
UNSTEADY = {
    "dropout": Unsteady(
        lambda: network(Layer(lambda x: functional.dropout(x, 0.5))),
        f"{BY_CHANCE}, .* in its layer '2': it draws random",
    ),
    "dropout of the whole": Unsteady(
        lambda: Does(lambda net, x: net.head(functional.dropout(net.features(x)))), f"{BY_CHANCE}, .* apart: it draws"
    ),
    "noise": Unsteady(
        lambda: network(Layer(lambda x: x + 1e-3 * torch.randn_like(x))), f"{BY_CHANCE}, .* in its layer '2'"
    ),
    "skipped seldom": Unsteady(lambda: network(Layer(seldom)), f"{BY_CHANCE}, .*in its layer '2'"),
    "skipped seldom by numpy": Unsteady(lambda: network(Layer(seldom_in_numpy)), f"{BY_CHANCE}, .*in its layer '2'"),
    "state": Unsteady(
        lambda: network(Counting()),
        f"{BY_CHANCE}, .* in its layer '2': it draws random numbers .*, or keeps what it saw",
    ),
    "no statistics": Unsteady(
        lambda: network(nn.ReLU(), partial(nn.BatchNorm2d, track_running_stats=False)),
        f"{BY_NEIGHBOURS}, .* in its layer '1'",
    ),
    "always training": Unsteady(always_training, f"{BY_NEIGHBOURS}, .* in its layer '1': give batch norms"),
    "functional": Unsteady(
        lambda: network(Layer(lambda x: functional.batch_norm(x, None, None, training=True))),
        f"{BY_NEIGHBOURS}, .* layer '2'",
    ),
    "largest of the batch": Unsteady(
        lambda: network(Layer(lambda x: x / x.amax())), f"{BY_NEIGHBOURS}, .* in its layer '2'"
    ),
    "a branch for one": Unsteady(
        lambda: network(Layer(lambda x: 2 * x if len(x) == 1 else x)), f"{BY_NEIGHBOURS}, .* in its layer '2'"
    ),
    "batch of one": Unsteady(
        lambda: network(Layer(lambda x: x.reshape(1, 8, 14, 14))),
        f"does not take a batch of 2 in its layer '2' {HERE}: shape",
    ),
    "batch taken away": Unsteady(
        lambda: network(nn.ReLU()).append(Layer(lambda x: x[:1])),
        r"answers a batch of 2 with a tensor of shape \(1, 5\); it must take batches",
    ),
}


@pytest.mark.parametrize("kind", UNSTEADY)
def test_a_network_that_answers_by_chance_or_by_its_neighbours_is_refused_and_the_layer_named(kind: str) -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    net = UNSTEADY[kind].network()
    said = refused(lambda: check_deterministic(net, PICTURE, "x:y"), TraceError)
    assert re.search(UNSTEADY[kind].says, said), said


STEADY: Mapping[str, Callable[[], nn.Module]] = {
    "dropout": lambda: network(nn.Dropout(0.5)),
    "groups": lambda: network(nn.GroupNorm(2, 8), nn.InstanceNorm2d),
    "drawn in vain": lambda: network(Layer(lambda x: x + 0 * torch.rand(1))),
    "no number": lambda: network(Layer(lambda x: x / 0 * 0)),
    "features": lambda: Does(lambda net, x: (net.stem(x), net.features(x))),
    "a network of 38 layers": lambda: CifarResNet(6, 3, 10),
}


@pytest.mark.parametrize("kind", STEADY)
def test_a_network_that_answers_alike_passes_and_leaves_torchs_generator_alone(kind: str) -> None:
    torch.manual_seed(0)
    net = STEADY[kind]()
    before = torch.random.get_rng_state()
    check_deterministic(net, PICTURE, "x:y")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_the_command_refuses_before_the_trace(run: Any, tmp_path: Path) -> None:
    lines = [
        "from torch import nn",
        "from torch.nn import functional",
        "class Net(nn.Sequential):",
        "    def forward(self, x):",
    ]
    lines += ["        return functional.dropout(super().forward(x))", "def make():", "    print('made')"]
    (tmp_path / "chancy_nets.py").write_text(
        "\n".join([*lines, "    return Net(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))", ""])
    )
    ran = run("chancy_nets:make", "--image-size", 16, "--data", "built-in", "--json")
    assert ran.code == 1
    assert "chancy_nets:make answers the same picture differently each time" in ran.error
    assert "made\n" in ran.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["chancy_nets.py"]
