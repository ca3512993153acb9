"""A PyTorch program leaves nothing in the process when it is let go of."""

from __future__ import annotations

import gc
import linecache
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_answers import INPUT, images
from torch.fx import GraphModule, graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from runtimes.backends.pytorch import PyTorchRuntime, program_from_file

KINDS = (ShapeEnv, GraphModule)


def _open_and_run(path: Path) -> None:
    with PyTorchRuntime.open(path) as runtime, runtime.sibling() as sibling:
        for one in (runtime, sibling):
            one.run({INPUT: images(3)})


def _alive() -> list[object]:
    for _ in range(3):  # what C++ holds of a cycle is freed with it, and what that held in the next round
        gc.collect()
    return [one for one in gc.get_objects() if issubclass(type(one), KINDS)]


def _texts() -> set[str]:
    return {name for name in (*linecache.cache, *graph_module._loader.eval_cache) if "eval_with_key" in name}


@pytest.mark.parametrize("use", [_open_and_run, program_from_file])
def test_a_program_leaves_nothing_behind(tiny_model: Path, use: Callable[[Path], object]) -> None:
    alive, texts = _alive(), _texts()
    for _ in range(3):
        use(tiny_model / "reference.pt2")
    before = {id(one) for one in alive}
    assert [type(one).__name__ for one in _alive() if id(one) not in before] == []
    assert _texts() <= texts
