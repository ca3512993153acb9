"""Hold a file's opset, and the age of its operators, against what each parser is documented for."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import onnx

from exporter.lowering.lint.findings import Finding, finding, findings_at
from exporter.lowering.lint.versions import OLDEST_OPSET, TensorRtVersion
from exporter.lowering.qdq.refusals import PLAIN_DOMAINS, UNSUPPORTED
from exporter.lowering.qdq.view import View


def opset_findings(opset: int, versions: Sequence[TensorRtVersion]) -> Iterator[Finding]:
    """Whether a file's opset is newer, or older, than the parsers are documented for."""
    behind = _behind(opset, versions)
    if behind:
        told = ", ".join(f"{one.text} to {one.newest_opset}" for one in behind)
        yield finding(("RE401", f"it is of opset {opset}, and the parser is documented for less: {told}"), "opset")
    if opset < OLDEST_OPSET:
        told = f"it is of opset {opset}, and parsers are documented from {OLDEST_OPSET} on; convert it to 13 or newer"
        yield finding(("RE402", told), "opset")


def operator_age_findings(view: View, versions: Sequence[TensorRtVersion]) -> Iterator[Finding]:
    """The operators of a graph that came later than the parsers are documented for."""
    behind = _behind(view.opset, versions)
    for place, node in enumerate(view.nodes if behind else ()):
        since = first_opset(node.op_type) if node.domain in PLAIN_DOMAINS else 0
        old = [one.text for one in behind if since > one.newest_opset]
        if old and node.op_type not in UNSUPPORTED:
            told = f"{node.op_type} came with opset {since}, and {', '.join(old)} is documented for older ones"
            yield from findings_at(place, node, [("RE403", f"{told}; export with a lower opset")])


def first_opset(operator: str) -> int:
    """The opset that an operator of ONNX came with; 0 for one that ONNX does not have."""
    return _first_opsets().get(operator, 0)


def _behind(opset: int, versions: Sequence[TensorRtVersion]) -> list[TensorRtVersion]:
    return [one for one in versions if opset > one.newest_opset]


@functools.cache
def _first_opsets() -> dict[str, int]:
    found: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            found[schema.name] = min(schema.since_version, found.get(schema.name, schema.since_version))
    return found
