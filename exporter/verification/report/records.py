"""Records of what the report shows."""

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
    """An image whose class changed.

    Attributes:
        backends: those on which it changed to the same class.
        pixels: uint8 (height, width, 1 or 3).
        label: its true class; None where that is not known.
    """

    flip: Flip
    backends: tuple[str, ...]
    pixels: NDArray[np.uint8]
    label: int | None


@dataclass(frozen=True)
class DriftSeries:
    """One line of the drift's plots: relative error and signal-to-noise ratio (dB) of each block's output."""

    step: str
    blocks: tuple[str, ...]
    relative_error: tuple[float, ...]
    sqnr_db: tuple[float, ...]


@dataclass(frozen=True)
class DriftChart:
    """The drift's plots: a series for each stage, all over the same blocks; `remark` is the sentence under them."""

    series: tuple[DriftSeries, ...]
    remark: str


@dataclass(frozen=True)
class GraphLayer:
    """One layer of `model.onnx`.

    Attributes:
        precision: of its inputs: `INT8`, `FP16`, or `INT8 + FP16` for an addition whose shortcut alone is quantized.
        weights: their type, and `per channel` where each output channel has its own scale; empty without weights.
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
    """An engine in the bundle.

    Attributes:
        name: of its file, without the ending.
        facts: what its sidecar says; None where that cannot be read.
        problem: why the sidecar cannot be read, or the engine does not belong to the bundle; empty where all is well.
    """

    name: str
    facts: EngineFacts | None
    problem: str


@dataclass(frozen=True)
class Section:
    """One bundle in the report.

    Attributes:
        labels: names of the classes; None where they are not known.
        flips: those to show, the largest margin first.
        flip_count: how many there are in all.
        layers: of `model.onnx`; None where the onnx package is not installed.
        reproduce: command lines that make the bundle and check it.
        drift: None where it was not asked for.
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
