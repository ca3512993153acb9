"""The models there are, by name: a light table. Each `source` is a file here that knows how to make its models.

A source file has three functions, each of which takes a `ModelSpec` first:

    create(spec, classes, channels) -> nn.Module     freshly initialised, from torch's current random state
    pretrained(spec) -> Pretrained                   what `--weights default` means
    preprocess(spec) -> Preprocess                   what the model expects of images when nothing else says
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from runtimes.errors import UnknownName

if TYPE_CHECKING:
    from torch import Tensor

    from runtimes.preprocess import Preprocess


@dataclass(frozen=True)
class ModelSpec:
    """A model's name, the file that makes it, and what stands in `--list`. `macs` are for one image of the default size."""

    name: str
    source: Literal["torchvision", "cifar"]
    variant: str
    parameters: int
    macs: int
    size: int


@dataclass(frozen=True)
class Pretrained:
    """Weights with all that belongs to them: preprocessing, class names, and the sha256 of the file they came from."""

    state: Mapping[str, Tensor]
    preprocess: Preprocess
    labels: tuple[str, ...]
    kind: Literal["default", "shipped"]
    sha256: str


def _imagenet(name: str, parameters: int, macs: int) -> ModelSpec:
    return ModelSpec(name, "torchvision", "v1.5", parameters, macs, 224)


# Counted on the exported graphs, 1000 classes (resnet20: 10); tests count again.
MODELS: Mapping[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec("resnet20", "cifar", "projection", 271_402, 31_021_952, 28),
        _imagenet("resnet18", 11_684_712, 1_814_073_344),
        _imagenet("resnet34", 21_789_160, 3_663_761_408),
        _imagenet("resnet50", 25_530_472, 4_089_184_256),
        _imagenet("resnet101", 44_496_488, 7_801_405_440),
        _imagenet("resnet152", 60_117_096, 11_513_626_624),
        _imagenet("resnext50_32x4d", 24_994_792, 4_230_479_872),
        _imagenet("resnext101_32x8d", 88_689_896, 16_414_015_488),
        _imagenet("resnext101_64x4d", 83_353_832, 15_460_270_080),
        _imagenet("wide_resnet50_2", 68_849_128, 11_398_021_120),
        _imagenet("wide_resnet101_2", 126_817_768, 22_753_050_624),
    )
}


def find_model(name: str) -> ModelSpec:
    """The model of that name.

    Raises:
        UnknownName: there is none; lists the nearest.
    """
    if name not in MODELS:
        raise UnknownName("model", name, MODELS)
    return MODELS[name]
