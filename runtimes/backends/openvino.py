"""OpenVINO: runs `model.onnx` on processors, INT8 on their integer instructions, and on what else it finds here."""

from __future__ import annotations

import ctypes
import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from runtimes.backends._openvino_cache import Compiled, compile_cached, model_from_onnx
from runtimes.backends._openvino_package import core_of_process, ov
from runtimes.base import Runtime
from runtimes.bundle import Bundle
from runtimes.errors import BackendUnavailable, BadInput
from runtimes.forks import check_own_import
from runtimes.kernels import KernelCount, promises_integers
from runtimes.onnx_metadata import metadata_of
from runtimes.parity.budget import Budget
from runtimes.processor import processor
from runtimes.specs import PICTURE, BatchRange, TensorSpec, check_feeds
from runtimes.tuning import DEFAULT_TUNING, Tuning

BF16_ERROR = 5e-2
"""What BF16 may cost, of the largest logit: the budget of `--bf16`."""
INTEGERS, IMAGE_AXES = ("i8", "u8"), 4
SATURATES = "f32, since integers would saturate on this processor; to run it fast, export with --target cpu-safe"
WHERE = ("Exception from ", "Check '", "FrontEnd API failed", "Loading input model")
"""How those lines of OpenVINO's messages begin that name a place in its source."""


@final
class OpenVinoRuntime(Runtime):
    """A model compiled by OpenVINO, in FP32 unless the graph or its budget says otherwise (see `details`)."""

    FILE = "model.onnx"

    def __init__(self, compiled: Compiled, path: Path, plan: _Plan, batch: BatchRange | None) -> None:
        model = compiled.model
        super().__init__([_spec(port) for port in model.inputs], [_spec(port) for port in model.outputs], batch)
        self._request, self._model, self._memory = model.create_infer_request(), model, compiled.memory
        self._names = [spec.name for spec in self.outputs]
        self._path, self._plan, self._not_kept = path, plan, compiled.not_kept

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        provider: str | None = None,
        batch: BatchRange | None = None,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> OpenVinoRuntime:
        return cls._open(path, provider, batch, tuning, None)

    @classmethod
    def open_model(
        cls,
        model: Path | Bundle,
        *,
        provider: str | None = None,
        trusted: Collection[str] = (),
        tuning: Tuning = DEFAULT_TUNING,
    ) -> OpenVinoRuntime:
        if isinstance(model, Path):
            return cls.open(model, provider=provider, tuning=tuning)
        cls.check_bundle(model.manifest, provider)
        return cls._open(cls.file_of(model), provider, model.manifest.batch, tuning, model.manifest.budget)

    @classmethod
    def _open(
        cls, path: Path, provider: str | None, batch: BatchRange | None, tuning: Tuning, budget: Budget | None
    ) -> OpenVinoRuntime:
        check_own_import("openvino")
        core, device = core_of_process(), (provider or "cpu").upper()
        if device not in core.available_devices:
            raise BackendUnavailable(
                f"openvino has no provider '{provider}' here; choose from {', '.join(cls.providers())}"
            )
        plan = _plan(device, core.get_property(device, "OPTIMIZATION_CAPABILITIES"), metadata_of(path), budget)
        settings = {
            **plan.graph,
            "PERFORMANCE_HINT": tuning.hint.upper(),
            **({"INFERENCE_NUM_THREADS": tuning.cores} if device == "CPU" else {}),
        }
        try:
            compiled = compile_cached(core, path, device, settings, plan.graph)
        except Exception as error:  # OpenVINO's own errors are RuntimeErrors, those of its bindings anything
            if device != "CPU":
                raise BackendUnavailable(f"openvino cannot run {path} on {device}: {_reason(error)}") from error
            raise BadInput(f"openvino cannot run {path}: {_reason(error)}") from error
        return cls(compiled, path, plan, batch)

    @classmethod
    def providers(cls) -> tuple[str, ...]:
        return tuple(device.lower() for device in core_of_process().available_devices)

    @property
    def provider(self) -> str:
        return self._plan.device.lower()

    @property
    def details(self) -> dict[str, str]:
        told = {
            "streams": "NUM_STREAMS",
            **({"threads": "INFERENCE_NUM_THREADS"} if self._plan.device == "CPU" else {}),
        }
        types = Counter(node.precision for node in self._executed() if node.kind == "Convolution")
        return {
            "precision": self._plan.said,
            "convolutions": ", ".join(f"{count} in {name}" for name, count in sorted(types.items())),
            **{name: str(self._model.get_property(key)) for name, key in told.items()},
            **({"cache": f"none: {self._not_kept}"} if self._not_kept else {}),
        }

    def kernels(self) -> KernelCount | None:
        if self._plan.device != "CPU":
            return None
        nodes = self._executed()
        convolutions = [node for node in nodes if node.kind == "Convolution"]
        additions = _residual_additions(model_from_onnx(self._path))
        on_integers = [node for node in nodes if node.precision in INTEGERS]
        return KernelCount(
            len(convolutions),
            sum(node in on_integers for node in convolutions),
            len(additions),
            len(additions & {name for node in on_integers for name in node.made_of}),
        )

    def _executed(self) -> list[_Node]:
        """What is executed in place of the graph's nodes."""
        found = []
        for operation in self._model.get_runtime_model().get_ordered_ops():
            facts = {key: value.astype(str) for key, value in operation.get_rt_info().items()}
            made_of = tuple(facts.get("originalLayersNames", "").split(","))
            kernel = facts.get("primitiveType", "")  # such as brgconv_avx512_1x1_I8
            found.append(_Node(facts.get("layerType", ""), kernel.rpartition("_")[-1].lower(), made_of))
        return found

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        # The inputs are read where they are, and the outputs copied once: the request writes over its own next time.
        try:
            outputs = self._request.infer(feeds, share_inputs=True, share_outputs=False)
        except RuntimeError as error:  # kernels are chosen when a size is first seen
            raise self._failed(error) from error
        return dict(zip(self._names, outputs.to_tuple(), strict=True))

    def _run_each(self, batches: Iterator[dict[str, NDArray[Any]]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Run as many batches at a time as OpenVINO has streams, and have one more ready; outputs come in order.

        Requests take turns, as in OpenVINO's AsyncInferQueue, whose callbacks would come in any order.
        """
        free, alive = self._turns.take(self._requests)
        running: deque[ov.InferRequest] = deque()
        try:
            for feeds in batches:
                check_feeds(self._fed, feeds)
                fits = self._takes(feeds)
                while running and not (free and fits):
                    free.append(running.popleft())
                    yield self._finished(free[-1])
                if fits:
                    self._start(free[-1], feeds)
                    running.append(free.pop())
                else:
                    yield self.run(feeds)
            while running:
                yield self._finished(running.popleft())
        finally:
            if self._process != os.getpid():  # in a fork nobody ends them: they are never let go of
                ctypes.pythonapi.Py_IncRef(ctypes.py_object((running, alive)))
            else:
                while running:
                    with suppress(RuntimeError):  # what failed first is on its way
                        running.popleft().wait()
            free.clear()
            del alive  # after the requests

    def _requests(self) -> tuple[list[ov.InferRequest], object]:
        """As many requests as there are streams, and one more; and what they need while they live, also where the
        runtime is closed meanwhile."""
        streams = int(self._model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        return [self._model.create_infer_request() for _ in range(streams + 1)], (self._model, self._memory)

    def _start(self, request: ov.InferRequest, feeds: dict[str, NDArray[Any]]) -> None:
        try:
            request.start_async(feeds, share_inputs=True)
        except RuntimeError as error:
            raise self._failed(error) from error

    def _takes(self, feeds: dict[str, NDArray[Any]]) -> bool:
        rows = len(next(iter(feeds.values())))
        return self.batch is None or self.batch.min <= rows <= self.batch.max

    def _finished(self, request: ov.InferRequest) -> dict[str, NDArray[Any]]:
        try:
            request.wait()
        except RuntimeError as error:
            raise self._failed(error) from error
        return {
            name: np.array(request.get_output_tensor(place).data, copy=True) for place, name in enumerate(self._names)
        }

    def _failed(self, error: RuntimeError) -> BackendUnavailable:
        return BackendUnavailable(
            f"openvino cannot run {self._path} on {self.provider}: {_reason(error)}; use another backend"
        )

    def _prepared(self, feeds: dict[str, NDArray[Any]]) -> Callable[[], None]:
        request, memory = self._model.create_infer_request(), self._memory
        kept = {name: array.copy() for name, array in feeds.items()}
        for name, array in kept.items():
            request.set_tensor(name, ov.Tensor(array, shared_memory=True))

        def call(alive: object = (kept, memory)) -> None:
            request.infer(share_outputs=True)

        return call

    def _sibling(self) -> OpenVinoRuntime:
        return OpenVinoRuntime(Compiled(self._model, self._memory, self._not_kept), self._path, self._plan, self.batch)

    def _close(self) -> None:
        del self._request, self._model, self._memory


class _Plan(NamedTuple):
    """How a graph is to be compiled: the properties that change it, and in words the type that floats have."""

    device: str
    graph: dict[str, Any]
    said: str


class _Node(NamedTuple):
    """A node that is executed: its kind, the type that its kernel computes in, and the nodes that became part of it."""

    kind: str
    precision: str
    made_of: tuple[str, ...]


def _plan(device: str, capabilities: Collection[str], metadata: Mapping[str, str], budget: Budget | None) -> _Plan:
    """Floats are FP32, whatever the device's default, unless BF16 is within the budget and the device multiplies in it.

    INT8 stays with FP32: BF16 for the little that is not quantized cost up to 4 dB of SQNR and won no time. A graph
    that was not made for processors is computed in FP32 where integers would saturate (ResNet-20: 20.4 and 28.8 dB of
    SQNR in place of 36.9, with AVX-512 and AVX2).
    """
    precision, has_bf16 = metadata.get("precision", ""), "BF16" in capabilities
    saturates = device == "CPU" and not processor().has_int8_dot and not promises_integers(metadata)
    bf16 = has_bf16 and precision != "int8" and budget is not None and _allows_bf16(budget)
    said = {
        "fp16": "f32, from weights in FP16",
        "bf16": "bf16, as the graph is" if has_bf16 else f"f32, from weights in BF16, which this {device} has not",
        "int8": SATURATES if saturates else "integers where the graph is quantized, f32 elsewhere",
    }
    graph: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32"}
    if saturates:
        graph["LP_TRANSFORMS_MODE"] = False
    return _Plan(device, graph, "bf16, which the bundle's budget allows" if bf16 else said.get(precision, "f32"))


def _allows_bf16(budget: Budget) -> bool:
    limits = (budget.own_error, budget.max_relative_error, budget.max_batch_difference)
    return all(limit is None or limit >= BF16_ERROR for limit in limits)


def _residual_additions(model: ov.Model) -> set[str]:
    """Names of the additions of two equally large sets of feature maps; others add a bias, or compute sizes."""
    found = set()
    for node in model.get_ops():
        if node.get_type_name() == "Add":
            first, second = (port.get_partial_shape() for port in node.inputs())
            if first == second and first.rank == ov.Dimension(IMAGE_AXES):
                found.add(node.get_friendly_name())
    return found


def _spec(port: ov.ConstOutput) -> TensorSpec:
    """A model's input or output. OpenVINO forgets the names of free dimensions: the first one is the batch, and those
    of pixels are a picture's."""
    kind, dimensions = port.get_element_type(), port.get_partial_shape()
    dtype = "bfloat16" if kind == ov.Type.bf16 else kind.to_dtype().name
    names = ("batch", *(PICTURE if dtype == "uint8" else ()))
    shape = (
        (names[place] if place < len(names) else f"dim{place}") if size.is_dynamic else size.get_length()
        for place, size in enumerate(dimensions)
    )
    return TensorSpec(port.get_any_name(), dtype, tuple(shape))


def _reason(error: Exception) -> str:
    """The line of OpenVINO's message that says what is wrong, not where in its source: the summary's first one, where
    there is a summary."""
    lines = [line.strip().removeprefix("-- ") for line in str(error).partition("Summary:")[2].splitlines()]
    lines += [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(WHERE)]
    return said[0] if said else " ".join(filter(None, lines)) or type(error).__name__


RUNTIME = OpenVinoRuntime
