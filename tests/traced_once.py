"""torch.onnx takes seconds for a program: for one that it had before, a test run takes the graph that it gave then.

Programs are the same if all is the same that it reads of them: nodes with their places in the module, signature, sizes,
and each tensor's bytes. Processes share the graphs. Tests of the tracing itself call `onnx_from_program`, which stays as
it is, and exports in processes of their own, as `test_reproducible.py` compares them, know nothing of this.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

    from runtimes.specs import BatchRange

BUILD, FUNCTION = "exporter.graph.build", "onnx_from_program"


def trace_once(folder: Path) -> None:
    """Let exports in this process keep their graphs in `folder`, once the module that makes them was imported."""
    build = sys.modules.get(BUILD)
    made = getattr(build, FUNCTION, None)
    if made is not None and not hasattr(made, "kept_in"):
        setattr(build, FUNCTION, _kept(made, folder))


def _kept(make: Callable[..., onnx.ModelProto], folder: Path) -> Callable[..., onnx.ModelProto]:
    import onnx

    def kept(
        program: ExportedProgram, *, opset: int, batch: BatchRange, outputs: Sequence[str] = ("logits",)
    ) -> onnx.ModelProto:
        path = folder / f"{_digest(program, opset, batch, tuple(outputs))}.onnx"
        if not path.exists():
            made = make(program, opset=opset, batch=batch, outputs=outputs)
            partial = path.with_suffix(f".{os.getpid()}")
            onnx.save(made, partial)
            partial.rename(path)
        return onnx.load(path)

    kept.kept_in = folder  # type: ignore[attr-defined]  # how the next call knows it
    return kept


def _digest(program: ExportedProgram, *request: object) -> str:
    import torch

    digest = hashlib.sha256()
    places = [
        (node.op, node.name, str(node.target), node.args, node.kwargs, str(node.meta.get("nn_module_stack")))
        for node in program.graph.nodes
    ]
    values = [str(node.meta.get("val")) for node in program.graph.nodes if node.op == "placeholder"]
    digest.update(repr((request, places, values, program.graph_signature, program.range_constraints)).encode())
    for name, value in (*program.state_dict.items(), *program.constants.items()):
        digest.update(f"{name} {value.dtype} {value.shape} {value.stride()}".encode())
        digest.update(value.detach().flatten().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
