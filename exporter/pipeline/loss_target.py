"""What `--max-drop` and `--min-agreement` ask for. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from runtimes.block_precision import Wanted, limit_text
from runtimes.errors import PlanError

OPTIONS: dict[Wanted, str] = {"max_drop": "--max-drop", "min_agreement": "--min-agreement"}
LIMITS: dict[Wanted, str] = {"max_drop": "max_accuracy_drop", "min_agreement": "min_agreement"}
"""The budget's name of each."""


@dataclass(frozen=True)
class LossTarget:
    """The most that INT8 may cost.

    Attributes:
        value: as it was given, in points or percent.
    """

    wanted: Wanted
    value: float

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return OPTIONS[self.wanted]

    @property
    def limit_name(self) -> str:
        """The limit of the parity budget that it sets."""
        return LIMITS[self.wanted]

    @property
    def limit(self) -> float:
        """The limit's value, 0..1."""
        return self.value / 100

    @property
    def text(self) -> str:
        """As `a fall of top-1 of at most 0.5 points`."""
        return limit_text(self.wanted, self.value)


def loss_target(max_drop: float | None, min_agreement: float | None) -> LossTarget | None:
    """What the two options ask for; None where neither is given.

    Raises:
        PlanError: both are given, or one asks for what no images can show.
    """
    if max_drop is not None and min_agreement is not None:
        raise PlanError("expected --max-drop or --min-agreement, got both; give the one that decides")
    if max_drop is not None:
        if not 0 < max_drop <= 100:
            raise PlanError(
                f"expected --max-drop above 0 and at most 100 points, got {max_drop:g}; for example 0.5, which allows "
                "76.1 % to become 75.6 %"
            )
        return LossTarget("max_drop", float(max_drop))
    if min_agreement is not None:
        if not 0 < min_agreement < 100:
            why = "; no number of images shows that all agree" if min_agreement == 100 else ""
            raise PlanError(
                f"expected --min-agreement above 0 and below 100 percent, got {min_agreement:g}{why}; for example 99"
            )
        return LossTarget("min_agreement", float(min_agreement))
    return None
