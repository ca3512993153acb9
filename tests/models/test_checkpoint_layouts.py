"""Checkpoints of libraries and of self-supervised training: the network in them computes what it did there, what is left out is named, and
nothing that may be part of the computation is passed over."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import shaken
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from torchvision.models import resnet50

from exporter import ExportPlan
from exporter.models.backbone import with_features
from exporter.models.loaded import LoadedModel
from exporter.models.loading import load_model
from exporter.models.registry import find_model
from exporter.models.sources import torchvision
from exporter.models.sources.cifar import CifarResNet
from exporter.pipeline.export import export
from runtimes.errors import BadInput, PlanError

State = dict[str, Tensor]
IMAGES = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def network() -> CifarResNet:
    torch.manual_seed(3)
    module = shaken(CifarResNet(3, 1, 7))
    assert isinstance(module, CifarResNet)
    return module


@pytest.fixture(scope="module")
def state(network: CifarResNet) -> State:
    return dict(network.state_dict())


def load(
    value: object, folder: Path, model: str = "resnet20", *, features: str | None = None, variant: str | None = None
) -> LoadedModel:
    path = folder / "c.pth"
    torch.save(value, path)
    return with_features(
        load_model(
            ExportPlan(model, folder / "out", weights=str(path), features=features, variant=variant).model_request
        ),
        features,
    )


def said(value: object, folder: Path, *, features: str | None = None) -> str:
    with pytest.raises(BadInput) as refused:
        load(value, folder, features=features)
    message = str(refused.value)
    assert "\n" not in message
    assert "does not fit resnet20: the closest known is resnet20" not in message
    return message


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def body(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def head(state: State) -> State:
    return {key: value for key, value in state.items() if key.startswith("fc.")}


def as_hugging_face(state: State) -> State:
    rules = (
        (r"^conv1\.", "resnet.embedder.embedder.convolution."),
        (r"^bn1\.", "resnet.embedder.embedder.normalization."),
        (r"^fc\.", "classifier.1."),
        (r"^layer(\d)\.(\d+)\.", lambda match: f"resnet.encoder.stages.{int(match[1]) - 1}.layers.{match[2]}."),
        (r"\.downsample\.0\.", ".shortcut.convolution."),
        (r"\.downsample\.1\.", ".shortcut.normalization."),
        (
            r"\.(conv|bn)(\d)\.",
            lambda match: f".layer.{int(match[2]) - 1}.{'convolution' if match[1] == 'conv' else 'normalization'}.",
        ),
    )
    result = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        result[key] = value
    return result


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


# --- nothing that computes is passed over ---

ODD: dict[str, tuple[Callable[[State], object], str]] = {
    "attention behind the stem": (
        lambda state: {**state, "ca.weight": torch.ones(4, 16)},
        "1 tensors that it has no place for: ca.weight",
    ),
    "squeeze and excitation in a block": (
        lambda state: {**state, "layer1.0.se.fc.weight": torch.ones(4, 16)},
        "layer1.0.se.fc.weight",
    ),
    "a normalisation in front": (lambda state: {**under("1.", state), "0.mean": torch.ones(1)}, "0.mean"),
    "a neck between body and head": (
        lambda state: {**under("backbone.", body(state)), **head(state), "neck.weight": torch.ones(64, 64)},
        "neck.weight",
    ),
    "fake quantization": (
        lambda state: {**state, "conv1.weight_fake_quant.scale": torch.ones(1)},
        "save the float model's state_dict",
    ),
    "parametrized weights": (
        lambda state: {
            **{key: value for key, value in state.items() if key != "conv1.weight"},
            "conv1.weight_g": torch.ones(16, 1, 1, 1),
        },
        "its weights are parametrized: remove that",
    ),
    "a part that is missing": (
        lambda state: {key: value for key, value in state.items() if key != "layer2.1.bn2.bias"},
        "1 missing: layer2.1.bn2.bias",
    ),
    "other widths": (
        lambda state: {**state, "layer2.1.conv1.weight": torch.ones(20, 32, 3, 3)},
        "layer2.1.conv1.weight (20, 32, 3, 3) instead of (32, 32, 3, 3)",
    ),
    "whole numbers": (
        lambda state: {**state, "layer2.1.conv1.weight": torch.ones(32, 32, 3, 3, dtype=torch.int8)},
        "1 of another type: layer2.1.conv1.weight torch.int8",
    ),
}


@pytest.mark.parametrize(("change", "says"), ODD.values(), ids=ODD)
def test_what_may_be_part_of_the_computation_is_refused_with_what_differs(
    state: State, tmp_path: Path, change: Callable[[State], object], says: str
) -> None:
    assert says in said(change(state), tmp_path)


def test_features_are_not_taken_out_of_a_checkpoint_whose_other_parts_convolve(state: State, tmp_path: Path) -> None:
    """A detector's or a segmentation network's body may have other strides than the classifier's, from the same tensors."""
    segmentation = {
        **under("backbone.", body(state)),
        "classifier.0.weight": torch.ones(9, 64, 3, 3),
        "classifier.0.bias": torch.ones(9),
    }
    assert "classifier.0.weight" in said(segmentation, tmp_path, features="stages")
    attention = {**body(state), "sa.weight": torch.ones(4, 16)}
    assert "sa.weight" in said(attention, tmp_path, features="pool")


@pytest.mark.parametrize("features", [None, "pool"])
def test_a_head_of_two_layers_points_to_a_factory(state: State, tmp_path: Path, features: str | None) -> None:
    two = {
        **body(state),
        "fc.0.weight": torch.ones(9, 64),
        "fc.0.bias": torch.ones(9),
        "fc.3.weight": torch.ones(7, 9),
        "fc.3.bias": torch.ones(7),
    }
    if features:
        assert (
            "4 tensors of the checkpoint, what is behind the pooled vector: fc.*"
            in load(two, tmp_path, features=features).left_out[0]
        )
    else:
        message = said(two, tmp_path)
        assert "a head of more than one linear layer (fc.0.weight, fc.0.bias, fc.3.weight, fc.3.bias)" in message
        assert "package.module:factory" in message


def test_several_state_dicts_side_by_side_are_a_question(state: State, tmp_path: Path) -> None:
    message = said({"student": under("module.", state), "teacher": state, "epoch": 1}, tmp_path)
    assert (
        "holds several networks, 'student', 'teacher'; save the one to export: torch.save(torch.load('c.pth', weights_only=True)['student']"
        in message
    )


# --- Hugging Face's config.json ---


def saved_for_transformers(folder: Path, state: State, **config: object) -> ExportPlan:
    save_file(
        {key: value.contiguous() for key, value in as_hugging_face(state).items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet", **config}))
    return ExportPlan("resnet20", folder / "out", weights=str(folder / "model.safetensors"))


def test_labels_come_from_the_config_beside_the_weights(network: CifarResNet, state: State, tmp_path: Path) -> None:
    plan = saved_for_transformers(
        tmp_path,
        state,
        id2label={str(place): name for place, name in enumerate("abcdefg")},
        downsample_in_bottleneck=False,
    )
    loaded = load_model(plan.model_request)
    assert loaded.labels == tuple("abcdefg")
    with torch.inference_mode():
        assert torch.equal(loaded.module(IMAGES), network(IMAGES))


@pytest.mark.parametrize(
    "names", [{str(place): f"LABEL_{place}" for place in range(7)}, {}, {"0": "a", "2": "b"}, ["a"]]
)
def test_placeholders_are_no_labels(state: State, tmp_path: Path, names: object) -> None:
    assert load_model(saved_for_transformers(tmp_path, state, id2label=names).model_request).labels is None


def test_names_of_another_head_are_left_out_and_said(state: State, tmp_path: Path) -> None:
    loaded = load_model(saved_for_transformers(tmp_path, state, id2label={"0": "cat", "1": "dog"}).model_request)
    assert loaded.labels is None
    assert loaded.left_out == ("2 class names of config.json: model.safetensors has 7 classes",)


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "gelu"), ("downsample_in_first_stage", True)])
def test_a_config_of_another_computation_is_refused(state: State, tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(
        BadInput,
        match=f'config.json says "{key}" .*, so model.safetensors is not a resnet20; export package.module:factory',
    ):
        load_model(saved_for_transformers(tmp_path, state, **{key: value}).model_request)


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_a_damaged_config_is_told(state: State, tmp_path: Path, content: str) -> None:
    plan = saved_for_transformers(tmp_path, state)
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(BadInput, match=r"config\.json.*put it right, or move it away"):
        load_model(plan.model_request)


@pytest.mark.parametrize("first", [False, True])
def test_where_the_config_puts_the_stride_is_where_it_is(tmp_path: Path, first: bool) -> None:
    torch.manual_seed(0)
    own = resnet50(num_classes=3)
    variant, other = ("v1", "v1.5") if first else ("v1.5", "v1")
    spec = find_model("resnet50", variant)
    module = torchvision.create(spec, 3, 3)
    module.load_state_dict(own.state_dict())
    plan = saved_for_transformers(tmp_path, dict(module.state_dict()), downsample_in_bottleneck=first)
    images = torch.randn(1, 3, 64, 64)
    loaded = load_model(
        ExportPlan("resnet50", tmp_path, weights=plan.weights, variant=variant, image_size=(64, 64)).model_request
    ).module
    with torch.inference_mode():
        assert torch.equal(loaded(images), module.eval()(images))
    with pytest.raises(PlanError, match=rf"which is {variant}, not {other}; give --variant {variant}"):
        load_model(
            ExportPlan("resnet50", tmp_path, weights=plan.weights, variant=other, image_size=(64, 64)).model_request
        )
