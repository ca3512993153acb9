"""Why a builder would refuse a bundle, as far as that is known without loading it."""

from __future__ import annotations

from exporter.engines.build import BuildPlan, check_opset
from runtimes.bundle import Bundle
from runtimes.errors import ResnetExportError


def build_refusal(bundle: Bundle, backend: str, version: str) -> str:
    """Why a builder of this version cannot build a bundle; empty if nothing speaks against it.

    Args:
        version: empty says nothing of versions.
    """
    try:
        plan = BuildPlan(bundle, backend)
        if version:
            check_opset(plan, version)
    except ResnetExportError as error:
        return str(error)
    except ValueError:
        return ""  # a version that is no number
    return ""
