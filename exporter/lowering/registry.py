"""The precisions there are, by name."""

from __future__ import annotations

from typing import cast

from exporter.lowering import precisions
from exporter.lowering.precisions import Precision
from runtimes._plugins import load_plugin, plugin_names


def precision_names() -> tuple[str, ...]:
    """The precisions there is a file for."""
    return plugin_names(precisions.__file__)


def load_precision(name: str) -> Precision:
    """The file of a precision.

    Raises:
        UnknownName: there is none.
        BackendUnavailable: a package it stands on is missing.
    """
    return cast(
        Precision, load_plugin(precisions, name, kind="precision", remedy="pip install 'resnet-export[export]'")
    )
