"""Run code that is not ours, and tell an error in it in one line: the layer, the line of its source, and the reason."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING

from runtimes.errors import ResnetExportError

if TYPE_CHECKING:
    from torch import nn

NOT_FOREIGN = sys.stdlib_module_names | {"torch", "exporter"}
SCRIPTED = "The following operation failed in the TorchScript interpreter"
"""How TorchScript's errors begin; the reason is in their last line."""


@contextmanager
def foreign_code(as_error: Callable[[BaseException], ResnetExportError]) -> Iterator[None]:
    """Surround every step into code that is not ours: an import, a factory, `eval()`, `forward`, `state_dict()`.

    What the code raises, SystemExit included, becomes the error that `as_error` makes of it; our own errors pass. What
    it prints goes to stderr, since stdout is for results; its warnings are for its author and are not shown.
    """
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ResnetExportError:
        raise
    except (Exception, SystemExit) as error:
        raise as_error(error) from error


class RunningLayers(list[str]):
    """The names of the layers whose `forward` is running, the innermost last; the module's own is empty.

    After an error they are the layers that it came through.

    Attributes:
        ended: how many layers have run to their end.
    """

    ended: int = 0


@contextmanager
def watch_layers(module: nn.Module) -> Iterator[RunningLayers]:
    """Keep track of which layers of a network are running."""
    inside = RunningLayers()
    hooks = []
    for name, part in module.named_modules():
        hooks.append(part.register_forward_pre_hook(_entering(inside, name)))
        hooks.append(part.register_forward_hook(_leaving(inside, name)))
    try:
        yield inside
    finally:
        for hook in hooks:
            hook.remove()


def _entering(inside: list[str], name: str) -> Callable[..., None]:
    return lambda part, inputs: inside.append(name)


def _leaving(inside: RunningLayers, name: str) -> Callable[..., None]:
    def leave(part: nn.Module, inputs: object, output: object) -> None:
        inside.ended += 1
        while inside and inside.pop() != name:  # a layer within raised, and this one went on
            pass

    return leave


def in_its_layer(name: str) -> str:
    """` in its layer 'layer2.0'`; empty for the module itself."""
    return f" in its layer '{name}'" if name else ""


def where_it_failed(inside: Sequence[str], error: BaseException) -> str:
    """The layer and the source line of an error, as ` in its layer 'layer2.0' (nets.py, line 12)`, as far as known."""
    line = source_line(error)
    return (in_its_layer(inside[-1]) if inside else "") + (f" ({line})" if line else "")


def first_line(error: BaseException) -> str:
    """The first line of an exception's message; its class if there is none."""
    try:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    except Exception:  # a foreign __str__ may raise
        lines = []
    if not lines:
        return type(error).__name__
    return lines[-1] if lines[0].startswith(SCRIPTED) else lines[0]


def kind_and_line(error: BaseException) -> str:
    """An exception's class and the first line of its message: `KeyError: 'labels'`."""
    said = first_line(error)
    return said if said == type(error).__name__ else f"{type(error).__name__}: {said}"


def reason(error: BaseException) -> str:
    """As `kind_and_line`; the message alone for a RuntimeError, torch's usual kind."""
    return first_line(error) if type(error) is RuntimeError else kind_and_line(error)


def source_line(error: BaseException) -> str | None:
    """The innermost line of foreign code that an exception came through: `nets.py, line 12`."""
    found = None
    for frame, line in walk_tb(error.__traceback__):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in NOT_FOREIGN:
            found = f"{Path(frame.f_code.co_filename).name}, line {line}"
    return found
