"""`report.html`: a check as a page to read, keep and attach to a release. One file, no network, no script."""

from __future__ import annotations

import logging
from types import ModuleType

from runtimes._plugins import needed_for

# Where the home folder cannot be written, matplotlib warns twice as it is imported, and uses a temporary one, which is
# all that it needs.
logging.getLogger("matplotlib").setLevel(logging.ERROR)


def load_page() -> ModuleType:
    """Import `exporter.verification.report.page`; done before the long work whose outcome the page shows.

    Raises:
        BackendUnavailable: matplotlib or Jinja2 is not installed.
    """
    with needed_for("an HTML report", "pip install 'resnet-export[report]'"):
        from exporter.verification.report import page
    return page
