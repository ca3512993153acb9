"""A network's state, put under other names as libraries do, and loaded as a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from networks import shaken
from torch import Tensor

from exporter import ExportPlan
from exporter.models.backbone import with_features
from exporter.models.loaded import LoadedModel
from exporter.models.loading import load_model
from exporter.models.sources.cifar import CifarResNet
from runtimes.errors import BadInput

State = dict[str, Tensor]
IMAGES = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(5))


@pytest.fixture(name="network", scope="module")
def network_fixture() -> CifarResNet:
    torch.manual_seed(3)
    module = shaken(CifarResNet(3, 1, 7))
    assert isinstance(module, CifarResNet)
    return module


@pytest.fixture(name="state", scope="module")
def state_fixture(network: CifarResNet) -> State:
    return dict(network.state_dict())


def load(value: object, folder: Path, *, features: str | None = None) -> LoadedModel:
    path = folder / "c.pth"
    torch.save(value, path)
    plan = ExportPlan("resnet20", folder / "out", weights=str(path), features=features)
    return with_features(load_model(plan.model_request), features)


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
