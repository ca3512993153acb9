"""Checkpoints of networks that may compute something else: none is exported as one that it may not be."""

from __future__ import annotations

import json
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
from safetensors.torch import save_file
from torchvision.models import resnet50

from exporter import ExportPlan
from exporter.models.loading import load_model
from exporter.models.registry import find_model
from exporter.models.sources import torchvision
from exporter.models.sources.cifar import CifarResNet
from runtimes.errors import BadInput, PlanError

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
    """Of the same tensors, a detector's or a segmentation network's body may have other strides than a classifier's."""
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
