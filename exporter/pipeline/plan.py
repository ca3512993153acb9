"""Everything one export needs, refused here where it contradicts itself. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from exporter.lowering.opsets import choose_opset
from exporter.lowering.request import LoweringRequest
from exporter.models.registry import find_model
from exporter.models.request import ModelRequest
from exporter.models.spec import ModelSpec
from runtimes.errors import PlanError
from runtimes.kinds import check_kinds
from runtimes.specs import BatchRange

Request = TypeVar("Request", ModelRequest, LoweringRequest)
CROP, FULL = UINT8_INPUTS = ("crop", "full")
DEFAULT_BATCH = BatchRange(1, 8, 32)


@dataclass(frozen=True)
class ExportPlan:
    """What to export and where to; only its defaults are defaults.

    Attributes:
        model: a name from `--list` or of its pattern, or `package.module:factory`.
        precision: fp32, fp16, bf16 or int8.
        weights: `default`, `random`, or the path of a checkpoint.
        variant: one of the forms the model comes in (`v1`, `pad`); None takes its first.
        classes: size of the head; None takes it from the weights.
        labels: a text file, a class_indices.json, or a folder with a subfolder for each class (see `exporter.models.labels`).
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
        features: `pool` or `stages` in place of the logits (see `exporter.models.backbone`); None is the classifier.
        uint8_input: the graph takes uint8 pixels (batch, height, width, channels) and normalises them itself (see `exporter.graph.pixel_input`): `crop`, of the
            model's size; `full`, of any size, and the graph resizes and crops them too (see `exporter.graph.pillow_resize`). None takes normalised float32.
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
        _ = self.model_request, self.lowering_request  # which refuse what contradicts itself
        object.__setattr__(self, "opset", choose_opset(self.precision, self.opset))
        check_uint8_input(self.uint8_input)

    @property
    def model_request(self) -> ModelRequest:
        """What of the plan is about the model."""
        return _cut_out(ModelRequest, self)

    @property
    def lowering_request(self) -> LoweringRequest:
        """What of the plan is about its precision."""
        return _cut_out(LoweringRequest, self)

    @property
    def spec(self) -> ModelSpec:
        return find_model(self.model, self.variant)

    @property
    def name(self) -> str:
        """The bundle's name: model, variant where it is not the usual one, features where it gives some, and precision."""
        chosen = None if self.spec.variant == self.spec.variants[0] else self.spec.variant
        pixels = {None: None, CROP: "uint8", FULL: "uint8full"}[self.uint8_input]
        return "-".join(part for part in (self.spec.stem, chosen, self.features, pixels, self.precision) if part)


def _cut_out(kind: type[Request], plan: ExportPlan) -> Request:
    """The request of that kind, whose fields are fields of the plan."""
    return kind(**{field.name: getattr(plan, field.name) for field in fields(kind)})


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
