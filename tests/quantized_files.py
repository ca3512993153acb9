"""Small residual networks as other tools quantize them, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from qdq_graphs import ROWS, WIDTH, Graph
from residual_graphs import CHANNELS, conv, graph_of, op

RANDOM = np.random.default_rng(11)
PICTURES = RANDOM.normal(size=(64, CHANNELS, 6, 6)).astype(np.float32)
TYPES = {"S8": QuantType.QInt8, "U8": QuantType.QUInt8}
WEIGHT = np.random.default_rng(6).integers(-127, 128, (ROWS, WIDTH, 3, 3)).astype(np.int8)
PER_ROW = np.linspace(0.0005, 0.001, ROWS).astype(np.float32)
WITHOUT_OPTIMISATION = ort.GraphOptimizationLevel.ORT_DISABLE_ALL


class Pictures(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime.quantization has no types
    """What `quantize_static` measures with."""

    def __init__(self) -> None:
        self.left = iter([{"input": PICTURES[start : start + 16]} for start in range(0, 64, 16)])

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        return next(self.left, None)


def network(activation: str = "Relu") -> onnx.ModelProto:
    """Stem, max pool, a block with a plain shortcut, one with a convolution on it, and a classifier; in FP32."""
    made = graph_of(
        conv("stem", "input"),
        op(activation, "stem.out", output="stem_act.out"),
        op("MaxPool", "stem_act.out", output="pool.out", kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1]),
        conv("a", "pool.out"),
        op(activation, "a.out", output="a_act.out"),
        conv("b", "a_act.out"),
        op("Add", "b.out", "pool.out", output="sum.out"),
        op(activation, "sum.out", output="sum_act.out"),
        conv("c", "sum_act.out"),
        op(activation, "c.out", output="c_act.out"),
        conv("d", "c_act.out"),
        conv("down", "sum_act.out"),
        op("Add", "d.out", "down.out", output="last.out"),
        op(activation, "last.out", output="last_act.out"),
        op("GlobalAveragePool", "last_act.out", output="gap.out"),
        op("Flatten", "gap.out", output="flat.out"),
        onnx.helper.make_node("Gemm", ["flat.out", "Wfc", "Bfc"], ["logits"], name="fc", transB=1),
    )
    for tensor in made.graph.initializer:  # so that activations keep their size from layer to layer
        values = numpy_helper.to_array(tensor)
        scale = 0.1 if values.ndim < 2 else np.sqrt(2 / values[0].size)
        tensor.CopyFrom(numpy_helper.from_array((values * scale).astype(np.float32), tensor.name))
    return made


def quantized(
    folder: Path,
    types: str = "S8S8",
    *,
    layout: QuantFormat = QuantFormat.QDQ,
    per_channel: bool = True,
    model: onnx.ModelProto | None = None,
    options: Mapping[str, bool] | None = None,
) -> onnx.ModelProto:
    """The network as `onnxruntime.quantization` quantizes it; activations' and weights' `types`, its `extra_options`."""
    onnx.save(network() if model is None else model, folder / "float.onnx")
    quantize_static(
        folder / "float.onnx",
        folder / "quantized.onnx",
        Pictures(),
        quant_format=layout,
        activation_type=TYPES[types[:2]],
        weight_type=TYPES[types[2:]],
        per_channel=per_channel,
        extra_options=dict(options or {}),
    )
    return onnx.load(folder / "quantized.onnx")


def answers(model: onnx.ModelProto, pictures: NDArray[Any] = PICTURES) -> NDArray[np.float32]:
    """What onnxruntime computes of a model as it is written, without optimisation: float32."""
    options = ort.SessionOptions()
    options.graph_optimization_level = WITHOUT_OPTIMISATION
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (result,) = session.run([model.graph.output[0].name], {model.graph.input[0].name: pictures})
    return np.asarray(result, np.float32)


def sqnr_db(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The power of what is expected over that of the difference, in dB; 200 where there is none."""
    error = float(np.square(found - expected, dtype=np.float64).sum())
    return 200.0 if error == 0 else 10 * float(np.log10(np.square(expected, dtype=np.float64).sum() / error))


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


def stored_weight(graph: Graph) -> str:
    return graph.node("DequantizeLinear", WEIGHT, PER_ROW, np.zeros(ROWS, np.int8), axis=0)


def single(
    source: Callable[[Graph], str] | None = None,
    weight: Callable[[Graph], str] = stored_weight,
    *,
    bias: Callable[[Graph], str] | None = None,
    behind: Callable[[Graph, str], str] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A convolution of a pair and a stored weight, by default a good one."""
    graph = Graph(opset)
    read = source(graph) if source else graph.pair("x", np.float32(0.03))
    output = graph.node("Conv", read, weight(graph), *([bias(graph)] if bias else []), pads=[1] * 4)
    return graph.model(behind(graph, output) if behind else output)
