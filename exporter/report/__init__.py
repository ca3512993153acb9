"""`report.html`: a check as a page that one reads, keeps and attaches to a release. One file, no network, no script."""

from __future__ import annotations

from types import ModuleType

from runtimes._plugins import OWN_PACKAGES
from runtimes.errors import BackendUnavailable


def load_page() -> ModuleType:
    """`exporter.report.page`, which writes the page; asked for before the work whose outcome it is to show.

    Raises:
        BackendUnavailable: matplotlib or Jinja2 is not installed.
    """
    try:
        from exporter.report import page
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] in OWN_PACKAGES:
            raise
        raise BackendUnavailable(
            f"an HTML report needs the package '{error.name}', which is not installed; pip install 'resnet-export[report]'"
        ) from error
    return page
