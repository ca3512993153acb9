"""What the report shows, as plain records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.verification.verdicts import BundleCheck
from runtimes.manifest import Manifest
from runtimes.nvidia.engine_file import EngineFacts
from runtimes.parity.flips import Flip


@dataclass(frozen=True)
class FlippedImage:
    """An image that another class came out for: the flip, the backends it is seen on, its pixels, and its true class where that is known.

    Attributes:
        pixels: uint8 (height, width, 1 or 3).
    """

    flip: Flip
    backends: tuple[str, ...]
    pixels: NDArray[np.uint8]
    label: int | None


@dataclass(frozen=True)
class DriftSeries:
    """One step of the export against FP32 PyTorch, block by block: relative error and signal to noise (dB) of each block's output."""

    step: str
    blocks: tuple[str, ...]
    relative_error: tuple[float, ...]
    sqnr_db: tuple[float, ...]


@dataclass(frozen=True)
class DriftChart:
    """How far each step is off after each block, all over the same blocks; `remark` names the first that is out of line."""

    series: tuple[DriftSeries, ...]
    remark: str


@dataclass(frozen=True)
class GraphLayer:
    """One layer of `model.onnx`.

    Attributes:
        precision: what it reads: `INT8`, `FP16`, or both joined by a plus, as an addition does whose shortcut alone is quantized.
        weights: their type, and whether each output channel has a scale of its own; empty where it has none.
        macs: multiply-accumulates for one image.
        remark: why a convolution of a quantized graph stays in float; empty where it does not.
    """

    name: str
    operator: str
    precision: str
    weights: str
    macs: int
    remark: str


@dataclass(frozen=True)
class EngineFile:
    """An engine in the bundle: its sidecar, or in `problem` why there is none to show."""

    name: str
    facts: EngineFacts | None
    problem: str


@dataclass(frozen=True)
class Section:
    """One bundle in the report.

    Attributes:
        labels: names of the classes, where they are known.
        flips: those to show, the largest margin first; `flip_count` is how many there are.
        layers: of `model.onnx`; None where there is no onnx package to read it with.
        reproduce: command lines.
        remedy: what would mend a broken budget, line by line.
    """

    check: BundleCheck
    manifest: Manifest
    labels: tuple[str, ...] | None
    flips: tuple[FlippedImage, ...]
    flip_count: int
    layers: tuple[GraphLayer, ...] | None
    engines: tuple[EngineFile, ...]
    reproduce: tuple[str, ...]
    drift: DriftChart | None = None
    remedy: tuple[str, ...] = ()
