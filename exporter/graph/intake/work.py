"""A stranger's graph on its way to ours: changed step by step, each held against the file itself."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.graph.intake.wiring import drop_unused
from runtimes.errors import SimplifyError, first_line
from runtimes.preprocess import Preprocess
from runtimes.source_file import SourceFile
from runtimes.source_runtime import INPUT, SourceFileRuntime

LARGEST_RELATIVE_ERROR = 1e-5
LEVELS = 255
WEIGHTS, PAGE, SMALLEST_BESIDE = "weights", 4096, 1 << 16
"""The file of weights, what their places in it are a multiple of, and the bytes of the smallest that go there."""


class Work:
    """A graph on its way.

    Attributes:
        facts: how the graph is fed and read as it is now.
        noise: a few pictures, float32 (pictures, channels, height, width).
        expected: the file's outputs for each of them by itself, by name.
        said: what was done, in words.
        size: how many pictures a step is checked on, at once.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        facts: SourceFile,
        noise: NDArray[np.float32],
        expected: Mapping[str, NDArray[Any]],
    ) -> None:
        self.model, self.facts, self.noise, self.expected = model, facts, noise, expected
        self.said: list[str] = []
        self.size = 1

    def step(self, change: Callable[[onnx.ModelProto], str]) -> None:
        """Change the graph; if anything was, check that it answers as before.

        Raises:
            SimplifyError: it does not.
        """
        said = change(self.model)
        if not said:
            return
        try:
            difference = self.difference(self.size)
        except Exception as error:  # onnxruntime's own errors share no base class
            reason = first_line(error)
            raise SimplifyError(f"onnxruntime does not run the graph any more after '{said}': {reason}") from error
        if not difference <= LARGEST_RELATIVE_ERROR:
            raise SimplifyError(
                f"expected the same answers after '{said}', got some that differ by {difference:.1e} of the largest, "
                f"allowed {LARGEST_RELATIVE_ERROR:.0e}; report the model"
            )
        self.said.append(said)

    def difference(self, *sizes: int) -> float:
        """The largest difference of an output from the file's, relative to that output's largest value, over batches of
        these sizes."""
        drop_unused(self.model.graph)
        with opened(self.model, self.facts, self.noise.shape[1:]) as runtime:
            return max(
                _largest_difference(values, self.expected[name][:size])
                for size in sizes
                for name, values in runtime.run({INPUT: self.noise[:size]}).items()
            )


@contextmanager
def opened(model: onnx.ModelProto, facts: SourceFile, shape: Sequence[int]) -> Iterator[SourceFileRuntime]:
    """A graph as onnxruntime runs it without optimising: through files, so that it maps the weights and copies none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        _save_with_weights_beside(model, path)
        with SourceFileRuntime.of(path, facts, shape) as runtime:
            yield runtime
    give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Let glibc return what was freed to the system, which it keeps between what is still used: after each run of a
    ResNet-50 and at the end of its old graph, one to two times the file's size (measured)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)


def _save_with_weights_beside(model: onnx.ModelProto, path: Path) -> None:
    """Write a model whose large initializers are in a file of their own; the model itself is not changed."""
    lean, graph = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import), model.graph
    lean.graph.name = graph.name or "graph"
    lean.graph.node.extend(graph.node)
    lean.graph.input.extend(graph.input)
    lean.graph.output.extend(graph.output)
    with (path.parent / WEIGHTS).open("wb") as file:
        for tensor in graph.initializer:
            if len(tensor.raw_data) < SMALLEST_BESIDE:
                lean.graph.initializer.append(tensor)
                continue
            beside = lean.graph.initializer.add(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=onnx.TensorProto.EXTERNAL
            )
            start = file.seek(-file.tell() % PAGE, os.SEEK_CUR)
            length = file.write(tensor.raw_data)
            for key, value in (("location", WEIGHTS), ("offset", start), ("length", length)):
                beside.external_data.add(key=key, value=str(value))
    onnx.save(lean, path)


def _largest_difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Relative to the largest expected value; infinite where the shapes differ, or a value is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max()) / (float(np.abs(expected).max()) or 1.0)


def noise_for(preprocess: Preprocess, count: int) -> NDArray[np.float32]:
    """Pictures of noise, as the network takes them: float32 (pictures, channels, height, width)."""
    height, width = preprocess.crop
    shape = (count, height, width, preprocess.channels)
    return preprocess.normalise(np.random.default_rng(0).integers(0, LEVELS + 1, shape, np.uint8))


def answers_by_image(runtime: SourceFileRuntime, noise: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The outputs for each picture by itself, by name."""
    rows = [runtime.run({INPUT: noise[place : place + 1]}) for place in range(len(noise))]
    return {spec.name: np.concatenate([row[spec.name] for row in rows]) for spec in runtime.outputs}
