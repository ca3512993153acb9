"""The report's plots, drawn by matplotlib as SVG inside the page, in the page's font and colours, light and dark.

matplotlib draws in placeholder colours, which are replaced by the page's CSS variables. For those who cannot see a plot
there are its title and a description, and a table beside it.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
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
from runtimes.block_precision import Sensitivity
from runtimes.parity.evidence import HIGHEST_DECADE, LOWEST_DECADE, ErrorHistogram

INK, FAINT, LIMIT = "#0000b1", "#0000b2", "#0000b3"
SERIES = ("#0000a1", "#0000a2", "#0000a3", "#0000a4", "#0000a5")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v")
"""Of the series, which differ in more than their colour."""
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
"""In inches, with type of ten points: the size of the page's type in half a wide page, and still legible on a phone."""
MOST_TICKS, LONGEST_NAME = 20, 16
LEAST_SHARE, LARGEST_DRAWN = 0.001, 1e30
SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Caption:
    """A plot's name, with which the ids of its elements begin, and a title and description for those who cannot see."""

    name: str
    title: str
    description: str


def histogram_svg(histograms: Mapping[str, ErrorHistogram], limit: float | None, unit: str, caption: Caption) -> str:
    """A histogram of the output values by their error, an outline for each backend, as an SVG element.

    Args:
        histograms: by backend.
        limit: the budget's largest relative error; None where it has none.
        unit: what errors are relative to, in words.
    """
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
    """Two SVG elements, each with a line for each stage over the blocks: relative error (log axis), and SQNR in dB."""
    with _figure() as figure:
        axes = figure.subplots()
        errors = [np.array(one.relative_error, np.float64) for one in drift.series]
        # Zero and what is not finite have no place on a log axis.
        drawn = [np.where((values > 0) & (values < LARGEST_DRAWN), values, np.nan) for values in errors]
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


def damage_svg(sensitivity: Sensitivity, returned: Collection[str], caption: Caption) -> str:
    """A bar for each block, as high as its share of the damage of INT8, as an SVG element.

    Args:
        returned: the blocks in float; their bars are outlines.
    """
    with _figure() as figure:
        axes = figure.subplots()
        shares = sensitivity.shares
        for kind, label, fill in ((False, "in INT8", True), (True, "in float: it costs this no more", False)):
            places = [place for place, name in enumerate(shares) if (name in returned) == kind]
            heights = [share for name, share in shares.items() if (name in returned) == kind]
            if places:
                colour = SERIES[int(kind)]
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
        _finish(figure, axes)
        return _svg(figure, caption)


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
    """A figure in the report's style, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield Figure(figsize=SIZE, layout="constrained")


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


def _series(place: int) -> tuple[str, str | tuple[float, tuple[float, ...]]]:
    return SERIES[place % len(SERIES)], DASHES[place % len(DASHES)]


def _finish(figure: Figure, axes: Axes) -> None:
    axes.grid(axis="y", linewidth=0.8)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2, handlelength=2.4, borderaxespad=0.2)


def _svg(figure: Figure, caption: Caption) -> str:
    """The figure as an element of an HTML page."""
    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(written.getvalue())
    for parent in list(root.iter()):
        # Of no use in a page; a style of the plot's would be the whole page's.
        for child in [child for child in parent if child.tag.endswith(("metadata", "style"))]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        if LINK in element.attrib:
            element.set("href", element.attrib.pop(LINK))
        for name, value in element.attrib.items():
            element.set(name, _with_page_style(value))
    _name_ids(root, caption.name)
    title, description = f"{caption.name}-title", f"{caption.name}-description"
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": title,
        "aria-describedby": description,
    }
    captions = (("title", title, caption.title), ("desc", description, caption.description))
    for place, (tag, name, text) in enumerate(captions):
        element = ElementTree.Element(tag, id=name)
        element.text = text
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def _with_page_style(value: str) -> str:
    """An attribute's value with the page's colours; of a font only its size is kept, the rest is inherited."""
    for colour, name in COLOURS.items():
        value = value.replace(colour, name)
    return re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", value)


def _name_ids(root: ElementTree.Element, name: str) -> None:
    """Prefix the ids that are referred to with the plot's name: ids are shared by the whole page. Remove the others."""
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
