"""What was found, as lines of text for a terminal."""

from __future__ import annotations

import pytest

from exporter.verification.report.lines import parity_lines
from runtimes.parity.compare import ParityReport
from runtimes.parity.flips import Flips
from runtimes.parity.measures import Comparison


@pytest.mark.parametrize(
    ("flips", "shown"), [(None, "-"), (Flips(0, 0), "0"), (Flips(18, 0), "18 (0)"), (Flips(5, 2), "5 (2)")]
)
def test_flips_are_shown_with_those_that_count(flips: Flips | None, shown: str) -> None:
    one = Comparison(True, True, 0.01, 0.001, 0.005, 0.999, 40.0, 0.999, 1.0, flips)
    heading, line, *_ = parity_lines(ParityReport(True, 100, (1,), {"onnxruntime": one}))
    assert heading.endswith("flips")
    assert line[: len(heading)].endswith(f" {shown}")
    assert line[len(heading) :] == "  ok"
