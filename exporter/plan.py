"""Everything one export needs, refused here where it contradicts itself. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from exporter import precisions
from exporter.kinds import check_kinds
from exporter.models import ModelSpec, find_model
from runtimes._plugins import load_plugin, plugin_names
from runtimes.errors import PlanError, UnknownName
from runtimes.specs import BatchRange

OPSETS = (19, 20)
"""20 is the newest opset that TensorRT 10.3 (JetPack 6) and ONNX Runtime 1.17 read; FP16 scales of Q/DQ need 19."""
BF16_OPSET = 22
"""The first whose Conv, MaxPool and GlobalAveragePool take BF16."""
TARGETS = ("tensorrt",)
CALIBRATED = ("int8",)
CALIBRATOR = "mse"
FEATURES = ("pool", "stages")
CROP, FULL = UINT8_INPUTS = ("crop", "full")
SMALLEST_IMAGE = {"torchvision": 32, "timm": 32, "cifar": 8}
"""By source: below it the last stage has less than a pixel to halve."""
DEFAULT_BATCH = BatchRange(1, 8, 32)


def precision_names() -> tuple[str, ...]:
    """The precisions there is a file for."""
    return plugin_names(precisions.__file__)


def load_precision(name: str) -> ModuleType:
    """The plug-in of a precision, with its `BUDGET` and `lower`."""
    return load_plugin(precisions, name, kind="precision", remedy="pip install 'resnet-export[export]'")


@dataclass(frozen=True)
class ExportPlan:
    """What to export and where to; only its defaults are defaults.

    Attributes:
        model: a name from `--list` or of its pattern, or `package.module:factory`.
        precision: fp32, fp16, bf16 or int8.
        weights: `default`, `random`, or the path of a checkpoint.
        variant: one of the forms the model comes in (`v1`, `pad`); None takes its first.
        classes: size of the head; None takes it from the weights.
        labels: a text file, a class_indices.json, or a folder with a subfolder for each class (see `exporter.labels`).
        image_size: (height, width) of the model's input; None takes the model's own.
        mean, std: normalisation, one value or one per channel; None takes the model's own.
        opset: of the ONNX graph; 0 takes the newest that the precision may have, and is that number from then on.
        seed: for random weights.
        data: pictures to prove with, and for int8 to calibrate on (see `calibration.data.open_source`); None takes the built-in ones.
        calibrator: how int8 reads thresholds off what was measured.
        calibration_images: how many pictures to calibrate on; None takes 512, or all where there are fewer.
        calibration: a table to use in place of measuring.
        allow_few_images: calibrate on fewer than 64 pictures.
        reference: keep `reference.pt2` in the bundle.
        features: `pool` or `stages` in place of the logits (see `exporter.features`); None is the classifier.
        uint8_input: the graph takes uint8 pixels (batch, height, width, channels) and normalises them itself (see `exporter.uint8`): `crop`, of the
            model's size; `full`, of any size, and the graph resizes and crops them too (see `exporter.resize`). None takes normalised float32.
    """

    model: str
    output: Path
    precision: str = "fp32"
    weights: str = "default"
    classes: int | None = None
    labels: Path | None = None
    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    batch: BatchRange = DEFAULT_BATCH
    target: str = "tensorrt"
    opset: int = 0
    seed: int = 0
    data: str | None = None
    calibrator: str | None = None
    calibration_images: int | None = None
    calibration: Path | None = None
    allow_few_images: bool = False
    reference: bool = True
    force: bool = False
    features: str | None = None
    uint8_input: str | None = None
    variant: str | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        self._check_model(find_model(self.model, self.variant))
        if self.precision not in precision_names():
            raise UnknownName("precision", self.precision, precision_names())
        if self.target not in TARGETS:
            raise UnknownName("target", self.target, TARGETS)
        self._settle_opset()
        if self.weights == "default" and self.classes is not None:
            raise PlanError("--num-classes needs --weights random or FILE: the default weights come with their own classes")
        if self.classes is not None and self.classes < 1:
            raise PlanError(f"expected --num-classes of at least 1, got {self.classes}")
        if not 0 <= self.seed < 2**63:
            raise PlanError(f"expected a --seed from 0 to 2^63-1, got {self.seed}")
        check_uint8_input(self.uint8_input)
        self._check_calibration()
        self._check_features()

    def _check_model(self, spec: ModelSpec) -> None:
        if self.weights == "default" and spec.variant != spec.variants[0]:
            raise PlanError(f"the default weights are those of {spec.variants[0]}, not of {spec.variant}; give --weights random or FILE")
        if self.weights == "default" and not spec.weights:
            raise PlanError(f"{self.model} has no default weights; give --weights random or FILE")
        if spec.source == "custom" and self.image_size is None:
            raise PlanError(f"expected --image-size with {self.model}, got none; only its author knows what it takes")
        smallest = SMALLEST_IMAGE.get(spec.source, 1)
        if self.image_size is not None and min(self.image_size) < smallest:
            raise PlanError(f"expected --image-size of at least {smallest} pixels for {self.model}, got {self.image_size[0]}x{self.image_size[1]}")

    def _settle_opset(self) -> None:
        allowed = (BF16_OPSET,) if self.precision == "bf16" else OPSETS
        if self.opset == 0:
            object.__setattr__(self, "opset", allowed[-1])
        elif self.opset not in allowed and self.precision == "bf16":
            raise PlanError(f"expected opset {BF16_OPSET} for bf16, got {self.opset}; ONNX has no BF16 convolution before it, leave --opset out")
        elif self.opset not in allowed:
            raise PlanError(f"expected an opset among {', '.join(map(str, OPSETS))}, got {self.opset}; TensorRT 10.3 reads none above 20")

    def _check_calibration(self) -> None:
        given = {
            "--calibrator": self.calibrator,
            "--calibration-images": self.calibration_images,
            "--calibration": self.calibration,
            "--allow-few-images": self.allow_few_images,
        }
        unused = [option for option, value in given.items() if value] if self.precision not in CALIBRATED else []
        if unused:
            raise PlanError(f"{unused[0]} needs --int8: {self.precision} is not calibrated")
        if self.calibration_images is not None and self.calibration_images < 1:
            raise PlanError(f"expected --calibration-images of at least 1, got {self.calibration_images}")

    def _check_features(self) -> None:
        if self.features is None:
            return
        if self.features not in FEATURES:
            raise UnknownName("kind of --features", self.features, FEATURES)
        given = [option for option, value in (("--labels", self.labels), ("--num-classes", self.classes)) if value is not None]
        if given:
            raise PlanError(f"{given[0]} is about the head, which --features {self.features} leaves out; leave one of them out")

    @property
    def spec(self) -> ModelSpec:
        return find_model(self.model, self.variant)

    @property
    def name(self) -> str:
        """The bundle's name: model, variant where it is not the usual one, features where it gives some, and precision."""
        chosen = None if self.spec.variant == self.spec.variants[0] else self.spec.variant
        pixels = {None: None, CROP: "uint8", FULL: "uint8full"}[self.uint8_input]
        return "-".join(part for part in (self.spec.stem, chosen, self.features, pixels, self.precision) if part)


def check_uint8_input(value: str | None) -> None:
    """
    Raises:
        PlanError: another word than those of `UINT8_INPUTS`; on a command line it may have been meant as the model.
    """
    if value is not None and value not in UINT8_INPUTS:
        raise PlanError(f"expected --uint8-input alone or --uint8-input full, got '{value}'; put MODEL before it")


def size_from_text(text: str) -> tuple[int, int]:
    """`224` or `224x320` (height x width).

    Raises:
        PlanError: neither.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdecimal() for part in parts):
        raise PlanError(f"expected --image-size as N or HxW, got '{text}'; for example 224 or 224x320")
    return int(parts[0]), int(parts[-1])


def channels_from_text(text: str, option: str) -> tuple[float, ...]:
    """Comma-separated numbers, one or one per channel.

    Raises:
        PlanError: not numbers.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(math.isfinite(value) for value in values):
        raise PlanError(f"expected {option} as numbers between commas, got '{text}'; for example 0.485,0.456,0.406")
    return values
