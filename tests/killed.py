"""Commands that are killed at a random moment, each in a child of a process that has loaded what they import."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess

import pytest

PRELOADED = (
    "exporter.cli.deploy",
    "exporter.deployment.jetson.kit",
    "exporter.engines.build",
    "exporter.verification.accuracy.evaluate",
    "runtimes.backends.onnxruntime",
    "calibration.data",
    "standin_tensorrt",
    "killed",
)
_CONTEXT = multiprocessing.get_context("forkserver")


def _run(arguments: Sequence[str]) -> None:
    """`resnet-deploy`, with the stand-ins for a GPU where it builds."""
    from exporter.cli.deploy import main

    if arguments[0] == "build":
        from standin_cuda import StandinCuda
        from standin_tensorrt import StandinTensorRT

        from runtimes.nvidia import cuda_call

        cuda = StandinCuda()
        vars(cuda_call)["cudart"] = cuda
        sys.modules["tensorrt"] = StandinTensorRT(cuda)
    sys.argv = ["resnet-deploy", *arguments]
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    main()


def _preload() -> None:
    """Start the process that has loaded what commands import, if it does not run yet."""
    _CONTEXT.set_forkserver_preload(list(PRELOADED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # it finds what this process finds
        forkserver.ensure_running()


def started(arguments: Sequence[object]) -> BaseProcess:
    _preload()
    process = _CONTEXT.Process(target=_run, args=([*map(str, arguments)],))
    process.start()
    return process


def finished(arguments: Sequence[object]) -> float:
    """Let a command end well; the seconds that it took."""
    begin = time.monotonic()
    process = started(arguments)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - begin


def kills(arguments: Sequence[object], count: int, seed: int) -> Iterator[int]:
    """Start a command again and again, and kill each at a random moment of it; yields the number of each kill."""
    finished(arguments)
    duration, chance = finished(arguments), random.Random(seed)
    for number in range(count):
        process = started(arguments)
        time.sleep(duration * (number + chance.random()) / count)
        assert process.pid is not None
        with suppress(ProcessLookupError):  # it was faster than expected
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        yield number
