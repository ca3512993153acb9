"""Where in a network something went wrong: the layer by its name, the line of its source, and the reason in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

OTHERS = sys.stdlib_module_names | {"torch", "exporter"}


@contextmanager
def layers_at_work(module: nn.Module) -> Iterator[list[str]]:
    """The names of the layers whose `forward` is running, the innermost last, '' for the module itself; after an error, those it came through."""
    inside: list[str] = []
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


def _leaving(inside: list[str], name: str) -> Callable[..., None]:
    def leave(part: nn.Module, inputs: object, output: object) -> None:
        while inside.pop() != name:  # a layer within raised, and this one went on
            pass

    return leave


def in_its_layer(name: str) -> str:
    """` in its layer 'layer2.0'`; empty for the module itself."""
    return f" in its layer '{name}'" if name else ""


def first_line(error: BaseException) -> str:
    """What an exception says, as far as its first line; its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def source_line(error: BaseException) -> str | None:
    """`nets.py, line 12`: the innermost line that an exception came through of neither ours, torch's nor Python's own code."""
    found = None
    for frame, line in walk_tb(error.__traceback__):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in OTHERS:
            found = f"{Path(frame.f_code.co_filename).name}, line {line}"
    return found
