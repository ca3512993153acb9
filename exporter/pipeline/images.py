"""What an export is proven with, and the proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from runtimes.parity.compare import ParityReport
from runtimes.parity.evidence import BackendParity
from runtimes.parity.measures import Accuracy

Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Images:
    """What to feed: float32 (images, channels, height, width), and int64 labels (images,) where they are known.

    For a graph with its preprocessing inside, `pixels` are what the inputs were made from, uint8 (images, height, width, channels): the graph is
    fed those, and the reference the inputs. Where the graph resizes too, they are whole pictures, brought to one size.

    `no_accuracy` is why accuracy is not measured on pictures that have classes; empty where it is. `plain` are pictures of one colour each, which
    networks are fed too (a lens cap, padding), and which real pictures do not stand for: what divides by a spread divides by zero.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    pixels: NDArray[np.uint8] | None = None
    no_accuracy: str = ""
    plain: Images | None = None

    @property
    def fed(self) -> NDArray[Any]:
        """What the graph takes."""
        return self.inputs if self.pixels is None else self.pixels


@dataclass(frozen=True)
class Graphs:
    """The simplified FP32 graph, and the lowered one rewritten to round on a CPU as a device does (None where a CPU does so anyway)."""

    original: onnx.ModelProto
    simulation: onnx.ModelProto | None


@dataclass(frozen=True)
class Proof:
    """What the reference answered, float32 by output's name, what each backend and the simulation did, and the verdict."""

    outputs: Outputs
    answers: dict[str, BackendParity]
    report: ParityReport
    accuracy: Accuracy | None
