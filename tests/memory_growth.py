"""The peak of this process's memory while a block of code runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def peak_growth_below(mib: int) -> Iterator[None]:
    """Assert that the peak of the memory in use grows by less than `mib` MiB, above what is in use at the beginning.

    The peak of `getrusage` is that of the whole life of the process: behind a test that took more it sees nothing.
    """
    RESET.write_text("5")  # the peak is what is in use now (proc(5), Linux 4.0)
    before = peak_kib()
    yield
    grown = (peak_kib() - before) / 1024
    assert grown < mib, f"the peak grew by {grown:.0f} MiB"


def peak_kib() -> int:
    """The peak since it was last reset, in KiB."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])
