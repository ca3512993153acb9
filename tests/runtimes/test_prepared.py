"""`Runtime.prepared`: a call on inputs that lie on the device, for measuring what the device alone takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from backend_fixtures import Backend, backend_fixture, one_thread_fixture  # noqa: F401  # pytest finds the fixtures by their names
from tiny_answers import INPUT, OUTPUT, images

from runtimes.backends._cuda_provider import GraphCalls
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BadInput
from runtimes.specs import BatchRange


def test_a_prepared_call_works_whatever_is_run_in_between_and_changes_no_answer(backend: Backend) -> None:
    with backend.open() as runtime:
        before = runtime.run({INPUT: images(3)})[OUTPUT]
        fed = images(3)
        calls = [runtime.prepared({INPUT: fed}), runtime.prepared({INPUT: images(1)})]
        fed[...] = 0
        for call in (*calls, *calls):
            call()
            np.testing.assert_array_equal(runtime.run({INPUT: images(3)})[OUTPUT], before)
    with pytest.raises(ValueError, match="the runtime is closed"):
        calls[0]()


def test_a_prepared_call_is_of_a_size_within_the_range(backend: Backend) -> None:
    with backend.open(BatchRange(2, 3, 4)) as runtime:
        runtime.prepared({INPUT: images(4)})()
        for count in (1, 5):
            with pytest.raises(BadInput, match=f"expected a batch from 2 to 4, got {count}"):
                runtime.prepared({INPUT: images(count)})
        with pytest.raises(BadInput, match="expected shape batchx1x28x28"):
            runtime.prepared({INPUT: images(2)[..., :27]})


def test_onnxruntime_keeps_the_inputs_on_the_device(tiny_model: Path) -> None:
    with OnnxRuntime.open(tiny_model / "model.onnx") as runtime:
        fed = images(3)
        call = runtime._prepared_bound({INPUT: fed}, "cpu")
        fed[...] = np.nan  # not what is run
        call()
        call()
        binding = next(
            cell.cell_contents for cell in call.__closure__ or () if type(cell.cell_contents).__name__ == "IOBinding"
        )
        np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], runtime.run({INPUT: images(3)})[OUTPUT])


def test_onnxruntime_launches_the_graph_of_a_shape(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OnnxRuntime.open(tiny_model / "model.onnx") as runtime:
        graphs = GraphCalls(runtime._session, runtime.outputs, "cpu")
        monkeypatch.setattr(runtime, "_graphs", graphs)
        monkeypatch.setattr(runtime, "_provider", "cuda-graph")
        call = runtime.prepared({INPUT: images(3)})
        call()
        (bound,) = graphs._calls.values()
        np.testing.assert_array_equal(bound.outputs[OUTPUT].numpy(), runtime.run({INPUT: images(3)})[OUTPUT])
        call()
