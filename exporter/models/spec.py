"""The records of a model: what its name tells, and the module with its default weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

    from runtimes.preprocess import Preprocess


@dataclass(frozen=True)
class Architecture:
    """The numbers that define a residual network.

    Attributes:
        blocks: the number of residual blocks in each stage.
        bottleneck: the blocks are bottlenecks, of three convolutions, not of two.
        groups: of the 3x3 convolutions, as in ResNeXt.
        width: channels of each group in the first stage (torchvision's `width_per_group`).
        stem: `imagenet`, a 7x7 convolution with stride 2 and a max pool; `cifar`, a 3x3 convolution alone.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    groups: int = 1
    width: int = 64
    stem: Literal["imagenet", "cifar"] = "imagenet"


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model by its name; `--list` prints it.

    Attributes:
        source: the plug-in in `exporter.models.sources` that makes it; `onnx` is a file, whose path is the name.
        variants: the variants that it has, the default first.
        size: side of its input image in pixels; None leaves it to `--image-size`.
        classes: classes of its head, unless `--num-classes` or the weights have others.
        architecture: None where the source has no use for it.
        parameters, macs: counted on the exported graph, for one image of that size; None where not counted.
        weights: whether there are default weights.
        variant: the chosen one of `variants`.
    """

    name: str
    source: Literal["torchvision", "cifar", "custom", "timm", "onnx"]
    variants: tuple[str, ...]
    size: int | None
    classes: int | None
    architecture: Architecture | None = None
    parameters: int | None = None
    macs: int | None = None
    weights: bool = False
    variant: str = ""

    def __post_init__(self) -> None:
        if not self.variant:
            object.__setattr__(self, "variant", self.variants[0])

    @property
    def stem(self) -> str:
        """The name without its source, after which a bundle is named; of a file, its name alone."""
        if self.source == "onnx":
            return re.sub(r"[^\w.-]+", "_", Path(self.name).stem) or "model"
        return self.name.split(":")[-1]


@dataclass(frozen=True)
class Pretrained:
    """A model with its default weights.

    Attributes:
        preprocess: what the model expects of images.
        labels: class names in the order of the outputs; None where unknown.
        kind: `default`, fetched or made by a factory; `shipped`, part of this package.
        sha256: digest of the file with the weights; of the weights themselves where there is no file.
    """

    module: nn.Module
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    kind: Literal["default", "shipped"]
    sha256: str
