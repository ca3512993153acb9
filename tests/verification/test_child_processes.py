"""Processes of our own that die at any point of their protocol, cannot be started, or lose their parent."""

from __future__ import annotations

import errno
import multiprocessing.popen_spawn_posix
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builds_apart
import dying
import pytest
from builds import quiet

from exporter.engines import apart
from exporter.engines.apart import build_apart
from exporter.engines.builders import BuildOptions, Job
from exporter.verification import own_process
from exporter.verification.own_process import OwnProcess, run_in_own_process
from runtimes.child import signal_name
from runtimes.errors import BuildError, ResnetExportError
from runtimes.specs import BatchRange, TensorSpec

TESTS = Path(__file__).resolve().parents[1]
JOB = Job(
    bytes(1 << 22), "fp16", (TensorSpec("input", "float32", ("batch", 3, 8, 8)),), BatchRange(1, 1, 1), BuildOptions()
)
Serve = Callable[..., None]


@pytest.mark.parametrize("serve", dying.POINTS, ids=lambda serve: serve.__name__)
def test_a_child_that_dies_is_one_reason(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_process, "_serve", serve)
    verdict, reason, value = run_in_own_process(dying.well, bytes(1 << 22))
    assert (verdict, value, "\n" in reason) == ("crashed", None, False)
    signal = "signal 39" if serve is dying.by_a_signal_without_a_name else "SIGKILL"
    assert reason.startswith(f"its process was ended by {signal}; ")


def test_a_child_that_dies_once_it_has_answered_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_process, "_serve", dying.after_answering)
    with OwnProcess() as process:
        assert process.ask(dying.well) == ("ok", "", 7)
        assert process.ask(dying.well).verdict == "crashed"


@pytest.mark.parametrize("serve", dying.POINTS, ids=lambda serve: serve.__name__)
def test_a_build_whose_process_dies_is_one_error(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "_serve", serve)
    with pytest.raises(BuildError, match="^the build's own process was ended by (SIGKILL|signal 39)$"):
        build_apart(builds_apart.builds, "tensorrt", JOB, quiet)


def test_what_the_system_refuses_a_child_is_told_and_the_child_lives_on(capfd: pytest.CaptureFixture[str]) -> None:
    with OwnProcess() as process:
        full = process.ask(dying.on_a_full_disk)
        assert (full.verdict, full.reason.startswith("/somewhere/file: No space left on device; ")) == ("failed", True)
        none = process.ask(dying.out_of_memory)
        assert (none.verdict, none.reason.startswith("the memory is full; ")) == ("failed", True)
        assert process.ask(dying.well) == ("ok", "", 7)
    for build, said in ((dying.on_a_full_disk, "No space left"), (dying.out_of_memory, "the memory is full")):
        with pytest.raises(BuildError, match=said):
            build_apart(build, "tensorrt", JOB, quiet)
    assert "Traceback" not in capfd.readouterr().err


def test_a_process_that_cannot_be_started_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(multiprocessing.popen_spawn_posix, "Popen", refused)
    before = len(os.listdir("/proc/self/fd"))
    for start in (OwnProcess, lambda: build_apart(builds_apart.builds, "tensorrt", JOB, quiet)):
        with pytest.raises(ResnetExportError, match="^cannot start a process: Resource temporarily unavailable; end "):
            start()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_child_ends_with_a_parent_that_is_killed() -> None:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "dying.py")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists()


def test_every_end_of_a_process_has_words() -> None:
    assert [signal_name(code) for code in (None, 0, 3, -9, -39, -200)] == [
        "",
        "",
        "",
        "SIGKILL",
        "signal 39",
        "signal 200",
    ]
