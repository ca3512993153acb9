"""The plots of a benchmark: batch against images a second, with the machine's roof, and how long single calls took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from exporter.verification.report import drawing
from exporter.verification.report.drawing import Caption
from runtimes.benchmark.results import Entry, Roof
from runtimes.benchmark.statistics import Interval

ROOF_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))
LOG_FROM = 8
"""An axis is logarithmic where its largest value is this many times its smallest."""


def throughput_svg(entries: Sequence[Entry], roofs: Sequence[Roof], macs: int | None, caption: Caption) -> str:
    """Batch size against images a second, with copies: a line for each contender with the interval of each point, and
    one for each roof that they stand under.

    Args:
        macs: for one image; None draws no roof.
    """
    with drawing.figure() as figure:
        axes = figure.subplots()
        points: list[list[Interval]] = []
        levels = [roof.macs_per_s / macs for roof in roofs if macs]
        for place, entry in enumerate(entries):
            timings = entry.of_line("copies")
            rates = [one.interval for one in timings]
            points.append(rates)
            low, high = (
                [abs(one.median - (one.median if limit is None else limit)) for one, limit in pairs]
                for pairs in ([(one, one.low) for one in rates], [(one, one.high) for one in rates])
            )
            axes.errorbar(
                [one.batch for one in timings],
                [one.median for one in rates],
                yerr=[low, high],
                capsize=2,
                label=entry.contender.name,
                **_style(place),
            )
        for place, (roof, level) in enumerate(zip(roofs, levels, strict=False)):
            axes.axhline(
                level,
                color=drawing.LIMIT,
                linestyle=ROOF_DASHES[place % len(ROOF_DASHES)],
                linewidth=1.2,
                label=f"roof, {roof.dtype}",
            )
        sizes = sorted({one.batch for entry in entries for one in entry.of_line("copies")})
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda size, _: f"{size:g}")
        axes.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
        axes.set_xlabel("images in a batch")
        axes.set_ylabel("images a second")
        _scale(axes, [*(one.median for rates in points for one in rates), *(levels if macs else ())])
        drawing.finish(figure, axes, columns=2)
        return drawing.svg_of(figure, caption)


def latency_svg(entries: Sequence[Entry], caption: Caption) -> str:
    """The share of calls that took at most so long, a curve for each contender."""
    with drawing.figure() as figure:
        axes = figure.subplots()
        taken: list[float] = []
        for place, entry in enumerate(entries):
            assert entry.latency is not None
            style = {name: value for name, value in _style(place).items() if name != "marker"}
            axes.plot(entry.latency.percentiles_ms, range(101), label=entry.contender.name, **style)
            taken += entry.latency.percentiles_ms
        if max(taken) > LOG_FROM * min(taken):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:g}%")
        axes.set_ylim(0, 101)
        axes.set_xlabel("milliseconds of a call")
        axes.set_ylabel("share of the calls that took no longer")
        drawing.finish(figure, axes, columns=2)
        return drawing.svg_of(figure, caption)


def _style(place: int) -> dict[str, Any]:
    """Colour, dash and marker: no two of twenty-five contenders share all three."""
    colour, dash = drawing.series(place)
    count = len(drawing.MARKERS)
    return {"color": colour, "linestyle": dash, "marker": drawing.MARKERS[(place + place // count) % count]}


def _scale(axes: Axes, values: Sequence[float]) -> None:
    if max(values) > LOG_FROM * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
