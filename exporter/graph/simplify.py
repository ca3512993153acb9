"""Simplify a graph with onnxsim, and check that it still computes the same."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from typing import Any

import numpy as np
import onnx
import onnxsim
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporter.graph.facts import keep_initializers
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import SimplifyError

LARGEST_RELATIVE_ERROR = 1e-5
SIMPLIFY_IMAGES = 2
"""How many images both graphs are run on."""
DEFAULT_EPSILON = 1e-5
"""The default of ONNX's BatchNormalization."""
_ONE_AT_A_TIME = threading.Lock()
"""A second thread would take the first one's silenced streams for the originals, and restore those for good."""


def simplify(model: onnx.ModelProto, inputs: NDArray[Any]) -> onnx.ModelProto:
    """Fold a graph's constants and remove its identities and duplicates.

    A batch norm that is not folded into a convolution becomes a scale and a shift. onnxsim's own check is optional and
    compares random inputs; here both graphs run in ONNX Runtime, unless they are equal.

    Args:
        inputs: real ones, float32 (images, channels, height, width).

    Raises:
        SimplifyError: onnxsim fails, or the outputs differ by more than 1e-5 of the largest.
    """
    try:
        with _silence():
            result: onnx.ModelProto = onnxsim.simplify(model)[0]
        result = with_scales_and_shifts(result)
        onnx.checker.check_model(result, full_check=True)
        del result.metadata_props[:]  # the settings of this run of onnxsim
    except Exception as error:  # onnxsim raises whatever its C++ core does
        raise SimplifyError(f"onnxsim cannot simplify the graph: {error}") from error
    if _is_same(model, result):
        return result
    before, after = _outputs(model, inputs), _outputs(result, inputs)
    for name, values in before.items():
        largest = float(np.abs(values).max()) or 1.0
        difference = float(np.abs(after[name] - values).max()) / largest
        if not difference <= LARGEST_RELATIVE_ERROR:
            raise SimplifyError(
                f"simplifying changed the {name} by {difference:.1e} of the largest, "
                f"allowed {LARGEST_RELATIVE_ERROR:.0e}; report the model"
            )
    return result


def with_scales_and_shifts(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every batch norm with constant parameters is a Mul and an Add, computed in double precision.

    The model itself if it has no batch norm. A narrower type would have to hold the variance, which may be beyond
    FP16's range where no activation is.
    """
    if not any(node.op_type == "BatchNormalization" for node in model.graph.node):
        return model
    inferred = onnx.shape_inference.infer_shapes(model)
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.input, *inferred.graph.value_info)
    }
    constants = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.node[:]
    for node in model.graph.node:
        is_constant = (
            node.op_type == "BatchNormalization"
            and len(node.output) == 1
            and all(name in constants for name in node.input[1:])
        )
        if is_constant and ranks.get(node.input[0], 0) > 1:
            _append_scale_and_shift(graph, node, ranks[node.input[0]], [constants[name] for name in node.input[1:]])
        else:
            graph.node.append(node)
    keep_initializers(graph, {name for node in graph.node for name in node.input})
    return result


def _append_scale_and_shift(
    graph: onnx.GraphProto, norm: onnx.NodeProto, rank: int, constants: Sequence[NDArray[np.float32]]
) -> None:
    """Append the Mul and the Add that compute a batch norm over axis 1 of `rank` axes.

    Args:
        constants: the batch norm's weight, bias, mean and variance, each (channels,).
    """
    weight, bias, mean, variance = (values.astype(np.float64) for values in constants)
    factor = weight / np.sqrt(
        variance + next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), DEFAULT_EPSILON)
    )
    names = {what: f"{norm.name}.{what}" for what in ("factor", "shift", "scaled")}
    for name, values in ((names["factor"], factor), (names["shift"], bias - mean * factor)):
        graph.initializer.append(
            numpy_helper.from_array(values.astype(np.float32).reshape(-1, *[1] * (rank - 2)), name)
        )
    graph.node.append(
        helper.make_node("Mul", [norm.input[0], names["factor"]], [names["scaled"]], name=f"{norm.name}.scale")
    )
    graph.node.append(helper.make_node("Add", [names["scaled"], names["shift"]], list(norm.output), name=norm.name))


@contextmanager
def _silence() -> Iterator[None]:
    """Silence the process's own stdout and stderr.

    Before it raises an error, onnxsim's C++ core writes the traceback to them, past `sys.stderr`.
    """
    with _ONE_AT_A_TIME, redirect_stderr(io.StringIO()), open(os.devnull, "wb") as nowhere, ExitStack() as kept:
        for number in (1, 2):
            with suppress(OSError):  # one that is closed
                before = os.dup(number)
                kept.callback(os.close, before)
                kept.callback(os.dup2, before, number)
                os.dup2(nowhere.fileno(), number)
        yield


def _is_same(one: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    """Whether nodes and weights are equal, so that running both graphs would tell nothing."""
    if list(one.graph.node) != list(other.graph.node):
        return False
    weights = {tensor.name: tensor for tensor in one.graph.initializer}
    return len(weights) == len(other.graph.initializer) and all(
        weights.get(tensor.name) == tensor for tensor in other.graph.initializer
    )


def _outputs(model: onnx.ModelProto, inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime:
        return runtime.run({runtime.inputs[0].name: inputs})
