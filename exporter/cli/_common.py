"""What both command lines share: exit codes, errors in one line, progress, and output that any stream takes."""

from __future__ import annotations

import atexit
import errno
import gc
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from runtimes.errors import ParityError, ResnetExportError
from runtimes.printable import as_text, printable
from runtimes.progress import Progress, silent

if TYPE_CHECKING:
    from runtimes.board.power import Power
    from runtimes.manifest import Manifest

INTERRUPTED, TERMINATED, WRONG_USE = 130, 143, 2
LONGEST_ERROR = 4000
"""In characters. A list of what a command found takes some hundreds."""
COLLECTION = (50_000, 20, 100)
"""After how many new objects, and collections of younger ones, Python looks for unused ones (`gc.set_threshold`)."""


class Terminated(BaseException):
    """SIGTERM came. No SystemExit: where a stranger's network raises that, it becomes an error about the network."""


def run_command(command: click.Command) -> NoReturn:
    """Run a command and exit with its code; an error that a user can cause is one line on stderr, never a traceback."""
    signal.signal(signal.SIGTERM, _raise_terminated)
    _settle_streams()
    try:
        command.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as help_wanted:
        click.echo(help_wanted.format_message(), err=True)
        sys.exit(WRONG_USE)
    except click.UsageError as error:
        said = error.format_message().rstrip(".")
        if error.ctx is not None:
            said += f"{'' if said.endswith('?') else ';'} see {error.ctx.command_path} --help"
        _fail(said, WRONG_USE)
    except click.ClickException as error:
        _fail(error.format_message(), WRONG_USE)
    except Terminated:
        sys.exit(TERMINATED)
    except (click.Abort, KeyboardInterrupt) as stop:
        _fail(str(stop) or "interrupted; nothing was written", INTERRUPTED)
    except ParityError as error:
        if not error.shown:
            from exporter.verification.report.lines import parity_lines

            click.echo("\n".join(parity_lines(error.report)), err=True)
        _fail(str(error), error.exit_code)
    except ResnetExportError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:  # one that the code below did not turn into an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would complain once more at exit
        _fail(_disk_text(error), 1)
    sys.exit(0)


def _disk_text(error: OSError) -> str:
    """What is wrong with a file or a stream, and what to do."""
    why = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"cannot write {error.filename or 'the output'}: {why}; make room for it"
    what = f"{error.filename}: {why}" if error.filename else f"a file or the output failed: {why}"
    return f"{what}; see that its disk or network is well, and give the command again"


def run_program(main: Callable[[], object]) -> None:
    """Run `main` as all that this process does: when everything has ended, its memory is left to the system.

    Python would look for unused circles among the objects of PyTorch again and again, and take each apart in the end
    (measured: 3 of the 22 seconds of an export).
    """
    gc.set_threshold(*COLLECTION)
    process, status = os.getpid(), None

    def end() -> None:
        if status is None or os.getpid() != process:
            return
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            return  # Python finds that, too, and says so
        os._exit(status)

    atexit.register(end)  # what is registered first is run last
    try:
        main()
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else None
        raise


@contextmanager
def status(*, quiet: bool) -> Iterator[Progress]:
    """A `Progress` that shows the steps on stderr: one live line on a terminal, a line for each step elsewhere."""
    if quiet:
        yield silent
        return
    from exporter.cli._live import shown_progress

    with shown_progress() as progress:
        yield progress


def echo_json(value: object) -> None:
    """Print one JSON object on stdout."""
    click.echo(json.dumps(_as_texts(value), indent=2))


def _as_texts(value: object) -> object:
    """Without surrogates: they are not valid in JSON, and many readers refuse the whole object."""
    if isinstance(value, str):
        return as_text(value)
    if isinstance(value, dict):
        return {_as_texts(key): _as_texts(one) for key, one in value.items()}
    return list(map(_as_texts, value)) if isinstance(value, list | tuple) else value


def echo_lines(lines: Iterable[str]) -> None:
    """Print lines on stdout; control characters in names are escaped, so that each stays one line."""
    click.echo("\n".join(map(printable, lines)))


def warn_of_power(state: Power | None, why: str) -> None:
    """Say on stderr that a Jetson is slower than it could be, and why that matters."""
    if state is not None and state.problem:
        click.echo(f"warning: {printable(state.problem)}: {why}", err=True)


def gives_text(manifest: Manifest) -> str:
    """A model's outputs for people: its number of classes, or the names of its features."""
    from runtimes.parity.compare import is_classifier

    names = [spec.name for spec in manifest.outputs]
    return f"{manifest.model.classes} classes" if is_classifier(names) else f"features {', '.join(names)}"


def size_text(count: int) -> str:
    """Bytes for people: 46.8 MB."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


class _Pipe(io.FileIO):
    """A stream whose reader may go away: the rest of the output is dropped, and the exit code stays the command's own.

    Click would exit with 1.
    """

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def _settle_streams() -> None:
    """Make stdout and stderr take any name or label: what their encoding cannot write is escaped.

    A closed stream is opened on the null device, so that its number does not become that of the next opened file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name, own in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        stream = getattr(sys, name)
        if stream is None or stream is not own or not isinstance(stream, io.TextIOWrapper):
            continue  # a caller's: a test's, or a notebook's
        stream.flush()
        raw = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
        setattr(
            sys, name, io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering)
        )


def _raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _fail(message: str, code: int) -> NoReturn:
    """Print an error as one line, and exit. Of a line that a stranger's file made endless the middle is left out: what
    is wrong is said at its beginning, and what to do at its end."""
    said = printable(message)
    if len(said) > LONGEST_ERROR:
        said = f"{said[: LONGEST_ERROR // 2]} [...] {said[-LONGEST_ERROR // 2 :]}"
    click.echo(f"error: {said}", err=True)
    sys.exit(code)
