"""Lint a whole file, quantized or float, for the versions of TensorRT that are to read it, or for processors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx

from exporter.graph.blocks import blocks
from exporter.graph.facts import inline_functions
from exporter.lowering.lint.dla import dla_findings
from exporter.lowering.lint.findings import Finding
from exporter.lowering.lint.numbers import number_findings
from exporter.lowering.lint.opsets import operator_age_findings, opset_findings
from exporter.lowering.lint.rules import rule_url
from exporter.lowering.lint.typed import computes_in_half, file_type_findings, type_findings
from exporter.lowering.lint.versions import TensorRtVersion, versions_text
from exporter.lowering.qdq.lint import QdqReport, inner_name, report_of_views, views_of
from exporter.lowering.qdq.lint_cpu import lint_for_processors
from exporter.lowering.qdq.reading import Readings
from exporter.lowering.qdq.refusals import refusals
from exporter.lowering.qdq.view import View

ONLY_WITHOUT_PLUGINS = "RE138"


@dataclass(frozen=True)
class Located:
    """A finding, and the block of the network that it stands in; empty for one of the whole file."""

    block: str
    finding: Finding

    def record(self) -> dict[str, str]:
        """As `inspect --json` prints it."""
        one = self.finding
        return {
            "rule": one.rule,
            "severity": one.severity,
            "kind": one.kind,
            "node": one.node,
            "message": one.message,
            "block": self.block,
            "url": rule_url(one.rule),
        }


@dataclass(frozen=True)
class FileReport:
    """What the linter says of a file.

    Attributes:
        judged_for: the versions or processors, for people.
        qdq: how a quantized graph runs, block by block; None for a float one.
        others: the findings that are not among those of `qdq`'s blocks.
    """

    judged_for: str
    qdq: QdqReport | None
    others: tuple[Located, ...]

    @property
    def findings(self) -> tuple[Located, ...]:
        """All findings: those of the file, then block by block."""
        of_blocks = self.qdq.blocks if self.qdq else ()
        return (*self.others, *(Located(block.name, one) for block in of_blocks for one in block.findings))

    @property
    def counts(self) -> Counter[str]:
        """How many findings are errors, warnings and notes."""
        return Counter(one.finding.severity for one in self.findings)

    @property
    def refused(self) -> bool:
        """Whether TensorRT refuses the file, or one of the versions does."""
        return any(one.finding.kind == "refused" for one in self.findings)


def lint_file(model: onnx.ModelProto, versions: Sequence[TensorRtVersion], *, dla: bool = False) -> FileReport:
    """Lint a model for TensorRT; weights in other files need not be loaded.

    Args:
        dla: also judge what a Jetson's DLA runs.
    """
    model = inline_functions(model)
    views = views_of(model)
    report = report_of_views(model, views)
    of_file = [*file_type_findings(views), *opset_findings(views[0].opset, versions)]
    in_half = computes_in_half(views)

    def look(view: View) -> Iterator[Finding]:
        if report is None:
            yield from _refused_in_float(view)
        yield from type_findings(view, versions, in_half=in_half)
        yield from operator_age_findings(view, versions)
        yield from number_findings(view)
        if dla and view is views[0]:
            yield from dla_findings(view, versions)

    found = [*(Located("", one) for one in of_file), *_located(model, views, look)]
    if all(one.has_plugins for one in versions):
        found = [one for one in found if one.finding.rule != ONLY_WITHOUT_PLUGINS]
        report = _without_plugins_rule(report) if report else None
    return FileReport(versions_text(tuple(versions)), report, tuple(found))


def lint_file_for_processors(model: onnx.ModelProto) -> FileReport:
    """Lint a model for onnxruntime's and OpenVINO's kernels on processors."""
    model = inline_functions(model)
    views = views_of(model)
    return FileReport("processors", lint_for_processors(model), tuple(_located(model, views, number_findings)))


def _refused_in_float(view: View) -> Iterator[Finding]:
    readings = Readings(view)
    for place in range(len(view.nodes)):
        yield from refusals(view, readings, place)


def _without_plugins_rule(report: QdqReport) -> QdqReport:
    kept = (
        replace(block, findings=tuple(one for one in block.findings if one.rule != ONLY_WITHOUT_PLUGINS))
        for block in report.blocks
    )
    return QdqReport(tuple(kept))


def _located(
    model: onnx.ModelProto, views: Sequence[View], look: Callable[[View], Iterator[Finding]]
) -> Iterator[Located]:
    """What `look` finds in each graph, in the graph's order, with its block."""
    by_place = {place: block.name for block in blocks(model.graph) for place in block.nodes}
    for view in views:
        inner = inner_name(views, view)
        for one in sorted(look(view), key=lambda found: found.place):
            yield Located(inner or by_place.get(one.place, ""), one)
