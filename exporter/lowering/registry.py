"""Find precisions, and targets of Q/DQ pairs, by name."""

from __future__ import annotations

from typing import cast

from exporter.lowering import precisions
from exporter.lowering.precisions import Precision
from exporter.lowering.qdq import targets
from exporter.lowering.qdq.targets import QdqTarget
from runtimes._plugins import load_plugin, plugin_names

REMEDY = "pip install 'resnet-export[export]'"


def precision_names() -> tuple[str, ...]:
    """Names of all precisions."""
    return plugin_names(precisions.__file__)


def load_precision(name: str) -> Precision:
    """The precision of this name.

    Raises:
        UnknownName: there is no such precision.
        BackendUnavailable: a package that it needs is missing.
    """
    return cast(Precision, load_plugin(precisions, name, kind="precision", remedy=REMEDY))


def target_names() -> tuple[str, ...]:
    """Names of all targets of Q/DQ pairs."""
    return plugin_names(targets.__file__)


def load_target(name: str) -> QdqTarget:
    """The target of this name.

    Raises:
        UnknownName: there is no such target.
        BackendUnavailable: a package that it needs is missing.
    """
    return cast(QdqTarget, load_plugin(targets, name, kind="target", remedy=REMEDY))
