"""What INT8 costs in each block, and which blocks are in float for it, in words."""

from __future__ import annotations

from runtimes.block_precision import MixedPrecision, Sensitivity, Tried, Wanted, limit_text

SHOWN = 3


def worst_text(sensitivity: Sensitivity) -> str:
    """As `layer1.0 41%, stem 22% and layer3.0 9% of the damage, 48 images`."""
    shares = sensitivity.shares
    *first, last = (f"{name} {shares[name]:.0%}" for name in sensitivity.worst(SHOWN))
    return f"{', '.join(first)}{' and ' if first else ''}{last} of the damage, {sensitivity.images} images"


def asked_text(mixed: MixedPrecision) -> str:
    """As `a fall of top-1 of at most 0.5 points`."""
    return limit_text(mixed.wanted, 100 * mixed.limit)


def returned_text(mixed: MixedPrecision) -> str:
    """As `2 of 10 blocks in float: stem, layer2.1; 88.0% of the work in INT8`."""
    names = f": {', '.join(mixed.returned)}" if mixed.returned else ""
    share = mixed.chosen.int8_share
    return f"{len(mixed.returned)} of {mixed.blocks} blocks in float{names}; {100 * share:.1f}% of the work in INT8"


def tried_text(one: Tried, wanted: Wanted) -> str:
    """As `a fall of 0.30 points (at most 0.81) with 2 blocks in float, 91.2% of the work in INT8`."""
    blocks = f"{len(one.returned)} block{'s' * (len(one.returned) != 1)} in float"
    what = "a fall of" if wanted == "max_drop" else "an agreement of"
    return f"{what} {measured_text(one, wanted)} with {blocks}, {100 * one.int8_share:.1f}% of the work in INT8"


def measured_text(one: Tried, wanted: Wanted) -> str:
    """As `0.30 points (at most 0.81)`, or as `99.20% (at least 98.61)`."""
    low, high = one.limits
    if wanted == "max_drop":
        return f"{100 * one.measured:.2f} points (at most {100 * high:.2f})"
    return f"{100 * one.measured:.2f}% (at least {100 * low:.2f})"


def search_lines(mixed: MixedPrecision) -> list[str]:
    """The choice, and all that were tried, for a terminal."""
    lines = [f"{'blocks':<12} {returned_text(mixed)}"]
    lines += [
        f"{'  tried' if place == 0 else '':<12} {tried_text(one, mixed.wanted)}: {one.verdict}, {one.images} images"
        for place, one in enumerate(mixed.curve)
    ]
    return lines
