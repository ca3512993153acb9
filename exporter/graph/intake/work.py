"""A stranger's graph on its way to ours: changed step by step, each held against the file itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.graph.intake.wiring import drop_unused
from runtimes.errors import SimplifyError
from runtimes.preprocess import Preprocess
from runtimes.source_file import SourceFile
from runtimes.source_runtime import INPUT, SourceFileRuntime

LARGEST_RELATIVE_ERROR = 1e-5
LEVELS = 255


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
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise SimplifyError(f"onnxruntime does not run the graph any more after '{said}': {reason[0]}") from error
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
    """A graph as onnxruntime runs it without optimising; through a file, since its bytes would be in memory twice."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        onnx.save(model, path)
        with SourceFileRuntime.of(path, facts, shape) as runtime:
            yield runtime


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
