"""An engine's copies, graphs, batches and threads over CUDA itself, where there is a GPU, and over the stand-in everywhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from folding_engine import (
    BATCH,
    INPUT,
    OUTPUT,
    WIDTHS,
    Context,
    FoldingRuntime,
    StandinContext,
    TorchContext,
    answer,
    opened,
)
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack as torch_from_dlpack

from runtimes.nvidia import cuda as _cuda


@pytest.fixture(name="context", params=["stand-in", pytest.param("device", marks=pytest.mark.gpu)])
def context_fixture(request: pytest.FixtureRequest) -> Context:
    """What makes an execution context."""
    if request.param == "stand-in":
        return partial(StandinContext, request.getfixturevalue("standin"))
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    return TorchContext


@pytest.fixture(name="runtime")
def runtime_fixture(context: Context) -> Iterator[FoldingRuntime]:
    with opened(context) as runtime:
        yield runtime


def inputs(rows: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, WIDTHS[INPUT]), np.float32)


def assert_right(got: NDArray[np.float32], given: NDArray[np.float32], *, times: int = 1) -> None:
    expected = times * answer(given)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def test_batches_of_every_size_are_answered_and_captured(runtime: FoldingRuntime) -> None:
    """A batch of one is filled up, one of seven is split; the second and later calls of a size replay a graph."""
    for seed in range(3):
        for rows in (1, 2, 3, 4, 7):
            assert_right(runtime.run({INPUT: inputs(rows, seed)})[OUTPUT], inputs(rows, seed))
    assert runtime.graph_problem is None
    assert sorted(runtime._graphs) == [2, 3, 4]


def test_answers_are_the_caller_s(runtime: FoldingRuntime) -> None:
    first = runtime.run({INPUT: inputs(3, 1)})[OUTPUT]
    runtime.run({INPUT: inputs(3, 2)})
    assert_right(first, inputs(3, 1))


def test_siblings_run_in_threads_of_their_own(runtime: FoldingRuntime) -> None:
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            with runtime.sibling() as mine:
                for turn in range(20):
                    given = inputs(2 + turn % 3, seed + turn)
                    assert_right(mine.run({INPUT: given})[OUTPUT], given)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(100 * number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


@pytest.mark.gpu
def test_arrays_of_torch_on_the_device_are_taken_and_given() -> None:
    """The engine waits for what PyTorch has queued, and PyTorch for the engine, without the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    with opened(TorchContext) as runtime:
        for rows in (1, BATCH.max, 7):
            given = inputs(rows, rows)
            busy = torch.randn(4096, 4096, device="cuda")
            for _ in range(20):
                busy = busy @ busy * 1e-3  # so that the input is not there yet when the engine is queued
            tensor = torch.from_numpy(given).cuda() + 0 * busy[:1, : WIDTHS[INPUT]].nan_to_num(0, 0, 0)
            result = torch_from_dlpack(runtime.run_on_device({INPUT: tensor})[OUTPUT])
            assert_right((2 * result).cpu().numpy(), given, times=2)


@pytest.mark.gpu
def test_a_closed_runtime_has_given_its_memory_back() -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    free = []
    for _ in range(3):
        with opened(TorchContext) as runtime:
            runtime.run({INPUT: inputs(4)})
        torch.cuda.synchronize()
        free.append(_cuda.device().free_bytes)
    assert free[2] >= free[1] - (2 << 20), free  # the first one's kernels stay loaded
