"""From a PyTorch module to a clean ONNX graph, and to the program that stays as its reference."""

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
from exporter.models.determinism import as_exported
from exporter.models.failing_layer import first_line, in_its_layer, layers_at_work, others_code, place
from runtimes.errors import BundleError, TraceError
from runtimes.parity.compare import LOGITS, is_classifier
from runtimes.reference_scan import plain_program
from runtimes.specs import BatchRange

INPUT, BATCH = "input", "batch"
OUTPUTS_FILE = "outputs"
"""What the names of several outputs stand in inside `reference.pt2`, one a line: a program's own are `relu_16`."""
TRACED_BATCH = 2
"""A batch of one is baked into the graph as a constant (pytorch#157621)."""
IR_VERSION = 9
"""The container version that belongs to opset 20 (onnx 1.15); ONNX Runtime 1.17 and TensorRT 10.3 read none above 9 and
10."""


def program_from_module(module: nn.Module, shape: tuple[int, int, int]) -> ExportedProgram:
    """Trace a module in evaluation mode, with a free batch dimension, for inputs of (channels, height, width).

    Raises:
        TraceError: torch.export refuses it, or it fixes the batch size; names the layer and the line of its source
            where they are known.
    """
    example = torch.zeros(TRACED_BATCH, *shape)
    with layers_at_work(module) as inside:

        def told(error: BaseException) -> TraceError:
            return TraceError(
                f"torch.export cannot trace {type(module).__name__}{place(inside, error)}: {_why(error, module)}"
            )

        with others_code(told), as_exported(), torch.no_grad(), _silence():
            module.eval()  # somebody's own may return nothing
            program = torch.export.export(module, (example,), dynamic_shapes=_free_batch(module, example))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def onnx_from_program(
    program: ExportedProgram, *, opset: int, batch: BatchRange, outputs: Sequence[str] = (LOGITS,)
) -> onnx.ModelProto:
    """The FP32 graph: weights inside, input `input`, the outputs' names, readable names, free first dimension (or
    fixed, for a static batch).

    Raises:
        TraceError: torch.onnx fails, or its graph is not what the program is.
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
    except Exception as error:  # as above
        raise TraceError(f"torch.onnx cannot export the traced program{_untranslated(program, error)}") from error
    _check_opset(model, opset)
    _check_batch_is_free(model)
    _check_conv_biases(model)
    make_readable(model)
    model.ir_version = IR_VERSION
    _name_batch(model, batch)
    return model


def save_program(program: ExportedProgram, path: Path, outputs: Sequence[str] = (LOGITS,)) -> None:
    """Write a `.pt2` file whose bytes depend on the program alone, with the names of its outputs where they are others
    than a classifier's.

    torch's own container differs from run to run (its folder is named after the file, and it carries a serialisation id
    and an example input), so its entries are packed again, sorted, without dates, under a fixed name.

    Raises:
        TraceError: the program holds what no reader of a bundle would run (see `runtimes.reference_scan`).
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
        plain_program(path)
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
    """A batch that became a number is silent in torch.onnx (pytorch#157621)."""
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


def _name_batch(model: onnx.ModelProto, batch: BatchRange) -> None:
    """Call the first dimension `batch` (torch calls it s77), or fix it; the shapes inside are inferred anew when the
    graph is simplified."""
    for value in (*model.graph.input, *model.graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        if batch.is_static:
            dimension.dim_value = batch.max
        else:
            dimension.dim_param = BATCH


def _free_batch(module: nn.Module, example: Tensor) -> tuple[object, ...]:
    """What torch.export is to leave free, in the form in which `forward` takes its input: `*args` is a tuple of
    them."""
    free = {0: Dim(BATCH, min=1)}
    taken = inspect.signature(module.forward).bind(example).arguments
    return tuple((free,) if isinstance(argument, tuple) else free for argument in taken.values())


@contextmanager
def _silence() -> Iterator[None]:
    """On stderr and in its log torch shows the whole graph of a trace that fails, and a command says one line."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _why(error: BaseException, module: nn.Module) -> str:
    """torch.export's reason; in plain words where torch speaks of its own inner parts, and then with a remedy."""
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


def _untranslated(program: ExportedProgram, error: Exception) -> str:
    """Where an operator stands that ONNX has nothing for, and the innermost reason."""
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
