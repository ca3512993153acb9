"""Every exception a user can cause, and the exit code each one ends a command with.

    ResnetExportError               1   it failed
        ExportError                 1
            TraceError              1   PyTorch could not trace the model, or the trace is wrong
            SimplifyError           1   simplifying changed what the model computes
            LowerError              1   a precision cannot hold the model's values
            BuildError              1   an engine could not be built
        CalibrationError            1   the calibration data or what it measured is unusable
        BundleError                 1   a bundle cannot be read or written
        BoardError                  1   a command on another machine failed; its exit code, 1 to 4, is kept
        UnknownName                 2   no such model, backend or precision; lists the nearest
        PlanError                   2   options that contradict each other
        BadInput                    2   a file or value that is not what it should be
        BackendUnavailable          3   a package, driver or device is missing; names the remedy
        WeightsUnavailable          3   pretrained weights could not be fetched
        StorageUnavailable          3   storage that a URL names could not be read; names the remedy
        ParityError                 4   measured, and out of budget; carries the report
        AccuracyError               4   measured, and less accurate than was asked for
        SpeedError                  4   measured, and slower than was asked for, or undecided
        LintError                   4   inspected, and not free of errors and warnings as was asked for

Messages read: expected X, got Y; do Z. Programming mistakes stay TypeError and AssertionError.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtimes.parity.compare import ParityReport


class ResnetExportError(Exception):
    """Base of all errors a user can cause; `exit_code` is the command's exit code."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is, for another process, whatever its class takes."""
        return _copy, (type(self), self.args, vars(self))


def _copy(kind: type[ResnetExportError], args: tuple[Any, ...], facts: dict[str, Any]) -> ResnetExportError:
    error = kind.__new__(kind, *args)
    vars(error).update(facts)
    return error


class ExportError(ResnetExportError):
    """A model file could not be made."""


class TraceError(ExportError):
    """PyTorch could not trace the model, or the traced graph is not what the model is."""


class SimplifyError(ExportError):
    """The simplified graph does not compute what the traced one did."""


class LowerError(ExportError):
    """The precision asked for cannot hold the model's values."""


class BuildError(ExportError):
    """TensorRT refused the graph or could not build an engine from it."""


class CalibrationError(ResnetExportError):
    """The calibration data, or the ranges measured from it, cannot be used."""


class BundleError(ResnetExportError):
    """A bundle cannot be read (missing, changed, malformed) or written."""


class BoardError(ResnetExportError):
    """A command on another machine failed; its exit code is this error's, where it is one of ours (1 to 4)."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = code if code in (1, 2, 3, 4) else 1


class UnknownName(ResnetExportError):
    """A name that is not in a table; the message lists the nearest ones, and `shown_by`, a command that shows all.

    `more` is said of the table, at the end.
    """

    exit_code = 2

    def __init__(self, kind: str, name: str, known: Iterable[str], shown_by: str = "", *, more: str = "") -> None:
        import difflib  # here, since `--help` loads this file

        names = sorted(known)
        nearest = difflib.get_close_matches(str(name), names, n=3, cutoff=0.7)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"choose from {', '.join(names)}"
        if nearest and shown_by:
            hint += f" `{shown_by}` shows all"
        super().__init__(f"unknown {kind} '{name}'; {hint}{f'; {more}' if more else ''}")


class PlanError(ResnetExportError):
    """Options that contradict each other or are out of range."""

    exit_code = 2


class BadInput(ResnetExportError):
    """A file or value given by the user is not what it should be."""

    exit_code = 2


class BackendUnavailable(ResnetExportError):
    """A backend's package, driver or device is missing; the message says how to get it."""

    exit_code = 3


class WeightsUnavailable(ResnetExportError):
    """Pretrained weights could not be fetched."""

    exit_code = 3


class StorageUnavailable(ResnetExportError):
    """Storage that a URL names could not be read: a package, credentials, the network or an answer is missing."""

    exit_code = 3


class ParityError(ResnetExportError):
    """A backend's outputs are outside the budget; `report` holds what was measured, `shown` whether a command has
    printed it."""

    exit_code = 4
    shown = False

    def __init__(self, message: str, report: ParityReport) -> None:
        super().__init__(message)
        self.report = report


class AccuracyError(ResnetExportError):
    """A model is less accurate on the data than was asked for."""

    exit_code = 4


class LintError(ResnetExportError):
    """A model file has errors or warnings, and none were to be."""

    exit_code = 4


class SpeedError(ResnetExportError):
    """A model is slower than was asked for, or the rounds do not decide whether it is."""

    exit_code = 4


def first_line(error: Exception) -> str:
    """The first line of an exception's message; its class where there is none. Others' messages have many."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
