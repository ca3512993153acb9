"""Small graphs lowered for processors, and run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from residual_graphs import INPUTS

from calibration.collect import collect
from calibration.observers import find_observer
from exporter.lowering.precisions import int8
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.kernels import MARK, KernelCount


def ranges_of(model: onnx.ModelProto, target: str = "cpu") -> dict[str, float]:
    """The largest values for `INPUTS` of what a target observes."""
    histograms = collect(model, int8.observed_tensors(model, target), [INPUTS])
    return {name: find_observer("minmax")(one) for name, one in histograms.items()}


def lowered(model: onnx.ModelProto, target: str = "cpu", float_nodes: Sequence[str] = ()) -> onnx.ModelProto:
    """The graph in INT8, with these ranges."""
    return int8.lower(model, ranges_of(model, target), target, float_nodes)


def run_file(model: onnx.ModelProto, folder: Path, target: str = "cpu") -> tuple[dict[str, NDArray[Any]], KernelCount]:
    """What onnxruntime gives for `INPUTS`, of a file that says what it is for, and what it ran on integers."""
    onnx.helper.set_model_props(model, {"precision": "int8", **(MARK if target == "cpu" else {})})
    onnx.save(model, folder / "model.onnx")
    with OnnxRuntime.open(folder / "model.onnx") as runtime:
        kernels = runtime.kernels()
        assert kernels is not None
        return runtime.run({"input": INPUTS}), kernels


def operators_run(model: onnx.ModelProto, folder: Path) -> list[str]:
    """What onnxruntime makes of a graph, in its order."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]
