"""A stand-in for `tensorrt`, over the stand-in for CUDA: a checker of contracts, not a claim that TensorRT ran.

Its plans are a real plan's first 28 bytes, what was asked of the builder, and the ONNX file, which onnxruntime runs on
the CPU once the stream is synchronised, on the memory that was bound when the work was queued. What TensorRT answers
with None or False and a line in the log, it answers so, with NVIDIA's words where they are known; what TensorRT leaves
undefined is an AssertionError. Parsing and building are TensorRT-RTX's own, of whose outcome only the fact that there
is one is used.
"""

from __future__ import annotations

import functools
import itertools
import json
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tensorrt_rtx
from numpy.typing import NDArray
from standin_cuda import LEGACY_STREAM, PER_THREAD_STREAM, Region, StandinCuda

from runtimes.nvidia.log import log_of

real: Any = tensorrt_rtx
Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
Distortion = Callable[[NDArray[Any], bool], NDArray[Any]]
"""What an engine that is wrong answers in place of an output; told whether a graph's replay asks."""
ERROR = real.ILogger.Severity.ERROR
HEADER = struct.Struct("<4sIQQ4B")
SHARED = (
    *(
        "BuilderFlag",
        "DataType",
        "DeviceType",
        "HardwareCompatibilityLevel",
        "LayerInformationFormat",
        "LayerType",
        "MemoryPoolType",
    ),
    *("NetworkDefinitionCreationFlag", "ProfilingVerbosity", "TensorIOMode", "nptype", "IProgressMonitor"),
)
"""Names that are TensorRT-RTX's own here: they mean the same in both."""
TYPES = {
    onnx.TensorProto.FLOAT: (real.DataType.FLOAT, "FP32"),
    onnx.TensorProto.FLOAT16: (real.DataType.HALF, "FP16"),
    onnx.TensorProto.BFLOAT16: (real.DataType.BF16, "BF16"),
    onnx.TensorProto.INT8: (real.DataType.INT8, "Int8"),
    onnx.TensorProto.UINT8: (real.DataType.UINT8, "UInt8"),
}
ANOTHER_VERSION = (
    "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is not compatible with this version of TensorRT, "
    "expecting library version {} got .., please rebuild.)"
)
ANOTHER_DEVICE = (
    "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is generated on an incompatible device, "
    "expecting compute {} got compute {}, please rebuild.)"
)
FOREIGN = (
    "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed. "
    "Trying to load an engine created with incompatible serialization version.)"
)
TRUNCATED = (
    "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Assertion bufferSize >= minBufferSize failed.)"
)
EMPTY = (
    "IRuntime::deserializeCudaEngine: Error Code 3: API Usage Error (Cannot deserialize with an empty memory buffer.)"
)
NOT_CAPTURABLE = "The CUDA stream is in capturing mode, but this TRT engine is not stream capturable."


class ILogger:
    """The base of loggers; the library keeps the first."""

    Severity = real.ILogger.Severity

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class StandinTensorRT(ModuleType):
    """The module, one for each test: `runtimes` takes it as `API`; `import tensorrt`, inside `imported_as_tensorrt`.

    Attributes:
        calls: how often each method was called that does something.
        compiled: kernels that were not in the runtime cache (TensorRT-RTX).
        dla_cores: how many this device has.
        distort: makes every engine answer otherwise.
        runs_as: what the inspector says some convolutions read, by node.
        off_dla: operators and nodes that run on the GPU when DLA is asked for.
    """

    def __init__(self, cuda: StandinCuda, version: str = "11.4.0.106", *, tag: bytes = b"ftrt") -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.cuda, self.tag = cuda, tag
        self.calls: Counter[str] = Counter()
        self.compiled: Counter[int] = Counter()
        self.dla_cores = 0
        self.distort: Distortion | None = None
        self.runs_as: dict[str, str] = {}
        self.off_dla = {"Cast", "GlobalAveragePool", "Flatten"}
        self.ILogger = ILogger
        self.last_config: BuilderConfig | None = None
        self._logger: ILogger | None = None
        self._failures: dict[str, tuple[int, list[str]]] = {}
        for name in SHARED:
            setattr(self, name, getattr(real, name))
        if self.major == 10:
            flags = {**real.BuilderFlag.__members__, "FP16": "FP16", "BF16": "BF16", "INT8": "INT8"}
            self.BuilderFlag = SimpleNamespace(**flags)
        for kind in (Runtime, Builder, OnnxParser, Refitter, OnnxParserRefitter):
            setattr(self, kind.__name__, functools.partial(kind, self))

    @property
    def major(self) -> int:
        return int(self.__version__.split(".")[0])

    @property
    def compute(self) -> str:
        """`8.7`"""
        return "{}.{}".format(*list(self.cuda.attributes.values())[:2])

    def fail(self, call: str, *reasons: str, after: int = 0) -> None:
        """This method fails the next time, or `after` so many, in its own way and with a reason in the log."""
        self._failures[call] = (after, [*reasons])

    def called(self, call: str) -> bool:
        """Count a call; False where it is to fail."""
        self.calls[call] += 1
        left, reasons = self._failures.get(call, (-1, []))
        if left == 0 and reasons:
            return self.refused(reasons.pop(0))
        if left > 0:
            self._failures[call] = (left - 1, reasons)
        return True

    def refused(self, reason: str) -> bool:
        assert self._logger is not None
        self._logger.log(ERROR, reason)
        return False

    def register(self, logger: ILogger) -> None:
        assert isinstance(logger, ILogger), "a logger of another library"
        assert self._logger in (None, logger), "a second logger: TensorRT ignores it"
        self._logger = logger

    def say(self, severity: int, message: str) -> None:
        assert self._logger is not None
        self._logger.log(severity, message)

    def plan(self, model: bytes, profile: Profile, **asked: object) -> bytes:
        """A plan, as built on this device. `asked`: `stripped`, `version_compatible`, `detailed`; False by default."""
        about = json.dumps({"profile": profile, "compute": self.compute, **asked}).encode()
        body = struct.pack("<I", len(about)) + about + (_without_weights(model) if asked.get("stripped") else model)
        version = (int(part) for part in self.__version__.split("."))
        return HEADER.pack(self.tag, 0, HEADER.size + len(body), 0, *version) + body


@contextmanager
def imported_as_tensorrt(api: StandinTensorRT) -> Iterator[None]:
    """`import tensorrt` gives the stand-in, and the plug-ins for TensorRT are there, until the block ends."""
    plugins = ("runtimes.backends.tensorrt", "exporter.engines.builders.tensorrt")
    names = ("tensorrt", *plugins)
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules["tensorrt"] = api
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        for package in ("runtimes.backends", "exporter.engines.builders"):
            vars(sys.modules.get(package, api)).pop("tensorrt", None)
        sys.modules.update(before)


# --- running ---


class Runtime:
    def __init__(self, api: StandinTensorRT, logger: ILogger) -> None:
        api.register(logger)
        self.api = api
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        api = self.api
        if not api.called("deserialize_cuda_engine"):
            return None
        problem = self._problem(data)
        if problem:
            api.refused(problem)
            return None
        about, model = _content(data)
        if about.get("version_compatible") and not self.engine_host_code_allowed:
            api.refused(
                "IRuntime::deserializeCudaEngine: Error Code 3: API Usage Error (the plan holds host code, which is not allowed here)"
            )
            return None
        return Engine(api, about, model)

    def _problem(self, data: bytes) -> str | None:
        if not data:
            return EMPTY
        if data[:4] != self.api.tag:
            return FOREIGN
        if len(data) < HEADER.size or len(data) < HEADER.unpack_from(data)[2]:
            return TRUNCATED
        about, _ = _content(data)
        version = ".".join(map(str, HEADER.unpack_from(data)[4:]))
        if version != self.api.__version__ and not about.get("version_compatible"):
            return ANOTHER_VERSION.format(self.api.__version__)
        if about["compute"] != self.api.compute:
            return ANOTHER_DEVICE.format(self.api.compute, about["compute"])
        return None


class Engine:
    """Used by many threads at once."""

    def __init__(self, api: StandinTensorRT, about: dict[str, Any], model: bytes) -> None:
        self.api, self.about = api, about
        graph = onnx.load_model_from_string(model).graph
        self._values: dict[str, Any] = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output)}
        self._names = [*self._values]
        self._inputs = {value.name for value in graph.input}
        self.profile: Profile = about["profile"]
        self.load(model)

    def load(self, model: bytes) -> None:
        """Take the weights from this ONNX file."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self.model = model
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    def get_tensor_name(self, place: int) -> str:
        return self._names[place]

    def get_tensor_mode(self, name: str) -> Any:
        return (
            (real.TensorIOMode.INPUT if name in self._inputs else real.TensorIOMode.OUTPUT)
            if name in self._names
            else real.TensorIOMode.NONE
        )

    def get_tensor_dtype(self, name: str) -> Any:
        return TYPES[self._values[name].elem_type][0]

    def get_tensor_shape(self, name: str) -> Shape:
        return tuple(size.dim_value if size.HasField("dim_value") else -1 for size in self._values[name].shape.dim)

    def get_tensor_profile_shape(self, name: str, place: int) -> list[Shape]:
        assert place == 0, "there is one profile"
        assert name in self._inputs, "only inputs have a range"
        return [tuple(shape) for shape in self.profile[name]]

    def create_runtime_config(self) -> RuntimeConfig:
        assert self.api.tag == b"vtrt" or self.api.major > 10, "TensorRT 10.3 has no runtime configurations"
        return RuntimeConfig(self.api)

    def create_execution_context(self, config: RuntimeConfig | None = None) -> ExecutionContext | None:
        return ExecutionContext(self, config) if self.api.called("create_execution_context") else None

    def create_engine_inspector(self) -> SimpleNamespace:
        return SimpleNamespace(get_engine_information=lambda style: _information(self))


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """A context is used by one thread at a time."""

    @functools.wraps(function)
    def call(self: ExecutionContext, *arguments: Any) -> Any:
        assert self.busy.acquire(blocking=False), (
            f"{function.__name__} while another thread uses the same execution context"
        )
        try:
            return function(self, *arguments)
        finally:
            self.busy.release()

    return call


class ExecutionContext:
    """Shapes and addresses of one user of an engine, and scratch memory for work in one stream at a time."""

    def __init__(self, engine: Engine, config: RuntimeConfig | None) -> None:
        self.engine, self.config, self.api = engine, config, engine.api
        self.busy = threading.Lock()
        static = {name: engine.get_tensor_shape(name) for name in engine.profile}
        self.shapes = {name: shape for name, shape in static.items() if -1 not in shape}
        self.addresses: dict[str, int] = {}
        self.reshaped = True
        self.queued: list[int] = []

    @_alone
    def set_input_shape(self, name: str, shape: Shape) -> bool:
        if not self.api.called("set_input_shape"):
            return False
        if name not in self.engine.profile:
            return self.api.refused(
                f"IExecutionContext::setInputShape: Error Code 3: API Usage Error (Given invalid tensor name: {name}.)"
            )
        least, _, most = self.engine.get_tensor_profile_shape(name, 0)
        fits = len(shape) == len(least) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )
        if not fits:
            return self.api.refused(
                f"IExecutionContext::setInputShape: Error Code 3: API Usage Error (Set dimension {list(shape)} for tensor {name} does not satisfy "
                f"any optimization profiles. Valid range for profile 0: {list(least)}..{list(most)}.)"
            )
        self.reshaped |= self.shapes.get(name) != tuple(shape)
        self.shapes[name] = tuple(shape)
        return True

    @_alone
    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.profile if name not in self.shapes or not self.api.called("infer_shapes")]

    def get_tensor_shape(self, name: str) -> Shape:
        rows = next(iter(self.shapes.values()))[0]
        return self.shapes.get(name) or tuple(
            rows if size == -1 else size for size in self.engine.get_tensor_shape(name)
        )

    @_alone
    def set_tensor_address(self, name: str, pointer: int) -> bool:
        if not self.api.called("set_tensor_address"):
            return False
        assert pointer % 256 == 0, f"{name} lies at {pointer:#x}, which is not aligned to 256 bytes"
        self.addresses[name] = pointer
        return name in self.engine._names or self.api.refused(f"Given invalid tensor name: {name}.")

    @_alone
    def execute_async_v3(self, stream_handle: int) -> bool:
        api = self.api
        if not api.called("execute_async_v3"):
            return False
        assert stream_handle not in (0, LEGACY_STREAM, PER_THREAD_STREAM), (
            "work in the default stream, for which TensorRT synchronises the device"
        )
        names = [self.engine.get_tensor_name(place) for place in range(self.engine.num_io_tensors)]
        unknown = [name for name in names if name not in self.addresses] + [
            name for name in self.engine.profile if name not in self.shapes
        ]
        if unknown:
            return api.refused(
                f"IExecutionContext::enqueueV3: Error Code 3: API Usage Error (no address or shape is set for {', '.join(unknown)})"
            )
        captures = api.cuda._stream(stream_handle, "execute_async_v3").captured is not None
        if captures and self.reshaped:
            return api.refused(NOT_CAPTURABLE)
        assert all(handle == stream_handle for handle in self.queued), "one execution context in two streams at once"
        self.reshaped = False
        regions: dict[str, Region] = {name: (self.addresses[name], self._bytes(name)) for name in names}
        reads = [regions[name] for name in names if name in self.engine.profile]
        writes = [regions[name] for name in names if name not in self.engine.profile]
        api.cuda.enqueue(stream_handle, self._kernel(stream_handle, replayed=captures), reads=reads, writes=writes)
        return True

    def _bytes(self, name: str) -> int:
        return int(
            np.dtype(real.nptype(self.engine.get_tensor_dtype(name))).itemsize * np.prod(self.get_tensor_shape(name))
        )

    def _kernel(self, stream_handle: int, *, replayed: bool) -> Callable[[], None]:
        engine, api = self.engine, self.api
        places = {name: (self.addresses[name], self.get_tensor_shape(name)) for name in engine._names}
        if self.config is not None:
            api.compiled.update(self.config.compile(places[engine._names[0]][1][0]))
        if not replayed:
            self.queued.append(stream_handle)

        def view(name: str) -> NDArray[Any]:
            pointer, shape = places[name]
            return api.cuda.view(pointer, real.nptype(engine.get_tensor_dtype(name)), shape)

        def work() -> None:
            if not replayed:
                self.queued.remove(stream_handle)
            outputs = [name for name in engine._names if name not in engine.profile]
            for name, answer in zip(
                outputs, engine.session.run(outputs, {name: view(name) for name in engine.profile}), strict=True
            ):
                view(name)[...] = answer if api.distort is None else api.distort(answer, replayed)

        return work


class RuntimeConfig:
    """TensorRT-RTX's: kernels are compiled when a context first meets a batch size, and kept in the cache."""

    def __init__(self, api: StandinTensorRT) -> None:
        self.api = api
        self.dynamic_shapes_kernel_specialization_strategy = real.DynamicShapesKernelSpecializationStrategy.LAZY
        self.cuda_graph_strategy = real.CudaGraphStrategy.DISABLED
        self.cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.api)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True

    def compile(self, rows: int) -> list[int]:
        """What had to be compiled."""
        kernels = self.cache.kernels if self.cache else set()
        found = rows in kernels
        kernels.add(rows)
        return [] if found else [rows]


class RuntimeCache:
    def __init__(self, api: StandinTensorRT) -> None:
        self.api = api
        self.kernels: set[int] = set()

    def serialize(self) -> memoryview:
        return memoryview(json.dumps([self.api.__version__, sorted(self.kernels)]).encode())

    def deserialize(self, blob: bytes) -> bool:
        try:
            version, kernels = json.loads(blob)
        except ValueError:
            return self.api.refused("IRuntimeCache::deserialize: Error Code 3: API Usage Error (invalid cache)")
        if version == self.api.__version__:
            self.kernels |= set(kernels)
        return bool(version == self.api.__version__)


# --- weights taken in after loading ---


class Refitter:
    def __init__(self, api: StandinTensorRT, engine: Engine, logger: ILogger) -> None:
        api.register(logger)
        self.api, self.engine = api, engine
        self.model: bytes | None = None

    def refit_cuda_engine(self) -> bool:
        if not self.api.called("refit_cuda_engine") or self.model is None:
            return False
        self.engine.load(self.model)
        return True


class OnnxParserRefitter:
    def __init__(self, api: StandinTensorRT, refitter: Refitter, logger: ILogger) -> None:
        api.register(logger)
        self.api, self.refitter = api, refitter

    def refit_from_bytes(self, data: bytes) -> bool:
        model = onnx.load_model_from_string(data)
        if _weights(model) != _weights(onnx.load_model_from_string(self.refitter.engine.model)):
            return self.api.refused("Refitter was unable to find all the weights of the engine.")
        self.refitter.model = model.SerializeToString()
        return True


def _weights(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def _without_weights(model: bytes) -> bytes:
    """All zero, which is as large here, and not what the model computes."""
    graph = onnx.load_model_from_string(model)
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(onnx.numpy_helper.to_array(tensor)), tensor.name))
    return bytes(graph.SerializeToString())


def _content(plan: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack_from("<I", plan, HEADER.size)
    start = HEADER.size + 4
    return json.loads(plan[start : start + size]), plan[start + size : HEADER.unpack_from(plan)[2]]


# --- the inspector ---


def _information(engine: Engine) -> str:
    """What each convolution reads, in the words of TensorRT 10 or 11."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(engine.model)).graph
    producers = {name: node for node in graph.node for name in node.output}
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    layers: list[object] = []
    if engine.about.get("dla"):
        layers = list(_stretches(engine.api, graph))
    for node in () if layers else graph.node:
        producer = producers.get(node.input[0]) if node.op_type == "Conv" else None
        if node.op_type != "Conv":
            continue
        read = (
            "Int8"
            if producer is not None and producer.op_type == "DequantizeLinear"
            else TYPES[types[node.input[0]]][1]
        )
        word = engine.api.runs_as.get(node.name, read)
        layers.append(
            {
                "Name": node.name,
                "LayerType": "CaskConvolution",
                "Inputs": [_tensor(node.input[0], word, engine.api.major)],
                "Outputs": [],
            }
        )
    return json.dumps({"Layers": layers if engine.about.get("detailed") else [node.name for node in graph.node]})


def _stretches(api: StandinTensorRT, graph: Any) -> Iterator[object]:
    """What runs on DLA, by the first and the last node of each stretch, and what runs on the GPU, node by node."""

    def layer(name: str, kind: str, node: Any) -> object:
        return {"Name": name, "LayerType": kind, "Inputs": [_tensor(node.input[0], "FP16", api.major)], "Outputs": []}

    for on_gpu, nodes in itertools.groupby(graph.node, lambda node: bool({node.op_type, node.name} & api.off_dla)):
        several = list(nodes)
        if on_gpu:
            yield from (
                layer(node.name, "CaskConvolution" if node.op_type == "Conv" else "Kgen", node) for node in several
            )
        else:
            ends = dict.fromkeys((several[0].name, several[-1].name))
            yield layer(f"{{ForeignNode[{'...'.join(ends)}]}}", "DLA", several[0])


def _tensor(name: str, word: str, major: int) -> dict[str, str]:
    if major == 10:
        words = (
            "Thirty-two wide channel vectorized row major Int8 format" if word == "Int8" else f"Row major {word} format"
        )
        return {"Name": name, "Format/Datatype": words}
    return {"Name": name, "Format": "Row major linear", "Datatype": word}


# --- building ---


class Builder:
    """Parses and builds with TensorRT-RTX, and then writes a plan of the stand-in's."""

    def __init__(self, api: StandinTensorRT, logger: ILogger) -> None:
        api.register(logger)
        self.api = api
        self.real = real.Builder(log_of(real).logger)

    @property
    def num_DLA_cores(self) -> int:
        return self.api.dla_cores

    def create_network(self, flags: int) -> Network:
        return Network(
            self.real.create_network(1 << int(real.NetworkDefinitionCreationFlag.STRONGLY_TYPED)), flags != 0
        )

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig(self.api)

    def create_optimization_profile(self) -> Any:
        return self.real.create_optimization_profile()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> memoryview | None:
        api = self.api
        if not api.called("build_serialized_network"):
            return None
        api.last_config = config
        theirs: Any = self.real.create_builder_config()
        theirs.num_compute_capabilities = 1
        theirs.set_compute_capability(real.ComputeCapability.SM86, 0)
        theirs.progress_monitor = config.progress_monitor
        for profile in config.profiles:
            theirs.add_optimization_profile(profile)
        with log_of(real).recording() as recording:
            outcome = self.real.build_serialized_network(network.real, theirs)
        for severity, message in recording.lines:
            api.say(severity, message)
        if outcome is None:
            return None
        if config.cache is not None:
            config.cache.entries += 1
        profile = {name: [tuple(shape) for shape in config.profiles[0].get_shape(name)] for name in network.names}
        return memoryview(
            api.plan(
                network.model,
                profile,
                **config.asked(),
                detailed=config.profiling_verbosity == real.ProfilingVerbosity.DETAILED,
            )
        )


@dataclass
class Network:
    """TensorRT-RTX's network, and the file it was parsed from."""

    real: Any
    strongly_typed: bool
    model: bytes = b""

    @property
    def num_inputs(self) -> int:
        return int(self.real.num_inputs)

    @property
    def num_layers(self) -> int:
        return int(self.real.num_layers)

    def get_input(self, place: int) -> Any:
        return self.real.get_input(place)

    def get_layer(self, place: int) -> Any:
        return self.real.get_layer(place)

    @property
    def names(self) -> list[str]:
        return [self.get_input(place).name for place in range(self.num_inputs)]


class OnnxParser:
    """TensorRT-RTX's parser; `fail("parse", ...)` makes it refuse a graph as an older one might."""

    def __init__(self, api: StandinTensorRT, network: Network, logger: ILogger) -> None:
        api.register(logger)
        self.api, self.network = api, network
        self.real = real.OnnxParser(network.real, log_of(real).logger)
        self.errors: list[Any] = []

    def parse(self, model: bytes) -> bool:
        reason = [*self.api._failures.get("parse", (0, []))[1], ""][0]
        if not self.api.called("parse"):
            self.errors = [SimpleNamespace(desc=lambda: reason, node_name=lambda: "", node_operator=lambda: "")]
            return False
        self.network.model = model
        parsed = bool(self.real.parse(model))
        self.errors = [self.real.get_error(place) for place in range(self.real.num_errors)]
        return parsed

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, place: int) -> Any:
        return self.errors[place]


class BuilderConfig:
    """What the builder is asked for, as TensorRT has it at first."""

    def __init__(self, api: StandinTensorRT) -> None:
        self.api = api
        self.profiling_verbosity = real.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = real.HardwareCompatibilityLevel.NONE
        self.default_device_type = real.DeviceType.GPU
        self.builder_optimization_level = 3
        self.DLA_core = -1
        self.progress_monitor: Any = None
        self.flags: set[Any] = {real.BuilderFlag.TF32}
        self.pools: dict[Any, int] = {}
        self.profiles: list[Any] = []
        self.cache: TimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool] = size

    def add_optimization_profile(self, profile: Any) -> int:
        if not profile:
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> TimingCache | None:
        try:
            return TimingCache(self.api, data)
        except ValueError:  # as the real one, which logs an error
            return None

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:  # the library's own signature
        if cache.version != self.api.__version__ and not ignore_mismatch:
            return self.api.refused("ITimingCache: the cache was made by another version")
        self.cache = cache
        return True

    def asked(self) -> dict[str, bool]:
        flags = {"stripped": real.BuilderFlag.STRIP_PLAN, "version_compatible": real.BuilderFlag.VERSION_COMPATIBLE}
        asked = {name: True for name, flag in flags.items() if flag in self.flags}
        return asked | ({"dla": True} if self.default_device_type == real.DeviceType.DLA else {})


class TimingCache:
    """How many builds it has seen."""

    def __init__(self, api: StandinTensorRT, data: bytes) -> None:
        self.version: str = api.__version__
        self.entries = 0
        if data:
            self.version, self.entries = json.loads(data)

    def serialize(self) -> memoryview:
        return memoryview(json.dumps([self.version, self.entries]).encode())
