"""Somebody's code at work: what goes wrong in it is told in one line, with the layer, the line of its source, and the
reason."""

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

OTHERS = sys.stdlib_module_names | {"torch", "exporter"}
SCRIPTED = "The following operation failed in the TorchScript interpreter"
"""How TorchScript's errors begin; what they are about stands in their last line."""


@contextmanager
def foreign_code(told: Callable[[BaseException], ResnetExportError]) -> Iterator[None]:
    """Around every step into code that is not ours: an import, a factory, `eval()`, `forward`, `state_dict()`.

    What it raises, SystemExit too, leaves as the error that `told` makes of it; an error of ours passes. What it prints
    goes to stderr, for stdout holds what was asked for; its warnings, which speak to its author, are not shown.
    """
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ResnetExportError:
        raise
    except (Exception, SystemExit) as error:
        raise told(error) from error


class RunningLayers(list[str]):
    """The names of the layers whose `forward` is running, the innermost last, '' for the module itself.

    After an error, those it came through.

    Attributes:
        ended: how many layers have run to their end.
    """

    ended: int = 0


@contextmanager
def watch_layers(module: nn.Module) -> Iterator[RunningLayers]:
    """While it is watched, which layers of a network are running."""
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
    """` in its layer 'layer2.0' (nets.py, line 12)`, as much of it as is known."""
    line = source_line(error)
    return (in_its_layer(inside[-1]) if inside else "") + (f" ({line})" if line else "")


def first_line(error: BaseException) -> str:
    """What an exception says, as far as its first line; its kind where it says nothing."""
    try:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    except Exception:  # it is anybody's code that says it
        lines = []
    if not lines:
        return type(error).__name__
    return lines[-1] if lines[0].startswith(SCRIPTED) else lines[0]


def kind_and_line(error: BaseException) -> str:
    """`KeyError: 'labels'`."""
    said = first_line(error)
    return said if said == type(error).__name__ else f"{type(error).__name__}: {said}"


def reason(error: BaseException) -> str:
    """`KeyError: 'labels'`; of a RuntimeError, torch's usual kind, its words alone."""
    return first_line(error) if type(error) is RuntimeError else kind_and_line(error)


def source_line(error: BaseException) -> str | None:
    """`nets.py, line 12`: the innermost line that an exception came through of neither ours, torch's nor Python's own
    code."""
    found = None
    for frame, line in walk_tb(error.__traceback__):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in OTHERS:
            found = f"{Path(frame.f_code.co_filename).name}, line {line}"
    return found
