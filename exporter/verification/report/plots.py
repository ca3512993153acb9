"""The report's plots, drawn by matplotlib as SVG inside the page, in the page's font and colours, light and dark."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from exporter.verification.report import drawing
from exporter.verification.report.drawing import Caption
from exporter.verification.report.records import DriftChart
from runtimes.block_precision import Sensitivity
from runtimes.parity.evidence import HIGHEST_DECADE, LOWEST_DECADE, ErrorHistogram

MOST_TICKS, LONGEST_NAME = 20, 16
LEAST_SHARE, LARGEST_DRAWN = 0.001, 1e30


def histogram_svg(histograms: Mapping[str, ErrorHistogram], limit: float | None, unit: str, caption: Caption) -> str:
    """A histogram of the output values by their error, an outline for each backend, as an SVG element.

    Args:
        histograms: by backend.
        limit: the budget's largest relative error; None where it has none.
        unit: what errors are relative to, in words.
    """
    with drawing.figure() as figure:
        axes = figure.subplots()
        seen = _seen_decades(list(histograms.values()))
        for place, (backend, one) in enumerate(histograms.items()):
            shares = _shares(one)
            colour, dash = drawing.series(place)
            axes.stairs(shares, one.decades, color=colour, linestyle=dash, label=backend, linewidth=1.6)
            axes.stairs(shares, one.decades, color=colour, fill=True, alpha=0.14)
        if limit is not None and 10.0**LOWEST_DECADE <= limit <= 10.0**HIGHEST_DECADE:
            seen.append(math.log10(limit))
            axes.axvline(math.log10(limit), color=drawing.LIMIT, linewidth=1.4, label="budget's largest")
        low, high = math.floor(min(seen)), math.ceil(max(seen))
        axes.set_xlim(low - 0.1, high + 0.1)
        axes.set_xticks(range(low, high + 1), [f"1e{decade}" for decade in range(low, high + 1)])
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        axes.set_xlabel(f"error, relative to {unit}")
        axes.set_ylabel("share of the output values")
        drawing.finish(figure, axes)
        return drawing.svg_of(figure, caption)


def drift_svgs(drift: DriftChart, error: Caption, sqnr: Caption) -> tuple[str, str]:
    """Two SVG elements, each with a line for each stage over the blocks: relative error (log axis), and SQNR in dB."""
    with drawing.figure() as figure:
        axes = figure.subplots()
        errors = [np.array(one.relative_error, np.float64) for one in drift.series]
        # Zero and what is not finite have no place on a log axis.
        drawn = [np.where((values > 0) & (values < LARGEST_DRAWN), values, np.nan) for values in errors]
        _draw_lines(axes, drift, drawn, "relative error")
        axes.set_yscale("log")
        axes.set_ylim(*_decades_around(np.concatenate(drawn)))
        axes.yaxis.set_major_formatter(lambda error, _: f"{error:.0e}".replace("e-0", "e-"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        drawing.finish(figure, axes)
        first = drawing.svg_of(figure, error)
    with drawing.figure() as figure:
        axes = figure.subplots()
        _draw_lines(axes, drift, [np.array(one.sqnr_db, np.float64) for one in drift.series], "SQNR in dB")
        drawing.finish(figure, axes)
        return first, drawing.svg_of(figure, sqnr)


def damage_svg(sensitivity: Sensitivity, returned: Collection[str], caption: Caption) -> str:
    """A bar for each block, as high as its share of the damage of INT8, as an SVG element.

    Args:
        returned: the blocks in float; their bars are outlines.
    """
    with drawing.figure() as figure:
        axes = figure.subplots()
        shares = sensitivity.shares
        for kind, label, fill in ((False, "in INT8", True), (True, "in float: it costs this no more", False)):
            places = [place for place, name in enumerate(shares) if (name in returned) == kind]
            heights = [share for name, share in shares.items() if (name in returned) == kind]
            if places:
                colour = drawing.SERIES[int(kind)]
                axes.bar(
                    places,
                    heights,
                    color=colour if fill else "none",
                    edgecolor=colour,
                    linewidth=1.6,
                    label=label,
                )
        every = math.ceil(len(shares) / MOST_TICKS)
        axes.set_xticks(range(0, len(shares), every), list(map(_tick, list(shares)[::every])), rotation=90)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        axes.set_ylabel("share of the damage")
        drawing.finish(figure, axes)
        return drawing.svg_of(figure, caption)


def _draw_lines(axes: Axes, drift: DriftChart, lines: Sequence[NDArray[np.float64]], label: str) -> None:
    for place, (one, values) in enumerate(zip(drift.series, lines, strict=True)):
        colour, dash = drawing.series(place)
        axes.plot(
            range(len(values)),
            values,
            color=colour,
            linestyle=dash,
            marker=drawing.MARKERS[place % len(drawing.MARKERS)],
            label=one.step,
        )
    blocks = drift.series[0].blocks
    every = math.ceil(len(blocks) / MOST_TICKS)
    axes.set_xticks(range(0, len(blocks), every), list(map(_tick, blocks[::every])), rotation=90)
    axes.set_ylabel(label)


def _shares(one: ErrorHistogram) -> NDArray[np.float64]:
    return np.array(one.counts, np.float64) / max(1, sum(one.counts) + one.exact)


def _seen_decades(histograms: Sequence[ErrorHistogram]) -> list[float]:
    """Edges of the bins that are high enough to be seen in a plot; where there are none, of all that are not empty."""
    for least in (LEAST_SHARE, 0.0):
        seen = [
            edge
            for one in histograms
            for pair, share in zip(pairwise(one.decades), _shares(one), strict=True)
            if share > least
            for edge in pair
        ]
        if seen:
            return seen
    raise ValueError("expected an error to draw, got none")


def _decades_around(values: NDArray[np.float64]) -> tuple[float, float]:
    """The powers of ten around the values: an axis between them has ticks however close the values are."""
    known = values[np.isfinite(values)]
    low, high = (math.floor(math.log10(known.min())), math.ceil(math.log10(known.max()))) if len(known) else (-1, 0)
    return 10.0**low, 10.0 ** max(high, low + 1)


def _tick(name: str) -> str:
    """A name, or the end of a long one, in letters that XML and every font have; the table has the whole name."""
    plain = "".join(letter if " " <= letter <= "~" else "?" for letter in name)
    return plain if len(plain) <= LONGEST_NAME else f"...{plain[3 - LONGEST_NAME :]}"
