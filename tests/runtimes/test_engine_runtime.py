"""Running an engine, over stand-ins for CUDA and TensorRT that check how they are called."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_bundles import BATCH, IMAGE_BYTES, INPUT, OUTPUT, add_engine, assert_right, images, leaks, opened
from engine_fixtures import (  # noqa: F401  # pytest finds them by their names
    api_fixture,
    cuda_fixture,
    engine_fixture,
    folder_fixture,
    reference_fixture,
    runtime_fixture,
)
from numpy.typing import NDArray
from standin_cuda import Allocation, StandinCuda
from standin_tensorrt import NOT_CAPTURABLE, StandinTensorRT

from runtimes import Bundle, open_runtime
from runtimes._open import backend_class
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BackendUnavailable, BadInput
from runtimes.nvidia.cuda import DeviceBuffer, Graph, PinnedBuffer, Stream, copy_to_host
from runtimes.nvidia.cuda_call import CudaError
from runtimes.nvidia.dlpack import CUDA_HOST, DeviceArray, tensor_from_dlpack
from runtimes.nvidia.engine_runtime import MOST_GRAPHS, EngineRuntime
from runtimes.nvidia.log import log_of
from runtimes.specs import BatchRange, TensorSpec

OUT_OF_MEMORY, LAUNCH_FAILED = 2, 719


def live(cuda: StandinCuda, size: int) -> list[Allocation]:
    return [each for each in cuda.allocations.values() if each.size == size and not each.freed]


# --- the contract of every backend ---


def test_a_bundle_opens_with_the_engine_that_fits(folder: Path, engine: Path, reference: OnnxRuntime) -> None:
    for model in (folder, Bundle.open(folder), engine):
        with open_runtime(model, "tensorrt") as runtime:
            assert runtime.inputs == (TensorSpec(INPUT, "float32", ("batch", 1, 28, 28)),)
            assert runtime.outputs == (TensorSpec(OUTPUT, "float32", ("batch", 10)),)
            assert (runtime.batch, runtime.provider) == (BATCH, "cuda")
            assert_right(runtime.run({INPUT: images(3)})[OUTPUT], reference, images(3))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 11])
def test_answers_are_right_at_any_batch_also_the_second_time(
    runtime: EngineRuntime, reference: OnnxRuntime, count: int
) -> None:
    for seed in (0, 1, 0):
        outputs = runtime.run({INPUT: images(count, seed)})
        assert list(outputs) == [OUTPUT]
        assert (outputs[OUTPUT].shape, outputs[OUTPUT].dtype.name) == ((count, 10), "float32")
        assert_right(outputs[OUTPUT], reference, images(count, seed))


def test_a_range_of_one_batch_alone(folder: Path, api: StandinTensorRT, reference: OnnxRuntime) -> None:
    with opened(add_engine(folder, api, batch=BatchRange(1, 1, 1))) as runtime:
        assert_right(runtime.run({INPUT: images(3)})[OUTPUT], reference, images(3))


@pytest.mark.parametrize("count", [3, 6, 1], ids=["inside the range", "split", "padded"])
def test_outputs_are_the_callers_and_inputs_stay_so(runtime: EngineRuntime, count: int) -> None:
    fed = images(count)
    first = runtime.run({INPUT: fed})[OUTPUT]
    kept = first.copy()
    runtime.run({INPUT: fed + 1})
    np.testing.assert_array_equal(first, kept)
    first[...] = -1
    np.testing.assert_array_equal(runtime.run({INPUT: fed})[OUTPUT], kept)
    np.testing.assert_array_equal(fed, images(count))
    assert (first == -1).all()


def test_any_layout_of_memory_gives_the_values_it_holds(runtime: EngineRuntime, reference: OnnxRuntime) -> None:
    values = images(3)
    layouts = [
        np.asfortranarray(values),
        values[::-1].copy()[::-1],
        values.astype(">f4"),
        np.frombuffer(b"\x00" + values.tobytes(), values.dtype, offset=1).reshape(values.shape),
    ]
    for fed in layouts:
        assert_right(runtime.run({INPUT: fed})[OUTPUT], reference, values)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"expected inputs \['input'\], got \[\]"),
        ({"image": images(2)}, r"expected inputs \['input'\], got \['image'\]"),
        ({INPUT: images(2).astype(np.float16)}, "expected float32, got float16"),
        ({INPUT: images(2)[..., :27]}, "expected shape batchx1x28x28, got 2x1x28x27"),
        ({INPUT: images(2)[:0]}, "expected shape batchx1x28x28, got 0x1x28x28"),
    ],
    ids=["nothing", "another name", "float16", "narrow", "no rows"],
)
def test_wrong_feeds_are_refused_and_the_runtime_lives_on(
    runtime: EngineRuntime, reference: OnnxRuntime, feeds: dict[str, NDArray[Any]], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        runtime.run(feeds)
    with pytest.raises(BadInput, match=message):
        runtime.run_on_device({name: pinned(array) for name, array in feeds.items()})
    assert_right(runtime.run({INPUT: images(2)})[OUTPUT], reference, images(2))


def test_a_closed_runtime_does_not_run_and_closing_twice_is_harmless(engine: Path) -> None:
    runtime = opened(engine)
    before = runtime.run({INPUT: images(2)})[OUTPUT]
    kept = before.copy()
    runtime.close()
    runtime.close()
    for call in (runtime.run, runtime.run_on_device):
        with pytest.raises(ValueError, match="the runtime is closed; open it again"):
            call({INPUT: images(2)})
    with pytest.raises(ValueError, match="the runtime is closed; open it again"):
        runtime.sibling()
    np.testing.assert_array_equal(before, kept)


def test_closing_one_runtime_leaves_another_of_the_same_engine_alone(
    engine: Path, runtime: EngineRuntime, reference: OnnxRuntime
) -> None:
    opened(engine).close()
    runtime.sibling().close()
    assert_right(runtime.run({INPUT: images(4)})[OUTPUT], reference, images(4))


def test_another_provider_is_refused(engine: Path) -> None:
    with pytest.raises(
        BackendUnavailable, match="tensorrt runs on an NVIDIA GPU alone, got provider 'cpu'; leave --provider out"
    ):
        backend_class("tensorrt").open(engine, provider="cpu")


# --- CUDA graphs ---


def test_the_second_call_of_a_batch_size_launches_a_graph(
    runtime: EngineRuntime, api: StandinTensorRT, reference: OnnxRuntime
) -> None:
    runtime.run({INPUT: images(3)})
    enqueued = api.calls["execute_async_v3"]
    for seed in (1, 2, 0):
        assert_right(runtime.run({INPUT: images(3, seed)})[OUTPUT], reference, images(3, seed))
    assert api.calls["execute_async_v3"] == enqueued
    assert runtime.graph_problem is None


def test_the_first_sizes_get_graphs_and_the_rest_run_plainly(
    folder: Path, api: StandinTensorRT, cuda: StandinCuda, reference: OnnxRuntime
) -> None:
    sizes = range(1, MOST_GRAPHS + 3)
    with opened(add_engine(folder, api, batch=BatchRange(1, 2, max(sizes)))) as runtime:
        for _ in range(2):
            for rows in sizes:
                assert_right(runtime.run({INPUT: images(rows, rows)})[OUTPUT], reference, images(rows, rows))
        assert sum(graph is not None for graph in cuda.graphs.values()) == MOST_GRAPHS
        before = api.calls["execute_async_v3"]
        for rows in sizes:
            runtime.run({INPUT: images(rows)})
        assert api.calls["execute_async_v3"] - before == len(sizes) - MOST_GRAPHS


@pytest.mark.parametrize(
    ("call", "after", "reason"),
    [
        ("create_execution_context", 1, "OutOfMemory"),
        ("set_input_shape", 2, "no such shape"),
        ("set_tensor_address", 2, "TensorRT refuses the memory for 'input'"),
        ("execute_async_v3", 1, "could not be queued"),
        ("execute_async_v3", 2, NOT_CAPTURABLE),
    ],
    ids=["no second context", "its shape", "its memory", "its first run", "the capture"],
)
def test_a_capture_that_fails_falls_back_and_says_why(
    engine: Path, api: StandinTensorRT, reference: OnnxRuntime, call: str, after: int, reason: str
) -> None:
    api.fail(call, reason, after=after)
    with opened(engine) as runtime:
        for count in (2, 2, 3, 4):
            assert_right(runtime.run({INPUT: images(count)})[OUTPUT], reference, images(count))
        assert runtime.graph_problem is not None
        assert reason in runtime.graph_problem
        assert "\n" not in runtime.graph_problem
        assert api.calls["create_execution_context"] == 2  # it is not tried again


@pytest.mark.parametrize(
    "call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch"]
)
def test_cuda_may_refuse_the_graph(
    runtime: EngineRuntime, cuda: StandinCuda, reference: OnnxRuntime, call: str
) -> None:
    cuda.fail(call, OUT_OF_MEMORY)
    for _ in range(2):
        assert_right(runtime.run({INPUT: images(4)})[OUTPUT], reference, images(4))
    assert runtime.graph_problem is not None
    assert call in runtime.graph_problem
    assert [graph for graph in cuda.graphs.values() if graph] == []


@pytest.mark.parametrize(
    "wrong", [lambda answer: answer * 1.01, lambda answer: answer * np.nan], ids=["other numbers", "not a number"]
)
def test_a_graph_whose_replay_is_wrong_is_dropped(
    runtime: EngineRuntime,
    api: StandinTensorRT,
    cuda: StandinCuda,
    reference: OnnxRuntime,
    wrong: Callable[[NDArray[Any]], NDArray[Any]],
) -> None:
    api.distort = lambda answer, replayed: wrong(answer) if replayed else answer
    for _ in range(2):
        assert_right(runtime.run({INPUT: images(4)})[OUTPUT], reference, images(4))
    assert runtime.graph_problem == "the replay for a batch of 4 gave another 'logits' than the plain run"
    assert [graph for graph in cuda.graphs.values() if graph] == []


def test_an_answer_that_is_not_a_number_is_the_networks_and_no_reason_against_the_graph(
    runtime: EngineRuntime, api: StandinTensorRT
) -> None:
    api.distort = lambda answer, _: answer * np.nan
    for _ in range(2):
        assert np.isnan(runtime.run({INPUT: images(4)})[OUTPUT]).all()
    assert runtime.graph_problem is None


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
    """In place of the stand-in's failures: the n-th call fails, whatever it is; frees and ends do not, for what they fail to free stays."""

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


def test_a_runtime_that_ran_every_way_leaves_nothing(engine: Path, cuda: StandinCuda) -> None:
    with opened(engine) as runtime:
        for count in (2, 2, 3, 4, 9, 1):
            runtime.run({INPUT: images(count)})
        runtime.run_on_device({INPUT: pinned(images(3))})
        assert cuda.leaks()
    assert leaks(cuda) == []


# --- arrays that are on the device ---


def pinned(values: NDArray[Any]) -> DeviceArray:
    """A library's array in pinned memory of the CPU."""
    memory = PinnedBuffer(max(values.nbytes, 1))
    memory.view(values.dtype, values.shape)[...] = values
    return DeviceArray(memory, values.shape, values.dtype.name, device=(CUDA_HOST, 0))


@dataclass
class Library:
    """Another library that uses the device in a stream of its own, and waits for nothing."""

    cuda: StandinCuda
    stream: Stream

    def made(self, values: NDArray[Any]) -> DeviceArray:
        """An array that will hold these values once the stream gets there."""
        memory = DeviceBuffer(values.nbytes)
        kept = values.copy()

        def fill() -> None:
            self.cuda.view(memory.pointer, kept.dtype, kept.shape)[...] = kept

        self.cuda.enqueue(self.stream.handle, fill, writes=[(memory.pointer, kept.nbytes)])
        return DeviceArray(memory, kept.shape, kept.dtype.name, ready=self.stream.record())

    def read(self, array: DeviceArray) -> NDArray[Any]:
        """An array's values, as this stream finds them."""
        tensor = tensor_from_dlpack(array, self.stream.handle)
        size = int(np.prod(tensor.shape)) * 4
        with PinnedBuffer(size) as memory:
            copy_to_host(memory.pointer, tensor.pointer, size, self.stream)
            self.stream.synchronize()
            return memory.view(tensor.dtype, tensor.shape).copy()


@pytest.fixture
def library(cuda: StandinCuda) -> Iterator[Library]:
    with Stream() as stream:
        yield Library(cuda, stream)
        stream.synchronize()


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


# --- threads ---


def test_siblings_run_in_two_threads_at_once(runtime: EngineRuntime, reference: OnnxRuntime) -> None:
    start = threading.Barrier(2)

    def work(seed: int) -> list[tuple[int, int, NDArray[Any]]]:
        with runtime.sibling() as mine:
            start.wait(timeout=10)
            order = [(count, seed * 100 + turn) for turn in range(5) for count in (2, 3, 4, 5, 1)]
            return [(count, at, mine.run({INPUT: images(count, at)})[OUTPUT]) for count, at in order]

    with ThreadPoolExecutor(2) as pool:
        for answers in pool.map(work, (1, 2)):
            for count, at, got in answers:
                assert_right(got, reference, images(count, at))


# --- the stand-in notices what TensorRT would punish ---


@pytest.mark.parametrize("handle", [0, 1, 2])
def test_work_in_a_default_stream_is_noticed(runtime: EngineRuntime, handle: int) -> None:
    with pytest.raises(AssertionError, match="work in the default stream"):
        runtime._plain.context.execute_async_v3(handle)


def test_memory_that_is_too_small_or_not_the_devices_is_noticed(runtime: EngineRuntime) -> None:
    context = runtime._plain.context
    elsewhere = np.zeros(1 << 16, np.uint8).ctypes.data
    with DeviceBuffer(IMAGE_BYTES) as small:
        for pointer, problem in (
            (small.pointer, "more than were allocated"),
            (elsewhere + -elsewhere % 256, "which is no CUDA memory"),
        ):
            assert context.set_tensor_address(INPUT, pointer)
            with pytest.raises(AssertionError, match=problem):
                context.execute_async_v3(runtime._stream.handle)


def test_a_context_that_was_not_told_everything_does_not_run(runtime: EngineRuntime, api: StandinTensorRT) -> None:
    context: Any = runtime._loaded.engine.create_execution_context()
    with log_of(api).recording() as recording:
        assert not context.execute_async_v3(runtime._stream.handle)
    assert "no address or shape is set for input, logits" in recording.reason
    with log_of(api).recording() as recording:
        assert not context.set_input_shape(INPUT, (5, 1, 28, 28))
    assert (
        "does not satisfy any optimization profiles. Valid range for profile 0: [2, 1, 28, 28]..[4, 1, 28, 28]"
        in recording.reason
    )


def test_a_capture_right_after_a_change_of_shapes_is_noticed(runtime: EngineRuntime, api: StandinTensorRT) -> None:
    runtime._plain.set_shapes(runtime._shapes(2, {INPUT: (2, 1, 28, 28)}))
    with pytest.raises(BackendUnavailable, match=NOT_CAPTURABLE):
        Graph.capture(runtime._stream, lambda: runtime._enqueue(runtime._plain))


def test_a_context_in_two_streams_or_threads_at_once_is_noticed(runtime: EngineRuntime, library: Library) -> None:
    context: Any = runtime._plain.context
    assert context.execute_async_v3(runtime._stream.handle)
    with pytest.raises(AssertionError, match="one execution context in two streams at once"):
        context.execute_async_v3(library.stream.handle)
    runtime._stream.synchronize()
    with context.busy, pytest.raises(AssertionError, match="while another thread uses the same execution context"):
        context.infer_shapes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: b"", "Cannot deserialize with an empty memory buffer"),
        (lambda plan: plan[:-1], "Assertion bufferSize >= minBufferSize failed"),
        (lambda plan: plan[:20], "Assertion bufferSize >= minBufferSize failed"),
        (lambda plan: b"vtrt" + plan[4:], "header.magicTag == kEXPECTED_MAGIC_TAG failed"),
        (
            lambda plan: plan[:24] + bytes((10, 3, 0, 30)) + plan[28:],
            "expecting library version 11.4.0.106 got .., please rebuild",
        ),
    ],
    ids=["empty", "truncated", "cut in the header", "foreign", "of another version"],
)
def test_a_plan_that_is_no_such_plan_gives_none_and_nvidias_words(
    engine: Path, api: StandinTensorRT, change: Callable[[bytes], bytes], said: str
) -> None:
    log = log_of(api)
    with log.recording() as recording:
        standin: Any = api
        assert standin.Runtime(log.logger).deserialize_cuda_engine(change(engine.read_bytes())) is None
    assert said in recording.reason
