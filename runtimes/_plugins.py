"""Find and load plug-ins: each file of a folder is one, and its name is the name on the command line."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from runtimes.errors import BackendUnavailable, UnknownName

OWN_PACKAGES = ("runtimes", "calibration", "exporter")


def plugin_names(package_file: str) -> tuple[str, ...]:
    """Names of the plug-ins beside `package_file` (a package's `__file__`), sorted; nothing is imported.

    A file that starts with an underscore is a helper, not a plug-in. On the command line `_` reads `-`.
    """
    folder = Path(package_file).parent
    return tuple(sorted(path.stem.replace("_", "-") for path in folder.glob("*.py") if not path.stem.startswith("_")))


def load_plugin(package: ModuleType, name: str, *, kind: str, remedy: str) -> ModuleType:
    """Import one plug-in of `package`.

    Args:
        kind: what the plug-in is, for messages: `backend`.
        remedy: the command that installs what it needs.

    Raises:
        UnknownName: there is no such file.
        BackendUnavailable: a package that it imports is missing; the message ends with `remedy`.
    """
    assert package.__file__ is not None
    known = plugin_names(package.__file__)
    if name not in known:
        raise UnknownName(kind, name, known)
    with needed_for(f"{kind} '{name}'", remedy):
        return importlib.import_module(f"{package.__name__}.{name.replace('-', '_')}")


@contextmanager
def needed_for(what: str, remedy: str) -> Iterator[None]:
    """Turn a missing package in the block, which imports what `what` needs, into an error that says how to get it.

    Raises:
        BackendUnavailable: a package is missing; the message ends with `remedy`.
    """
    try:
        yield
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] in OWN_PACKAGES:
            raise  # a mistake of ours, or a broken library: never "please install"
        raise BackendUnavailable(
            f"{what} needs the package '{error.name}', which is not installed; {remedy}"
        ) from error
