"""Run the FP32 graph over the calibration images and count every tensor's values in a histogram, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from queue import SimpleQueue

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from calibration.histogram import Histogram
from runtimes.ahead import map_ahead
from runtimes.cores import usable_cores

BATCH = 2
"""Always this size, whatever the shard: kernels may sum in another order for another batch."""


MOST_AT_ONCE = 4
"""How many batches are worked on at a time, at most: each holds its activations, 90 MB in a ResNet-50 at 224 pixels."""


def collect(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[NDArray[np.float32]]
) -> dict[str, Histogram]:
    """Histograms of the named tensors over all batches of float32 (images, channels, height, width).

    A few batches are run and counted at a time, each by a thread of its own: cores that share a batch wait for one
    another at every layer.

    Raises:
        CalibrationError: a tensor holds NaN or infinite values; names it.
    """
    at_once = min(usable_cores(), MOST_AT_ONCE)
    session = _session_with_outputs(model, tensors, threads=usable_cores() // at_once)
    idle: SimpleQueue[_Counter] = SimpleQueue()
    counters = [_Counter(session, tensors) for _ in range(at_once)]
    for counter in counters:
        idle.put(counter)

    def count(batch: NDArray[np.float32]) -> None:
        counter = idle.get()
        try:
            counter.count(batch)
        finally:
            idle.put(counter)

    pieces = (piece for given in batches for piece in np.split(given, range(BATCH, len(given), BATCH)))
    for _ in map_ahead(count, pieces, ahead=2 * at_once, threads=at_once):
        pass
    return {name: reduce(Histogram.merge, (counter.histograms[name] for counter in counters)) for name in tensors}


def with_free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph that takes any batch size; what is declared of its inner tensors is left out."""
    free = onnx.ModelProto()
    free.CopyFrom(model)
    for value in (*free.graph.input, *free.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del free.graph.value_info[:]
    return free


class _Counter:
    """Runs a graph and counts the values of some tensors, one batch at a time.

    The values always go into the same memory: fresh memory for 40 MB an image has to be cleared by the system first,
    which takes a fifth of the time of a run.
    """

    def __init__(self, session: ort.InferenceSession, tensors: Sequence[str]) -> None:
        self.histograms = {name: Histogram() for name in tensors}
        self._session, self._source = session, session.get_inputs()[0].name
        self._inner = [name for name in tensors if name != self._source]
        self._binding = session.io_binding()
        self._values: list[NDArray[np.float32]] = []

    def count(self, batch: NDArray[np.float32]) -> None:
        """Count at most BATCH images; fewer are filled up with the last one, which counts once."""
        count = len(batch)
        full = batch if count == BATCH else np.concatenate([batch, np.repeat(batch[-1:], BATCH - count, axis=0)])
        if self._inner:  # asked for nothing, onnxruntime gives everything
            self._run(np.ascontiguousarray(full))
        values = {self._source: batch, **dict(zip(self._inner, (each[:count] for each in self._values), strict=True))}
        for name, histogram in self.histograms.items():
            histogram.update(values[name], name)

    def _run(self, full: NDArray[np.float32]) -> None:
        if not self._values:  # the first time, onnxruntime says how large they are
            self._values = self._session.run(self._inner, {self._source: full})
            for name, array in zip(self._inner, self._values, strict=True):
                self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            return
        self._binding.bind_cpu_input(self._source, full)
        self._session.run_with_iobinding(self._binding)


def _session_with_outputs(model: onnx.ModelProto, tensors: Sequence[str], *, threads: int) -> ort.InferenceSession:
    exposed = with_free_batch(model)
    known = {value.name for value in (*exposed.graph.input, *exposed.graph.output)}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are for other batches
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False  # a pattern keeps the buffers of a run alive for the next
    return ort.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
