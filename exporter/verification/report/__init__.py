"""`report.html`: a check as a page that one reads, keeps and attaches to a release. One file, no network, no script."""

from __future__ import annotations

import logging
from types import ModuleType

from runtimes._plugins import needed_for

# Where the home folder cannot be written, matplotlib says so twice as it is imported, and goes on with a temporary one, which is all it takes.
logging.getLogger("matplotlib").setLevel(logging.ERROR)


def load_page() -> ModuleType:
    """`exporter.verification.report.page`, which writes the page; asked for before the work whose outcome it is to show.

    Raises:
        BackendUnavailable: matplotlib or Jinja2 is not installed.
    """
    with needed_for("an HTML report", "pip install 'resnet-export[report]'"):
        from exporter.verification.report import page
    return page
