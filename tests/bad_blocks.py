"""The shipped ResNet-20 with blocks that INT8 cannot hold, and labelled pictures to find that out with.

Pairs of channels inside a block are made equal, and what reads them is split into two large weights that cancel each
other: FP32 and FP16 compute nearly what they did, and INT8, whose step is that of the large weights, loses the rest. No
scaling of channels mends it: the two are large alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import exporter.models
from calibration.data import built_in

SIZE = ("--mean", "0.286", "--std", "0.353")
"""What a checkpoint of the shipped network is to be told."""
BLOCKS = tuple(f"layer{stage}.{place}" for stage in (1, 2, 3) for place in range(3))


def write_checkpoint(path: Path, blocks: Sequence[str], *, pairs: int = 12, factor: float = 128.0) -> Path:
    """A checkpoint of the shipped network in which these blocks are hard to hold.

    Args:
        pairs: how many pairs of channels cancel each other.
        factor: how much larger than a channel's largest weight the weights that cancel are.
    """
    state = load_file(Path(exporter.models.__file__).parent / "assets" / "resnet20.safetensors")
    for block in blocks:
        weight = state[f"{block}.conv2.weight"]
        count = min(pairs, weight.shape[1] // 2)
        order = torch.argsort(weight.abs().sum((0, 2, 3)) * state[f"{block}.bn1.weight"].abs())
        weak, strong = order[:count], order[-count:]
        for name in ("conv1.weight", *(f"bn1.{part}" for part in ("weight", "bias", "running_mean", "running_var"))):
            state[f"{block}.{name}"][weak] = state[f"{block}.{name}"][strong]
        own = weight[:, strong].clone()
        large = factor * own.abs().amax((1, 2, 3), keepdim=True)
        weight[:, strong], weight[:, weak] = own / 2 + large, own / 2 - large
    torch.save(state, path)
    return path


def write_pictures(path: Path, count: int = 3000) -> Path:
    """The first `count` built-in pictures with their classes, training pictures before test pictures."""
    sources = [built_in("train"), built_in("test")]
    images = [np.asarray(source.image(place)) for source in sources for place in range(source.count)][:count]
    labels = np.concatenate([source.labels for source in sources if source.labels is not None])[:count]
    np.savez(path, images=np.stack(images), labels=labels)
    return path


@pytest.fixture(name="fashion", scope="session")
def fashion_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All built-in pictures, with their classes."""
    return write_pictures(tmp_path_factory.mktemp("fashion") / "fashion.npz")
