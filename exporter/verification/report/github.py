"""Checks as a GitHub workflow shows them: a job summary in Markdown, and annotations.

Formats: docs.github.com, "Workflow commands for GitHub Actions", sections on `::error` and on GITHUB_STEP_SUMMARY.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.lowering.lint.rules import RULES
from exporter.verification.report.sentences import status_of
from runtimes.errors import BadInput, PlanError
from runtimes.printable import count_text, printable

if TYPE_CHECKING:
    from exporter.lowering.lint.file import FileReport, Located
    from exporter.verification.verdicts import BackendCheck, BundleCheck

SUMMARY = "GITHUB_STEP_SUMMARY"
HEADING = ("backend", "verdict", "max error", "cosine", "SQNR dB", "agreement", "flips", "why")


def summary_file() -> Path:
    """The file for this step's summary.

    Raises:
        PlanError: this is not a step of a workflow.
    """
    path = os.environ.get(SUMMARY)
    if not path:
        raise PlanError(
            f"--github is for a step of a GitHub workflow, and {SUMMARY} is not set here; leave the option out"
        )
    return Path(path)


def write_summary(path: Path, markdown: str) -> None:
    """Add Markdown to the job summary.

    Raises:
        BadInput: the file cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(markdown)
    except OSError as error:
        raise BadInput(f"cannot write the job summary {path}: {error.strerror}") from error


def markdown_from_checks(checks: Sequence[BundleCheck]) -> str:
    """A heading and a table for each bundle."""
    parts = []
    for check in checks:
        mark = "✅" if check.ok else "❔" if status_of(check) == "undecided" else "❌"
        rows = [HEADING, ["---"] * len(HEADING), *(_row(one) for one in check.backends)]
        table = "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)
        asked = f"{count_text(check.images)}, {_cell(check.evidence)}, against {_cell(check.reference)}"
        remarks = "".join(f"{_cell(remark)}\n\n" for remark in check.remarks)
        parts.append(f"### {mark} {_cell(check.name)}\n\n{_cell(check.bundle)}: {asked}\n\n{table}\n\n{remarks}")
    return "".join(parts)


def annotation_lines(checks: Sequence[BundleCheck]) -> list[str]:
    """A workflow command for each limit that fails, and for each backend that gave no answer.

    It is an error, or a notice for a backend that may be missing.
    """
    lines = []
    for check in checks:
        for one in check.backends:
            title = f"{check.name} on {one.backend}"
            if one.answer is not None:
                lines += [_command("error", title, limit.text) for limit in one.answer.failing]
            else:
                level = "error" if one.verdict != "not here" or check.missing_backend_is_error else "notice"
                lines.append(_command(level, title, f"{one.verdict}: {one.reason}"))
    return lines


def finding_lines(path: Path, findings: Sequence[Located]) -> list[str]:
    """A workflow command for each finding of the linter, at the file that has it: error, warning or notice."""
    lines = []
    for one in findings:
        found = one.finding
        level = "notice" if found.severity == "note" else found.severity
        message = f"{found.rule} {found.kind}: {found.node}: {found.message}"
        lines.append(_command(level, f"{found.rule} {RULES[found.rule].title}", message, str(path)))
    return lines


def markdown_from_findings(path: Path, report: FileReport) -> str:
    """A heading and a table of the linter's findings, for the job summary."""
    mark = "❌" if report.counts["error"] else "⚠️" if report.counts["warning"] else "✅"
    rows = [("rule", "severity", "block", "node", "what"), ["---"] * 5]
    for one in report.findings:
        found = one.finding
        rows.append((found.rule, found.severity, one.block, found.node, f"{found.kind}: {found.message}"))
    table = "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows) if report.findings else "No findings."
    return f"### {mark} {_cell(str(path))}\n\nFor {_cell(report.judged_for)}\n\n{table}\n\n"


def _row(one: BackendCheck) -> Sequence[str]:
    if one.answer is None:
        return (one.backend, one.verdict, "", "", "", "", "", one.reason)
    (measured,) = one.answer.report.backends.values()
    agreement = "" if measured.top1_agreement is None else f"{measured.top1_agreement:.2%}"
    flips = "" if measured.flips is None else str(measured.flips.total)
    cosine = "" if measured.worst_cosine is None else f"{measured.worst_cosine:.6f}"
    errors = (
        (f"{measured.max_relative_error:.2e}", cosine, f"{measured.sqnr_db:.1f}") if measured.finite else ("", "", "")
    )
    why = one.reason or "; ".join(limit.text for limit in one.answer.limits if limit.verdict == "undecided")
    return (one.backend, one.verdict, *errors, agreement, flips, why)


def _cell(text: str) -> str:
    return printable(" ".join(text.split())).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _command(level: str, title: str, message: str, file: str = "") -> str:
    """`::error file=...,title=...::...`, escaped as the runner reads it."""
    where = f"file={_property(file)}," if file else ""
    return f"::{level} {where}title={_property(title)}::{_escape(message)}"


def _property(text: str) -> str:
    """In a property, colons and commas are escaped too."""
    return _escape(text).replace(":", "%3A").replace(",", "%2C")


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
