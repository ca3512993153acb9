"""What PyTorch keeps for the life of the process of each program that it loads, and how to make it let go."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from contextlib import contextmanager

from torch.fx import graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv

_TEXTS: dict[str, str] = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})
"""The text of each module that torch.fx has written, by its file's name in tracebacks (read in torch 2.11 and 2.14)."""


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Let go of what PyTorch would keep of the programs that are loaded in here: the text of each module that it writes
    on the way, and each `ShapeEnv`, which its own methods' caches hold.

    What is let go of costs answers nothing: such a module's traceback shows no source lines, also where another thread
    wrote one meanwhile, and what a cache knew is computed again.
    """
    before = set(_TEXTS)
    try:
        yield
    finally:
        for name in set(_TEXTS) - before:
            _TEXTS.pop(name, None)
            linecache.cache.pop(name, None)
        for method in vars(ShapeEnv).values():
            if hasattr(method, "cache_clear"):
                method.cache_clear()
