"""JUnit XML of checks: a test suite for each bundle, a test case for each backend and limit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from exporter.verification.verdicts import BackendCheck, BundleCheck, distinct_names, why_not_judged
from runtimes.printable import as_text, printable

NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold, such as a terminal's control characters (XML 1.0, section 2.2)."""
KINDS = {"failed": "error", "crashed": "error", "not here": "skipped"}
COUNTS = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}


def xml_from_checks(checks: Sequence[BundleCheck]) -> bytes:
    """Checks as UTF-8 XML: a suite for each bundle, a case for each backend and limit of its budget.

    A backend that gave no answer is one case, `answers`: an error, or skipped where it may be missing. A limit that
    does not apply is skipped, and one that is undecided and need not be decided.
    """
    root = ElementTree.Element("testsuites")
    for name, check in zip(distinct_names([check.name for check in checks]), checks, strict=True):
        suite = ElementTree.SubElement(root, "testsuite", name=name)
        for one in check.backends:
            _add_cases(suite, f"{name}.{one.backend}", one, check)
        for attribute, tag in COUNTS.items():
            suite.set(attribute, str(len(list(suite.iter(tag)))))
    text = as_text(ElementTree.tostring(root, encoding="unicode"))
    return f"<?xml version='1.0' encoding='utf-8'?>\n{NO_XML.sub(lambda found: printable(found[0]), text)}".encode()


def _add_cases(suite: ElementTree.Element, group: str, one: BackendCheck, check: BundleCheck) -> None:
    if one.answer is None:
        case = ElementTree.SubElement(suite, "testcase", classname=group, name="answers", time=f"{one.seconds:.3f}")
        kind = "error" if one.verdict == "not here" and check.missing_backend_is_error else KINDS[one.verdict]
        ElementTree.SubElement(case, kind, message=one.reason)
        return
    for number, limit in enumerate(one.answer.limits):
        seconds = one.seconds if number == 0 else 0.0  # all limits come out of one run
        case = ElementTree.SubElement(suite, "testcase", classname=group, name=limit.name, time=f"{seconds:.3f}")
        if limit in one.answer.failing:
            ElementTree.SubElement(case, "failure", message=limit.text, type=limit.verdict)
        elif not limit.ok:
            ElementTree.SubElement(case, "skipped", message=limit.text)
        ElementTree.SubElement(case, "system-out").text = limit.text
    judged = {limit.name for limit in one.answer.limits}
    for limit_name in check.budget.limit_names:
        if limit_name not in judged:
            case = ElementTree.SubElement(suite, "testcase", classname=group, name=limit_name, time="0.000")
            ElementTree.SubElement(case, "skipped", message=why_not_judged(limit_name, one.answer, check.no_accuracy))
