"""The options of a lowering: precision, target and calibration, checked against each other. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calibration import FEWEST_IMAGES
from exporter.lowering.qdq.targets import DEFAULT_TARGET
from exporter.lowering.registry import load_target, precision_names, target_names
from runtimes.errors import BadInput, PlanError, UnknownName

CALIBRATED = ("int8",)
"""The precisions that need ranges of activations."""
CALIBRATOR = "mse"
"""The observer that turns histograms into ranges where none is named, and where none is measured to be better."""


@dataclass(frozen=True)
class LoweringRequest:
    """How to lower a graph; the attributes are those of `exporter.pipeline.plan.ExportPlan`.

    Raises:
        UnknownName: there is no such precision or target.
        PlanError: calibration options for a precision that is not calibrated, or a number of images below 1.
        BadInput: there is no file `calibration`.
    """

    precision: str = "fp32"
    target: str = DEFAULT_TARGET
    calibrator: str | None = None
    calibration_images: int | None = None
    calibration: Path | None = None
    allow_few_images: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in precision_names():
            raise UnknownName("precision", self.precision, precision_names())
        if self.target not in target_names():
            raise UnknownName("target", self.target, target_names())
        if self.target != DEFAULT_TARGET and not self.is_calibrated:
            raise PlanError(f"--target {self.target} needs --int8: {self.precision} is the same for every target")
        given = {
            "--calibrator": self.calibrator,
            "--calibration-images": self.calibration_images,
            "--calibration": self.calibration,
            "--allow-few-images": self.allow_few_images,
        }
        unused = [option for option, value in given.items() if value] if not self.is_calibrated else []
        if unused:
            raise PlanError(f"{unused[0]} needs --int8: {self.precision} is not calibrated")
        if self.calibration_images is not None and self.calibration_images < 1:
            raise PlanError(f"expected --calibration-images of at least 1, got {self.calibration_images}")
        if (
            self.calibration_images is not None
            and self.calibration_images < FEWEST_IMAGES
            and not self.allow_few_images
        ):
            raise PlanError(
                f"expected --calibration-images of at least {FEWEST_IMAGES}, got {self.calibration_images}; "
                "ask for more, or add --allow-few-images"
            )
        if self.calibration is not None and not self.calibration.is_file():
            raise BadInput(
                f"--calibration: there is no file {self.calibration}; give the calibration.json of an earlier export"
            )

    @property
    def is_calibrated(self) -> bool:
        """Whether the precision needs ranges of activations."""
        return self.precision in CALIBRATED

    @property
    def promises_integers(self) -> bool:
        """Whether a processor is to run the graph on integers.

        Raises:
            BackendUnavailable: a package that the target needs is missing.
        """
        return self.is_calibrated and load_target(self.target).ON_INTEGERS
