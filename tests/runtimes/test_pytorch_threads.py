"""PyTorch computes on the threads that were asked for, and the process's own number of threads is left as it was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tiny_answers import INPUT, images

from runtimes.backends.pytorch import PyTorchRuntime
from runtimes.cores import usable_cores
from runtimes.tuning import Tuning

OWN = 3


@pytest.fixture(name="_own_threads")
def own_threads_fixture() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(OWN)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_own_threads")
@pytest.mark.parametrize(("tuning", "expected"), [(Tuning(1), 1), (Tuning(), usable_cores())])
def test_a_run_has_its_own_threads(tiny_model: Path, tuning: Tuning, expected: int) -> None:
    with PyTorchRuntime.open(tiny_model / "reference.pt2", tuning=tuning) as runtime:
        seen: list[int] = []
        inner = runtime._call

        def watched(*tensors: torch.Tensor) -> object:
            seen.append(torch.get_num_threads())
            return inner(*tensors)

        runtime._call = watched
        runtime.run({INPUT: images(1)})
        assert (seen, torch.get_num_threads()) == ([expected], OWN)

        def failing(*_: torch.Tensor) -> object:
            raise RuntimeError("lost")

        runtime._call = failing
        with pytest.raises(RuntimeError, match="lost"):
            runtime.run({INPUT: images(1)})
        assert torch.get_num_threads() == OWN


@pytest.mark.usefixtures("_own_threads")
def test_runs_in_two_threads_keep_their_numbers_and_leave_the_processs_own(tiny_model: Path) -> None:
    seen: list[int] = []

    def slow(*_: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        seen.append(torch.get_num_threads())
        return torch.zeros(1, 10)

    with (
        PyTorchRuntime.open(tiny_model / "reference.pt2", tuning=Tuning(1)) as first,
        PyTorchRuntime.open(tiny_model / "reference.pt2", tuning=Tuning(1)) as second,
        ThreadPoolExecutor(2) as pool,
    ):
        first._call = second._call = slow
        for _ in range(5):
            running = pool.submit(first.run, {INPUT: images(1)})
            time.sleep(0.005)  # the second begins in the middle of the first, and ends after it
            second.run({INPUT: images(1)})
            running.result()
        assert (set(seen), torch.get_num_threads()) == ({1}, OWN)
