"""The linter's table of rules: ids that stay, a graph that each one finds something in, and a page that has them all."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from residual_graphs import residual
from rule_graphs import GRAPHS, alone, linted

from exporter.lowering.lint.file import lint_file_for_processors
from exporter.lowering.lint.rules import FAMILIES, RULES, rule_url
from exporter.lowering.lint.versions import VERSIONS, choose_versions, versions_text
from runtimes.errors import UnknownName

ROOT = Path(__file__).resolve().parents[2]
# fmt: off
IDS = (
    "RE101", "RE102", "RE103", "RE104", "RE105", "RE106", "RE107", "RE108", "RE109", "RE110", "RE111", "RE112",
    "RE113", "RE114", "RE115", "RE116", "RE117", "RE118", "RE119", "RE120", "RE121", "RE122", "RE123", "RE124",
    "RE125", "RE126", "RE127", "RE130", "RE131", "RE132", "RE133", "RE134", "RE135", "RE136", "RE137", "RE138", "RE139",
    "RE201", "RE202", "RE203", "RE204", "RE205", "RE206", "RE207", "RE208", "RE209", "RE210", "RE211", "RE212",
    "RE213", "RE214", "RE215", "RE216", "RE217", "RE218", "RE219", "RE220", "RE221", "RE222",
    "RE301", "RE302", "RE303", "RE304", "RE305", "RE401", "RE402", "RE403", "RE404", "RE501", "RE502", "RE503",
    "RE601", "RE602", "RE701", "RE702", "RE703", "RE704", "RE705", "RE706", "RE707", "RE708", "RE709", "RE710",
    "RE801", "RE802", "RE803", "RE804",
)
"""Ids that were given once. People name them in their own tools: none may go, or mean something else."""
# fmt: on
TITLES = {
    "RE105": "A bias quantized to INT32",
    "RE115": "A zero point that is not zero",
    "RE201": "A convolution whose input or weight is not quantized",
    "RE216": "An addition whose shortcut is not quantized",
    "RE301": "One operator that reads two types",
    "RE401": "An opset newer than the parser is documented for",
}
SEVERITIES = {
    "refused": "error",
    "other values": "error",
    "out of range": ("error", "warning"),
    "left in float": "note",
    "unknown": ("warning", "note"),
    "slower": ("warning", "note"),
}


def test_ids_are_those_given_before() -> None:
    assert tuple(sorted(RULES)) == IDS
    assert {number: RULES[number].title for number in TITLES} == TITLES
    assert all(number == rule.id and number[:3] in FAMILIES for number, rule in RULES.items())


@pytest.mark.parametrize("number", IDS)
def test_each_rule_finds_something_in_its_graph(number: str) -> None:
    found = [one.finding for one in linted(GRAPHS[number](), number).findings if one.finding.rule == number]
    assert found
    rule = RULES[number]
    assert all((one.kind, one.severity) == (rule.kind, rule.severity) for one in found)
    assert all(one.node and one.message for one in found)


@pytest.mark.parametrize("number", IDS)
def test_each_rule_says_what_it_is(number: str) -> None:
    rule = RULES[number]
    assert rule.severity in SEVERITIES.get(rule.kind, "warning")
    assert all(text[0].isupper() or text[0] == "`" for text in (rule.title, rule.does, rule.mend)), number
    assert rule.does.endswith(".")
    assert rule.mend.endswith(".")
    assert rule.seen or rule.source or rule.kind == "unknown"


def test_the_page_is_that_of_the_table() -> None:
    spec = importlib.util.spec_from_file_location("rules_page", ROOT / "scripts" / "rules_page.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (ROOT / "docs" / "rules.md").read_text()
    assert page == script.page_of_rules(), "run scripts/rules_page.py"
    assert re.findall(r"^### (RE\d+)$", page, re.MULTILINE) == list(IDS)
    assert rule_url("RE101") == "docs/rules.md#re101"


def test_versions_are_chosen_by_name() -> None:
    assert choose_versions(None) == tuple(VERSIONS.values())
    assert [one.text for one in choose_versions("10.3")] == ["TensorRT 10.3"]
    assert versions_text(choose_versions(None)) == "TensorRT 10.3 to 11.4 and TensorRT-RTX 1.7"
    with pytest.raises(UnknownName, match="unknown TensorRT version '9'; choose from 10.16, 10.3, 11.4, rtx"):
        choose_versions("9")


@pytest.mark.parametrize(
    ("number", "target", "found"),
    [
        ("RE401", "10.3", True),
        ("RE401", "10.16", False),
        ("RE403", "10.16", False),
        ("RE403", "10.3", True),
        ("RE304", "10.3", True),
        ("RE304", "11.4", False),
        ("RE138", "10.3", False),
        ("RE138", "rtx", True),
        ("RE138", None, True),
    ],
)
def test_what_depends_on_the_version_is_said_of_that_version(number: str, target: str | None, found: bool) -> None:
    report = linted(GRAPHS[number](), target=target)
    assert any(one.finding.rule == number for one in report.findings) is found


def test_plugins_that_tensorrt_has_are_no_refusal_there_in_a_quantized_graph_either() -> None:
    def with_places(graph: object) -> str:
        pooled = graph.node("Conv", graph.pair("x"), graph.weight())  # type: ignore[attr-defined]
        return str(graph.node("NonZero", pooled))  # type: ignore[attr-defined]

    model = alone(with_places, gives=7)
    assert linted(model).refused
    assert linted(model).qdq is not None
    assert not linted(model, target="10.3").refused


def test_a_float_residual_network_has_no_findings() -> None:
    assert linted(residual()).findings == ()
    assert lint_file_for_processors(residual()).findings == ()
