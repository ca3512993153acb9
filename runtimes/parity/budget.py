"""What a precision may cost: the limits of a parity check, each judged on its own. `budget_options` reads them from a
user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from runtimes.parity.measures import Accuracy, Comparison


@dataclass(frozen=True)
class Limit:
    """One limit of a budget and what was measured against it.

    Attributes:
        name: the budget's field, or `finite`, which every budget asks for.
        text: both in words, as `top-1 agreement 97.50%, budget >= 98.00%`.
        what, measured, allowed: the parts of it, as `top-1 agreement`, `97.50%` and `>= 98.00%`.
    """

    name: str
    ok: bool
    text: str
    what: str
    measured: str
    allowed: str


@dataclass(frozen=True)
class Budget:
    """What a precision may cost. Errors and margins are relative to the largest reference logit; None is no limit.

    Attributes:
        own_error: the error that the precision itself makes. A flip counts only if the reference preferred its own
            class to the backend's by more than this.
        max_batch_difference: the largest difference between one image's outputs at two batch sizes.
        max_accuracy_drop: the reference's top-1 minus the backend's, 0..1, where labels are known.
    """

    own_error: float
    max_relative_error: float | None = None
    min_agreement: float | None = None
    min_cosine: float | None = None
    min_sqnr_db: float | None = None
    max_accuracy_drop: float | None = None
    max_batch_difference: float | None = None

    @property
    def limit_names(self) -> tuple[str, ...]:
        """The names of all limits that are set, `finite` first, whether or not they will apply to what is measured."""
        return ("finite", *(name for name, value in asdict(self).items() if name != "own_error" and value is not None))

    def violations(self, measured: Comparison) -> tuple[str, ...]:
        """What is out of budget, in words; empty when nothing is."""
        return tuple(limit.text for limit in self.limits(measured) if not limit.ok)

    def limits(
        self, measured: Comparison, accuracy: Accuracy | None = None, *, however_few: bool = False
    ) -> tuple[Limit, ...]:
        """Judge every limit that applies to what was measured, `finite` first; if an output is not finite, that one
        alone.

        Of features, every output must keep each limit, and those that break it are named. The accuracy limit
        applies only to so many labelled images that losing one is within it: with fewer it would judge chance.
        `however_few` applies it to any number.
        """
        if not measured.finite:
            said = measured.violations[0] if measured.violations else "outputs that are not finite"
            return (Limit("finite", ok=False, text=said, what="outputs", measured="not finite", allowed="finite"),)
        judgeable = (
            accuracy is not None
            and self.max_accuracy_drop is not None
            and (however_few or accuracy.images * self.max_accuracy_drop >= 1)
        )
        drop = accuracy.reference_top1 - accuracy.top1 if accuracy is not None and judgeable else None
        checks = (
            (
                "max_relative_error",
                "largest relative error",
                measured.max_relative_error,
                self.max_relative_error,
                ".2e",
            ),
            ("min_agreement", "top-1 agreement", measured.top1_agreement, self.min_agreement, ".2%"),
            ("min_cosine", "worst cosine", measured.worst_cosine, self.min_cosine, ".5f"),
            ("min_sqnr_db", "SQNR in dB", measured.sqnr_db, self.min_sqnr_db, ".1f"),
            ("max_accuracy_drop", "fall of top-1", drop, self.max_accuracy_drop, ".2%"),
            (
                "max_batch_difference",
                "difference between batch sizes",
                measured.max_batch_difference,
                self.max_batch_difference,
                ".2e",
            ),
        )
        found = [
            Limit("finite", ok=True, text="every output is finite", what="outputs", measured="finite", allowed="finite")
        ]
        for name, words, value, limit, form in checks:
            if value is not None and limit is not None:
                inside = value <= limit if name.startswith("max") else value >= limit
                shown, bound = f"{value:{form}}", f"{limit:{form}}"
                if shown == bound and not inside:  # broken by less than is shown
                    shown, bound = repr(float(value)), repr(float(limit))
                got, allowed = shown, f"{'<=' if name.startswith('max') else '>='} {bound}"
                found.append(Limit(name, inside, f"{words} {got}, budget {allowed}", words, got, allowed))
        return tuple(
            _with_names_of_outputs(limit, {name: self.limits(one) for name, one in measured.outputs.items()})
            for limit in found
        )

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
