"""An engine shared by threads, in a fork, and prepared on the device, as `test_shared_runtimes`, `test_forked_runtimes` and `test_prepared`
try it with the other backends."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine_bundles import leaks, opened
from engine_fixtures import (  # noqa: F401  # pytest finds them by their names
    api_fixture,
    cuda_fixture,
    engine_fixture,
    folder_fixture,
    reference_fixture,
    runtime_fixture,
)
from runtime_threads import siblings, stress
from standin_cuda import StandinCuda
from standin_tensorrt import NOT_CAPTURABLE, StandinTensorRT
from tiny_answers import INPUT, OUTPUT, images

from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BackendUnavailable
from runtimes.nvidia.engine_runtime import EngineRuntime


def test_threads_that_share_an_engine_get_their_own_answers(runtime: EngineRuntime) -> None:
    stress(runtime)


def test_an_engines_siblings_run_in_threads_of_their_own(engine: Path) -> None:
    siblings(opened(engine))


def test_an_engine_is_not_run_or_opened_in_a_fork(runtime: EngineRuntime, engine: Path) -> None:
    def said(call: Callable[[], object]) -> str:
        try:
            call()
        except BackendUnavailable as error:
            return str(error)
        return "answered"

    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from Python 3.12 on: a process with threads forks
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        calls = (lambda: runtime.run({INPUT: images(2)}), runtime.sibling, runtime.close, lambda: opened(engine))
        os.write(writing, json.dumps([said(call) for call in calls]).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answers:
        run, sibling, close, own = json.loads(answers.read() or b"[]")
    assert os.waitpid(child, 0)[1] == 0
    assert "open it after the fork" in run
    assert "open it after the fork" in sibling
    assert close == "answered"
    assert own.startswith("expected a process that imports tensorrt itself")
    assert runtime.run({INPUT: images(2)})[OUTPUT].shape == (2, 10)  # the one that opened it goes on


def test_an_engine_runs_on_memory_of_the_calls_own(
    runtime: EngineRuntime, reference: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = runtime.prepared({INPUT: images(3)})
    expected = reference.run({INPUT: images(2, 1)})[OUTPUT]
    for _ in range(3):
        np.testing.assert_allclose(runtime.run({INPUT: images(2, 1)})[OUTPUT], expected, rtol=1e-4, atol=1e-5)
        call()
    with monkeypatch.context() as patch:
        patch.delattr("runtimes.nvidia.cuda._copy")  # nothing is copied any more
        call()


def test_an_engine_launches_a_graph_of_the_kernels_alone(runtime: EngineRuntime, api: StandinTensorRT) -> None:
    call = runtime.prepared({INPUT: images(3)})
    enqueued = api.calls["execute_async_v3"]
    call()
    assert api.calls["execute_async_v3"] == enqueued


def test_an_engine_that_cannot_be_captured_is_run_plainly(
    engine: Path, api: StandinTensorRT, cuda: StandinCuda
) -> None:
    api.fail("execute_async_v3", NOT_CAPTURABLE, after=1)
    with opened(engine) as runtime:
        call = runtime.prepared({INPUT: images(3)})
        enqueued = api.calls["execute_async_v3"]
        call()
        assert api.calls["execute_async_v3"] == enqueued + 1
    with pytest.raises(ValueError, match="the runtime is closed"):
        call()
    assert leaks(cuda) == []
