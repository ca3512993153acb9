"""All rules in one table, what they find, and whether what was asked about can work."""

from __future__ import annotations

from runtimes.doctor import board_rules, bundle_rules, driver_rules, package_rules
from runtimes.doctor.bundle_rules import runs_bundle, serves_bundle
from runtimes.doctor.facts import Facts
from runtimes.doctor.rule import Finding, Rule

RULES: tuple[Rule, ...] = (*driver_rules.RULES, *board_rules.RULES, *package_rules.RULES, *bundle_rules.RULES)
ORDER = ("error", "warning", "note")


def findings_of(facts: Facts) -> tuple[Finding, ...]:
    """What the rules find, the worst first. A rule that fails on an odd system is a note, never the end."""
    found: list[Finding] = []
    for rule in RULES:
        try:
            found += rule.findings(facts)
        except Exception as error:  # facts of an odd system may be odd
            found.append(
                Finding(rule.id, "note", "", f"{rule.title}: not judged ({type(error).__name__}: {error})", "")
            )
    relevant = [one for one in found if not facts.asked or one.backend in ("", *facts.asked)]
    return tuple(sorted(relevant, key=lambda one: ORDER.index(one.severity)))


def what_cannot_work(facts: Facts) -> tuple[str, ...]:
    """The names of what was asked about and cannot work here: backends, or the bundle; empty if all can."""
    if facts.asked:
        return tuple(name for name in facts.asked if not runs_bundle(facts, facts.backend(name)))
    if facts.bundle is None or any(serves_bundle(facts, one) for one in facts.backends):
        return ()
    return (facts.bundle.path,)
