"""Strangers' networks: what a factory, a network or a layer may not do is told in one line before the trace."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from strangers import Does, Net, made_fixture, refused  # noqa: F401  # pytest finds it by its name
from torch import Tensor, nn
from torch.nn import functional

from runtimes.errors import BadInput, ResnetExportError, TraceError

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


HERE = r"\(test_refused_networks\.py, line \d+\)"
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
