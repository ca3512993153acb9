"""An engine runs on arrays that lie on the device, and waits for nothing. CUDA and TensorRT are stand-ins."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from device_library import Library, library_fixture, pinned  # noqa: F401  # pytest finds the fixture by its name
from engine_bundles import IMAGE_BYTES, assert_right, leaks, opened
from engine_fixtures import (  # noqa: F401  # pytest finds them by their names
    api_fixture,
    cuda_fixture,
    engine_fixture,
    folder_fixture,
    reference_fixture,
    runtime_fixture,
)
from standin_cuda import Allocation, StandinCuda
from tiny_answers import INPUT, OUTPUT, images

from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BadInput
from runtimes.nvidia.engine_runtime import EngineRuntime


def live(cuda: StandinCuda, size: int) -> list[Allocation]:
    return [each for each in cuda.allocations.values() if each.size == size and not each.freed]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 11])
def test_arrays_on_the_device_are_answered_in_order_at_any_batch(
    runtime: EngineRuntime, library: Library, reference: OnnxRuntime, count: int
) -> None:
    for seed in (0, 1):
        answers = runtime.run_on_device({INPUT: library.made(images(count, seed))})
        assert list(answers) == [OUTPUT]
        assert (answers[OUTPUT].shape, answers[OUTPUT].dtype) == ((count, 10), "float32")
        assert_right(library.read(answers[OUTPUT]), reference, images(count, seed))


def test_pinned_arrays_of_the_cpu_are_taken_too(
    runtime: EngineRuntime, library: Library, reference: OnnxRuntime
) -> None:
    assert_right(library.read(runtime.run_on_device({INPUT: pinned(images(5))})[OUTPUT]), reference, images(5))


def test_a_device_call_waits_for_nothing(
    runtime: EngineRuntime, library: Library, cuda: StandinCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = library.made(images(3))
    with monkeypatch.context() as patched:
        for name in ("cudaStreamSynchronize", "cudaEventSynchronize"):
            patched.setattr(cuda, name, lambda *_, name=name: pytest.fail(f"{name} on the way"))
        answer = runtime.run_on_device({INPUT: array})[OUTPUT]
    assert library.read(answer).shape == (3, 10)


def test_inputs_are_held_until_they_were_read(
    runtime: EngineRuntime, library: Library, cuda: StandinCuda, reference: OnnxRuntime
) -> None:
    size = 11 * IMAGE_BYTES
    answer = runtime.run_on_device({INPUT: library.made(images(11))})[OUTPUT]
    gc.collect()
    assert len(live(cuda, size)) == 1
    assert_right(library.read(answer), reference, images(11))
    runtime.run_on_device({INPUT: library.made(images(2))})
    gc.collect()
    assert live(cuda, size) == []


def test_answers_are_the_callers_and_outlive_the_runtime(
    engine: Path, library: Library, cuda: StandinCuda, reference: OnnxRuntime
) -> None:
    runtime = opened(engine)
    answers = [runtime.run_on_device({INPUT: library.made(images(3, seed))})[OUTPUT] for seed in range(3)]
    runtime.run({INPUT: images(3, 9)})
    runtime.close()
    del runtime
    gc.collect()
    for seed, answer in enumerate(answers):
        assert_right(library.read(answer), reference, images(3, seed))
    del answers, answer
    assert leaks(cuda) == [f"stream {library.stream.handle:#x}"]


def test_both_ways_of_calling_go_together(runtime: EngineRuntime, library: Library, reference: OnnxRuntime) -> None:
    for seed in range(4):
        waiting = runtime.run_on_device({INPUT: library.made(images(3, seed))})[OUTPUT]
        assert_right(runtime.run({INPUT: images(3, seed + 10)})[OUTPUT], reference, images(3, seed + 10))
        assert_right(library.read(waiting), reference, images(3, seed))
    assert runtime.graph_problem is None


def test_an_array_that_is_no_array_is_refused(runtime: EngineRuntime) -> None:
    with pytest.raises(BadInput, match="expected an array that speaks DLPack, got list"):
        runtime.run_on_device({INPUT: [1.0]})
