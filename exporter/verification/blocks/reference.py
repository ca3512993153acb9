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
from exporter.graph.intake.wiring import drop_unused
from exporter.verification.blocks.program import outline_of_program, program_values
from runtimes.source_file import INPUT, SourceFileRuntime


class BlockReference(Protocol):
    """Says of which nodes a reference consists, and runs it for the values of some."""

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

    def outline(self) -> onnx.GraphProto:
        return outline_of_program(self.module.graph)

    def values(self, names: Collection[str], inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        return program_values(self.module, names, inputs)


@dataclass(frozen=True)
class FileBlocks:
    """The blocks of an ONNX file that was taken in."""

    taken: TakenFile

    def outline(self) -> onnx.GraphProto:
        model = onnx.load(self.taken.path)
        make_plain(model)
        graph = model.graph
        del graph.output[:]
        graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in self.taken.facts.outputs.values())
        drop_unused(graph)
        return graph

    def values(self, names: Collection[str], inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        facts = replace(self.taken.facts, outputs={name: name for name in names})
        with SourceFileRuntime.of(self.taken.path, facts, inputs.shape[1:]) as runtime:
            return runtime.run({INPUT: inputs})


def block_reference(origin: ExportedProgram | TakenFile) -> BlockReference:
    """What to hold the blocks against of a graph that was made from `origin`."""
    if isinstance(origin, TakenFile):
        return FileBlocks(origin)
    module = origin.module()
    assert isinstance(module, GraphModule)
    return ProgramBlocks(module)
