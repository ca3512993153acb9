"""Take a stranger's file in: the order of the steps, each held against the file itself before the next begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from exporter.graph.inference import LARGEST_SHAPE_CONSTANT, inferred_graphs, inferred_values
from exporter.graph.intake.batch import free_batch, set_batch
from exporter.graph.intake.fold import fold_paddings, fold_scales
from exporter.graph.intake.head import flatten_logits, head_of, take_off_softmax
from exporter.graph.intake.interface import ImageInput, check_scores, image_input
from exporter.graph.intake.known import use_known_head
from exporter.graph.intake.layout import Normalisation, normalisation_of, take_channels_first
from exporter.graph.intake.plain import convert_opset, make_plain
from exporter.graph.intake.read import ModelFile
from exporter.graph.intake.wiring import rename_tensor
from exporter.graph.intake.work import LARGEST_RELATIVE_ERROR, Work, answers_by_image, give_back_freed_memory, noise_for
from exporter.graph.intake.work import opened as opened_graph
from exporter.graph.naming import make_file_readable
from exporter.graph.trace import name_batch
from runtimes.errors import BadInput, SimplifyError, first_line
from runtimes.preprocess import Preprocess
from runtimes.source_file import SourceFile
from runtimes.source_runtime import CLASSIFIERS, INPUT, SourceFileRuntime
from runtimes.specs import BatchRange

TRIED_BATCHES = (1, 2, 3)
"""The sizes at which a graph whose batch was made free must answer as the file does, image by image."""


@dataclass(frozen=True)
class TakenFile:
    """A file that was taken in.

    Attributes:
        model: the FP32 graph, with a free batch, in our opset, under readable names.
        facts: how the file itself is fed and read, and what was done to it.
        fixed_batch: the one size of batch that the graph takes; None where it takes any.
        classes: 0 where the file gives features.
    """

    path: Path
    model: onnx.ModelProto
    facts: SourceFile
    fixed_batch: int | None
    classes: int

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self.facts.outputs)

    def with_batch(self, batch: BatchRange) -> onnx.ModelProto:
        """A copy of the graph whose batch is free, or fixed at one size."""
        model = _copied_model(self.model)
        name_batch(model, batch)
        return model


@dataclass(frozen=True)
class Opened:
    """A file whose input is known; what it gives is not yet.

    Attributes:
        normalisation: what it does to its pixels first; None where it takes normalised ones.
        said: what was done to read it.
    """

    file: ModelFile
    image: ImageInput
    normalisation: Normalisation | None
    said: tuple[str, ...]

    @property
    def channels(self) -> int:
        """Of its input; 3 where neither the input nor a convolution tells."""
        return self.image.channels or 3


def open_file(file: ModelFile) -> Opened:
    """Find out how a file is fed; its graph is made plain, in place.

    Raises:
        BadInput: it is no classifier or backbone of images (see `image_input`), or gives no scores.
    """
    said = [f"weights read from {', '.join(one.name for one in file.beside)}"] if file.beside else []
    said += [text] if (text := make_plain(file.model)) else []
    image = image_input(file.model, file.name)
    _declare_types(file.model)
    check_scores(file.model.graph, file.name)
    probe = onnx.ModelProto()
    probe.graph.node.extend(file.model.graph.node)
    probe.graph.initializer.extend(one for one in file.model.graph.initializer if len(one.raw_data) <= 1 << 12)
    probe.graph.input.extend(file.model.graph.input)
    if image.layout == "nhwc":
        take_channels_first(probe, image.name)
    return Opened(file, image, normalisation_of(probe, image.name), tuple(said))


def _declare_types(model: onnx.ModelProto) -> None:
    """Say of which type an output is, where the file leaves that to those who read it."""
    untyped = [value for value in model.graph.output if not value.type.tensor_type.elem_type]
    types = inferred_graphs(model)[0].types if untyped else {}
    for value in untyped:
        kind = types.get(value.name, "?")
        value.type.tensor_type.elem_type = onnx.TensorProto.DataType.Value("FLOAT" if kind == "?" else kind)


def take_file(
    opened: Opened, reference: Path, preprocess: Preprocess, *, opset: int, keep_softmax: bool = False
) -> TakenFile:
    """Bring a file to the form of our own graphs, in place.

    After each step that changes something, the graph answers a picture of noise as the file does; with its batch made
    free it must do so at `TRIED_BATCHES`.

    Args:
        reference: the file, as it travels with the bundle.
        preprocess: how pictures are prepared for it.

    Raises:
        BadInput: onnxruntime cannot run the file, an operator cannot be converted, or it does not take such images.
        SimplifyError: a step changes what the graph computes.
    """
    image, graph = opened.image, opened.file.model.graph
    noise = noise_for(preprocess, max(TRIED_BATCHES))
    facts = SourceFile(image.name, image.layout, image.batch, {value.name: value.name for value in graph.output})
    answers = _raw_answers(reference, facts, noise[:1], opened.file.name)
    _check_answers(answers, opened.file.name)
    head = head_of(graph, answers, keep_softmax=keep_softmax)
    facts = replace(facts, outputs=head.outputs)
    if head.softmax:  # a Reshape may stand behind it
        answers = _raw_answers(reference, facts, noise[:1], opened.file.name)
    model = opened.file.model
    with (
        opened_graph(model, facts, preprocess.shape)
        if opened.file.is_quantized
        else SourceFileRuntime.of(reference, facts, preprocess.shape)
    ) as runtime:
        work = Work(model, facts, noise, answers_by_image(runtime, noise))
    work.said += opened.said
    work.step(lambda model: _set_sizes(model.graph, image, preprocess))
    work.step(lambda model: take_off_softmax(model.graph, head.outputs) if head.softmax else "")
    scores = next((tensor for name, tensor in head.outputs.items() if name in CLASSIFIERS), "")
    if scores and answers[scores].ndim > 2:
        work.step(lambda model: flatten_logits(model.graph, scores))
    work.step(lambda model: convert_opset(model, opset, opened.file.name))
    if image.layout == "nhwc":
        work.facts = replace(work.facts, layout="nchw")
        work.step(lambda model: take_channels_first(model, image.name))
    fixed = _free(work, image)
    if not opened.file.is_quantized:  # a quantized graph's folding is the affair of whoever keeps its scales
        for step in (fold_paddings, fold_scales, use_known_head):
            work.step(step)
    # protobuf keeps what was taken out of a message until all of it goes: nothing may hold the old graph any more
    work.model = opened.file.model = _copied_model(work.model)
    del graph, model
    give_back_freed_memory()
    _name(work)
    return TakenFile(reference, work.model, replace(facts, steps=tuple(work.said)), fixed, head.classes)


def _raw_answers(
    reference: Path, facts: SourceFile, pictures: NDArray[np.float32], where: str
) -> dict[str, NDArray[Any]]:
    """The outputs for pictures, float32 (pictures, channels, height, width), each under its tensor's name and in the
    file's own shape: `logits` would be given as (batch, classes).

    Raises:
        BadInput: onnxruntime cannot run the file, or not on such pictures.
    """
    raw = {f":{tensor}": tensor for tensor in facts.outputs.values()}
    with SourceFileRuntime.of(reference, replace(facts, outputs=raw), pictures.shape[1:]) as runtime:
        try:
            found = runtime.run({INPUT: pictures})
        except Exception as error:  # onnxruntime's own errors share no base class
            size = "x".join(map(str, pictures.shape[2:]))
            raise BadInput(
                f"{where}: onnxruntime cannot run it on a picture of {pictures.shape[1]} channels and {size} pixels, "
                f"{facts.layout}: {first_line(error)}; give the --image-size that it was made for, or save it again "
                "with its sizes"
            ) from error
    return {raw[name]: values for name, values in found.items()}


def _check_answers(answers: Mapping[str, NDArray[Any]], where: str) -> None:
    """Refuse outputs that are no rows of finite numbers, one an image.

    Args:
        answers: the outputs for one image.

    Raises:
        BadInput: names the output.
    """
    for name, values in answers.items():
        if values.ndim < 2 or len(values) != 1:
            raise BadInput(
                f"{where}: expected outputs of (batch, ...) and at least two dimensions, got '{name}' of "
                f"{values.shape} for one image; save the network without what makes it so, such as a last Squeeze"
            )
        if not np.isfinite(values).all():
            raise BadInput(
                f"{where}: expected finite answers, got NaN or infinity in '{name}' for a picture of noise; save the "
                "network without what makes them, or look at --mean, --std and --scale"
            )


def _set_sizes(graph: onnx.GraphProto, image: ImageInput, preprocess: Preprocess) -> str:
    """Fix the sizes that the file leaves free, but for the batch."""
    sizes = next(value for value in graph.input if value.name == image.name).type.tensor_type.shape.dim
    channels, height, width = preprocess.shape
    wanted = (channels, height, width) if image.layout == "nchw" else (height, width, channels)
    free = [size for size in sizes[1:] if not size.HasField("dim_value") or size.dim_value < 1]
    for size, one in zip(list(sizes)[1:], wanted, strict=True):
        size.dim_value = one
    for value in graph.output:  # what is declared of them is for other sizes
        value.type.tensor_type.ClearField("shape")
    return f"input, of free size in the file, fixed at {height}x{width} pixels of {channels} channels" if free else ""


def _free(work: Work, image: ImageInput) -> int | None:
    """Free the batch, where that is sound; the size that it is fixed at where it is not."""
    graph = work.model.graph
    nodes, inputs = [_copied(node) for node in graph.node], [_copied(value) for value in graph.input]
    small = [_copied(one) for one in graph.initializer if math.prod(one.dims) <= LARGEST_SHAPE_CONSTANT]
    before = work.facts
    said = free_batch(work.model, image.name) if image.batch is not None else ""
    set_batch(graph, image.name)
    work.facts = replace(before, batch=None)
    try:
        difference = work.difference(*TRIED_BATCHES)
    except Exception:  # onnxruntime's own errors share no base class: a shape that does not fit, mostly
        difference = float("inf")
    if difference <= LARGEST_RELATIVE_ERROR:
        work.size = 2  # a graph that mixes pictures up shows it
        work.said += (
            [f"{said}; its answers are the same at batches of {', '.join(map(str, TRIED_BATCHES))}"] if said else []
        )
        return None
    size = image.batch or 1
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    left = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(tensor for tensor in small if tensor.name not in left)
    next(one for one in graph.input if one.name == image.name).type.tensor_type.shape.dim[0].dim_value = size
    work.facts = replace(before, batch=size)
    work.step(lambda model: f"batch left at {size}, since the graph fails at another, or gives other answers")
    return size


def _copied_model(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _copied(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _name(work: Work) -> None:
    """Give the graph our names of its input and outputs, and readable ones inside."""
    graph = work.model.graph
    renamed = {work.facts.input: INPUT, **{tensor: name for name, tensor in work.facts.outputs.items()}}
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    mark = max(used, key=len, default="")  # no tensor's name begins with it and goes on
    for name in set(renamed.values()) & used - set(renamed):
        rename_tensor(graph, name, f"{mark}.{name}")
        for tensor in graph.initializer:
            tensor.name = f"{mark}.{name}" if tensor.name == name else tensor.name
    for old, new in renamed.items():
        rename_tensor(graph, old, f"{mark}..{new}")
    for new in renamed.values():
        rename_tensor(graph, f"{mark}..{new}", new)
    for value in (*graph.input, *graph.output):
        value.name = renamed.get(value.name, value.name)
    order = {name: place for place, name in enumerate(work.facts.outputs)}
    outputs = sorted((_copied(value) for value in graph.output if value.name in order), key=lambda one: order[one.name])
    del graph.output[:]
    graph.output.extend(outputs)
    work.facts = replace(work.facts, input=INPUT, outputs={name: name for name in work.facts.outputs})
    for value, known in zip(graph.output, inferred_values(work.model).output, strict=True):
        value.CopyFrom(known)
    make_file_readable(work.model)
    if not work.difference(1) <= LARGEST_RELATIVE_ERROR:  # names cannot mix pictures up
        raise SimplifyError("expected the same answers under other names, got others; report the model")
