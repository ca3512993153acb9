"""Run the FP32 graph over the calibration images and count every tensor's values in a histogram, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from calibration.histogram import Histogram
from runtimes.cores import usable_cores

BATCH = 2
"""Always this size, whatever the shard: kernels may sum in another order for another batch."""


def collect(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[NDArray[np.float32]]
) -> dict[str, Histogram]:
    """Histograms of the named tensors over all batches of float32 (images, channels, height, width).

    Only one batch's activations are in memory at a time.

    Raises:
        CalibrationError: a tensor holds NaN or infinite values; names it.
    """
    session = _session_with_outputs(model, tensors)
    source = session.get_inputs()[0].name
    histograms = {name: Histogram() for name in tensors}
    inner = [name for name in tensors if name != source]
    with ThreadPoolExecutor(usable_cores()) as pool:  # counting releases the interpreter's lock
        for batch in (piece for given in batches for piece in np.split(given, range(BATCH, len(given), BATCH))):
            count = len(batch)
            full = batch if count == BATCH else np.concatenate([batch, np.repeat(batch[-1:], BATCH - count, axis=0)])
            # asked for nothing, onnxruntime gives everything
            computed = session.run(inner, {source: full}) if inner else []
            values = {source: batch, **dict(zip(inner, (array[:count] for array in computed), strict=True))}
            for _ in pool.map(lambda name, arrays=values: histograms[name].update(arrays[name], name), tensors):
                pass
    return histograms


def with_free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph that takes any batch size; what is declared of its inner tensors is left out."""
    free = onnx.ModelProto()
    free.CopyFrom(model)
    for value in (*free.graph.input, *free.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del free.graph.value_info[:]
    return free


def _session_with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> ort.InferenceSession:
    exposed = with_free_batch(model)
    known = {value.name for value in (*exposed.graph.input, *exposed.graph.output)}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = usable_cores()
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False  # a pattern keeps the buffers of a run alive for the next
    return ort.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
