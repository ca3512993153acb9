"""Write the shipped ResNet-20 with its channels rescaled: the same function in FP32, and hard to quantize.

    python scripts/rescaled_resnet.py --output build/rescaled
    resnet-export resnet20 --int8 --weights build/rescaled/resnet20.safetensors --labels build/rescaled/class_indices.json

ReLU(s x) = s ReLU(x) for s > 0, so a channel may be multiplied by s where it is written and divided by s where it is read
(Nagel et al. 2019, arXiv 1906.04721, section 4.1, who go the other way). A network may be in such a state by accident of its
training; this one is so on purpose: every channel inside a block, and every channel of a residual stream with all its writers
and readers, by a factor drawn log-uniformly from 1/REACH to REACH.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from calibration.data import FASHION_MNIST_CLASSES
from exporter.models.sources.cifar import ASSETS
from runtimes.bundle_writing import write_in_one_step

MODEL = "resnet20"
STAGES = ("layer1", "layer2", "layer3")


@dataclass(frozen=True)
class Channels:
    """Channels that can be rescaled together: the normalisations that write them, the layers that read them."""

    writers: tuple[str, ...]
    readers: tuple[str, ...]


def rescaled(state: dict[str, Tensor], reach: float, seed: int) -> dict[str, Tensor]:
    """A copy of a network of basic blocks with every channel scaled by 1/`reach` to `reach`, its FP32 function unchanged."""
    generator, result = np.random.default_rng(seed), {name: value.clone() for name, value in state.items()}
    for channels in [*inner_channels(state), *streams(state)]:
        count = len(state[f"{channels.writers[0]}.weight"])
        factors = torch.from_numpy(reach ** generator.uniform(-1, 1, count)).float()
        for name in channels.writers:
            result[f"{name}.weight"] *= factors
            result[f"{name}.bias"] *= factors
        for name in channels.readers:
            weight = result[f"{name}.weight"]  # (outputs, inputs) of a linear layer, (outputs, inputs, height, width)
            weight /= factors.reshape(1, -1, *[1] * (weight.ndim - 2))
    return result


def inner_channels(state: Iterable[str]) -> list[Channels]:
    """Those between a block's two convolutions."""
    return [Channels((f"{block}.bn1",), (f"{block}.conv2",)) for stage in STAGES for block in blocks(state, stage)]


def streams(state: Iterable[str]) -> list[Channels]:
    """Those of each stage's residual stream; the first stage's is also written by the stem, the last one's read by the head."""
    names = set(state)
    result = []
    for stage, following in zip(STAGES, (*STAGES[1:], None), strict=True):
        projected = f"{stage}.0.downsample.0.weight" in names
        first = f"{stage}.0.downsample.1" if projected else "bn1"
        inside = blocks(names, stage)
        behind = [f"{following}.0.conv1", f"{following}.0.downsample.0"] if following else ["fc"]
        reading = [f"{block}.conv1" for block in (inside[1:] if projected else inside)]
        result.append(Channels((first, *(f"{block}.bn2" for block in inside)), (*reading, *behind)))
    return result


def blocks(state: Iterable[str], stage: str) -> list[str]:
    """The blocks of a stage, in order: `layer1.0`, `layer1.1`, ..."""
    found = {int(name.split(".")[1]) for name in state if name.startswith(f"{stage}.")}
    return [f"{stage}.{index}" for index in sorted(found)]


@click.command(help=__doc__.split("\n", 1)[0])
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write to.")
@click.option(
    "--reach", type=click.FloatRange(min=1), default=16.0, show_default=True, help="Largest factor, either way."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def main(output: Path, reach: float, seed: int) -> None:
    state = rescaled(load_file(ASSETS / f"{MODEL}.safetensors"), reach, seed)
    output.mkdir(parents=True, exist_ok=True)
    weights, labels = output / f"{MODEL}.safetensors", output / "class_indices.json"
    save_file(state, weights)
    names = {str(index): name for index, name in enumerate(FASHION_MNIST_CLASSES)}
    write_in_one_step(labels, (json.dumps(names, indent=2) + "\n").encode())
    click.echo(f"resnet-export {MODEL} --weights {weights} --labels {labels}")


if __name__ == "__main__":
    main()
