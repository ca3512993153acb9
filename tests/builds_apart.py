"""Builds for a process of its own, which imports them from here."""

from __future__ import annotations

import os
import signal
import time

from exporter.engines.builders import BuiltNetwork, EngineBuild, Job
from exporter.engines.layers import EngineLayer
from runtimes.errors import BuildError, UnknownName
from runtimes.nvidia.log import Recording
from runtimes.progress import Progress


def builds(backend: str, job: Job, on_step: Progress) -> EngineBuild:
    """Its plan is the process's number."""
    on_step("parse")
    on_step("build: timing tactics", 3, 4)
    network = BuiltNetwork(str(os.getpid()).encode(), (backend,), "strong", "", (), Recording([(1, "said")]), job.onnx)
    return EngineBuild(network, [EngineLayer("conv", ("fp16",), frozenset({"conv1"}))])


def refuses(backend: str, job: Job, on_step: Progress) -> EngineBuild:
    raise BuildError("TensorRT refuses model.onnx: no")


def knows_none(backend: str, job: Job, on_step: Progress) -> EngineBuild:
    raise UnknownName("target", "sm00", ["sm86"])


def segfaults(backend: str, job: Job, on_step: Progress) -> EngineBuild:
    on_step("parse")
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def is_killed(backend: str, job: Job, on_step: Progress) -> EngineBuild:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def leaves(backend: str, job: Job, on_step: Progress) -> EngineBuild:
    os._exit(3)


def hangs(backend: str, job: Job, on_step: Progress) -> EngineBuild:
    on_step(f"in process {os.getpid()}")
    time.sleep(600)
    raise AssertionError


def loads(backend: str) -> None:
    """As a library that is well."""


def raises(backend: str) -> None:
    raise BuildError(f"no {backend}")


def ends(backend: str) -> None:
    os._exit(3)
