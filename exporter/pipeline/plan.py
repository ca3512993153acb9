"""The plan of an export: all that it needs, checked for contradictions as it is made. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from exporter.lowering.opsets import choose_opset
from exporter.lowering.qdq.targets import DEFAULT_TARGET
from exporter.lowering.request import LoweringRequest
from exporter.models.registry import find_model
from exporter.models.request import ModelRequest
from exporter.models.spec import ModelSpec
from exporter.pipeline.for_dla import check_for_dla
from exporter.pipeline.loss_target import LIMITS, LossTarget, loss_target
from runtimes.errors import PlanError
from runtimes.kinds import check_kinds
from runtimes.specs import BatchRange

Request = TypeVar("Request", ModelRequest, LoweringRequest)
ONNX = "onnx"
"""The source of a model that is a file."""
CROP, FULL = UINT8_INPUTS = ("crop", "full")
DEFAULT_BATCH = BatchRange(1, 8, 32)
ABOUT_CLASSES = (*LIMITS.values(), "confidence")
"""The limits of a budget that count images by their classes."""


@dataclass(frozen=True)
class ExportPlan:
    """What to export, and where to. Every default of an export stands here.

    Attributes:
        model: a name that `--list` shows or whose pattern it shows, `package.module:factory`, or an ONNX file's path.
        output: the bundle's folder.
        precision: fp32, fp16, bf16 or int8.
        weights: `default`, `random`, or the path of a checkpoint.
        classes: number of outputs of the head; None takes it from the weights.
        labels: a text file, a class_indices.json, or a folder with a subfolder for each class (see
            `exporter.models.labels`).
        image_size: (height, width) of the model's input in pixels; None takes the model's own.
        resize: what a picture is resized to before the crop: its shorter side, or (height, width), in pixels; None
            keeps the model's own ratio to the crop.
        interpolation: nearest, bilinear, bicubic or lanczos; None takes the model's own.
        channels_order: `rgb`, or `bgr` for a network that takes blue first, as Caffe's do; None takes the model's own.
        mean, std: normalisation, one value or one per channel in R, G, B order whatever the network's; None takes the
            model's own.
        scale: the largest value of the pixels that `mean` and `std` are about: 1, or 255, as Caffe's are.
        batch: the smallest, the usual and the largest batch.
        target: the runtime that int8 places Q/DQ pairs for (see `exporter.lowering.qdq.targets`); there is `tensorrt`.
        opset: of the ONNX graph; 0 is replaced by the newest that the precision may have.
        seed: for random weights and for which images are chosen.
        data: images to prove with, and for int8 to calibrate on (see `calibration.data.open_source`); None takes the
            built-in ones.
        calibrator: the observer that int8 thresholds are read with (see `calibration.observers`); None tries all, and
            takes the best.
        calibration_images: how many images to calibrate on; None takes 512, or all where there are fewer.
        calibration: a table to use in place of measuring.
        allow_few_images: calibrate even on fewer than 64 images.
        proof_images: how many images to prove with at most; None takes what the proof needs (see
            `exporter.pipeline.choose_images.proof_images`).
        budget: limits of the parity budget by name, in place of the precision's own.
        max_drop: how many points of top-1 INT8 may cost at most; blocks return to float until it costs no more. Needs
            `data` whose classes are the model's.
        min_agreement: on how many percent of the images the class must stay at least; likewise, but needs no classes.
        keep_rejected: write a bundle that its proof refuses beside `output`, under that name with `.rejected`.
        reference: keep `reference.pt2`, or `reference.onnx`, in the bundle.
        report: write `report.html` into the bundle, for which the blocks are followed and plots drawn.
        force: replace a bundle that is at `output`.
        features: `pool` or `stages` in place of the logits (see `exporter.models.backbone`); None is the classifier.
        uint8_input: the graph takes uint8 pixels (batch, height, width, channels) and normalises them itself (see
            `exporter.graph.pixel_input`): `crop`, of the model's size; `full`, of any size, and the graph resizes and
            crops them too (see `exporter.graph.pillow_resize`). None takes normalised float32.
        variant: one of the forms the model comes in (`v1`, `pad`); None takes its first.
        dequantize: of an ONNX file that is quantized already, export the float network behind it.
        recalibrate: likewise, and quantize that anew; else int8 keeps the file's scales.
        keep_softmax: of an ONNX file that ends in a Softmax, export that too; else it is taken off.
        dla_friendly: write pools and classifier in what a Jetson's DLA has (see `exporter.graph.dla_head`).

    Raises:
        PlanError: the parts of the plan contradict each other, or one is out of range.
        UnknownName: a name that is in no table; lists the nearest.
    """

    model: str
    output: Path
    precision: str = "fp32"
    weights: str = "default"
    classes: int | None = None
    labels: Path | None = None
    image_size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    interpolation: str | None = None
    channels_order: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: int = 1
    batch: BatchRange = DEFAULT_BATCH
    target: str = "tensorrt"
    opset: int = 0
    seed: int = 0
    data: str | None = None
    calibrator: str | None = None
    calibration_images: int | None = None
    calibration: Path | None = None
    allow_few_images: bool = False
    proof_images: int | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    max_drop: float | None = None
    min_agreement: float | None = None
    keep_rejected: bool = False
    reference: bool = True
    report: bool = True
    force: bool = False
    features: str | None = None
    uint8_input: str | None = None
    variant: str | None = None
    keep_softmax: bool = False
    dequantize: bool = False
    recalibrate: bool = False
    dla_friendly: bool = False

    def __post_init__(self) -> None:
        check_kinds(self)
        _ = self.model_request, self.lowering_request  # made once here for the checks that they do
        object.__setattr__(self, "opset", choose_opset(self.precision, self.opset))
        check_uint8_input(self.uint8_input)
        if self.dla_friendly:
            any_size = self.uint8_input == FULL
            check_for_dla(self.precision, self.target, self.batch, self.features, any_size=any_size)
        if self.proof_images is not None and self.proof_images < 1:
            raise PlanError(f"expected --proof-images of at least 1, got {self.proof_images}")
        if self.proof_images is not None and self.features is not None:
            raise PlanError(
                "--proof-images is about classes, which are counted over images; features are compared value by value, "
                "and a few images have millions; leave it out"
            )
        if self.keep_rejected and not self.report:
            raise PlanError(
                "--keep-rejected keeps a refused bundle for what its report shows, and --no-report leaves that out; "
                "leave one of them out"
            )
        self._check_file()
        if self.budget:
            self._check_budget()
        if (target := self.loss_target) is not None:
            self._check_target(target)

    def _check_file(self) -> None:
        """Refuse what is about ONNX files alone, where the model is none, and what contradicts itself of a file."""
        options = {
            "--keep-softmax": self.keep_softmax,
            "--dequantize": self.dequantize,
            "--recalibrate": self.recalibrate,
        }
        given = next((option for option, is_given in options.items() if is_given), None)
        if given is not None and self.spec.source != ONNX:
            raise PlanError(f"{given} is about ONNX files, and {self.model} is none; leave it out")
        if self.dequantize and self.lowering_request.is_calibrated:
            raise PlanError(
                f"--dequantize exports the float network behind a quantized file, and --{self.precision} quantizes it; "
                "take --recalibrate to measure its ranges anew, or another precision"
            )
        if self.recalibrate and not self.lowering_request.is_calibrated:
            raise PlanError(f"--recalibrate measures ranges anew, and {self.precision} has none; add --int8")

    def _check_budget(self) -> None:
        """Refuse limits that are none, or that cannot apply to what is planned."""
        from runtimes.parity.budget import Budget  # here, since they load numpy, and `--help` may not
        from runtimes.parity.budget_options import changed_budget

        changed_budget(Budget(own_error=0.0), self.budget)
        about_classes = [name for name in self.budget if name in ABOUT_CLASSES]
        if about_classes and self.features is not None:
            raise PlanError(f"{about_classes[0]} is about classes, and --features gives none; leave the limit out")
        if "max_batch_difference" in self.budget and self.batch.is_static:
            raise PlanError(
                f"max_batch_difference is about several batch sizes, and --batch {self.batch} is one; "
                "leave the limit out"
            )

    def _check_target(self, target: LossTarget) -> None:
        """Refuse a target that means nothing for what is planned."""
        option = target.option
        if not self.lowering_request.is_calibrated:
            raise PlanError(f"{option} returns blocks from INT8 to float, and {self.precision} has none; add --int8")
        if self.features is not None:
            raise PlanError(f"{option} is about classes, and --features gives none; leave it out")
        if self.weights == "random":
            raise PlanError(
                f"{option} is about a network's answers, and random weights have learned none; leave it out, or give "
                "--weights a checkpoint"
            )
        if self.data is None:
            folders = ", with a subfolder for each class" if target.wanted == "max_drop" else ""
            raise PlanError(
                f"{option} needs --data: it chooses blocks and proves the choice on pictures like those the model will "
                f"see; give a folder of them{folders}"
            )
        if target.limit_name in self.budget:
            raise PlanError(f"{option} sets the limit {target.limit_name}, and so does --budget; give one of them")

    @property
    def model_request(self) -> ModelRequest:
        """The part of the plan that is about the model."""
        return _part_of(self, ModelRequest)

    @property
    def lowering_request(self) -> LoweringRequest:
        """The part of the plan that is about the precision."""
        return _part_of(self, LoweringRequest)

    @property
    def limits(self) -> Mapping[str, float]:
        """The limits of the parity budget that replace the precision's own: `budget`, and that of the loss target."""
        target = self.loss_target
        return self.budget if target is None else {**self.budget, target.limit_name: target.limit}

    @property
    def loss_target(self) -> LossTarget | None:
        """What the plan asks for by `max_drop` or `min_agreement`."""
        return loss_target(self.max_drop, self.min_agreement)

    @property
    def spec(self) -> ModelSpec:
        """The model's entry in the tables of models."""
        return find_model(self.model, self.variant)

    @property
    def reference_file(self) -> str:
        """The name of the bundle's file that everything is held against."""
        return "reference.onnx" if self.spec.source == ONNX else "reference.pt2"

    @property
    def name(self) -> str:
        """The bundle's name, such as `resnet50-v1-pool-uint8-int8`; what is the usual is left out of it."""
        chosen = None if self.spec.variant == self.spec.variants[0] else self.spec.variant
        pixels = {None: None, CROP: "uint8", FULL: "uint8full"}[self.uint8_input]
        target = None if self.target == DEFAULT_TARGET else self.target
        dla = "dla" if self.dla_friendly else None
        parts = (self.spec.stem, chosen, self.features, pixels, dla, self.precision, target)
        return "-".join(part for part in parts if part)


def _part_of(plan: ExportPlan, kind: type[Request]) -> Request:
    """A request of that kind: each of its fields is a field of the plan."""
    return kind(**{one.name: getattr(plan, one.name) for one in fields(kind)})


def check_uint8_input(value: str | None) -> None:
    """Refuse another value than those of `UINT8_INPUTS`; on a command line it may have been meant as the model.

    Raises:
        PlanError: it is another value.
    """
    if value is not None and value not in UINT8_INPUTS:
        raise PlanError(f"expected --uint8-input alone or --uint8-input full, got '{value}'; put MODEL before it")


def size_from_text(text: str, option: str = "--image-size") -> tuple[int, int]:
    """(height, width) from `224` or `224x320`; `option` is named where it is neither.

    Raises:
        PlanError: it is neither.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdecimal() for part in parts):
        raise PlanError(f"expected {option} as N or HxW, got '{text}'; for example 224 or 224x320")
    return int(parts[0]), int(parts[-1])


def resize_from_text(text: str) -> int | tuple[int, int]:
    """The shorter side from `256`, or (height, width) from `256x320`.

    Raises:
        PlanError: it is neither.
    """
    size = size_from_text(text, "--resize")
    return size if "x" in text.lower() else size[0]


def channels_from_text(text: str, option: str) -> tuple[float, ...]:
    """The numbers of a comma-separated list, one or one per channel; `option` is named where it is wrong.

    Raises:
        PlanError: a part is no finite number.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(math.isfinite(value) for value in values):
        raise PlanError(f"expected {option} as numbers between commas, got '{text}'; for example 0.485,0.456,0.406")
    return values
