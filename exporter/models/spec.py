"""What is known of a model by its name, and a model with its default weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

    from runtimes.preprocess import Preprocess


@dataclass(frozen=True)
class Shape:
    """What a residual network is built from: blocks in each stage, their kind, ResNeXt's groups and their width, and
    the stem.

    Attributes:
        stem: `imagenet`, 7x7 with stride 2 and a max pool; `cifar`, 3x3 and neither.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    groups: int = 1
    width: int = 64
    stem: Literal["imagenet", "cifar"] = "imagenet"


@dataclass(frozen=True)
class ModelSpec:
    """A model's name, the file that makes it, and what stands in `--list`.

    Attributes:
        variants: the forms it comes in, the default first; one alone is no choice.
        size: of the input, in pixels; None leaves it to `--image-size`.
        classes: of the head, where nothing else says.
        shape: None where the source has no use for one.
        parameters, macs: of the exported graph, for one image of that size; None where not counted.
        weights: there are default ones.
        variant: the form chosen.
    """

    name: str
    source: Literal["torchvision", "cifar", "custom", "timm"]
    variants: tuple[str, ...]
    size: int | None
    classes: int | None
    shape: Shape | None = None
    parameters: int | None = None
    macs: int | None = None
    weights: bool = False
    variant: str = ""

    def __post_init__(self) -> None:
        if not self.variant:
            object.__setattr__(self, "variant", self.variants[0])

    @property
    def stem(self) -> str:
        """The name without its source: what a bundle is called after."""
        return self.name.split(":")[-1]


@dataclass(frozen=True)
class Pretrained:
    """A model with its weights and all that belongs to them: preprocessing, class names where known, and the sha256 of
    the file they came from."""

    module: nn.Module
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    kind: Literal["default", "shipped"]
    sha256: str
