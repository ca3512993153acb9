"""The verdict of a check in sentences, for readers who read nothing else of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from exporter.verification.report.records import GraphLayer
from exporter.verification.verdicts import BackendCheck, BundleCheck
from runtimes.errors import BackendUnavailable, ParityError
from runtimes.parity.limits import Limit
from runtimes.parity.measures import Comparison
from runtimes.printable import count_text

Status = Literal["within budget", "out of budget", "undecided", "failed", "not answered"]
SMALL = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def status_of(check: BundleCheck) -> Status:
    """The outcome of a check in a word or two."""
    problem = check.problem
    if problem is None:
        return "within budget"
    if isinstance(problem, ParityError):
        return "undecided" if all(one.verdict != "out of budget" for one in check.backends) else "out of budget"
    return "not answered" if isinstance(problem, BackendUnavailable) else "failed"


def overall_text(checks: Sequence[BundleCheck]) -> str:
    """All bundles in one sentence: `Of 3 bundles 2 are within budget and 1 is out of budget.`"""
    counts = Counter(map(status_of, checks))
    if len(counts) == 1:
        (status,) = counts
        return f"All {len(checks)} bundles {_verb(status, len(checks))}."
    parts = [f"{count} {_verb(status, count)}" for status, count in counts.items()]
    return f"Of {len(checks)} bundles {join_words(parts)}."


def verdict_sentences(check: BundleCheck) -> tuple[str, ...]:
    """Sentences on the backends out of budget, those within it, those without an answer, and the accuracy."""
    by = {
        verdict: [one for one in check.backends if one.verdict == verdict]
        for verdict in ("out of budget", "undecided", "ok", "failed", "crashed", "not here")
    }
    found = []
    for one in (*by["out of budget"], *by["undecided"]):
        why = join_words(_broken_limits(one)) or f"{_too_few_text(one, check.images)} would"
        parts = filter(None, (why, _flips_text([one], check.images)))
        found.append(f"{check.name} is {one.verdict} on {one.backend}: {'; '.join(parts)}.")
    if by["ok"]:
        found.append(_kept_text(by["ok"], check, after=bool(found)))
    found += [
        f"On {one.backend} {_too_few_text(one, check.images)} would, but such a check need not."
        for one in by["ok"]
        if _undecided_limits(one)
    ]
    found += [f"On {one.backend} it {one.verdict}: {one.reason}." for one in (*by["failed"], *by["crashed"])]
    missing = [one.backend for one in by["not here"]]
    if missing:
        asked = ", though asked for by name" if check.asked else ""
        found.append(f"{join_words(missing)} {'was' if len(missing) == 1 else 'were'} not here to answer{asked}.")
    measured = [
        (one.answer.accuracy, one.backend)
        for one in check.backends
        if one.answer is not None and one.answer.accuracy is not None
    ]
    if measured:
        lowest, backend = min(measured, key=lambda pair: pair[0].top1)
        found.append(
            f"Of {count_text(lowest.images, 'labelled image')} the reference gets {lowest.reference_top1:.2%} right "
            f"and {backend} {lowest.top1:.2%}."
        )
    return tuple(found)


def join_words(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def share_text(value: float) -> str:
    """A share, 0..1, as `2.2%`; one that is too small for that as `4.1e-08`."""
    if 0 < value < 1e-4:
        return f"{value:.1e}"
    return f"{value:.0%}" if value >= 0.1 else f"{value * 100:.2g}%"


def precision_text(layers: Sequence[GraphLayer]) -> str:
    """The layers in one sentence: `20 of 21 convolutions compute in INT8, with 99.9% of all multiply-accumulates.`"""
    convolutions = [layer for layer in layers if layer.operator == "Conv"]
    total = sum(layer.macs for layer in layers)
    parts = []
    for precision, count in Counter(layer.precision for layer in convolutions).most_common():
        share = sum(layer.macs for layer in convolutions if layer.precision == precision) / max(1, total)
        work = f"{share:.1%}" if share < 0.9995 or share == 1 else "more than 99.9%"
        parts.append(
            f"{count} of {len(convolutions)} convolutions compute in {precision}, "
            f"with {work} of all multiply-accumulates"
        )
    return f"{'; '.join(parts)}." if parts else "There is no convolution in it."


def _kept_text(kept: Sequence[BackendCheck], check: BundleCheck, *, after: bool) -> str:
    measures = [measured for one in kept for measured in _measures(one)]
    largest = share_text(max(one.max_relative_error for one in measures))
    flips = _flips_text(kept, check.images)
    error = (
        f"the largest logit error is {largest} of the largest logit"
        if flips
        else f"the largest error is {largest} of its output's largest value"
    )
    subject = "It keeps to its budget" if after else f"{check.name} says what {check.reference} says"
    backends = join_words([one.backend for one in kept])
    limits = "no limit is broken" if any(map(_undecided_limits, kept)) else "every limit is kept"
    return f"{subject} on {backends}: {', '.join(filter(None, (flips, error)))}, and {limits}."


def _flips_text(backends: Sequence[BackendCheck], images: int) -> str:
    """How many images changed class on any of these backends; empty for features and for outputs not finite."""
    if any(measured.flips is None or not measured.finite for one in backends for measured in _measures(one)):
        return ""
    flips = [flip for one in backends if one.answer is not None for flip in one.answer.flips]
    changed, counted = {flip.image for flip in flips}, {flip.image for flip in flips if flip.counted}
    if not changed:
        return f"of {count_text(images)} none changed class"
    if len(changed) == 1:
        which = "which counts" if counted else "which does not count: the reference itself was as good as undecided"
    else:
        which = f"{_number(len(counted))} of which {'counts' if len(counted) < 2 else 'count'}"
    return f"{len(changed)} of {count_text(images)} changed class, {which}"


def _measures(one: BackendCheck) -> Sequence[Comparison]:
    return list(one.answer.report.backends.values()) if one.answer is not None else []


def _broken_limits(one: BackendCheck) -> list[str]:
    limits = one.answer.limits if one.answer is not None else ()
    return [_limit_text(limit) for limit in limits if limit.verdict == "broken"]


def _limit_text(limit: Limit) -> str:
    if limit.name == "finite":
        return limit.text
    allowed = limit.allowed.replace("<=", "at most").replace(">=", "at least")
    return f"{limit.what} is {limit.measured} where {allowed} is asked"


def _undecided_limits(one: BackendCheck) -> list[str]:
    limits = one.answer.limits if one.answer is not None else ()
    return [limit.what for limit in limits if limit.verdict == "undecided"]


def _too_few_text(one: BackendCheck, images: int) -> str:
    needed = one.answer.images_needed if one.answer is not None else None
    few = f"{count_text(images)} {'is' if images == 1 else 'are'} too few to decide on the"
    return f"{few} {join_words(_undecided_limits(one))}, which {f'some {needed}' if needed else 'no number of them'}"


def _number(count: int) -> str:
    return SMALL[count] if count < len(SMALL) else str(count)


def _verb(status: Status, count: int) -> str:
    if status in ("within budget", "out of budget", "undecided"):
        return f"{'is' if count == 1 else 'are'} {status}"
    return f"{'has' if count == 1 else 'have'} {status}"
