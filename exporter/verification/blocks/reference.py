"""What a graph's blocks are held against: the FP32 program, or the file that the graph was made from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.fx import GraphModule

from exporter.graph.intake.plain import make_plain
from exporter.graph.intake.take import TakenFile
from exporter.graph.intake.wiring import drop_unused, remove_nodes, rename_tensor
from exporter.lowering.qdq.view import DEQUANTIZE, QUANTIZE
from exporter.lowering.requantize.mend import with_pairs
from exporter.verification.blocks.program import outline_of_program, program_values
from runtimes.source_runtime import INPUT, SourceFileRuntime


class BlockReference(Protocol):
    """Says of which nodes a reference consists, and runs it for the values of some."""

    @property
    def ends_alike(self) -> bool:
        """Its blocks end with the operators that the graph's end with."""

    def outline(self) -> onnx.GraphProto:
        """Its nodes as an ONNX graph, enough to find its blocks."""

    def values(self, names: Collection[str], inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The values of these of its tensors, float32, by name.

        Args:
            inputs: float32 (images, channels, height, width).
        """


@dataclass(frozen=True)
class ProgramBlocks:
    """The blocks of an FP32 program of PyTorch."""

    module: GraphModule

    @property
    def ends_alike(self) -> bool:
        return True

    def outline(self) -> onnx.GraphProto:
        return outline_of_program(self.module.graph)

    def values(self, names: Collection[str], inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        return program_values(self.module, names, inputs)


@dataclass(frozen=True)
class FileBlocks:
    """The blocks of an ONNX file that was taken in.

    Of a file that is quantized, a block ends where its pair has rounded: there the file's values are.
    """

    taken: TakenFile

    @property
    def ends_alike(self) -> bool:
        return not self.taken.facts.keeps_scales

    def outline(self) -> onnx.GraphProto:
        model = self._model()
        make_plain(model)
        graph = model.graph
        del graph.output[:]
        graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in self.taken.facts.outputs.values())
        if self.taken.facts.keeps_scales:
            _take_pairs_off(graph)
        drop_unused(graph)
        return graph

    def values(self, names: Collection[str], inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        facts = replace(self.taken.facts, outputs={name: name for name in names})
        # operators on integers have no tensors that hold their values in float
        file = self._model().SerializeToString() if self.taken.facts.keeps_scales else self.taken.path
        with SourceFileRuntime.of(file, facts, inputs.shape[1:]) as runtime:
            return runtime.run({INPUT: inputs})

    def _model(self) -> onnx.ModelProto:
        model = onnx.load(self.taken.path)
        return with_pairs(model) if self.taken.facts.keeps_scales else model


def _take_pairs_off(graph: onnx.GraphProto) -> None:
    """Take the Q/DQ pairs of activations off, in place; a tensor is called after what its pair makes of it, so that a
    block's end is where it is rounded."""
    fixed = {value.name for value in (*graph.input, *graph.output)}
    quantized = {node.output[0]: node for node in graph.node if node.op_type == QUANTIZE}
    pairs = [node for node in graph.node if node.op_type == DEQUANTIZE and node.input[0] in quantized]
    for node in pairs:
        source, rounded = quantized[node.input[0]].input[0], node.output[0]
        node.output[0] = ""
        if source in fixed:
            rename_tensor(graph, rounded, source)
        else:
            rename_tensor(graph, source, rounded)
    remove_nodes(graph, [*pairs, *quantized.values()])


def block_reference(origin: ExportedProgram | TakenFile) -> BlockReference:
    """What to hold the blocks against of a graph that was made from `origin`."""
    if isinstance(origin, TakenFile):
        return FileBlocks(origin)
    module = origin.module()
    assert isinstance(module, GraphModule)
    return ProgramBlocks(module)
