"""Running an engine keeps the contract of every backend, and launches CUDA graphs. CUDA and TensorRT are stand-ins."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_library import pinned
from engine_bundles import BATCH, add_engine, assert_right, opened
from engine_fixtures import (  # noqa: F401  # pytest finds them by their names
    api_fixture,
    cuda_fixture,
    engine_fixture,
    folder_fixture,
    reference_fixture,
    runtime_fixture,
)
from numpy.typing import NDArray
from standin_cuda import StandinCuda
from standin_tensorrt import NOT_CAPTURABLE, StandinTensorRT
from tiny_answers import INPUT, OUTPUT, images

from runtimes import Bundle, open_runtime
from runtimes._open import backend_class
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BackendUnavailable, BadInput
from runtimes.nvidia.engine_runtime import MOST_GRAPHS, EngineRuntime
from runtimes.specs import BatchRange, TensorSpec

OUT_OF_MEMORY = 2


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
