"""ONNX Runtime on the processor: MatMul in FP32, MatMulInteger with weights in INT8."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def products(provider: str, size: int, threads: int) -> Iterator[tuple[str, Callable[[], None]]]:
    if provider != "cpu":
        return
    square = (size, size)
    yield "fp32", _call("MatMul", np.ones(square, np.float32), np.ones(square, np.float32), threads)
    yield "int8", _call("MatMulInteger", np.ones(square, np.uint8), np.ones(square, np.int8), threads)


def _call(operator: str, first: NDArray[Any], second: NDArray[Any], threads: int) -> Callable[[], None]:
    kind = helper.np_dtype_to_tensor_dtype(first.dtype)
    result = TensorProto.FLOAT if operator == "MatMul" else TensorProto.INT32
    graph = helper.make_graph(
        [helper.make_node(operator, ["first", "second"], ["product"])],
        "product",
        [helper.make_tensor_value_info("first", kind, first.shape)],
        [helper.make_tensor_value_info("product", result, first.shape)],
        [numpy_helper.from_array(second, "second")],  # a constant, as weights are: it is laid out for the kernel once
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def call() -> None:
        session.run(["product"], {"first": first})

    return call
