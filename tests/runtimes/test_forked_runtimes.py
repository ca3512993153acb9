"""In the fork of a process with an open runtime nothing hangs: it answers rightly, or refuses in one line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from backend_fixtures import Backend, backend_fixture, one_thread_fixture  # noqa: F401  # pytest finds the fixtures by their names

from runtimes.errors import BackendUnavailable
from runtimes.forks import STAY_BEHIND, check_own_import

OWN_FORK = """
import json, os, signal, sys, threading, time, traceback, warnings
warnings.simplefilter("ignore")  # from Python 3.12 on: a process with threads forks
import numpy as np
from runtimes import Preprocess, open_runtime
from runtimes.errors import ResnetExportError
from runtimes.tuning import Tuning

model, backend, forks = *sys.argv[1:3], int(sys.argv[3])
fed = {"input": np.random.default_rng(0).random((64, 1, 28, 28), np.float32)}
runtime = open_runtime(model, backend, tuning=Tuning(1))
expected = runtime.run(fed)["logits"]
steps = Preprocess(28, (28, 28), "bilinear", True, (0.5,), (0.5,))
stream = runtime.stream((np.zeros((28, 28), np.uint8) for _ in iter(int, 1)), steps, batch=2)


def use(call):
    while True:
        call()


def refused(call):
    try:
        call()
    except ResnetExportError as error:
        return str(error)
    return "answered"


def in_the_fork():
    said = [refused(lambda: runtime.run(fed)), refused(lambda: next(stream))]
    stream.close()
    runtime.close()
    try:
        with open_runtime(model, backend) as own:
            same = np.allclose(own.run(fed)["logits"], expected, atol=1e-4)
        said.append("answered" if same else "answered wrongly")
    except ResnetExportError as error:
        said.append(str(error))
    return said


for call in (lambda: runtime.run(fed), lambda: next(stream)):
    threading.Thread(target=use, args=(call,), daemon=True).start()
for _ in range(forks):
    time.sleep(0.05)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            print(json.dumps(in_the_fork()), flush=True)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.exit(0)  # as a worker ends: what it holds is let go of
    print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("forks", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_fork_in_the_middle_of_runs_in_other_threads_is_told_or_answers(backend: Backend, forks: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OWN_FORK, backend.given, backend.name, str(forks)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120 + 30 * forks,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[1::2] == [0] * forks, done.stdout + done.stderr
    for run, step, own in lines[::2]:
        assert "open it after the fork" in run
        assert "open it after the fork" in step
        if backend.name in ("onnxruntime", "triton"):
            assert own == "answered"
        else:
            assert "start processes with multiprocessing's 'spawn', or fork before the import" in own


@pytest.mark.parametrize("backend_name", ["pytorch", "openvino"])
def test_what_stays_behind_in_a_fork_is_not_opened_there(
    backend_name: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend.name != backend_name:
        pytest.skip("another backend's turn")
    package = {"pytorch": "torch"}.get(backend_name, backend_name)
    monkeypatch.setattr("runtimes.forks._inherited", {package})
    with pytest.raises(BackendUnavailable, match=f"expected a process that imports {package} itself") as caught:
        backend.open()
    assert "\n" not in str(caught.value)


def test_nothing_is_refused_in_a_process_of_its_own() -> None:
    for package in STAY_BEHIND:
        check_own_import(package)
