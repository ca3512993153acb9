"""`report.html`: a check as a page that one reads, keeps and attaches to a release. One file, no network, no script."""

from __future__ import annotations

from types import ModuleType

from runtimes._plugins import needed_for


def load_page() -> ModuleType:
    """`exporter.report.page`, which writes the page; asked for before the work whose outcome it is to show.

    Raises:
        BackendUnavailable: matplotlib or Jinja2 is not installed.
    """
    with needed_for("an HTML report", "pip install 'resnet-export[report]'"):
        from exporter.report import page
    return page
