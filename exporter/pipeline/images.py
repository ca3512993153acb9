"""Records that an export hands on: what is to be proven, the images it is proven with, and the proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from runtimes.base import Runtime
from runtimes.parity.compare import ParityReport
from runtimes.parity.evidence import BackendParity
from runtimes.parity.measures import Accuracy
from runtimes.specs import BatchRange

Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Images:
    """Images as a model takes them.

    Attributes:
        inputs: float32 (images, channels, height, width), what the reference is fed.
        labels: the model's classes, int64 (images,); None where they are not known.
        pixels: for a graph with its preprocessing inside, what the inputs were made from, uint8
            (images, height, width, channels); the graph is fed these. Where the graph resizes too, whole images of one
            size. None for other graphs.
        places: where they are in the source that they were read from, int64 (images,); None for others.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    pixels: NDArray[np.uint8] | None = None
    places: NDArray[np.int64] | None = None

    @property
    def fed(self) -> NDArray[Any]:
        """What the graph is fed: the pixels where there are some, else the inputs."""
        return self.inputs if self.pixels is None else self.pixels

    def chosen(self, rows: NDArray[np.int64] | slice) -> Images:
        """Some of the images."""
        return Images(
            self.inputs[rows],
            None if self.labels is None else self.labels[rows],
            None if self.pixels is None else self.pixels[rows],
            None if self.places is None else self.places[rows],
        )


@dataclass(frozen=True)
class Graphs:
    """Two graphs that a proof runs.

    Attributes:
        original: the simplified FP32 graph.
        simulation: the lowered graph rewritten to round on a CPU as a device does; None where a CPU does so anyway.
    """

    original: onnx.ModelProto
    simulation: onnx.ModelProto | None


@dataclass(frozen=True)
class Candidate:
    """A bundle's files before they are proven.

    Attributes:
        folder: holds the model file, and `reference.pt2` where that is what it is held against.
        batch: the sizes that the model file is for.
        backends: the names of those that run the model file here; empty where none does.
        resizes: the graph takes images of any size.
        open_file: opens the ONNX file that it is held against; None where it is a PyTorch program.
    """

    folder: Path
    graphs: Graphs
    batch: BatchRange
    backends: Sequence[str]
    resizes: bool = False
    open_file: Callable[[], Runtime] | None = None


@dataclass(frozen=True)
class Proof:
    """What the backends answered, held against the reference.

    Attributes:
        outputs: the reference's, float32 (images, ...) by name.
        answers: of each backend, and of the simulation where there is one, by name; the first decides.
        report: all of them together.
        accuracy: top-1 of what decides; None where labels are not known.
        labels: the classes of the images, int64 (images,); None where they are not known.
        places: where the images are in their source, int64 (images,).
    """

    outputs: Outputs
    answers: dict[str, BackendParity]
    report: ParityReport
    accuracy: Accuracy | None
    labels: NDArray[np.int64] | None
    places: NDArray[np.int64]
