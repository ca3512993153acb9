"""`scripts/rescaled_resnet.py`: other weights, the same function, and harder to quantize."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from script_modules import script_module

from calibration.data import FASHION_MNIST_CLASSES
from exporter.models.sources.cifar import ASSETS, CifarResNet

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "rescaled_resnet.py"


@pytest.fixture(name="rescaled", scope="module")
def rescaled_fixture() -> ModuleType:
    return script_module("rescaled_resnet")


def logits(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    network = CifarResNet(3, 1, 10).eval()
    network.load_state_dict(state, strict=False)
    with torch.no_grad():
        found: torch.Tensor = network(images)
    return found


def test_every_channel_is_scaled_and_the_function_stays(rescaled: ModuleType, tmp_path: Path) -> None:
    done = CliRunner().invoke(rescaled.main, ["--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    before, after = load_file(ASSETS / "resnet20.safetensors"), load_file(tmp_path / "resnet20.safetensors")
    images = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    expected, got = logits(before, images), logits(after, images)
    assert float((expected - got).abs().max() / expected.abs().max()) < 1e-5
    norms = [name for name in before if name.endswith(("bn1.weight", "bn2.weight", "downsample.1.weight"))]
    factors = torch.cat([after[name] / before[name] for name in norms])
    assert len(norms) == 21
    assert (0.06 < float(factors.min()) < 0.07, 15 < float(factors.max()) < 16.1) == (True, True)
    labels = json.loads((tmp_path / "class_indices.json").read_text())
    assert tuple(labels.values()) == FASHION_MNIST_CLASSES


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(rescaled: ModuleType) -> None:
    state = load_file(ASSETS / "resnet20.safetensors")
    one, same, other = (rescaled.rescaled(state, 4.0, seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in state)
    assert not torch.equal(one["bn1.weight"], other["bn1.weight"])
    assert all(torch.equal(value, one[name]) for name, value in rescaled.rescaled(one, 1.0, 0).items())
