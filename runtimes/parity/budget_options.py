"""Read and check the limits that a user gives (`--budget NAME=VALUE`, or a file), and change a budget by them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace

from runtimes.errors import PlanError, UnknownName
from runtimes.parity.budget import Budget

RANGES = {"min_agreement": (0.0, 1.0), "max_accuracy_drop": (0.0, 1.0), "min_cosine": (-1.0, 1.0)}
"""The limits that are shares of images, and the cosine; others are 0 or more."""


def changed_budget(budget: Budget, given: Mapping[str, float]) -> Budget:
    """The budget with other values for the limits named.

    A `confidence` of 0 is none: agreement and accuracy are then judged by the figures measured.

    Raises:
        UnknownName: a budget has no limit of that name.
        PlanError: the limit cannot have that value.
    """
    known = [one.name for one in fields(budget)]
    for name, value in given.items():
        if name not in known:
            raise UnknownName("budget", name, known)
        if name == "confidence":
            if value and not 0.5 <= value < 1:
                raise PlanError(
                    f"expected confidence from 0.5 to below 1, as 0.95, got {value:g}; "
                    "0 judges agreement and accuracy by the figures measured"
                )
            continue
        least, most = RANGES.get(name, (0.0, math.inf))
        if not least <= value <= most or math.isinf(value):
            expected = f"from {least:g} to {most:g}" if name in RANGES else "of at least 0"
            raise PlanError(f"expected {name} {expected}, got {value:g}")
    limits: dict[str, float | None] = {**given}
    if given.get("confidence") == 0:
        limits["confidence"] = None
    return replace(budget, **limits)  # type: ignore[arg-type]  # own_error is never None: only confidence becomes it


def budget_from_text(given: tuple[str, ...]) -> dict[str, float]:
    """Limits by name from `NAME=VALUE` texts, each of which may hold several, with spaces or commas between them.

    Raises:
        PlanError: a text reads otherwise, or a value is no number.
    """
    found = {}
    if not all(one.strip() for one in given):
        raise PlanError(
            "expected --budget as NAME=VALUE, got nothing; leave it out, or give for example max_relative_error=1e-2"
        )
    for one in " ".join(given).replace(",", " ").split():
        name, equals, value = one.partition("=")
        if not equals:
            raise PlanError(f"expected --budget as NAME=VALUE, got '{one}'; for example max_relative_error=1e-2")
        try:
            found[name.replace("-", "_")] = float(value)
        except ValueError:
            raise PlanError(
                f"expected a number for {name}, got '{value}'; for example max_relative_error=1e-2"
            ) from None
    return found
