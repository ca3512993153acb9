"""ONNX Runtime's CUDA provider: its settings, its libraries, and calls that run as CUDA graphs (onnxruntime.ai, "CUDA
Execution Provider")."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from runtimes.errors import BackendUnavailable
from runtimes.specs import TensorSpec

NAME = "CUDAExecutionProvider"
# TF32 is off: it keeps ten bits of mantissa, so a "float32" answer would differ from the reference in the third digit.
EXACT = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
# Tensor cores convolve in NHWC alone (onnxruntime#17200). Built in since 1.21, and not the default (onnxruntime#22648).
NHWC = {**EXACT, "prefer_nhwc": "1"}
GRAPH = {**NHWC, "enable_cuda_graph": "1"}
MOST_GRAPHS = 3
"""How many input shapes get a CUDA graph, each with memory of its own."""
NO_GRAPH = "-1"
GRAPH_ID = "gpu_graph_id"
"""In a run's options: which of a session's graphs it is (kOrtRunOptionsConfigCudaGraphAnnotation in ONNX Runtime's
`onnxruntime_run_options_config_keys.h`). An unknown name is ignored, and all runs replay the first graph."""


def load_libraries() -> None:
    """Load the CUDA and cuDNN libraries out of NVIDIA's packages, where there are some: onnxruntime finds them by
    itself only on the system's paths, or once PyTorch has loaded them (onnxruntime#23674)."""
    preload = getattr(ort, "preload_dlls", None)  # from 1.21 on, and in builds with CUDA
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find; the session will say it
            preload()


@dataclass(frozen=True)
class BoundCall:
    """A binding to memory of one shape, which stays at its place as a graph needs it."""

    binding: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    options: ort.RunOptions


class GraphCalls:
    """Calls of a session with `enable_cuda_graph`: the first of each of the first few shapes is captured, the later
    ones replay it.

    Raises:
        BackendUnavailable: an output has free dimensions beside the batch.
    """

    def __init__(self, session: ort.InferenceSession, outputs: Sequence[TensorSpec], device: str = "cuda") -> None:
        free = [spec.name for spec in outputs if any(isinstance(size, str) for size in spec.shape[1:])]
        if free:
            raise BackendUnavailable(
                f"expected outputs of one shape for a CUDA graph, got '{free[0]}' with free dimensions; use --provider "
                "cuda"
            )
        self._session = session
        self._outputs = outputs
        self._device = device
        self._calls: dict[tuple[tuple[int, ...], ...], BoundCall] = {}

    def run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name, as new arrays."""
        call = self.placed(feeds)
        self.launch(call)
        # np.array copies: on the CPU `numpy` may hand out the very memory.
        return {name: np.array(value.numpy()) for name, value in call.outputs.items()}

    def placed(self, feeds: dict[str, NDArray[Any]]) -> BoundCall:
        """The call for inputs of these shapes, with these inputs copied to their places on the device."""
        shapes = tuple(array.shape for array in feeds.values())
        call = self._calls.get(shapes)
        if call is not None:
            for name, array in feeds.items():
                call.inputs[name].update_inplace(array)
        elif len(self._calls) < MOST_GRAPHS:
            call = self._calls[shapes] = self._call(feeds, str(len(self._calls) + 1))
        else:
            call = self._call(feeds, NO_GRAPH)
        call.binding.synchronize_inputs()  # the copies run on another stream than the session (onnxruntime#32673)
        return call

    def launch(self, call: BoundCall) -> None:
        """Run a call, and wait for it."""
        self._session.run_with_iobinding(call.binding, call.options)
        call.binding.synchronize_outputs()

    def _call(self, feeds: dict[str, NDArray[Any]], annotation: str) -> BoundCall:
        binding, options = self._session.io_binding(), ort.RunOptions()
        options.add_run_config_entry(GRAPH_ID, annotation)
        # A copy: on the CPU the value is the very memory that it is made from.
        inputs = {
            name: ort.OrtValue.ortvalue_from_numpy(array.copy(), self._device, 0) for name, array in feeds.items()
        }
        rows = len(next(iter(feeds.values())))
        outputs = {
            spec.name: ort.OrtValue.ortvalue_from_shape_and_type(
                [rows, *spec.shape[1:]], np.dtype(spec.dtype), self._device, 0
            )
            for spec in self._outputs
        }
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return BoundCall(binding, inputs, outputs, options)
