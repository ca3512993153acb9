"""The request for a model: its name, weights and input. Contradictions are refused here. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.models.registry import find_model
from exporter.models.spec import ModelSpec
from runtimes.errors import PlanError, UnknownName

FEATURES = ("pool", "stages")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
CHANNELS_ORDERS = ("rgb", "bgr")
SCALES = (1, 255)
"""The largest value of a pixel that --mean and --std may be about."""
LARGEST_RESIZE = 1 << 16
SMALLEST_IMAGE = {"torchvision": 32, "timm": 32, "cifar": 8}
"""Source -> the smallest side in pixels: of a smaller image the last stage would have to halve less than a pixel."""


def check_resize(resize: int | tuple[int, int], crop: tuple[int, int]) -> None:
    """Check what --resize asks for against the size (height, width) of the model's input.

    A picture that is smaller than the crop is padded with black. Of a shorter side that is smaller than the crop's,
    every picture would be, and nobody means that.

    Raises:
        PlanError: every picture would get a black border, or one would be enormous.
    """
    height, width = crop
    sides = resize if isinstance(resize, tuple) else (resize, resize)
    least = crop if isinstance(resize, tuple) else (min(crop), min(crop))
    shown = f"{sides[0]}x{sides[1]}" if isinstance(resize, tuple) else str(resize)
    if any(side < smallest for side, smallest in zip(sides, least, strict=True)):
        wanted = f"{height}x{width}" if isinstance(resize, tuple) else str(least[0])
        raise PlanError(
            f"expected --resize of at least the input's {height}x{width}, got {shown}: every picture would get a black "
            f"border; give --resize {wanted}, or a smaller --image-size"
        )
    if max(sides) > LARGEST_RESIZE:
        raise PlanError(f"expected --resize of at most {LARGEST_RESIZE} pixels, got {shown}; give a smaller one")


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
    resize: int | tuple[int, int] | None = None
    interpolation: str | None = None
    channels_order: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: int = 1
    features: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_model(self.spec)
        if self.weights == "default" and self.classes is not None and self.spec.source != "onnx":
            raise PlanError(
                "--num-classes needs --weights random or FILE: the default weights come with their own classes"
            )
        if self.classes is not None and self.classes < 1:
            raise PlanError(f"expected --num-classes of at least 1, got {self.classes}")
        if not 0 <= self.seed < 2**63:
            raise PlanError(f"expected a --seed from 0 to 2^63-1, got {self.seed}")
        self._check_normalisation()
        if self.interpolation is not None and self.interpolation not in INTERPOLATIONS:
            raise UnknownName("interpolation", self.interpolation, INTERPOLATIONS)
        if self.channels_order is not None and self.channels_order not in CHANNELS_ORDERS:
            raise UnknownName("order of channels", self.channels_order, CHANNELS_ORDERS)
        if self.resize is not None and self.image_size is not None:
            check_resize(self.resize, self.image_size)
        self._check_features()

    @property
    def spec(self) -> ModelSpec:
        return find_model(self.model, self.variant)

    def _check_file(self) -> None:
        """Refuse what is about networks of PyTorch, where the model is an ONNX file."""
        given = {
            "--weights": self.weights != "default",
            "--features": self.features is not None,
        }
        option = next((option for option, is_given in given.items() if is_given), None)
        if option is not None:
            raise PlanError(
                f"{option} is for networks of PyTorch, and {self.model} is an ONNX file, with its own weights and "
                "outputs; leave it out"
            )

    def _check_model(self, spec: ModelSpec) -> None:
        if spec.source == "onnx":
            self._check_file()
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

    def _check_normalisation(self) -> None:
        if self.scale not in SCALES:
            raise PlanError(f"expected a --scale of 1 or 255, the largest value of a pixel, got {self.scale}")
        if self.scale != 1 and (self.mean is None or self.std is None):
            missing = " and ".join(
                option for option, value in (("--mean", self.mean), ("--std", self.std)) if value is None
            )
            raise PlanError(
                f"--scale {self.scale} says that --mean and --std are about pixels of 0..{self.scale}, and there is no "
                f"{missing}; give both: --mean 0 --std 1 for a network that takes such pixels as they are"
            )
        if self.std is not None and not min(self.std) > 0:
            raise PlanError(f"expected --std above 0, got {min(self.std):g}")
        largest = max(self.mean) if self.mean else 0.0
        if largest > self.scale:
            remedy = "add --scale 255 if it is of pixels of 0..255" if self.scale == 1 else "no mean is larger"
            raise PlanError(
                f"expected --mean of at most {self.scale}, on pixels of 0..{self.scale}, got {largest:g}; {remedy}"
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
