"""How many times as fast as another bundle the first one runs, both measured in the same rounds."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.verification.report.bench_lines import speedup_text
from runtimes.benchmark.results import BundleFacts, Entry, Result, Speedup
from runtimes.benchmark.statistics import fewest_rounds, paired_ratio
from runtimes.errors import BackendUnavailable, SpeedError


def speedup_of(bundles: Sequence[BundleFacts], entries: Sequence[Entry]) -> Speedup | None:
    """Compare two bundles, each by the contender and batch size with the most images a second; None where there are
    not two, or nothing was measured for one of them whose answers are within its budget."""
    if len(bundles) != 2 or not all(_able(bundle, entries) for bundle in bundles):
        return None
    best = [max(_able(bundle, entries), key=lambda one: one.fastest().interval.median) for bundle in bundles]
    fast, slow = (one.fastest() for one in best)
    first, second = (
        f"{bundle.name} ({one.contender.name}, batch {one.fastest().batch})"
        for bundle, one in zip(bundles, best, strict=True)
    )
    return Speedup(first, second, paired_ratio(fast.images_per_s, slow.images_per_s))


def check_speedup(result: Result, least: float | None) -> None:
    """Hold the speed-up of a result's first bundle to what was asked for, by its lower limit.

    Args:
        least: None asks only that there is one.

    Raises:
        BackendUnavailable: there is none.
        SpeedError: it is lower, or undecided.
    """
    if result.speedup is None:
        missing = next(one.folder for one in result.bundles if not _able(one, result.entries))
        raise BackendUnavailable(
            f"expected a backend that runs {missing} within its budget, got none (PyTorch runs the FP32 reference, "
            "which does not count); see what the table says"
        )
    if least is None:
        return
    low, high, said = result.speedup.ratio.low, result.speedup.ratio.high, speedup_text(result.speedup)
    if low is None or high is None:
        raise SpeedError(
            f"expected at least {least:g} times, got too few rounds to tell: {said}; give --rounds "
            f"{fewest_rounds()} or more"
        )
    if high < least:
        raise SpeedError(f"expected at least {least:g} times, got fewer: {said}")
    if low < least:
        raise SpeedError(
            f"expected at least {least:g} times, undecided: {said}; give more --rounds, on an idle machine"
        )


def _able(bundle: BundleFacts, entries: Sequence[Entry]) -> list[Entry]:
    """What ran the bundle's own graph to the end, with answers within its budget."""
    return [
        one
        for one in entries
        if one.contender.bundle == bundle.folder and one.can_win and not one.contender.runs_reference
    ]
