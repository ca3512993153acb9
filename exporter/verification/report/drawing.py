"""What every plot of a page shares: its style, its colours, and how matplotlib's figure becomes a part of the page.

matplotlib draws in placeholder colours, which are replaced by the page's CSS variables. For those who cannot see a plot
there are its title and a description, and a table beside it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Caption:
    """A plot's name, with which the ids of its elements begin, and a title and description for those who cannot see."""

    name: str
    title: str
    description: str


@contextmanager
def figure() -> Iterator[Figure]:
    """A figure in the report's style, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield Figure(figsize=SIZE, layout="constrained")


def series(place: int) -> tuple[str, str | tuple[float, tuple[float, ...]]]:
    """The colour and dash of a series."""
    return SERIES[place % len(SERIES)], DASHES[place % len(DASHES)]


def finish(figure: Figure, axes: Axes, *, columns: int = 3) -> None:
    """Add the grid, and a legend where there are names for it, in so many columns."""
    axes.grid(axis="y", linewidth=0.8)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=columns, columnspacing=1.2, handlelength=2.4, borderaxespad=0.2)


def svg_of(figure: Figure, caption: Caption) -> str:
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
