"""A rule of the doctor: looks at the facts, and says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from runtimes.doctor.facts import Facts

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """Something wrong, or worth knowing.

    Attributes:
        rule: its id, for example `DR101`.
        severity: `error`: something that is here does not work; `warning`: it works otherwise than one would think;
            `note`: nothing is wrong.
        backend: the one that it is about; empty for the machine.
        text: one sentence.
        remedy: what to do, a command where there is one, a line for each step; empty for nothing.
    """

    rule: str
    severity: Severity
    backend: str
    text: str
    remedy: str


@dataclass(frozen=True)
class Case:
    """One case of a rule: see `Finding`. Without a severity, it has the rule's."""

    text: str
    remedy: str = ""
    backend: str = ""
    severity: Severity | None = None


@dataclass(frozen=True)
class Rule:
    """A rule, under an id that is never given to another one; `title` says in a few words what it finds."""

    id: str
    severity: Severity
    title: str
    check: Callable[[Facts], Iterator[Case]]

    def findings(self, facts: Facts) -> Iterator[Finding]:
        """What it finds."""
        for one in self.check(facts):
            yield Finding(self.id, one.severity or self.severity, one.backend, one.text, one.remedy)
