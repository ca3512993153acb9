"""What is ONNX Runtime's own: nothing in the home folder, buffers on a device, and graphs that lie in memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tiny_answers import INPUT, OUTPUT, images

import calibration
import exporter
import runtimes
from runtimes.backends._cuda_provider import GRAPH_ID, MOST_GRAPHS, NO_GRAPH, GraphCalls
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.cores import usable_cores
from runtimes.errors import BackendUnavailable, BadInput
from runtimes.specs import TensorSpec
from runtimes.tuning import Tuning


@pytest.mark.parametrize("given", [None, "0"], ids=["by itself", "as the user says"])
def test_onnxruntime_writes_nothing_into_the_home_folder(given: str | None, tiny_model: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys; from runtimes import open_runtime\n"
        "model = open_runtime(sys.argv[1]); print(os.environ['ORT_DISABLE_TELEMETRY'])\n"
        "import numpy; model.run({'input': numpy.zeros((1, 1, 28, 28), numpy.float32)})"
    )
    surroundings = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path),
    }
    surroundings.pop("ORT_DISABLE_TELEMETRY", None)
    if given is not None:
        surroundings["ORT_DISABLE_TELEMETRY"] = given
    command = [sys.executable, "-B", "-c", code, str(tiny_model / "model.onnx")]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
    assert done.stdout == f"{given or '1'}\n"
    if given is None:
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_device_buffers_are_kept_for_some_shapes_alone(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.backends.onnxruntime.MOST_BUFFERS", 3)
    with OnnxRuntime.open(tiny_model / "model.onnx") as runtime:
        for count in (1, 2, 3, 4, 5, 1):
            assert runtime._run_bound({INPUT: images(count)}, "cpu")[OUTPUT].shape == (count, 10)
        assert [shape[0] for _, shape in runtime._buffers] == [4, 5, 1]


def test_running_through_device_buffers_gives_what_a_plain_run_gives(tiny_model: Path) -> None:
    with OnnxRuntime.open(tiny_model / "model.onnx") as runtime:
        # A buffer is made, used again, made for another size, used again.
        batches = [images(3), images(3) + 1, images(5), images(3) * 2]
        kept = [batch.copy() for batch in batches]
        bound = [runtime._run_bound({INPUT: batch}, "cpu")[OUTPUT] for batch in batches]
        for batch, before, got in zip(batches, kept, bound, strict=True):
            np.testing.assert_array_equal(got, runtime.run({INPUT: before})[OUTPUT])
            np.testing.assert_array_equal(batch, before)
            assert got.flags.writeable


def test_calls_that_keep_their_memory_give_what_a_plain_run_gives(tiny_model: Path) -> None:
    """What is captured as a CUDA graph on a GPU, on the CPU's memory: more sizes than get a graph, each used again."""
    with OnnxRuntime.open(tiny_model / "model.onnx") as runtime:
        calls = GraphCalls(runtime._session, runtime.outputs, "cpu")
        batches = [images(rows, seed) for seed in range(3) for rows in range(1, MOST_GRAPHS + 3)]
        kept = [batch.copy() for batch in batches]
        answers = [calls.run({INPUT: batch})[OUTPUT] for batch in batches]
        for batch, before, got in zip(batches, kept, answers, strict=True):
            np.testing.assert_array_equal(got, runtime.run({INPUT: before})[OUTPUT])
            np.testing.assert_array_equal(batch, before)
            assert got.flags.writeable
        assert len(calls._calls) == MOST_GRAPHS
        graphs = [call.options.get_run_config_entry(GRAPH_ID) for call in calls._calls.values()]
        assert len(set(graphs)) == MOST_GRAPHS, "each shape has a graph of its own"
        assert calls._call({INPUT: images(9)}, NO_GRAPH).options.get_run_config_entry(GRAPH_ID) == "-1"


def test_onnxruntime_knows_each_setting_that_is_made() -> None:
    """It ignores what it does not know: with another name for a graph's number every batch size ran the first one's graph."""
    library = b"".join(path.read_bytes() for path in Path(onnxruntime.__file__).parent.glob("capi/*pybind11_state*.so"))
    rooms = [Path(room.__file__ or "").parent for room in (runtimes, exporter, calibration)]
    text = "".join(path.read_text() for room in rooms for path in room.rglob("*.py"))
    names = {GRAPH_ID, *re.findall(r'"(session\.[a-z0-9_.]+)"', text)}
    assert len(names) >= 6
    assert [name for name in names if name.encode() not in library] == []


@pytest.mark.skipif(
    "TensorrtExecutionProvider" not in onnxruntime.get_available_providers(), reason="needs onnxruntime-gpu"
)
def test_what_is_missing_of_tensorrt_is_told_in_one_line(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if find_library("nvinfer"):
        pytest.skip("TensorRT is here")
    with pytest.raises(BackendUnavailable, match=r"expected TensorRT's libraries|its CUDA and cuDNN libraries did not"):
        OnnxRuntime.open(tiny_model / "model.onnx", provider="tensorrt")
    assert capfd.readouterr() == ("", "")


def test_a_cuda_graph_of_an_output_without_a_shape_is_refused(tiny_model: Path) -> None:
    with OnnxRuntime.open(tiny_model / "model.onnx") as runtime:
        free = [TensorSpec(OUTPUT, "float32", ("batch", "dim1"))]
        with pytest.raises(BackendUnavailable, match=f"got '{OUTPUT}' with free dimensions; use --provider cuda"):
            GraphCalls(runtime._session, free, "cpu")


@pytest.mark.parametrize(
    ("provider", "more"),
    [
        ("cuda", {}),
        ("cuda-nhwc", {"prefer_nhwc": "1"}),
        ("cuda-graph", {"prefer_nhwc": "1", "enable_cuda_graph": "1"}),
    ],
)
def test_cuda_is_told_to_be_exact_once_its_libraries_are_loaded(
    provider: str,
    more: dict[str, str],
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told: list[object] = []

    def preload() -> None:
        print("Failed to load libcublas.so")  # as onnxruntime does, on stdout, where --json is
        told.append("the libraries")

    def session(*_: object, providers: object, **others: object) -> None:
        told.append(providers)
        raise RuntimeError("no CUDA")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(BackendUnavailable, match="on CUDAExecutionProvider: no CUDA"):
        OnnxRuntime.open(tiny_model / "model.onnx", provider=provider)
    exact = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    asked = [("CUDAExecutionProvider", exact | more)]
    assert told == ["the libraries", asked, asked]
    assert capsys.readouterr().out == ""


def test_libraries_that_do_not_load_are_named_and_not_the_fallback_that_hides_them(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime-gpu 1.31 does without cuBLAS: it drops the provider, and then says that the CPU was not allowed."""
    real = onnxruntime.InferenceSession

    def session(model: object, options: onnxruntime.SessionOptions, **_: object) -> object:
        try:
            options.get_session_config_entry("session.disable_cpu_ep_fallback")
        except RuntimeError:  # it is not set
            return real(model, options, providers=["CPUExecutionProvider"])
        raise RuntimeError("fallback to CPU EP has been explicitly disabled by the user")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(BackendUnavailable, match="got CPUExecutionProvider; its CUDA and cuDNN libraries did not load"):
        OnnxRuntime.open(tiny_model / "model.onnx", provider="cuda")


def test_a_graph_that_lies_in_memory_runs_as_its_file_does(tiny_model: Path) -> None:
    path = tiny_model / "model.onnx"
    with OnnxRuntime.open(path) as from_file, OnnxRuntime.from_bytes(path.read_bytes()) as from_memory:
        np.testing.assert_array_equal(
            from_memory.run({INPUT: images(2)})[OUTPUT], from_file.run({INPUT: images(2)})[OUTPUT]
        )
    with pytest.raises(BadInput, match="onnxruntime cannot run the graph"):
        OnnxRuntime.from_bytes(b"junk")


def test_threads_are_the_processs_cores_unless_a_number_is_given(tiny_model: Path) -> None:
    path = tiny_model / "model.onnx"
    for tuning, expected in ((Tuning(), usable_cores()), (Tuning(1), 1)):
        with OnnxRuntime.open(path, tuning=tuning) as runtime:
            options = runtime._session.get_session_options()
            assert (options.intra_op_num_threads, options.inter_op_num_threads) == (expected, 1)
