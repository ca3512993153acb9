"""A call that fails while an engine opens or runs is an error that leaks nothing. CUDA and TensorRT are stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from device_library import Library, library_fixture, pinned  # noqa: F401  # pytest finds the fixture by its name
from engine_bundles import assert_right, leaks, opened
from engine_fixtures import (  # noqa: F401  # pytest finds them by their names
    api_fixture,
    cuda_fixture,
    engine_fixture,
    folder_fixture,
    reference_fixture,
    runtime_fixture,
)
from standin_cuda import StandinCuda
from standin_tensorrt import StandinTensorRT
from tiny_answers import INPUT, OUTPUT, images

from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BackendUnavailable
from runtimes.nvidia.cuda_call import CudaError
from runtimes.nvidia.engine_runtime import EngineRuntime

LAUNCH_FAILED = 719


# --- a run that is refused ---


def test_an_engine_that_cannot_run_says_why_and_runs_again(
    runtime: EngineRuntime, api: StandinTensorRT, reference: OnnxRuntime
) -> None:
    api.fail("execute_async_v3", "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal access)")
    with pytest.raises(BackendUnavailable, match="^TensorRT could not run a batch of 3: Cuda Runtime"):
        runtime.run({INPUT: images(3)})
    assert_right(runtime.run({INPUT: images(3)})[OUTPUT], reference, images(3))


@pytest.mark.parametrize("call", ["set_input_shape", "infer_shapes"])
def test_a_batch_that_was_refused_does_not_spoil_the_next(
    runtime: EngineRuntime, api: StandinTensorRT, reference: OnnxRuntime, call: str
) -> None:
    api.fail(call, "because")
    with pytest.raises(BackendUnavailable, match="because"):
        runtime.run({INPUT: images(3)})
    for count in (4, 3, 4):
        assert_right(runtime.run({INPUT: images(count)})[OUTPUT], reference, images(count))


# --- nothing leaks ---


class FailsAt(dict[str, int]):
    """In place of the stand-in's failures: the n-th call fails, whatever it is.

    Frees and ends never fail, for what they fail to free stays.
    """

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.at = at
        self.seen: list[str] = []

    def pop(self, name: str, default: int = 0) -> int:  # type: ignore[override]  # the one way in which the stand-in asks
        if "Destroy" in name or "Free" in name or name == "cudaThreadExchangeStreamCaptureMode":
            return default
        self.seen.append(name)
        return LAUNCH_FAILED if len(self.seen) - 1 == self.at else default


def attempts(cuda: StandinCuda, action: Callable[[], None]) -> Iterator[str]:
    """Run the action once well, and then with each of its CUDA calls failing in turn; yields that call's name."""
    cuda.failures = FailsAt(None)
    action()
    names = cuda.failures.seen
    assert names
    for place, name in enumerate(names):
        cuda.failures = FailsAt(place)
        yield name
    cuda.failures = {}


def test_opening_that_fails_anywhere_leaks_nothing(engine: Path, cuda: StandinCuda) -> None:
    tried = []
    for name in attempts(cuda, lambda: opened(engine).close()):
        tried.append(name)
        if name == "cudaStreamSynchronize":
            continue  # of closing
        with pytest.raises(CudaError, match=f"^{name}: cudaErrorLaunchFailure"):
            opened(engine)
        assert leaks(cuda) == []
    assert {"cudaStreamCreateWithFlags", "cudaMalloc", "cudaMallocHost", "cudaGetDeviceCount"} <= set(tried)


@pytest.mark.parametrize(
    "call",
    ["create_execution_context", "set_input_shape", "infer_shapes", "set_tensor_address", "deserialize_cuda_engine"],
)
def test_opening_that_tensorrt_refuses_leaks_nothing(
    engine: Path, cuda: StandinCuda, api: StandinTensorRT, call: str
) -> None:
    api.fail(call, "because")
    with pytest.raises(BackendUnavailable):
        opened(engine)
    assert leaks(cuda) == []


def test_running_that_fails_anywhere_gives_an_error_or_the_right_answer_and_the_next_call_is_right(
    engine: Path, cuda: StandinCuda, reference: OnnxRuntime
) -> None:
    with opened(engine) as first:
        names = list(attempts(cuda, lambda: assert_right(first.run({INPUT: images(3)})[OUTPUT], reference, images(3))))
    for place in range(len(names)):
        with opened(engine) as runtime:
            cuda.failures = FailsAt(place)
            with suppress(CudaError):
                assert_right(runtime.run({INPUT: images(3)})[OUTPUT], reference, images(3))
                assert runtime.graph_problem is not None
                assert names[place] in runtime.graph_problem
            cuda.failures = {}
            for seed in (1, 2):
                assert_right(runtime.run({INPUT: images(3, seed)})[OUTPUT], reference, images(3, seed))
        assert leaks(cuda) == []


def test_a_device_call_that_fails_anywhere_leaks_nothing_and_the_next_is_right(
    engine: Path, library: Library, cuda: StandinCuda, reference: OnnxRuntime
) -> None:
    with opened(engine) as runtime:
        kept = []

        def call() -> None:
            kept.append(runtime.run_on_device({INPUT: pinned(images(3))}))

        call()  # from the second on, each lets the one before go
        for name in attempts(cuda, call):
            with pytest.raises(BackendUnavailable, match=f"^{name}: "):
                call()
            cuda.failures = {}
            kept.clear()
            call()
        kept.clear()
        assert_right(
            library.read(runtime.run_on_device({INPUT: library.made(images(3))})[OUTPUT]), reference, images(3)
        )
    assert leaks(cuda) == [f"stream {library.stream.handle:#x}"]


def test_a_device_call_that_tensorrt_refuses_leaves_the_memory_where_it_was(
    runtime: EngineRuntime, library: Library, api: StandinTensorRT
) -> None:
    api.fail("execute_async_v3", "no", after=1)
    with pytest.raises(BackendUnavailable, match="TensorRT could not run a batch of 3: no$"):
        runtime.run_on_device({INPUT: library.made(images(7))})
    assert library.read(runtime.run_on_device({INPUT: library.made(images(7))})[OUTPUT]).shape == (7, 10)


def test_a_runtime_that_ran_every_way_leaves_nothing(engine: Path, cuda: StandinCuda) -> None:
    with opened(engine) as runtime:
        for count in (2, 2, 3, 4, 9, 1):
            runtime.run({INPUT: images(count)})
        runtime.run_on_device({INPUT: pinned(images(3))})
        assert cuda.leaks()
    assert leaks(cuda) == []
