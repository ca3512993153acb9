"""Run the FP32 graph over the calibration images and count every tensor's values in a histogram, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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

    Raises:
        CalibrationError: a tensor holds NaN or infinite values; names it.
    """
    return Collector(model, tensors, usable_cores()).collect(batches)


class Collector:
    """Runs a graph over batches, and counts the values of some of its tensors.

    A few batches are run and counted at a time, each by a thread of its own: cores that share a batch wait for one
    another at every layer. Safe to use from several threads.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str], threads: int) -> None:
        self._tensors, self._at_once = tensors, min(threads, MOST_AT_ONCE)
        session = _session_with_outputs(model, tensors, threads=threads // self._at_once)
        self._idle: SimpleQueue[_Runner] = SimpleQueue()
        for _ in range(self._at_once):
            self._idle.put(_Runner(session, tensors))

    def collect(self, batches: Iterable[NDArray[np.float32]]) -> dict[str, Histogram]:
        """As `collect`."""
        counters = [{name: Histogram() for name in self._tensors} for _ in range(self._at_once)]
        free: SimpleQueue[dict[str, Histogram]] = SimpleQueue()
        for counter in counters:
            free.put(counter)

        def count(batch: NDArray[np.float32]) -> None:
            runner, counter = self._idle.get(), free.get()
            try:
                for name, values in runner.values(batch).items():
                    counter[name].update(values, name)
            finally:
                free.put(counter)
                self._idle.put(runner)

        pieces = (piece for given in batches for piece in np.split(given, range(BATCH, len(given), BATCH)))
        for _ in map_ahead(count, pieces, ahead=2 * self._at_once, threads=self._at_once):
            pass
        return reduce(merged, counters)


def merged(histograms: Mapping[str, Histogram], others: Mapping[str, Histogram]) -> dict[str, Histogram]:
    """The histograms of both data together, tensor by tensor."""
    return {name: one.merge(others[name]) for name, one in histograms.items()}


def with_free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph that takes any batch size; what is declared of its inner tensors is left out."""
    free = onnx.ModelProto()
    free.CopyFrom(model)
    for value in (*free.graph.input, *free.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del free.graph.value_info[:]
    return free


class _Runner:
    """Runs a graph, and gives the values of some tensors, for one batch at a time.

    The values always go into the same memory: fresh memory for 40 MB an image has to be cleared by the system first,
    which takes a fifth of the time of a run.
    """

    def __init__(self, session: ort.InferenceSession, tensors: Sequence[str]) -> None:
        self._session, self._source, self._tensors = session, session.get_inputs()[0].name, tensors
        self._inner = [name for name in tensors if name != self._source]
        self._binding = session.io_binding()
        self._values: list[NDArray[np.float32]] = []

    def values(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Each tensor for at most BATCH images, (images, ...), until the next call; fewer are run with the last one
        repeated."""
        count = len(batch)
        full = batch if count == BATCH else np.concatenate([batch, np.repeat(batch[-1:], BATCH - count, axis=0)])
        if self._inner:  # asked for nothing, onnxruntime gives everything
            self._run(np.ascontiguousarray(full))
        inner = dict(zip(self._inner, (each[:count] for each in self._values), strict=True))
        return {name: inner.get(name, batch) for name in self._tensors}

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
