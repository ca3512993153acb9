"""What is ONNX Runtime's own: nothing in the home folder, buffers on a device, and graphs that lie in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_answers import INPUT, OUTPUT, images

from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BadInput


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


def test_a_graph_that_lies_in_memory_runs_as_its_file_does(tiny_model: Path) -> None:
    path = tiny_model / "model.onnx"
    with OnnxRuntime.open(path) as from_file, OnnxRuntime.from_bytes(path.read_bytes()) as from_memory:
        np.testing.assert_array_equal(
            from_memory.run({INPUT: images(2)})[OUTPUT], from_file.run({INPUT: images(2)})[OUTPUT]
        )
    with pytest.raises(BadInput, match="onnxruntime cannot run the graph"):
        OnnxRuntime.from_bytes(b"junk")
