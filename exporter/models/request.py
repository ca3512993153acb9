"""The request for a model: its name, weights and input. Contradictions are refused here. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.models.registry import find_model
from exporter.models.spec import ModelSpec
from runtimes.errors import PlanError, UnknownName

FEATURES = ("pool", "stages")
SMALLEST_IMAGE = {"torchvision": 32, "timm": 32, "cifar": 8}
"""Source -> the smallest side in pixels: of a smaller image the last stage would have to halve less than a pixel."""


@dataclass(frozen=True)
class ModelRequest:
    """A model to load; the attributes are those of `exporter.pipeline.plan.ExportPlan`.

    Raises:
        UnknownName: no such model, variant or kind of features.
        PlanError: the request contradicts itself.
    """

    model: str
    weights: str = "default"
    variant: str | None = None
    classes: int | None = None
    labels: Path | None = None
    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    features: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_model(self.spec)
        if self.weights == "default" and self.classes is not None:
            raise PlanError(
                "--num-classes needs --weights random or FILE: the default weights come with their own classes"
            )
        if self.classes is not None and self.classes < 1:
            raise PlanError(f"expected --num-classes of at least 1, got {self.classes}")
        if not 0 <= self.seed < 2**63:
            raise PlanError(f"expected a --seed from 0 to 2^63-1, got {self.seed}")
        if self.std is not None and not min(self.std) > 0:
            raise PlanError(f"expected --std above 0, got {min(self.std):g}")
        self._check_features()

    @property
    def spec(self) -> ModelSpec:
        return find_model(self.model, self.variant)

    def _check_model(self, spec: ModelSpec) -> None:
        if self.weights == "default" and spec.variant != spec.variants[0]:
            raise PlanError(
                f"the default weights are those of {spec.variants[0]}, not of {spec.variant}; "
                "give --weights random or FILE"
            )
        if self.weights == "default" and not spec.weights:
            raise PlanError(f"{self.model} has no default weights; give --weights random or FILE")
        if spec.source == "custom" and self.image_size is None:
            raise PlanError(f"expected --image-size with {self.model}, got none; only its author knows what it takes")
        smallest = SMALLEST_IMAGE.get(spec.source, 1)
        if self.image_size is not None and min(self.image_size) < smallest:
            raise PlanError(
                f"expected --image-size of at least {smallest} pixels for {self.model}, "
                f"got {self.image_size[0]}x{self.image_size[1]}"
            )

    def _check_features(self) -> None:
        if self.features is None:
            return
        if self.features not in FEATURES:
            raise UnknownName("kind of --features", self.features, FEATURES)
        given = [
            option
            for option, value in (("--labels", self.labels), ("--num-classes", self.classes))
            if value is not None
        ]
        if given:
            raise PlanError(
                f"{given[0]} is about the head, which --features {self.features} leaves out; leave one of them out"
            )
