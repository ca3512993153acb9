"""What both command lines share: one line for an error, the right exit code, and no half-written output."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from runtimes.errors import ParityError, ResnetExportError
from runtimes.printable import as_text, printable

if TYPE_CHECKING:
    from runtimes.manifest import Manifest
from exporter.verification.report.lines import parity_lines
from runtimes.progress import Progress

INTERRUPTED, TERMINATED, WRONG_USE = 130, 143, 2


def run_command(command: click.Command) -> NoReturn:
    """Run a command and leave with its exit code; what a user can cause is one line on stderr, never a traceback."""
    signal.signal(signal.SIGTERM, _terminated)
    _settle_streams()
    try:
        command.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as help_wanted:
        click.echo(help_wanted.format_message(), err=True)
        sys.exit(WRONG_USE)
    except click.ClickException as error:
        _fail(error.format_message(), WRONG_USE)
    except (click.Abort, KeyboardInterrupt) as stop:
        _fail(str(stop) or "interrupted; nothing was written", INTERRUPTED)
    except ParityError as error:
        if not error.shown:
            click.echo("\n".join(parity_lines(error.report)), err=True)
        _fail(str(error), error.exit_code)
    except ResnetExportError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:  # that nothing made an error of its own of
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # python would complain once more at exit
        _fail(
            f"{error.filename}: {error.strerror}"
            if error.filename
            else f"cannot write the output: {error.strerror or error}; make room for it",
            1,
        )
    sys.exit(0)


@contextmanager
def status(*, quiet: bool) -> Iterator[Progress]:
    """What is being done, on stderr: on a terminal one line that moves, with a bar where it is long; in a log a line for each step."""
    from rich import progress as bars
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=quiet, highlight=False)
    if not console.is_terminal:
        yield (
            lambda step, done=0, total=0: None if done else console.print(printable(step), markup=False, soft_wrap=True)
        )
        return
    speed = TextColumn("{task.fields[speed]}")
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        speed,
        TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None, speed="")

        def say(step: str, done: int = 0, total: int = 0) -> None:
            if step.startswith("left out"):  # stays on the screen; the moving line does not
                return progress.console.print(printable(step), markup=False, soft_wrap=True)
            rate = progress.tasks[0].speed
            progress.update(
                task,
                description=step,
                completed=done,
                total=total or None,
                speed=f"{rate:.0f} images/s" if total and rate else "",
            )

        yield say


def echo_json(value: object) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(_as_texts(value), indent=2))


def _as_texts(value: object) -> object:
    """Surrogates are no JSON: many readers refuse all of it."""
    if isinstance(value, str):
        return as_text(value)
    if isinstance(value, dict):
        return {_as_texts(key): _as_texts(one) for key, one in value.items()}
    return list(map(_as_texts, value)) if isinstance(value, list | tuple) else value


def echo_lines(lines: Iterable[str]) -> None:
    """Lines on stdout, each of them one, whatever the names in it hold."""
    click.echo("\n".join(map(printable, lines)))


def gives_text(manifest: Manifest) -> str:
    """What comes out of a model: its number of classes, or its features."""
    from runtimes.parity.compare import is_classifier

    names = [spec.name for spec in manifest.outputs]
    return f"{manifest.model.classes} classes" if is_classifier(names) else f"features {', '.join(names)}"


def size_text(count: int) -> str:
    """Bytes for people: 46.8 MB."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


class _Pipe(io.FileIO):
    """A stream whose reader may go away: what nobody reads is dropped, and the command ends as it would have (click ends it with 1)."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def _settle_streams() -> None:
    """Names and labels can be shown whatever the encoding: what it has no letter for, and bytes of names that are no text, are escaped.

    A stream that is closed is one that nobody reads; its number must not become that of the next file that is opened.
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


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(TERMINATED)


def _fail(message: str, code: int) -> NoReturn:
    """One line, whatever the names in it hold."""
    click.echo(f"error: {printable(message)}", err=True)
    sys.exit(code)
