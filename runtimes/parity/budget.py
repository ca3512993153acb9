"""What a precision may cost: the limits of a parity check, each judged on its own (`limits`). `budget_options` reads
them from a user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from runtimes.parity.limits import Confidence, Limit, limit_of_agreement, limit_of_fall, limit_of_finite, limit_of_point
from runtimes.parity.measures import Accuracy, Comparison

NO_LIMITS = ("own_error", "confidence")
"""Fields of a budget that say how its limits are meant."""
CLASS_LIMITS = ("min_agreement", "max_accuracy_drop")
"""Limits that count images by their classes, of which a network that was not trained proves nothing."""
RANDOM_WEIGHTS = "random weights prove the arithmetic: agreement and accuracy are reported, not judged"


@dataclass(frozen=True)
class Budget:
    """What a precision may cost. Errors are relative to the largest reference logit, margins to the largest one without
    the mean over the classes; None is no limit.

    Attributes:
        own_error: the error that the precision itself makes. A flip counts only if the reference preferred its own
            class to the backend's by more than this.
        max_batch_difference: the largest difference between one image's outputs at two batch sizes.
        max_accuracy_drop: the reference's top-1 minus the backend's, 0..1, where labels are known.
        confidence: how sure the limits on agreement and accuracy have to be, 0.5 to 1. They are judged by one-sided
            confidence limits, and are undecided where the images are too few. None judges the figures measured.
    """

    own_error: float
    max_relative_error: float | None = None
    min_agreement: float | None = None
    min_cosine: float | None = None
    min_sqnr_db: float | None = None
    max_accuracy_drop: float | None = None
    max_batch_difference: float | None = None
    confidence: float | None = None

    def __post_init__(self) -> None:
        if self.confidence is not None and not 0.5 <= self.confidence < 1:
            raise ValueError(f"expected a confidence from 0.5 to below 1, as 0.95, got {self.confidence:g}")

    @property
    def limit_names(self) -> tuple[str, ...]:
        """The names of all limits that are set, `finite` first, whether or not they will apply to what is measured."""
        return (
            "finite",
            *(name for name, value in asdict(self).items() if name not in NO_LIMITS and value is not None),
        )

    @property
    def takes_confidence(self) -> bool:
        """Is there a limit that takes many images to decide, as agreement or accuracy with a confidence do?"""
        limits = (self.min_agreement, self.max_accuracy_drop)
        return self.confidence is not None and any(limit is not None for limit in limits)

    def errors_alone(self) -> Budget:
        """The budget without the limits on agreement and accuracy, of which a few images, or a network that was not
        trained, prove nothing."""
        return replace(self, min_agreement=None, max_accuracy_drop=None)

    def violations(self, measured: Comparison) -> tuple[str, ...]:
        """What is out of budget, in words; empty when nothing is."""
        return tuple(limit.text for limit in self.limits(measured) if limit.verdict == "broken")

    def limits(self, measured: Comparison, accuracy: Accuracy | None = None, *, looks: int = 1) -> tuple[Limit, ...]:
        """Judge every limit that applies to what was measured, `finite` first; if an output is not finite, that one
        alone.

        Of features, every output must keep each limit, and those that break it are named.

        Args:
            looks: how many times the images may be judged as they come in; the risk is shared between them.

        Raises:
            ValueError: the budget has a confidence, and the images were not counted.
        """
        if not measured.finite:
            said = "; ".join(measured.violations)
            return (limit_of_finite(problem=said or "outputs that are not finite"),)
        outputs = {name: self.limits(one) for name, one in measured.outputs.items()}
        found = (limit_of_finite(), *self._points(measured), *self._counts(measured, accuracy, looks))
        order = self.limit_names
        return tuple(
            _with_names_of_outputs(limit, outputs) for limit in sorted(found, key=lambda one: order.index(one.name))
        )

    def _points(self, measured: Comparison) -> Iterator[Limit]:
        """The limits that one figure decides."""
        values = (
            ("max_relative_error", measured.max_relative_error, self.max_relative_error),
            ("min_cosine", measured.worst_cosine, self.min_cosine),
            ("min_sqnr_db", measured.sqnr_db, self.min_sqnr_db),
            ("max_batch_difference", measured.max_batch_difference, self.max_batch_difference),
        )
        return (
            limit_of_point(name, value, bound)
            for name, value, bound in values
            if value is not None and bound is not None
        )

    def _counts(self, measured: Comparison, accuracy: Accuracy | None, looks: int) -> Iterator[Limit]:
        """The limits on what is counted over images: agreement, and accuracy where it is known."""
        sure = Confidence(self.confidence, looks) if self.confidence is not None else None
        bound, flips, images = self.min_agreement, measured.flips, measured.images
        if bound is not None and measured.top1_agreement is not None:
            if sure is None:
                yield limit_of_point("min_agreement", measured.top1_agreement, bound)
            elif flips is None or images is None:
                raise ValueError("expected a comparison that counted its images; compare the outputs again")
            else:
                yield limit_of_agreement(images - flips.counted, images, bound, sure)
        bound = self.max_accuracy_drop
        if bound is not None and accuracy is not None:
            if sure is None:
                yield limit_of_point("max_accuracy_drop", accuracy.reference_top1 - accuracy.top1, bound)
            elif accuracy.lost is None or accuracy.gained is None:
                raise ValueError("expected an accuracy that counted the images lost and gained; measure it again")
            else:
                yield limit_of_fall(accuracy.lost, accuracy.gained, accuracy.images, bound, sure)

    def text(self) -> str:
        """All limits, as `--budget` takes them: `own_error=0.01 max_relative_error=0.01`."""
        return " ".join(f"{name}={number_text(value)}" for name, value in asdict(self).items() if value is not None)


def number_text(value: float) -> str:
    """The shortest text that reads back as the same number: `0.1`, `20`, `0.28604063`."""
    return repr(float(value)).removesuffix(".0")


def _with_names_of_outputs(limit: Limit, outputs: Mapping[str, tuple[Limit, ...]]) -> Limit:
    """The limit of all outputs together; if it is broken, its text names the outputs that break it."""
    said = [
        f"{output}: {one.text}"
        for output, limits in outputs.items()
        for one in limits
        if one.name == limit.name and not one.ok
    ]
    return replace(limit, text="; ".join(said)) if said else limit
