"""Run an engine on the GPU: what the backends TensorRT and TensorRT-RTX share.

Follows NVIDIA's samples (python/common_runtime.py) and the notes of NvInferRuntime.h.

Threads that share an instance take turns. `sibling()` makes one for another thread, which shares the engine, as many
threads may, but has its own contexts, stream and buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from runtimes.base import Runtime
from runtimes.bundle import Bundle
from runtimes.errors import BackendUnavailable
from runtimes.forks import check_own_import
from runtimes.nvidia.cuda import (
    DeviceBuffer,
    Event,
    Graph,
    PinnedBuffer,
    Stream,
    copy_on_device,
    copy_to_device,
    copy_to_host,
    device,
)
from runtimes.nvidia.cuda_call import CudaError
from runtimes.nvidia.dlpack import DeviceArray, DeviceTensor, tensor_from_dlpack
from runtimes.nvidia.engine_choice import Here, engine_for
from runtimes.nvidia.lane import Lane, is_same
from runtimes.nvidia.loading import LoadedEngine, load_engine
from runtimes.nvidia.log import log_of
from runtimes.nvidia.prepared import prepared_call
from runtimes.nvidia.shapes import Shapes, batch_range, check_sizes, engine_specs, largest_shape, placeholder, rows_of
from runtimes.preprocess import takes_any_size
from runtimes.specs import BatchRange, check_feeds
from runtimes.tuning import DEFAULT_TUNING, Tuning

if TYPE_CHECKING:
    import tensorrt as trt
    from typing_extensions import Self  # typing has it from Python 3.11 on; JetPack 6 has 3.10

MOST_GRAPHS = 3
"""How many batch sizes get a CUDA graph. Each has its own execution context, with scratch memory for the largest
batch."""


class EngineRuntime(Runtime):
    """An engine with its own stream and with buffers that are allocated once, for the largest batch.

    Host arrays are copied by way of pinned memory. For each of the first few batch sizes, the copies and the engine's
    kernels are captured as one CUDA graph after a plain run, and the graph is kept only if its first replay gives the
    same outputs; `graph_problem` says why there is none. There is none for pictures of any size.
    """

    FILE = "engines"
    BACKEND: ClassVar[str]
    API: ClassVar[Any]
    CAPTURES: ClassVar[bool] = True
    """Does this class capture CUDA graphs? Not if the library does so itself."""

    def __init__(self, model: LoadedEngine) -> None:
        engine = model.engine
        inputs, outputs = engine_specs(self.API, engine), engine_specs(self.API, engine, outputs=True)
        super().__init__(inputs, outputs, batch_range(engine, inputs[0].name))
        self._loaded = model
        self._largest = {spec.name: largest_shape(engine, spec.name) for spec in inputs}
        free = any(takes_any_size(spec) for spec in inputs)
        self.graph_problem = "pictures come in any size, and a graph is of one" if free else None
        self._graphs: dict[int, Lane] = {}
        self._held: tuple[Event, object] | None = None
        with ExitStack() as owned:
            self._stream = owned.enter_context(Stream())
            largest = self._shapes(self._most, self._largest)
            self._plain = self._lane(largest)
            self._device = {
                name: owned.enter_context(DeviceBuffer(self._bytes(name, shape))) for name, shape in largest.items()
            }
            self._pinned = {
                name: owned.enter_context(PinnedBuffer(self._bytes(name, shape))) for name, shape in largest.items()
            }
            self._plain.bind(self._device)
            self._owned = owned.pop_all()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        provider: str | None = None,
        batch: BatchRange | None = None,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> Self:
        """Load the engine at `path`, if this machine built it, for this library and GPU, and its sidecar has its
        sha256.

        The batch range is the engine's own; `batch` and `tuning` are ignored.

        Raises:
            BackendUnavailable: no driver, or an engine for another library, version, platform or GPU.
            BundleError, BadInput: changed since it was built, built elsewhere, without a sidecar, or no engine.
        """
        return cls.open_model(path, provider=provider)

    @classmethod
    def open_model(
        cls,
        model: Path | Bundle,
        *,
        provider: str | None = None,
        trusted: Collection[str] = (),
        tuning: Tuning = DEFAULT_TUNING,
    ) -> Self:
        if provider not in (None, "cuda"):
            raise BackendUnavailable(
                f"{cls.BACKEND} runs on an NVIDIA GPU alone, got provider '{provider}'; leave --provider out"
            )
        check_own_import(cls.API.__name__)
        if isinstance(model, Path):
            return cls(load_engine(cls.API, model, cls.here, trusted))
        cls.check_bundle(model.manifest, provider)
        return cls(load_engine(cls.API, cls.file_of(model, trusted), cls.here, trusted))

    @classmethod
    def file_of(cls, bundle: Bundle, trusted: Collection[str] = ()) -> Path:
        return engine_for(bundle, cls.here(), trusted)

    @classmethod
    def check_here(cls) -> None:
        device()

    @classmethod
    def here(cls) -> Here:
        """This library, its version, and the GPU that it would run on."""
        return Here(cls.BACKEND, cls.API.__version__, device().target)

    def _sibling(self) -> Self:
        return type(self)(self._loaded)

    @property
    def provider(self) -> str:
        return "cuda"

    def _context(self) -> trt.IExecutionContext | None:
        return self._loaded.engine.create_execution_context()

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        rows = len(next(iter(feeds.values())))
        shapes = self._shapes(rows, {name: array.shape for name, array in feeds.items()})
        for name, array in feeds.items():
            self._pinned[name].view(array.dtype, array.shape)[...] = array
        lane = self._graphs.get(rows)
        if lane is not None and lane.graph is not None:
            lane.graph.launch(self._stream)
            return self._answers(rows)
        self._plain.set_shapes(shapes)
        self._enqueue(self._plain)
        answers = self._answers(rows)
        if self.CAPTURES and self.graph_problem is None and len(self._graphs) < MOST_GRAPHS:
            self._capture(shapes, answers)
        return answers

    def _prepared(self, feeds: dict[str, NDArray[Any]]) -> Callable[[], None]:
        rows = len(next(iter(feeds.values())))
        shapes = self._shapes(rows, {name: array.shape for name, array in feeds.items()})
        sizes = {name: self._bytes(name, shape) for name, shape in shapes.items()}
        graph = self.CAPTURES and self.graph_problem is None
        return prepared_call(self._lane(shapes), self._stream, feeds, sizes, self._owned, graph=graph)

    def run_on_device(self, feeds: Mapping[str, object]) -> dict[str, DeviceArray]:
        """As `run`, for arrays on the GPU, exchanged by DLPack: nothing is copied to the CPU, and nothing waits for the
        work.

        The engine starts after the work that each input's producer has queued, and a consumer's stream waits for the
        output when it imports it (`torch.from_dlpack(output)`). Inputs are kept until they have been read; outputs
        belong to the caller, and are freed with their last user.

        Raises:
            BadInput: names, dtypes or shapes are not the model's, or not DLPack's.
            ValueError: the runtime is closed.
        """
        self._check_usable()
        return self._turns.take(lambda: self._run_on_device(feeds))

    def _run_on_device(self, feeds: Mapping[str, object]) -> dict[str, DeviceArray]:
        self._release_inputs()
        tensors = {name: tensor_from_dlpack(array, self._stream.handle) for name, array in feeds.items()}
        count = check_feeds(self._fed, {name: placeholder(tensor) for name, tensor in tensors.items()})
        shapes = self._shapes(count, {name: tensor.shape for name, tensor in tensors.items()})
        with ExitStack() as owned:
            answers = {
                spec.name: owned.enter_context(DeviceBuffer(self._bytes(spec.name, shapes[spec.name])))
                for spec in self.outputs
            }
            owned.callback(self._stream.synchronize)  # before the answers' memory is given back, where something fails
            assert self.batch is not None
            for start, stop in self.batch.chunks(count):
                self._run_between(tensors, answers, start, stop)
            self._held = (self._stream.record(), tensors)
            ready = {name: owned.enter_context(self._stream.record()) for name in answers}
            owned.pop_all()
        return {
            spec.name: DeviceArray(answers[spec.name], shapes[spec.name], spec.dtype, ready=ready[spec.name])
            for spec in self.outputs
        }

    def _run_between(
        self, tensors: Mapping[str, DeviceTensor], answers: Mapping[str, DeviceBuffer], start: int, stop: int
    ) -> None:
        """Queue rows `start` to `stop`. A batch below the range is run as the smallest, filled up with whatever is in
        the buffer."""
        assert self.batch is not None
        rows = stop - start
        shapes = self._shapes(max(rows, self.batch.min), {name: tensor.shape for name, tensor in tensors.items()})
        row = {name: self._bytes(name, shape[1:]) for name, shape in shapes.items()}
        for name, tensor in tensors.items():
            copy = copy_on_device if tensor.on_device else copy_to_device
            copy(self._device[name].pointer, tensor.pointer + start * row[name], rows * row[name], self._stream)
        self._plain.set_shapes(shapes)
        self._plain.execute(self._stream)
        for name, answer in answers.items():
            copy_on_device(
                answer.pointer + start * row[name], self._device[name].pointer, rows * row[name], self._stream
            )

    def _release_inputs(self) -> None:
        """Release the last device call's inputs, once they have been read."""
        if self._held is not None:
            event, _ = self._held
            event.synchronize()
            self._held = None
            event.close()

    def _enqueue(self, lane: Lane) -> None:
        """Queue the copies in, the engine and the copies out. All memory is this instance's, so it outlives the queued
        work."""
        sizes = {name: self._bytes(name, shape) for name, shape in lane.shapes.items()}
        for spec in self.inputs:
            copy_to_device(
                self._device[spec.name].pointer, self._pinned[spec.name].pointer, sizes[spec.name], self._stream
            )
        lane.execute(self._stream)
        for spec in self.outputs:
            copy_to_host(
                self._pinned[spec.name].pointer, self._device[spec.name].pointer, sizes[spec.name], self._stream
            )

    def _answers(self, rows: int) -> dict[str, NDArray[Any]]:
        """Wait for the work, and copy the outputs out of the pinned memory, which the next call overwrites."""
        self._stream.synchronize()
        return {
            spec.name: self._pinned[spec.name].view(spec.dtype, (rows, *map(int, spec.shape[1:]))).copy()
            for spec in self.outputs
        }

    def _capture(self, shapes: Shapes, expected: dict[str, NDArray[Any]]) -> None:
        """Capture the work of a batch size after its plain run, in a context that no other size uses, and replay it
        once."""
        lane, rows = None, rows_of(shapes)
        try:
            lane = self._lane(shapes)
            lane.bind(self._device)
            self._enqueue(lane)  # once after every change of shapes: what TensorRT does then cannot be captured
            self._stream.synchronize()
            lane.graph = Graph.capture(self._stream, lambda: self._enqueue(lane))
            lane.graph.launch(self._stream)
            replayed = self._answers(rows)
        except (CudaError, BackendUnavailable) as error:
            self._drop_graph(lane, str(error))
            return
        for name, array in expected.items():
            if not is_same(replayed[name], array):
                self._drop_graph(lane, f"the replay for a batch of {rows} gave another '{name}' than the plain run")
                return
        self._graphs[rows] = lane

    def _drop_graph(self, lane: Lane | None, problem: str) -> None:
        self.graph_problem = problem
        if lane is not None:
            lane.drop_graph(self._stream)

    def _lane(self, shapes: Shapes) -> Lane:
        with log_of(self.API).recording() as recording:
            context = self._context()
            if context is None:
                raise BackendUnavailable(
                    f"TensorRT cannot make an execution context for {self._loaded.path}: {recording.own_reason}"
                )
        lane = Lane(self.API, context, self.inputs, self.batch)
        lane.set_shapes(shapes)
        return lane

    def _close(self) -> None:
        self._release_inputs()
        self._stream.synchronize()
        for lane in self._graphs.values():
            lane.close()
        self._graphs.clear()
        del self._plain
        self._owned.close()
        del self._loaded

    @property
    def _most(self) -> int:
        assert self.batch is not None
        return self.batch.max

    def _shapes(self, rows: int, fed: Mapping[str, Sequence[int]]) -> Shapes:
        """All tensors' shapes for `rows` rows of inputs of the shapes `fed`; raises BadInput if a picture is too large
        for the engine."""
        check_sizes(fed, self._largest)
        outputs = {spec.name: (rows, *(int(size) for size in spec.shape[1:])) for spec in self.outputs}
        return {**{name: (rows, *shape[1:]) for name, shape in fed.items()}, **outputs}

    def _bytes(self, name: str, shape: Sequence[int]) -> int:
        spec = next(spec for spec in (*self.inputs, *self.outputs) if spec.name == name)
        return int(np.dtype(spec.dtype).itemsize * np.prod(shape, dtype=np.int64))
