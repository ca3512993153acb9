"""The report's plots, drawn by matplotlib as SVG that stands in the page: it takes the page's font and colours, so that it follows a dark scheme.

matplotlib draws in colours that stand for others; they are replaced by the page's CSS variables. Whoever cannot see a plot is told its title and
a description, and has a table beside it.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from exporter.verification.report.records import DriftChart
from runtimes.parity.evidence import HIGHEST_DECADE, LOWEST_DECADE, ErrorHistogram

INK, FAINT, LIMIT = "#0000b1", "#0000b2", "#0000b3"
SERIES = ("#0000a1", "#0000a2", "#0000a3", "#0000a4", "#0000a5")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v")
"""Of the series: told apart by more than their colour."""
COLOURS = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    LIMIT: "var(--limit)",
    **{one: f"var(--series-{place})" for place, one in enumerate(SERIES, 1)},
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "resnet-export",
    "text.parse_math": False,  # a block's name may hold a dollar
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "grid.color": FAINT,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
SIZE = (5.2, 3.5)
"""In inches of ten-point type: in half a wide page the type is the page's own, on a phone it can still be read."""
MOST_TICKS, LONGEST_NAME = 20, 16
LEAST_SHARE, LARGEST_DRAWN = 0.001, 1e30
SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Caption:
    """What a plot is called in the page (a part of its elements' ids), and its title and description for who cannot see it."""

    name: str
    title: str
    description: str


def histogram_svg(histograms: Mapping[str, ErrorHistogram], limit: float | None, unit: str, caption: Caption) -> str:
    """Shares of the output values over their error, one outline for each backend; `limit` is the budget's largest relative error."""
    with _figure() as figure:
        axes = figure.subplots()
        seen = _seen_decades(list(histograms.values()))
        for place, (backend, one) in enumerate(histograms.items()):
            shares = _shares(one)
            colour, dash = _series(place)
            axes.stairs(shares, one.decades, color=colour, linestyle=dash, label=backend, linewidth=1.6)
            axes.stairs(shares, one.decades, color=colour, fill=True, alpha=0.14)
        if limit is not None and 10.0**LOWEST_DECADE <= limit <= 10.0**HIGHEST_DECADE:
            seen.append(math.log10(limit))
            axes.axvline(math.log10(limit), color=LIMIT, linewidth=1.4, label="budget's largest")
        low, high = math.floor(min(seen)), math.ceil(max(seen))
        axes.set_xlim(low - 0.1, high + 0.1)
        axes.set_xticks(range(low, high + 1), [f"1e{decade}" for decade in range(low, high + 1)])
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        axes.set_xlabel(f"error, relative to {unit}")
        axes.set_ylabel("share of the output values")
        _finish(figure, axes)
        return _svg(figure, caption)


def drift_svgs(drift: DriftChart, error: Caption, sqnr: Caption) -> tuple[str, str]:
    """Relative error, on a log axis, and signal to noise in dB, each by block and with a line for each step."""
    with _figure() as figure:
        axes = figure.subplots()
        errors = [np.array(one.relative_error, np.float64) for one in drift.series]
        drawn = [
            np.where((values > 0) & (values < LARGEST_DRAWN), values, np.nan) for values in errors
        ]  # the rest has no place on a log axis
        _draw_lines(axes, drift, drawn, "relative error")
        axes.set_yscale("log")
        axes.set_ylim(*_decades_around(np.concatenate(drawn)))
        axes.yaxis.set_major_formatter(lambda error, _: f"{error:.0e}".replace("e-0", "e-"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        _finish(figure, axes)
        first = _svg(figure, error)
    with _figure() as figure:
        axes = figure.subplots()
        _draw_lines(axes, drift, [np.array(one.sqnr_db, np.float64) for one in drift.series], "SQNR in dB")
        _finish(figure, axes)
        return first, _svg(figure, sqnr)


def _draw_lines(axes: Axes, drift: DriftChart, lines: Sequence[NDArray[np.float64]], label: str) -> None:
    for place, (one, values) in enumerate(zip(drift.series, lines, strict=True)):
        colour, dash = _series(place)
        axes.plot(
            range(len(values)),
            values,
            color=colour,
            linestyle=dash,
            marker=MARKERS[place % len(MARKERS)],
            label=one.step,
        )
    blocks = drift.series[0].blocks
    every = math.ceil(len(blocks) / MOST_TICKS)
    axes.set_xticks(range(0, len(blocks), every), list(map(_tick, blocks[::every])), rotation=90)
    axes.set_ylabel(label)


@contextmanager
def _figure() -> Iterator[Figure]:
    """A figure whose looks depend on nobody's matplotlibrc."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield Figure(figsize=SIZE, layout="constrained")


def _shares(one: ErrorHistogram) -> NDArray[np.float64]:
    return np.array(one.counts, np.float64) / max(1, sum(one.counts) + one.exact)


def _seen_decades(histograms: Sequence[ErrorHistogram]) -> list[float]:
    """Edges of the bins that are high enough to be seen in a plot, or else of all that are not empty."""
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
    """Powers of ten, so that there is a tick however near to each other the values are."""
    known = values[np.isfinite(values)]
    low, high = (math.floor(math.log10(known.min())), math.ceil(math.log10(known.max()))) if len(known) else (-1, 0)
    return 10.0**low, 10.0 ** max(high, low + 1)


def _tick(name: str) -> str:
    """The end of a long name, in letters that XML and every font have; the table has all of it."""
    plain = "".join(letter if " " <= letter <= "~" else "?" for letter in name)
    return plain if len(plain) <= LONGEST_NAME else f"...{plain[3 - LONGEST_NAME :]}"


def _series(place: int) -> tuple[str, str | tuple[float, tuple[float, ...]]]:
    return SERIES[place % len(SERIES)], DASHES[place % len(DASHES)]


def _finish(figure: Figure, axes: Axes) -> None:
    axes.grid(axis="y", linewidth=0.8)
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2, handlelength=2.4, borderaxespad=0.2)


def _svg(figure: Figure, caption: Caption) -> str:
    """The figure as an element of an HTML page."""
    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(written.getvalue())
    for parent in list(root.iter()):
        for child in [
            child for child in parent if child.tag.endswith(("metadata", "style"))
        ]:  # of no use in a page; its own style would be the page's
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        if LINK in element.attrib:
            element.set("href", element.attrib.pop(LINK))
        for name, value in element.attrib.items():
            element.set(name, _of_the_page(value))
    _name_ids(root, caption.name)
    title, description = f"{caption.name}-title", f"{caption.name}-description"
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": title,
        "aria-describedby": description,
    }
    for place, (tag, name, text) in enumerate(
        (("title", title, caption.title), ("desc", description, caption.description))
    ):
        element = ElementTree.Element(tag, id=name)
        element.text = text
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def _of_the_page(value: str) -> str:
    """An attribute with the page's colours, and of the font its size alone: the rest is inherited."""
    for colour, name in COLOURS.items():
        value = value.replace(colour, name)
    return re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", value)


def _name_ids(root: ElementTree.Element, name: str) -> None:
    """Ids are one space for the whole page: those that are referred to begin with the plot's name, the rest go."""
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = {
        found for value in values for found in re.findall(r"^#(.+)$|url\(#([^)]+)\)", value) for found in found if found
    }
    for element in root.iter():
        for attribute, value in list(element.attrib.items()):
            if attribute == "id" and value not in used:
                del element.attrib["id"]
            elif attribute == "id":
                element.set("id", f"{name}-{value}")
            elif value.startswith("#") or "url(#" in value:
                element.set(attribute, re.sub(r"^#|(?<=url\()#", f"#{name}-", value))
