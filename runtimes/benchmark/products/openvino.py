"""OpenVINO on the processor: FP32, BF16, and INT8 by its own low precision transformations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from runtimes.backends._openvino_package import opset13 as ops
from runtimes.backends._openvino_package import ov
from runtimes.processor import processor


def products(provider: str, size: int, threads: int) -> Iterator[tuple[str, Callable[[], None]]]:
    if provider != "cpu":
        return
    yield "fp32", _call(size, threads, "f32", quantized=False)
    if processor().has_bf16:
        yield "bf16", _call(size, threads, "bf16", quantized=False)
    yield "int8", _call(size, threads, "f32", quantized=True)


def _call(size: int, threads: int, precision: str, *, quantized: bool) -> Callable[[], None]:
    values = np.random.default_rng(0).standard_normal((size, size), np.float32)
    given = ops.parameter([size, size], np.float32)
    first, second = given, ops.constant(values)
    if quantized:
        first, second = (_on_levels(one, levels) for one, levels in ((given, 256), (second, 255)))
    compiled = ov.Core().compile_model(
        ov.Model([ops.matmul(first, second, transpose_a=False, transpose_b=False)], [given]),
        "CPU",
        {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"},
    )
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(values))

    def call() -> None:
        request.infer()

    return call


def _on_levels(node: Any, levels: int) -> Any:
    low, high = -4.0 * (levels % 2 + 127) / 127 if levels == 256 else -4.0, 4.0
    return ops.fake_quantize(node, low, high, low, high, levels)
