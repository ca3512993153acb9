"""What an export is held to: the precision's budget, changed by `--budget`, and whether its limits apply."""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from exporter.models.loaded import Loaded
from exporter.pipeline.plan import ExportPlan
from runtimes.errors import PlanError
from runtimes.parity.budget import Budget
from runtimes.parity.budget_options import changed_budget
from runtimes.parity.intervals import look_sizes
from runtimes.parity.limits import Confidence

SMALLEST_ALLOWED = 1e-9
"""Stands for nothing at all, which no number of images shows."""


def budget_for(plan: ExportPlan, loaded: Loaded, budget: Budget) -> Budget:
    """What a model is held to, made from what its precision may cost: the limits of the plan replace the others.

    Random weights are not judged by agreement and accuracy unless the plan says so. A loss target stands in place of
    both of the precision's limits on these: who allows 5 points of accuracy is not held to an agreement of 98 %.
    """
    is_random = loaded.facts.weights.kind == "random"
    return changed_budget(budget.errors_alone() if is_random or plan.loss_target else budget, plan.limits)


def fewest_to_decide(budget: Budget, *, labelled: bool) -> int:
    """How many images it takes to keep the budget's limits on agreement and accuracy, where no image changes its class.

    Then both limits are z²/(n + z²) away from what was measured: Wilson's, of n of n, and Tango's, of none lost and
    none gained.

    Args:
        labelled: the images' classes are known, so that accuracy is judged.
    """
    falls = [budget.max_accuracy_drop] if labelled and budget.max_accuracy_drop is not None else []
    allowed = [*falls, *([1 - budget.min_agreement] if budget.min_agreement is not None else [])]
    if budget.confidence is None or not allowed:
        return 1
    images, needed = 0, 1
    while needed > images:
        images = needed
        z = Confidence(budget.confidence, len(look_sizes(images))).z
        needed = math.ceil(z * z * (1 - min(allowed)) / max(min(allowed), SMALLEST_ALLOWED))
    return images


def check_limits_apply(plan: ExportPlan, loaded: Loaded, labels: NDArray[Any] | None, no_accuracy: str) -> None:
    """Refuse limits that were asked for and cannot be judged on these images; the plan has refused others.

    Args:
        labels: the model's classes of the images; None, for the reason `no_accuracy`, where they are not known.

    Raises:
        PlanError: names the limit.
    """
    if "max_accuracy_drop" in plan.budget and labels is None:
        why = f": {no_accuracy}" if no_accuracy else ""
        raise PlanError(
            f"max_accuracy_drop needs pictures whose classes are the model's{why}; "
            "give such --data, or leave the limit out"
        )
    if "min_cosine" in plan.budget and loaded.facts.classes == 1 and plan.features is None:
        raise PlanError(
            f"min_cosine is about the direction of several values, and {plan.model} gives a single one; "
            "leave the limit out"
        )
