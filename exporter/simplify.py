"""Simplify a graph, and prove that it still computes the same."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from typing import Any

import numpy as np
import onnx
import onnxsim
from numpy.typing import NDArray

from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import SimplifyError

LARGEST_RELATIVE_ERROR = 1e-5
SIMPLIFY_IMAGES = 2
"""To run both graphs on."""
_ONE_AT_A_TIME = threading.Lock()
"""Of two threads the second would keep the first one's silence and restore it for good."""


def simplified(model: onnx.ModelProto, inputs: NDArray[Any]) -> onnx.ModelProto:
    """Constants folded, identities and duplicates removed by onnxsim; inputs are real ones, (images, channels, height, width).

    onnxsim's own check is off unless asked for and compares random inputs; this one runs both graphs in ONNX Runtime, unless they are equal.

    Raises:
        SimplifyError: onnxsim fails, or the outputs differ by more than 1e-5 of the largest.
    """
    try:
        with _silence():
            result: onnx.ModelProto = onnxsim.simplify(model)[0]
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
                f"simplifying changed the {name} by {difference:.1e} of the largest, allowed {LARGEST_RELATIVE_ERROR:.0e}; report the model"
            )
    return result


@contextmanager
def _silence() -> Iterator[None]:
    """onnxsim's C++ core writes the traceback of an error that it then raises to the process's own stdout and stderr, past `sys.stderr`."""
    with _ONE_AT_A_TIME, redirect_stderr(io.StringIO()), open(os.devnull, "wb") as nowhere, ExitStack() as kept:
        for number in (1, 2):
            with suppress(OSError):  # one that is closed
                before = os.dup(number)
                kept.callback(os.close, before)
                kept.callback(os.dup2, before, number)
                os.dup2(nowhere.fileno(), number)
        yield


def _is_same(one: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    """Are nodes and weights equal? Then there is nothing to compare by running."""
    if list(one.graph.node) != list(other.graph.node):
        return False
    weights = {tensor.name: tensor for tensor in one.graph.initializer}
    return len(weights) == len(other.graph.initializer) and all(weights.get(tensor.name) == tensor for tensor in other.graph.initializer)


def _outputs(model: onnx.ModelProto, inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime:
        return runtime.run({runtime.inputs[0].name: inputs})
