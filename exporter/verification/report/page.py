"""Write sections as an HTML page: the template is given them, and functions for its tables and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from exporter.verification.report.block_text import asked_text, measured_text, returned_text, worst_text
from exporter.verification.report.drawing import Caption
from exporter.verification.report.environment import page_environment
from exporter.verification.report.plots import damage_svg, drift_svgs, histogram_svg
from exporter.verification.report.records import DriftChart, Section
from exporter.verification.report.sentences import (
    join_words,
    overall_text,
    precision_text,
    share_text,
    status_of,
    verdict_sentences,
)
from runtimes.parity.compare import is_classifier
from runtimes.parity.evidence import ErrorHistogram
from runtimes.parity.limits import Limit
from runtimes.parity.measures import LARGEST_ERROR, Accuracy, Comparison
from runtimes.printable import as_text, count_text

PAGE = "report.html.j2"
THUMBNAIL = 96
"""Pixels of the longer side of a flipped image; a smaller one is enlarged by the page, each pixel as a square."""
MARKS = {
    "within budget": "✓",
    "ok": "✓",
    "out of budget": "✗",
    "broken": "✗",
    "undecided": "?",
    "failed": "✗",
    "crashed": "✗",
    "not answered": "○",
    "not here": "○",
}
"""Signs that stand beside the words, never in their place."""
LOOKS = {"✓": "good", "✗": "bad", "?": "open", "○": "none"}
"""The style of each sign's badge."""


@dataclass(frozen=True)
class LimitRow:
    """A limit, and the verdict on it for each backend that answered; None where it was not judged."""

    what: str
    allowed: str
    cells: tuple[Limit | None, ...]


@dataclass(frozen=True)
class MeasureRow:
    """The measures of a backend or, where a model gives features, of one of its outputs."""

    backend: str
    output: str
    verdict: str
    measured: Comparison
    accuracy: Accuracy | None


def html_from_sections(sections: Sequence[Section]) -> bytes:
    """The page as UTF-8, with all that it needs inside; equal sections give equal bytes."""
    environment = page_environment()
    environment.filters |= {"join_words": join_words, "share": share_text, "png_uri": _png_uri, "error": _error_text}
    environment.filters["images"] = count_text
    environment.globals |= {
        "status_of": status_of,
        "verdict_sentences": verdict_sentences,
        "limit_rows": limit_rows,
        "measure_rows": measure_rows,
        "histograms": _histograms,
        "histogram_rows": histogram_rows,
        "histogram_plot": _histogram_plot,
        "drift_plots": _drift_plots,
        "damage_plot": _damage_plot,
        "worst_text": worst_text,
        "asked_text": asked_text,
        "returned_text": returned_text,
        "measured_text": measured_text,
        "class_name": class_name,
        "precision_text": precision_text,
        "measured_classes": _has_classes,
        "errors_differ": _errors_differ,
        "marks": MARKS,
        "look_of": lambda status: LOOKS[MARKS[status]],
        "thumbnail": THUMBNAIL,
    }
    page = environment.get_template(PAGE).render(
        sections=sections, overall=overall_text([one.check for one in sections])
    )
    return as_text(page).encode(errors="backslashreplace")  # a path may hold bytes that are no text


def limit_rows(section: Section) -> list[LimitRow]:
    """A row for each limit that any backend was held to, in the budget's order."""
    by_backend = [
        {limit.name: limit for limit in one.answer.limits} for one in section.check.backends if one.answer is not None
    ]
    known = {name: limit for limits in by_backend for name, limit in limits.items()}
    return [
        LimitRow(limit.what, limit.allowed, tuple(limits.get(name) for limits in by_backend))
        for name, limit in known.items()
    ]


def measure_rows(section: Section) -> list[MeasureRow]:
    """A row for each backend that answered; for features, under it one for each of its outputs."""
    rows = []
    for one in section.check.backends:
        if one.answer is not None:
            (measured,) = one.answer.report.backends.values()
            rows.append(MeasureRow(one.backend, "", one.verdict, measured, one.answer.accuracy))
            rows += [MeasureRow(one.backend, name, "", output, None) for name, output in measured.outputs.items()]
    return rows


def histogram_rows(histograms: Mapping[str, ErrorHistogram]) -> list[tuple[str, list[int]]]:
    """The bins in which any backend has values, in words, and each backend's count; equal values come first."""
    rows = [("equal to the last bit", [one.exact for one in histograms.values()])]
    decades = next(iter(histograms.values())).decades
    for place, (low, high) in enumerate(pairwise(decades)):
        counts = [one.counts[place] for one in histograms.values()]
        if any(counts):
            rows.append((f"{10**low:.1e} to {10**high:.1e}", counts))
    return rows


def class_name(section: Section, number: int) -> str:
    """The name of a class; `class 7` where names are not known."""
    return section.labels[number] if section.labels is not None and number < len(section.labels) else f"class {number}"


def _error_text(value: float) -> str:
    return "not finite" if value == LARGEST_ERROR else f"{value:.2e}"


def _has_classes(section: Section) -> bool:
    return is_classifier(spec.name for spec in section.manifest.outputs)


def _errors_differ(section: Section) -> bool:
    """Does any output of any backend differ from the reference's? Otherwise there is no histogram to draw."""
    return any(any(one.counts) for one in _histograms(section).values())


def _histograms(section: Section) -> dict[str, ErrorHistogram]:
    return {
        one.backend: one.answer.errors
        for one in section.check.backends
        if one.answer is not None and one.answer.errors is not None
    }


def _histogram_plot(section: Section, name: str) -> Markup:
    histograms = _histograms(section)
    caption = Caption(
        f"{name}-errors",
        f"How far the outputs of {section.check.name} are off",
        f"A histogram of relative errors on a logarithmic axis, an outline each for {join_words(list(histograms))}; "
        "its figures are in the table below.",
    )
    unit = "the largest logit" if _has_classes(section) else "the output's largest value"
    # ElementTree has escaped what is in it.
    return Markup(histogram_svg(histograms, section.check.budget.max_relative_error, unit, caption))


def _damage_plot(section: Section, name: str) -> Markup:
    sensitivity, mixed = section.manifest.sensitivity, section.manifest.mixed
    assert sensitivity is not None
    text = f"A bar each for {len(sensitivity.blocks)} blocks; the figures are in the table below."
    caption = Caption(f"{name}-damage", "Share of each block in the damage of INT8", text)
    return Markup(damage_svg(sensitivity, mixed.returned if mixed is not None else (), caption))


def _drift_plots(drift: DriftChart, name: str) -> tuple[Markup, Markup]:
    steps = join_words([one.step for one in drift.series])
    text = f"A line each for {steps}, over {len(drift.series[0].blocks)} blocks; its figures are in the table below."
    error = Caption(f"{name}-drift-error", "Relative error after each block", text)
    sqnr = Caption(f"{name}-drift-sqnr", "Signal to quantization noise after each block", text)
    first, second = drift_svgs(drift, error, sqnr)
    return Markup(first), Markup(second)


def _png_uri(pixels: NDArray[np.uint8]) -> str:
    """uint8 (height, width, 1 or 3) as a PNG in a `data:` address, shrunk where it is larger than a thumbnail."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    written = io.BytesIO()
    image.save(written, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
