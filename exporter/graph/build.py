"""From a program to a clean FP32 graph: the one place that knows the order trace, simplify, pixel input, resize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from torch.export import ExportedProgram

from exporter.graph.pillow_resize import with_any_size
from exporter.graph.pixel_input import with_uint8_input
from exporter.graph.simplify import SIMPLIFY_IMAGES, simplified
from exporter.graph.trace import onnx_from_program
from runtimes.preprocess import Preprocess
from runtimes.progress import Steps
from runtimes.specs import BatchRange


@dataclass(frozen=True)
class GraphForm:
    """The form of a graph.

    Attributes:
        outputs: their names.
        takes_pixels: uint8 pixels in place of normalised float32, the preprocessing inside.
        any_size: pixels of any size, which the graph resizes and crops, too.
    """

    opset: int
    batch: BatchRange
    outputs: Sequence[str]
    takes_pixels: bool = False
    any_size: bool = False


def clean_graph(
    program: ExportedProgram, form: GraphForm, preprocess: Preprocess, inputs: NDArray[np.float32], steps: Steps
) -> onnx.ModelProto:
    """The simplified FP32 graph of a program, as it is lowered: of `form`, but for the resizing, which `with_resize`
    puts in front.

    Args:
        inputs: float32 (images, channels, height, width), some that the program takes: simplifying must not change what
            it computes.

    Raises:
        TraceError: PyTorch cannot turn the program into a graph, or the graph is not what the program is.
        SimplifyError: the simplified graph computes something else.
    """
    with steps("trace"):
        traced = onnx_from_program(program, opset=form.opset, batch=form.batch, outputs=form.outputs)
    with steps("simplify"):
        clean = simplified(traced, inputs[:SIMPLIFY_IMAGES])
        return with_uint8_input(clean, preprocess) if form.takes_pixels else clean


def with_resize(model: onnx.ModelProto, form: GraphForm, preprocess: Preprocess) -> onnx.ModelProto:
    """A clean graph, or what it was lowered to, with the resizing that its form asks for."""
    return with_any_size(model, preprocess) if form.any_size else model
