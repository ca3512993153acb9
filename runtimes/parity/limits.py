"""Judge one limit: by the point that was measured, or by a confidence limit over the images that were counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runtimes.parity.intervals import (
    images_to_decide_fall,
    images_to_decide_share,
    one_sided_z,
    tango_interval,
    wilson_interval,
)
from runtimes.printable import count_text

Verdict = Literal["ok", "broken", "undecided"]
WORDS = {
    "max_relative_error": "largest relative error",
    "min_agreement": "top-1 agreement",
    "min_cosine": "worst cosine",
    "min_sqnr_db": "SQNR",
    "max_accuracy_drop": "fall of top-1",
    "max_batch_difference": "difference between batch sizes",
}
"""What each limit of a budget is about."""
SHARES = ("min_agreement", "max_accuracy_drop")


@dataclass(frozen=True)
class Limit:
    """One limit of a budget and what was measured against it.

    Attributes:
        name: the budget's field, or `finite`, which every budget asks for.
        verdict: `undecided` where the images are too few to tell `ok` from `broken` with the budget's confidence.
        text: all of it in words, as `top-1 agreement 97.5% of 40 images, at least ...`.
        what, measured, allowed: the parts of it, as `top-1 agreement`, `97.50%` and `>= 98%`.
        images_needed: of a limit that is undecided, how many images in all would decide it if the others go on as these
            did; None where no number would.
    """

    name: str
    verdict: Verdict
    text: str
    what: str
    measured: str
    allowed: str
    images_needed: int | None = None

    @property
    def ok(self) -> bool:
        """Is the limit kept?"""
        return self.verdict == "ok"


@dataclass(frozen=True)
class Confidence:
    """How sure a limit over counted images has to be.

    Attributes:
        level: 0.5 to 1, of each limit.
        looks: how many times the limit may be asked for as images come in; they share the risk.
    """

    level: float
    looks: int = 1

    @property
    def z(self) -> float:
        """How many standard errors a limit lies away from what was measured."""
        return one_sided_z(self.level, self.looks)

    @property
    def text(self) -> str:
        """As `95% confidence`."""
        return f"{self.level * 100:.10g}% confidence"


def limit_of_finite(*, problem: str = "") -> Limit:
    """The limit that every budget has; `problem` says what is not finite."""
    if problem:
        return Limit("finite", "broken", problem, "outputs", "not finite", "finite")
    return Limit("finite", "ok", "every output is finite", "outputs", "finite", "finite")


def limit_of_point(name: str, value: float, bound: float, detail: str = "") -> Limit:
    """Judge a limit by what was measured alone.

    Args:
        name: one of `WORDS`; those that begin with `max` are upper bounds.
        detail: what else is known of the value, shown behind it.
    """
    is_most = name.startswith("max")
    inside = value <= bound if is_most else value >= bound
    shown = _number(name, value)
    if shown == _number(name, bound) and not inside:  # broken by less than is shown
        shown = _exact(name, value)
    return _limit(name, "ok" if inside else "broken", f"{shown}{detail}", bound)


def limit_of_agreement(agreeing: int, images: int, bound: float, sure: Confidence) -> Limit:
    """Judge the share of images that agree by its one-sided limits (Wilson's, see `intervals.wilson_interval`).

    It is `ok` where its lower limit is at least `bound`, `broken` where its upper limit is less.
    """
    low, high = wilson_interval(agreeing, images, sure.z)
    verdict: Verdict = "ok" if low >= bound else "broken" if high < bound else "undecided"
    needed = images_to_decide_share(agreeing, images, bound, sure.z) if verdict == "undecided" else None
    name = "min_agreement"
    limit = f"at most {_apart(high, bound)}" if verdict == "broken" else f"at least {_apart(low, bound)}"
    measured = f"{_number(name, agreeing / images)} of {count_text(images)}, {limit} ({sure.text})"
    return _limit(name, verdict, measured, bound, needed)


def limit_of_fall(lost: int, gained: int, images: int, bound: float, sure: Confidence) -> Limit:
    """Judge the fall of top-1 by the one-sided limits of the paired difference (see `intervals.tango_interval`).

    It is `ok` where its upper limit is at most `bound`, `broken` where its lower limit is more.

    Args:
        lost, gained: images that only the reference, and only the backend, has right.
    """
    low, high = tango_interval(lost, gained, images, sure.z)
    verdict: Verdict = "ok" if high <= bound else "broken" if low > bound else "undecided"
    needed = images_to_decide_fall(lost, gained, images, bound, sure.z) if verdict == "undecided" else None
    name = "max_accuracy_drop"
    limit = f"at least {_apart(low, bound)}" if verdict == "broken" else f"at most {_apart(high, bound)}"
    pairs = pairs_text(lost, gained, images)
    measured = f"{_number(name, (lost - gained) / images)} ({pairs}), {limit} ({sure.text})"
    return _limit(name, verdict, measured, bound, needed)


def pairs_text(lost: int, gained: int, images: int) -> str:
    """`3 lost and 1 gained of 400 images`: those that only the reference, and only the backend, has right."""
    return f"{lost} lost and {gained} gained of {count_text(images)}"


def _limit(name: str, verdict: Verdict, measured: str, bound: float, needed: int | None = None) -> Limit:
    what, allowed = WORDS[name], f"{'<=' if name.startswith('max') else '>='} {_bound(name, bound)}"
    text = f"{what} {measured}, budget {allowed}"
    if verdict == "undecided":
        enough = f"some {count_text(needed)}" if needed else "no number of images like these"
        text = f"{text}: undecided, {enough} would decide it"
    return Limit(name, verdict, text, what, measured, allowed, needed)


def _number(name: str, value: float) -> str:
    if name in SHARES:
        return f"{value:.2%}"
    return {"min_cosine": f"{value:.5f}", "min_sqnr_db": f"{value:.1f} dB"}.get(name, f"{value:.2e}")


def _bound(name: str, value: float) -> str:
    if name in SHARES:
        return f"{value * 100:.10g}%"
    return {"min_cosine": f"{value:g}", "min_sqnr_db": f"{value:g} dB"}.get(name, f"{value:.3g}")


def _exact(name: str, value: float) -> str:
    if name in SHARES:
        return f"{value * 100:.10g}%"
    return f"{float(value)!r} dB" if name == "min_sqnr_db" else repr(float(value))


def _apart(value: float, bound: float) -> str:
    """A confidence limit of a share, with so many digits that it can be told from the bound."""
    digits = next((digits for digits in range(2, 12) if f"{value:.{digits}%}" != f"{bound:.{digits}%}"), 2)
    return f"{value:.{digits}%}"
