"""Trace a PyTorch module: to a program, which is the bundle's reference, and from that to an ONNX graph."""

from __future__ import annotations

import inspect
import io
import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from exporter.graph.facts import initializer_shapes
from exporter.graph.guards import keep_guards
from exporter.graph.naming import make_readable
from exporter.models.determinism import plain_fp32
from exporter.models.failing_layer import first_line, foreign_code, in_its_layer, watch_layers, where_it_failed
from runtimes.errors import BundleError, TraceError
from runtimes.parity.compare import LOGITS, is_classifier
from runtimes.reference_scan import plain_parts
from runtimes.specs import BatchRange

INPUT, BATCH = "input", "batch"
OUTPUTS_FILE = "outputs"
"""Entry of `reference.pt2` with the outputs' names, one a line; the program's own are of the kind of `relu_16`."""
TRACED_BATCH = 2
"""Not one: torch.export would bake that into the graph as a constant (pytorch#157621)."""
IR_VERSION = 9
"""The ONNX file format that belongs to opset 20 (onnx 1.15): ONNX Runtime 1.17 reads up to 9, TensorRT 10.3 to 10."""


def program_from_module(module: nn.Module, shape: tuple[int, int, int]) -> ExportedProgram:
    """Trace a module in evaluation mode for images of `shape` (channels, height, width), with a free batch dimension.

    Raises:
        TraceError: torch.export cannot trace it, or it fixes the batch size; names the layer and its source line if
            they are known.
    """
    example = torch.zeros(TRACED_BATCH, *shape)
    with watch_layers(module) as inside:

        def trace_error(error: BaseException) -> TraceError:
            what = f"{type(module).__name__}{where_it_failed(inside, error)}"
            return TraceError(f"torch.export cannot trace {what}: {_trace_reason(error, module)}")

        with foreign_code(trace_error), plain_fp32(), torch.no_grad(), _quiet():
            module.eval()  # not chained: a foreign one may return None
            program = torch.export.export(module, (example,), dynamic_shapes=_free_batch(module, example))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def onnx_from_program(
    program: ExportedProgram, *, opset: int, batch: BatchRange, outputs: Sequence[str] = (LOGITS,)
) -> onnx.ModelProto:
    """The FP32 ONNX graph of a traced program, with its weights and readable names.

    Args:
        batch: a static one fixes the first dimension of the input and the outputs; another leaves it free, as `batch`.
        outputs: the names to give to the outputs; the input is called `input`.

    Raises:
        TraceError: torch.onnx fails, or its graph differs from the program in a known way.
    """
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(outputs),
            external_data=False,
            verbose=False,
            optimize=False,
        )
        assert exported is not None
        keep_guards(exported.model)
        exported.optimize()
        model = exported.model_proto
    except Exception as error:  # its kinds share no base
        raise TraceError(f"torch.onnx cannot export the traced program{_untranslatable(program, error)}") from error
    _check_opset(model, opset)
    _check_batch_is_free(model)
    _check_conv_biases(model)
    make_readable(model)
    model.ir_version = IR_VERSION
    name_batch(model, batch)
    return model


def save_program(program: ExportedProgram, path: Path, outputs: Sequence[str] = (LOGITS,)) -> None:
    """Write a program to a `.pt2` file whose bytes depend on the program alone.

    torch's own archive differs from run to run (its folder is named after the file, and it holds a serialisation id and
    an example input), so its entries are packed again: sorted, without dates, under a fixed name. The outputs' names
    are stored as well, unless they are a classifier's.

    Raises:
        TraceError: the program holds operators that no reader of a bundle would run (see `runtimes.reference_scan`).
    """
    program._example_inputs = None  # the traced zeros: a megabyte that nothing reads
    buffer = io.BytesIO()
    torch.export.save(
        program, buffer, extra_files=None if is_classifier(outputs) else {OUTPUTS_FILE: "\n".join(outputs)}
    )
    with zipfile.ZipFile(buffer) as original, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as packed:
        for name in sorted(original.namelist()):
            inner = name.split("/", 1)[1]
            if inner != ".data/serialization_id":
                packed.writestr(zipfile.ZipInfo(f"reference/{inner}"), original.read(name))
    try:
        plain_parts(path)
    except BundleError as error:
        raise TraceError(
            f"the traced program holds {error.__cause__}, expected operators of ATen alone; compute it from those"
        ) from error


def _check_opset(model: onnx.ModelProto, opset: int) -> None:
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found.get("") != opset or any(domain for domain in found if domain):
        raise TraceError(
            f"expected a graph of opset {opset} alone, got {found}; this build of torch cannot write it, "
            "choose another --opset"
        )


def _check_batch_is_free(model: onnx.ModelProto) -> None:
    """torch.onnx says nothing when it turns the batch dimension into a number (pytorch#157621)."""
    for value in (*model.graph.input, *model.graph.output):
        if not value.type.tensor_type.shape.dim[0].dim_param:
            size = value.type.tensor_type.shape.dim[0].dim_value
            raise TraceError(
                f"expected '{value.name}' with a free batch dimension, got {size}; "
                "the model fixes its batch size when traced"
            )


def _check_conv_biases(model: onnx.ModelProto) -> None:
    """torch 2.9 wrote convolution biases of impossible shape (pytorch#166797)."""
    shapes = initializer_shapes(model)
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3:
            weight, bias = shapes.get(node.input[1]), shapes.get(node.input[2])
            if weight and bias != (weight[0],):
                raise TraceError(
                    f"{node.name}: expected a bias of shape ({weight[0]},), got {bias}; "
                    f"torch {torch.__version__} exports it wrongly"
                )


def name_batch(model: onnx.ModelProto, batch: BatchRange) -> None:
    """Call the first dimension `batch` (torch calls it s77), or fix it.

    The shapes of inner tensors are inferred again when the graph is simplified.
    """
    for value in (*model.graph.input, *model.graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        if batch.is_static:
            dimension.dim_value = batch.max
        else:
            dimension.dim_param = BATCH


def _free_batch(module: nn.Module, example: Tensor) -> tuple[object, ...]:
    """torch.export's `dynamic_shapes` with a free batch; a `forward(*args)` takes a tuple of them."""
    free = {0: Dim(BATCH, min=1)}
    arguments = inspect.signature(module.forward).bind(example).arguments
    return tuple((free,) if isinstance(argument, tuple) else free for argument in arguments.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from printing the whole graph when a trace fails: the command's own message is one line."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _trace_reason(error: BaseException, module: nn.Module) -> str:
    """torch.export's reason; where torch speaks of its own internals, plain words and a remedy in its place."""
    said = first_line(error)
    scripted = [name for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    if "data-dependent" in said:
        return (
            "what it does depends on a tensor's values, which a trace does not have; "
            "compute every case and choose with torch.where"
        )
    if ".numpy()" in said:
        return "it leaves PyTorch for NumPy, where a trace cannot follow; compute it with tensors"
    if said.startswith("Constraints violated"):
        return "it works for one size of the batch alone; take the size from the input's shape"
    if scripted:
        return (
            f"its layer '{scripted[0]}' is TorchScript, which torch.export does not follow; "
            "give it as it was before torch.jit"
        )
    return said


def _untranslatable(program: ExportedProgram, error: Exception) -> str:
    """The layer and the operator that torch.onnx cannot translate; the innermost error's words if they are unknown."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    said = first_line(cause)
    for node in program.graph.nodes:
        if node.op == "call_function" and repr(node.target) in said:
            layers = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
            return (
                f"{in_its_layer(layers[-1]) if layers else ''}: ONNX has nothing for {node.target}; "
                "compute it from other operators"
            )
    return f": {said}"
