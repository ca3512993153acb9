"""The stand-in for TensorRT notices what TensorRT would punish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_library import Library, library_fixture  # noqa: F401  # pytest finds the fixture by its name
from engine_bundles import IMAGE_BYTES
from engine_fixtures import (  # noqa: F401  # pytest finds them by their names
    api_fixture,
    cuda_fixture,
    engine_fixture,
    folder_fixture,
    runtime_fixture,
)
from standin_tensorrt import NOT_CAPTURABLE, StandinTensorRT
from tiny_answers import INPUT

from runtimes.errors import BackendUnavailable
from runtimes.nvidia.cuda import DeviceBuffer, Graph
from runtimes.nvidia.engine_runtime import EngineRuntime
from runtimes.nvidia.log import log_of


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
