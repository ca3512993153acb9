"""Build a bundle's FP32 graph from a traced program or a file that was taken in. The only place that knows the order of
its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from torch.export import ExportedProgram

from exporter.graph.dla_head import with_dla_head
from exporter.graph.intake.take import TakenFile
from exporter.graph.pillow_resize import with_any_size
from exporter.graph.pixel_input import with_uint8_input
from exporter.graph.simplify import SIMPLIFY_IMAGES, simplify
from exporter.graph.trace import onnx_from_program
from runtimes.preprocess import Preprocess
from runtimes.progress import Steps
from runtimes.specs import BatchRange


@dataclass(frozen=True)
class GraphForm:
    """The inputs, outputs and opset that a graph is to have.

    Attributes:
        outputs: the outputs' names.
        takes_pixels: the input is uint8 pixels, which the graph normalises, in place of normalised float32.
        any_size: the pixels may be of any size: the graph resizes and crops them as well.
        for_dla: pools and classifier are written in what a Jetson's DLA has (see `exporter.graph.dla_head`).
    """

    opset: int
    batch: BatchRange
    outputs: Sequence[str]
    takes_pixels: bool = False
    any_size: bool = False
    for_dla: bool = False


def clean_graph(
    origin: ExportedProgram | TakenFile,
    form: GraphForm,
    preprocess: Preprocess,
    inputs: NDArray[np.float32],
    steps: Steps,
) -> onnx.ModelProto:
    """Build the simplified FP32 graph of a program or a file, ready to be lowered.

    It has the given form except for what `in_its_form` does after the graph was lowered.

    Args:
        inputs: float32 (images, channels, height, width), on which the simplified graph must compute the same.

    Raises:
        PlanError: it cannot be written for DLA.
        TraceError: PyTorch cannot turn the program into a graph, or the graph differs from the program in a known way.
        SimplifyError: the simplified graph computes something else.
    """
    if isinstance(origin, TakenFile):
        traced = origin.with_batch(form.batch)
    else:
        with steps("trace"):
            traced = onnx_from_program(origin, opset=form.opset, batch=form.batch, outputs=form.outputs)
    with steps("simplify"):
        is_quantized = isinstance(origin, TakenFile) and origin.facts.keeps_scales
        # of a quantized one, onnxsim would turn the stored weights into float ones
        clean = traced if is_quantized else simplify(traced, inputs[:SIMPLIFY_IMAGES])
        if form.for_dla:
            with_dla_head(clean)  # only to refuse now what cannot be written so, before the long work
        return with_uint8_input(clean, preprocess) if form.takes_pixels else clean


def in_its_form(model: onnx.ModelProto, form: GraphForm, preprocess: Preprocess) -> onnx.ModelProto:
    """A clean or lowered graph with what its form asks for beyond that: the resizing in front of it, and a pool and a
    classifier that DLA has."""
    model = with_any_size(model, preprocess) if form.any_size else model
    return with_dla_head(model) if form.for_dla else model
