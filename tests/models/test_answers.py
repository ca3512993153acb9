"""Strangers' networks: wrapped, odd, failing, random; each is exported as what it is, or refused in one line before the trace."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exporter import ExportPlan
from exporter.graph.trace import program_from_module
from exporter.models.backbone import with_features
from exporter.models.determinism import check_deterministic
from exporter.models.loaded import LoadedModel
from exporter.models.loading import load_model
from exporter.models.sources.cifar import CifarResNet
from runtimes.errors import BadInput, PlanError, ResnetExportError, TraceError

PICTURE = np.random.default_rng(0).random((3, 16, 16), np.float32)


class Net(nn.Module):
    """Eight channels, one batch norm, five classes."""

    def __init__(self, channels: int = 3, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = norm(8)
        self.head = nn.Linear(8, 5)

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = functional.relu(self.norm(self.stem(x))).mean((2, 3))
        return found

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


class Does(Net):
    """Answers what a function makes of it and its input."""

    def __init__(self, does: Callable[[Any, Tensor], Any], **options: Any) -> None:
        super().__init__(**options)
        self.does = does

    def forward(self, x: Tensor) -> Any:
        return self.does(self, x)


class Layer(nn.Module):
    """A function as a layer."""

    def __init__(self, does: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.does = does

    def forward(self, x: Tensor) -> Tensor:
        return self.does(x)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., LoadedModel]:
    """What `load_model` makes of a factory."""

    def load(factory: Callable[[], object], size: int = 16, **changes: Any) -> LoadedModel:
        module = ModuleType("strangers_nets")
        module.make = factory  # type: ignore[attr-defined]  # a module has what is put into it
        monkeypatch.setitem(sys.modules, "strangers_nets", module)
        return load_model(
            ExportPlan("strangers_nets:make", tmp_path / "out", **{"image_size": (size, size), **changes}).model_request
        )

    return load


def refused(load: Callable[[], object], kind: type[ResnetExportError]) -> str:
    """The one line that is said."""
    with pytest.raises(kind) as caught:
        load()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


# --- refused ---


def scripted() -> Any:
    return torch.jit.script(nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def quantized() -> nn.Module:
    net = Net()
    made_by_quantize_dynamic: Any = torch.ao.nn.quantized.dynamic.Linear
    net.head = made_by_quantize_dynamic(8, 5)
    return net


def sparse() -> nn.Module:
    net = Net()
    net.head.weight = nn.Parameter(net.head.weight.detach().to_sparse())
    return net


def failing_state() -> nn.Module:
    class Net3(Net):
        def state_dict(self, *arguments: Any, **options: Any) -> Any:
            raise ValueError("no state\nbut many words")

    return Net3()


class Mute(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise TypeError


def raising(error: BaseException) -> Any:
    raise error


def of_two(first: Any, second: Any = 1, *others: Any) -> nn.Module:
    return Net()


HERE = r"\(test_answers\.py, line \d+\)"
FACTORIES: dict[str, tuple[Callable[..., Any], str]] = {
    "TorchScript": (scripted, "expected .* to return a network in Python, got TorchScript"),
    "quantized": (
        quantized,
        r"returns a quantized network \('head' is a Linear\); return the float one, --int8 quantizes it here",
    ),
    "sparse": (sparse, "got 'head.weight', which is sparse; convert it"),
    "meta": (
        lambda: Net().to("meta"),
        "returns a network without values \\('stem.weight' is on torch's meta device\\)",
    ),
    "state": (failing_state, f"its state_dict raised ValueError: no state {HERE}"),
    "arguments": (of_two, "to be called without arguments, got one that needs first; name one"),
    "tuple": (lambda: (Net(), 3), "to return a torch.nn.Module, got tuple; return the network alone"),
    "nothing": (lambda: None, "to return a torch.nn.Module, got NoneType"),
    "exit": (lambda: sys.exit("bye"), f"raised SystemExit: bye {HERE}"),
    "mute": (lambda: raising(Mute()), f"raised Mute {HERE}"),
}


@pytest.mark.parametrize("kind", FACTORIES)
def test_what_a_factory_may_not_do_is_told_in_one_line(kind: str, made: Any) -> None:
    factory, says = FACTORIES[kind]
    assert re.search(says, refused(lambda: made(factory), BadInput))


def flat(net: Any, x: Tensor) -> Any:
    """Made for 32 pixels."""
    return functional.linear(x.flatten(1), x.new_zeros(5, 3 * 32 * 32))


FORWARDS: dict[str, tuple[Callable[..., Any], type[ResnetExportError], str]] = {
    "another size": (
        flat,
        BadInput,
        f"does not take an image of 3x16x16 {HERE}: .*; choose another --image-size, 32 for one$",
    ),
    "exception": (
        lambda net, x: net.head(net.norm(net.stem(x))["x"]),
        TraceError,
        f"{HERE}: .*; no other --image-size helps: it must run, in evaluation mode, on torch.zeros\\(1, 3, 16, 16\\)$",
    ),
    "exit": (lambda net, x: sys.exit(0), TraceError, f"{HERE}: SystemExit: 0; no other"),
    "mute": (lambda net, x: raising(Mute()), TraceError, f"{HERE}: Mute; no other"),
    "labels": (
        lambda net, x, labels: x,
        TraceError,
        "missing 1 required positional argument: 'labels'; give a network whose forward",
    ),
    "several": (
        lambda net, x: (x, net.head(net.features(x))),
        BadInput,
        r"got a tuple of 0 \(1, 3, 16, 16\), 1 \(1, 5\); return the logits alone",
    ),
    "classes": (
        lambda net, x: net.features(x).argmax(1, keepdim=True),
        BadInput,
        r"got a int64 tensor of shape \(1, 1\); return the logits",
    ),
    "nothing": (lambda net, x: None, BadInput, "got NoneType; return the logits alone"),
}


@pytest.mark.parametrize("kind", FORWARDS)
def test_what_a_network_may_not_do_is_told_in_one_line(kind: str, made: Any) -> None:
    does, error, says = FORWARDS[kind]
    assert re.search(says, refused(lambda: made(lambda: Does(does)), error))


def test_what_strangers_print_goes_to_stderr_and_what_they_warn_of_nowhere(
    made: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def factory() -> nn.Module:
        print("hello")
        import warnings

        warnings.warn("old", DeprecationWarning, stacklevel=1)
        return Does(lambda net, x: (print("again"), net.head(net.features(x)))[1])

    made(factory)
    out, err = capsys.readouterr()
    assert out == ""
    assert "hello\nagain\n" in err
    assert "old" not in err


def test_what_a_script_sets_for_all_of_torch_and_reads_from_the_command_line_is_its_own(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["resnet-export", "x:y", "--fp16"])

    def factory() -> nn.Module:
        assert sys.argv[1:] == []
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        return Does(lambda net, x: net.head(net.features(x + torch.linspace(0, 1, x.shape[3]))))

    assert made(factory).facts.classes == 5
    assert (torch.get_default_dtype(), torch.get_float32_matmul_precision(), sys.argv[2]) == (
        torch.float32,
        "highest",
        "--fp16",
    )


# --- random starts ---


class Margin(Net):
    """Wants labels while it trains, and is otherwise then."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        cosine: Tensor = self.head(self.features(functional.dropout(x, training=self.training)))
        return cosine - functional.one_hot(labels, 5) if self.training else cosine  # type: ignore[arg-type]  # None is what the test is about


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d, nn.SyncBatchNorm, partial(nn.BatchNorm2d, affine=False)], ids=["batch", "sync", "bare"]
)
def test_the_statistics_of_random_weights_are_taken_in_evaluation_mode(norm: Any, made: Any) -> None:
    module = made(lambda: Margin(norm=norm), weights="random").module
    assert not module.training
    assert not module.norm.training
    assert not torch.equal(module.norm.running_mean, torch.zeros(8))
    assert module.norm.running_var.max() < 0.9  # not a tenth of the way from one


def test_a_layer_that_cannot_be_reset_is_told(made: Any) -> None:
    def factory() -> nn.Module:
        net = Net()
        net.head.reset_parameters = lambda: raising(KeyError("scale"))  # type: ignore[method-assign]  # as a subclass may have it
        return net

    assert re.search(
        f"reset_parameters of head raised KeyError: 'scale' {HERE}",
        refused(lambda: made(factory, weights="random"), BadInput),
    )


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


# --- steady ---


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
