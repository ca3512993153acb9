"""The table of rules. An id is for ever: a rule that is dropped leaves its number unused.

RE1xx: what the parser or the builder refuses, or reads otherwise. RE2xx: where Q/DQ pairs stand. RE3xx: types.
RE4xx: opsets. RE5xx: the range of numbers. RE6xx: onnxruntime. RE7xx: processors. RE8xx: DLA.
"""

from __future__ import annotations

from exporter.lowering.lint.rules import _elsewhere, _placement, _refused, _types
from exporter.lowering.lint.rules._rule import Kind, Rule, Severity

PAGE = "docs/rules.md"
"""The page that has a section for each rule."""
RULES: dict[str, Rule] = {rule.id: rule for table in (_refused, _placement, _types, _elsewhere) for rule in table.RULES}
FAMILIES = {
    "RE1": "Refused, or read otherwise",
    "RE2": "Where Q/DQ pairs stand",
    "RE3": "Types",
    "RE4": "Opsets",
    "RE5": "The range of numbers",
    "RE6": "ONNX Runtime",
    "RE7": "Processors",
    "RE8": "DLA",
}


def rule_url(number: str) -> str:
    """Where the page says more of a rule."""
    return f"{PAGE}#{number.lower()}"


__all__ = ["FAMILIES", "PAGE", "RULES", "Kind", "Rule", "Severity", "rule_url"]
