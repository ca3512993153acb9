"""Checkpoints of libraries and self-supervised training: their networks compute the same, what is left out is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_states import (  # noqa: F401  # pytest finds them by their names
    IMAGES,
    State,
    as_hugging_face,
    body,
    head,
    load,
    network_fixture,
    said,
    state_fixture,
    under,
)
from networks import shaken
from torch import nn
from torch.nn.utils import prune

from exporter import ExportPlan
from exporter.models.sources.cifar import CifarResNet
from exporter.pipeline.export import export


def in_numbered_parts(state: State, body_name: str, head_name: str) -> State:
    """The body as nn.Sequential of an ImageNet ResNet's children: its third and fourth are a ReLU and a pool."""
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "fc": ""}
    result = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        result[f"{head_name}.{rest}" if first == "fc" else f"{body_name}.{numbers[first]}.{rest}"] = value
    return result


def profiled(state: State) -> State:
    parts = {key.rpartition(".")[0] for key in state}
    zero = torch.zeros(1, dtype=torch.float64)
    return {
        **state,
        **{f"{part}.{name}": zero for part in parts for name in ("total_ops", "total_params")},
        "total_ops": zero,
    }


LAYOUTS: dict[str, Callable[[State], object]] = {
    "Hugging Face": as_hugging_face,
    "MMPretrain": lambda state: {
        "meta": {},
        "state_dict": {**under("backbone.", body(state)), **under("head.", head(state))},
    },
    "pretrainedmodels": lambda state: {key.replace("fc.", "last_linear."): value for key, value in state.items()},
    "features and fc": lambda state: in_numbered_parts(state, "features", "fc"),
    "feature_extractor and classifier": lambda state: in_numbered_parts(state, "feature_extractor", "classifier"),
    "backbone and classifier": lambda state: in_numbered_parts(state, "module.backbone", "module.classifier"),
    "backbone and a classifier of dropout and linear": lambda state: in_numbered_parts(
        state, "backbone", "classifier.1"
    ),
    "nn.Sequential of body, flatten and linear": lambda state: {
        **under("0.", body(state)),
        "2.weight": state["fc.weight"],
        "2.bias": state["fc.bias"],
    },
    "params beside their average": lambda state: {
        "params_ema": under("", {key: value * 0 for key, value in state.items()}),
        "params": state,
    },
    "model_state": lambda state: {"model_state": state, "optim_state": {"state": {0: {"m": torch.ones(3)}}}},
}


@pytest.mark.parametrize("rename", LAYOUTS.values(), ids=LAYOUTS)
def test_a_network_under_foreign_names_computes_the_same(
    network: CifarResNet, state: State, tmp_path: Path, rename: Callable[[State], object]
) -> None:
    loaded = load(rename(state), tmp_path)
    assert loaded.left_out == ()
    with torch.inference_mode():
        assert torch.equal(loaded.module(IMAGES), network(IMAGES))


BESIDE: dict[str, tuple[Callable[[State], object], str]] = {
    "thop's counters": (profiled, "counters of a profiler or an average: "),
    "an average's counter": (
        lambda state: {**under("module.", state), "n_averaged": torch.tensor(3)},
        "counters of a profiler or an average: n_averaged",
    ),
    "Lightning's loss": (
        lambda state: {**under("model.", state), "criterion.weight": torch.ones(7)},
        "losses and metrics: criterion.*",
    ),
    "a loss inside": (lambda state: {**state, "loss_fn.pos_weight": torch.ones(7)}, "losses and metrics: loss_fn.*"),
    "a metric": (
        lambda state: {**under("model.", state), "val_acc.total": torch.tensor(1)},
        "losses and metrics: val_acc.*",
    ),
    "weights of classes": (
        lambda state: {**under("net.", state), "class_weights": torch.ones(7)},
        "losses and metrics: class_weights",
    ),
    "a moving average": (
        lambda state: {**under("model.", state), **under("ema_model.module.", state)},
        "a copy of the network, 'ema_model.module.'",
    ),
}


@pytest.mark.parametrize(("wrap", "says"), BESIDE.values(), ids=BESIDE)
def test_what_only_training_needs_is_left_out_and_named(
    network: CifarResNet, state: State, tmp_path: Path, wrap: Callable[[State], object], says: str
) -> None:
    loaded = load(wrap(state), tmp_path)
    assert len(loaded.left_out) == 1
    assert says in loaded.left_out[0]
    with torch.inference_mode():
        assert torch.equal(loaded.module(IMAGES), network(IMAGES))


class Enough(Exception):
    """The export has come as far as matters."""


def test_what_is_left_out_is_said_while_exporting(state: State, tmp_path: Path) -> None:
    torch.save({**under("model.", state), "criterion.weight": torch.ones(7)}, tmp_path / "c.pth")
    said: list[str] = []

    def announce(step: str, done: int = 0, total: int = 0) -> None:
        said.append(step)
        if step == "trace":
            raise Enough

    with pytest.raises(Enough):
        export(ExportPlan("resnet20", tmp_path / "out", weights=str(tmp_path / "c.pth")), announce)
    assert "left out: 1 tensors of the checkpoint, losses and metrics: criterion.*" in said


def test_pruned_weights_are_multiplied_with_their_masks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = shaken(CifarResNet(3, 1, 7))
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            prune.l1_unstructured(part, "weight", 0.3)  # type: ignore[no-untyped-call]  # torch's own signature lacks types
    loaded = load(module.state_dict(), tmp_path)
    assert (loaded.module.get_parameter("layer1.0.conv1.weight") == 0).float().mean() == pytest.approx(0.3, abs=0.01)
    with torch.inference_mode():
        assert torch.equal(loaded.module(IMAGES), module(IMAGES))
    broken = {**module.state_dict(), "conv1.weight_mask": torch.ones(2, 1, 3, 3)}
    assert "expected 'conv1.weight_mask' of shape (16, 1, 3, 3), got (2, 1, 3, 3)" in said(broken, tmp_path)


# --- self-supervised training ---


def projected(state: State, outputs: int = 16) -> State:
    """With a projection of two layers where the head was."""
    layers = {
        "fc.0.weight": torch.ones(64, 64),
        "fc.0.bias": torch.ones(64),
        "fc.2.weight": torch.ones(outputs, 64),
        "fc.2.bias": torch.ones(outputs),
    }
    return {**body(state), **layers}


def zeros(state: State) -> State:
    return {key: torch.zeros_like(value) for key, value in state.items()}


SELF_SUPERVISED: dict[str, tuple[Callable[[State], object], str]] = {
    "MoCo": (
        lambda state: {
            "arch": "resnet20",
            "state_dict": {
                **under("module.encoder_q.", projected(state)),
                **under("module.encoder_k.", projected(zeros(state))),
                "module.queue": torch.ones(16, 32),
                "module.queue_ptr": torch.zeros(1, dtype=torch.long),
            },
        },
        "module.queue",
    ),
    "MoCo v1's one layer": (
        lambda state: {**under("module.encoder_k.", zeros(state)), **under("module.encoder_q.", state)},
        "a copy of the network, 'module.encoder_k.'",
    ),
    "MoCo v3": (
        lambda state: {
            **under("module.base_encoder.", projected(state)),
            **under("module.momentum_encoder.", projected(zeros(state))),
            "module.predictor.0.weight": torch.ones(9, 16),
        },
        "module.predictor.*",
    ),
    "SimSiam": (
        lambda state: {**under("module.encoder.", projected(state)), "module.predictor.0.weight": torch.ones(9, 16)},
        "module.encoder.fc.*, module.predictor.*",
    ),
    "SimCLR": (lambda state: {"state_dict": under("backbone.", projected(state))}, "backbone.fc.*"),
    "SimCLR's projection apart": (
        lambda state: {**under("encoder.", body(state)), "projector.0.weight": torch.ones(9, 64)},
        "projector.*",
    ),
    "SwAV": (
        lambda state: under(
            "module.",
            {**body(state), "projection_head.0.weight": torch.ones(9, 64), "prototypes.weight": torch.ones(4, 9)},
        ),
        "module.prototypes.*",
    ),
    "Barlow Twins": (
        lambda state: {
            **under("module.backbone.", body(state)),
            "module.projector.0.weight": torch.ones(9, 64),
            "module.bn.running_mean": torch.ones(9),
        },
        "module.bn.*",
    ),
}


@pytest.mark.parametrize(("wrap", "says"), SELF_SUPERVISED.values(), ids=SELF_SUPERVISED)
def test_self_supervised_encoders_give_features_and_no_logits(
    network: CifarResNet, state: State, tmp_path: Path, wrap: Callable[[State], object], says: str
) -> None:
    loaded = load(wrap(state), tmp_path, features="pool")
    assert any(says in one for one in loaded.left_out)
    with torch.inference_mode():
        assert torch.equal(network.fc(loaded.module(IMAGES)), network(IMAGES))
    assert "--features pool or stages" in said(wrap(state), tmp_path)
