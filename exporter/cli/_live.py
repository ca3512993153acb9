"""Progress on stderr: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# The one file about rich; it is imported when a command begins its work, never for `--help`.
from rich import progress as bars  # noqa: TID253
from rich.console import Console, RenderableType  # noqa: TID253
from rich.text import Text  # noqa: TID253

from runtimes.printable import printable
from runtimes.progress import Progress

LEFT_OUT = "left out"
"""Such a message stays on the screen, since the live line does not."""


class _Speed(bars.ProgressColumn):
    """What is done a second; some steps count images, others blocks."""

    def render(self, task: bars.Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.3g}/s", style="progress.data.speed")


class _StepLine(bars.Progress):
    """The last task, as one line: with a bar where it has a total, else with the time that it has taken."""

    STEP = (bars.SpinnerColumn(), bars.TextColumn("{task.description}", markup=False))
    COUNTED = (*STEP, bars.BarColumn(), bars.MofNCompleteColumn(), _Speed(), bars.TimeRemainingColumn())
    UNCOUNTED = (*STEP, bars.TimeElapsedColumn())

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks[-1:]:
            self.columns = self.COUNTED if task.total else self.UNCOUNTED
            yield self.make_tasks_table([task])


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A `Progress` that shows the step at hand: live on a terminal that moves its cursor, else a line for each step."""
    console = Console(stderr=True, highlight=False)
    # Not `console.is_terminal`: FORCE_COLOR sets it for a file, too, and colours are all that it asks for.
    if console.file.isatty() and not console.is_dumb_terminal:
        with _StepLine(console=console, transient=True) as line:
            yield _live(line)
    else:
        yield _plain(console)


def _live(line: _StepLine) -> Progress:
    task = line.add_task("starting", total=None)
    shown = ("starting", False)

    def progress(step: str, done: int = 0, total: int = 0) -> None:
        nonlocal task, shown
        if step.startswith(LEFT_OUT):
            return line.console.print(printable(step), markup=False, soft_wrap=True)
        if shown[0] != step or (shown[1] and not total):  # a new task, since rich never forgets a task's total
            last, task = task, line.add_task(printable(step), total=total or None, completed=done)
            line.remove_task(last)
        else:
            line.update(task, completed=done, total=total or None)
        shown = (step, total > 0)

    return progress


def _plain(console: Console) -> Progress:
    def progress(step: str, done: int = 0, total: int = 0) -> None:
        if not done:
            console.print(printable(step), markup=False, soft_wrap=True)

    return progress
