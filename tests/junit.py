"""JUnit files, for tests of who writes them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree


def cases(path: Path) -> dict[str, ElementTree.Element]:
    """A JUnit file's test cases by group and name."""
    return {
        f"{case.get('classname')}.{case.get('name')}": case
        for case in ElementTree.parse(path).getroot().iter("testcase")
    }
