"""A runtime may be handed to several threads: they take turns, and closing waits for who runs."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_fixtures import Backend, backend_fixture, one_thread_fixture  # noqa: F401  # pytest finds the fixtures by their names
from numpy.typing import NDArray
from runtime_threads import STEPS, siblings, stress
from tiny_answers import INPUT, OUTPUT, assert_same_rows, images

from runtimes import open_runtime
from runtimes.errors import BackendUnavailable
from runtimes.stream import OutputStream


def test_threads_that_share_a_runtime_get_their_own_answers(backend: Backend) -> None:
    with backend.open() as runtime:
        stress(runtime)


def test_siblings_run_in_threads_of_their_own(backend: Backend) -> None:
    runtime = backend.open()
    if runtime.provider == "cuda-graph":
        with runtime, pytest.raises(BackendUnavailable, match="serves one thread; open the model again"):
            runtime.sibling()
        return
    siblings(runtime)


class Watched:
    """In place of `_run`: slow, and counts how many threads are in it at a time."""

    def __init__(self, inner: Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]) -> None:
        self.inner, self.inside, self.most = inner, 0, 0
        self.entered = threading.Event()

    def __call__(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.entered.set()
        time.sleep(0.05)
        found = self.inner(feeds)
        self.inside -= 1
        return found


def test_one_thread_runs_at_a_time_but_where_a_server_puts_requests_together(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with backend.open() as runtime, ThreadPoolExecutor(3) as pool:
        watched = Watched(runtime._run)
        monkeypatch.setattr(runtime, "_run", watched)
        list(pool.map(lambda _: runtime.run({INPUT: images(1)}), range(3)))
        assert (watched.most > 1) == runtime.TOGETHER


def test_closing_waits_for_the_thread_that_runs_and_the_next_ones_are_told(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with backend.open() as runtime, ThreadPoolExecutor(2) as pool:
        expected = runtime.run({INPUT: images(2)})[OUTPUT]
        watched = Watched(runtime._run)
        monkeypatch.setattr(runtime, "_run", watched)
        first = pool.submit(runtime.run, {INPUT: images(2)})
        assert watched.entered.wait(20)
        second = pool.submit(runtime.run, {INPUT: images(2)})
        if not runtime.TOGETHER:
            time.sleep(0.01)
            runtime.close()
            assert first.done() or watched.inside == 0
            assert_same_rows(first.result(20)[OUTPUT], expected)
            error = second.exception(20)  # none where it had its turn before `close`
            assert error is None or "the runtime is closed; open it again" in str(error)


def test_closing_a_client_ends_its_requests_that_are_under_way(tiny_model: Path) -> None:
    pytest.importorskip("tritonclient.grpc", reason="the backend triton needs its client")
    from fake_triton import FakeTriton, fake_triton, model_of

    with (
        fake_triton(FakeTriton(model_of(tiny_model / "model.onnx"), max_batch=0)) as server,
        open_runtime(server.url, "triton") as runtime,
        ThreadPoolExecutor(1) as pool,
    ):
        server.hang = "ModelInfer"
        waiting = pool.submit(runtime.run, {INPUT: images(1)})
        while not server.calls["ModelInfer"]:
            time.sleep(0.01)
        runtime.close()
        with pytest.raises(ValueError, match="the runtime is closed; open it again"):
            waiting.result(20)


def test_closing_ends_the_streams_that_other_threads_read(backend: Backend) -> None:
    picture = np.zeros((28, 28), np.uint8)
    with backend.open() as runtime, ThreadPoolExecutor(3) as pool:
        shared, own = (runtime.stream((picture for _ in iter(int, 1)), STEPS, batch=1) for _ in range(2))
        next(shared), next(own)

        def read(stream: OutputStream) -> None:
            for _ in stream:
                pass

        readers = [pool.submit(read, stream) for stream in (shared, shared, own)]
        time.sleep(0.05)
        runtime.close()
        for reader in readers:
            with pytest.raises(ValueError, match="the runtime is closed; open it again"):
                reader.result(20)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_closing_does_not_wait_for_a_picture_that_another_threads_stream_waits_for(backend: Backend) -> None:
    come, asked = threading.Event(), threading.Event()

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for _ in range(100):
            yield np.zeros((28, 28), np.uint8)
        asked.set()
        come.wait(60)
        yield np.zeros((28, 28), np.uint8)

    with backend.open() as runtime, ThreadPoolExecutor(2) as pool:
        reader = pool.submit(list, runtime.stream(pictures(), STEPS, batch=1))
        try:
            assert asked.wait(20)
            pool.submit(runtime.close).result(20)
        finally:
            come.set()
        with pytest.raises(ValueError, match="the runtime is closed; open it again"):
            reader.result(20)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_a_stream_that_is_closed_in_the_middle_of_another_threads_step_ends_after_it(backend: Backend) -> None:
    come, asked = threading.Event(), threading.Event()

    def pictures() -> Iterator[NDArray[np.uint8]]:
        while True:
            asked.set()
            come.wait(60)
            yield np.zeros((28, 28), np.uint8)

    with backend.open() as runtime, ThreadPoolExecutor(2) as pool:
        stream = runtime.stream(pictures(), STEPS, batch=1)
        reader = pool.submit(list, stream)
        try:
            assert asked.wait(20)
            pool.submit(stream.close).result(20)
        finally:
            come.set()
        assert len(reader.result(20)) <= 1
        assert runtime.run({INPUT: images(1)})[OUTPUT].shape == (1, 10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_threads_that_share_a_stream_get_each_batch_once(backend: Backend) -> None:
    pictures = [np.full((28, 28), place, np.uint8) for place in range(24)]
    with backend.open() as runtime:
        expected = [one[OUTPUT].tobytes() for one in runtime.stream(pictures, STEPS, batch=1)]
        stream = runtime.stream(pictures, STEPS, batch=1)
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda _: [one[OUTPUT].tobytes() for one in stream], range(3)))
    assert sorted(itertools.chain(*found)) == sorted(expected)


def test_the_handler_of_a_signal_may_close_in_the_middle_of_a_run(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = backend.open()
    if runtime.TOGETHER:
        runtime.close()
        pytest.skip("no turns are taken")
    inner, refused = runtime._run, []

    def interrupted(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        signal.raise_signal(signal.SIGUSR1)
        return inner(feeds)

    def handler(*_: object) -> None:
        try:
            runtime.run({INPUT: images(1)})
        except RuntimeError as error:
            refused.append(str(error))
        runtime.close()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        monkeypatch.setattr(runtime, "_run", interrupted)
        assert runtime.run({INPUT: images(1)})[OUTPUT].shape == (1, 10)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert refused == [
        "expected one run at a time, got another in the middle of it, as from the handler of a signal; run it afterwards"
    ]
    with pytest.raises(ValueError, match="the runtime is closed; open it again"):
        runtime.run({INPUT: images(1)})


CLOSED_ELSEWHERE = """
import signal, sys, threading
from runtimes import open_runtime

runtime = open_runtime(*sys.argv[1:])
closing = threading.Thread(target=runtime.close)
closing.start(), closing.join()
del runtime, closing
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


def test_a_process_handles_signals_after_another_thread_closed_what_it_opened(backend: Backend) -> None:
    command = [sys.executable, "-c", CLOSED_ELSEWHERE, backend.given, backend.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
