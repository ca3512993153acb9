"""Networks as strangers may write them, and how they are loaded or refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn
from torch.nn import functional

from exporter import ExportPlan
from exporter.models.loaded import LoadedModel
from exporter.models.loading import load_model
from runtimes.errors import ResnetExportError

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


@pytest.fixture(name="made")
def made_fixture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., LoadedModel]:
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
