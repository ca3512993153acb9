"""What `--max-drop` and `--min-agreement` ask for, checked against the rest of the plan. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtimes.block_precision import Wanted, limit_text
from runtimes.errors import PlanError

if TYPE_CHECKING:
    from exporter.pipeline.plan import ExportPlan

OPTIONS: dict[str, Wanted] = {"--max-drop": "max_drop", "--min-agreement": "min_agreement"}
LIMITS = {"max_drop": "max_accuracy_drop", "min_agreement": "min_agreement"}
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
        return next(option for option, wanted in OPTIONS.items() if wanted == self.wanted)

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


def loss_target(plan: ExportPlan) -> LossTarget | None:
    """What the plan asks for; None where it asks for neither.

    Raises:
        PlanError: it asks for both, for what no images can show, or where it means nothing.
    """
    given = {option: value for option, name in OPTIONS.items() if (value := getattr(plan, name)) is not None}
    if len(given) > 1:
        raise PlanError("expected --max-drop or --min-agreement, got both; give the one that decides")
    for option, value in given.items():
        _check_value(option, value)
        target = LossTarget(OPTIONS[option], float(value))
        _check_plan(target, plan)
        return target
    return None


def _check_value(option: str, value: float) -> None:
    if option == "--max-drop" and not 0 < value <= 100:
        raise PlanError(
            f"expected --max-drop above 0 and at most 100 points, got {value:g}; for example 0.5, which allows 76.1 % "
            "to become 75.6 %"
        )
    if option == "--min-agreement" and not 0 < value < 100:
        why = "; no number of images shows that all agree" if value == 100 else ""
        raise PlanError(f"expected --min-agreement above 0 and below 100 percent, got {value:g}{why}; for example 99")


def _check_plan(target: LossTarget, plan: ExportPlan) -> None:
    option = target.option
    if not plan.lowering_request.is_calibrated:
        raise PlanError(f"{option} returns blocks from INT8 to FP16, and {plan.precision} has none; add --int8")
    if plan.features is not None:
        raise PlanError(f"{option} is about classes, and --features gives none; leave it out")
    if plan.weights == "random":
        raise PlanError(
            f"{option} is about a network's answers, and random weights have learned none; leave it out, or give "
            "--weights a checkpoint"
        )
    if plan.data is None:
        raise PlanError(
            f"{option} needs --data: it chooses blocks and proves the choice on pictures like those the model will see;"
            " give a folder of them" + (", with a subfolder for each class" if target.wanted == "max_drop" else "")
        )
    if target.limit_name in plan.budget:
        raise PlanError(f"{option} sets the limit {target.limit_name}, and so does --budget; give one of them")
