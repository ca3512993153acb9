"""Plug-ins: builders of engines, one file per library, named as its `--backend`; each satisfies `EngineBuilder`.

They import neither torch nor onnx, so that a device needs neither. What they share is in `_network.py` (the network and
its configuration).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from exporter.engines.layers import EngineLayer
    from runtimes.nvidia.engine_file import DeviceFacts
    from runtimes.nvidia.log import Recording
    from runtimes.progress import Progress
    from runtimes.specs import BatchRange, TensorSpec


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build. The precision is not among them: it is in the graph.

    Attributes:
        targets: compute capabilities, such as `sm86`; only TensorRT-RTX builds for others than this machine's.
        workspace_bytes: most scratch memory that a kernel may use; None is what `runtimes.board.memory` says of a
            Jetson of this size, elsewhere the library's own limit, or half of the free memory where GPU and CPU share
            it.
        optimization_level: the builder's, 0 (fast build) to 5; None is the library's default.
        version_compatible: newer versions of the same library can load the engine.
        hardware_compatible: `ampere-plus` or `same-compute-capability`; None is this GPU alone.
        strip_weights: leave the weights out; they are read from the bundle's ONNX file when the engine is loaded.
        dla_core: run on this DLA core, and on the GPU what DLA cannot run.
        timing_cache: measurements of an earlier build, or empty bytes; None neither reads nor writes any.
    """

    targets: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: str | None = None
    strip_weights: bool = False
    dla_core: int | None = None
    timing_cache: bytes | None = None


@dataclass(frozen=True)
class Job:
    """A bundle's graph (`onnx`, the bytes of `model.onnx`) and how to build it."""

    onnx: bytes
    precision: str
    inputs: tuple[TensorSpec, ...]
    batch: BatchRange
    options: BuildOptions


class BuildTargets(NamedTuple):
    """Where an engine will run.

    Attributes:
        names: compute capabilities, such as `sm86`.
        device: this machine's GPU; None for a builder that needs none.
    """

    names: tuple[str, ...]
    device: DeviceFacts | None


@dataclass(frozen=True)
class BuiltNetwork:
    """A serialized engine, and what the builder said of it.

    Attributes:
        plan: the serialized engine.
        convolutions: the graph's convolutions, by name.
        typing: `strong`, or `weak` where TensorRT 10 could not import the typed graph.
        typed_refusal: why it could not; empty for `strong`.
        order: the names of the graph's layers, in the graph's order.
        log: the builder's log.
        timing_cache: measurements to keep for the next build; None where none were asked for.
        left_in_float: in a graph with Q/DQ pairs, the convolutions that have none, which need not run in INT8.
    """

    plan: bytes
    convolutions: tuple[str, ...]
    typing: str
    typed_refusal: str
    order: tuple[str, ...]
    log: Recording
    timing_cache: bytes | None = field(default=None, repr=False)
    left_in_float: frozenset[str] = frozenset()


class EngineBuild(NamedTuple):
    """An engine, and its layers as the library lists them."""

    network: BuiltNetwork
    layers: list[EngineLayer]


class EngineBuilder(Protocol):
    """What a builder's file defines."""

    @property
    def VERSION(self) -> str:  # a constant of the file
        """The library's version."""

    def choose_targets(self, options: BuildOptions) -> BuildTargets:
        """The targets to build for, and this machine's GPU where the builder needs one.

        Raises:
            BackendUnavailable: there is no GPU or no driver.
            PlanError: the library does not have an option, or does not build for a target.
            UnknownName: there is no such target.
        """

    def build(self, job: Job, on_step: Progress) -> EngineBuild:
        """Build an engine and list its layers.

        Raises:
            BackendUnavailable: the device lacks what an option asks for.
            BuildError: the library refuses the graph, or cannot build or load the engine.
            PlanError: the job's options do not go together.
        """
