"""ONNX Runtime: runs `model.onnx` on the CPU, or on an NVIDIA GPU through its CUDA provider."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final
from weakref import finalize

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from runtimes.backends import _cuda_provider as cuda_provider
from runtimes.backends import _tensorrt_provider as tensorrt_provider
from runtimes.backends._integer_kernels import count_kernels, set_quantization
from runtimes.base import Runtime
from runtimes.errors import BackendUnavailable, BadInput, first_line
from runtimes.kernels import KernelCount
from runtimes.manifest import Manifest
from runtimes.preprocess import takes_any_size
from runtimes.printable import is_utf8
from runtimes.specs import BatchRange, TensorSpec
from runtimes.tuning import DEFAULT_TUNING, Tuning

PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": (cuda_provider.NAME, cuda_provider.EXACT),
    "cuda-nhwc": (cuda_provider.NAME, cuda_provider.NHWC),
    "cuda-graph": (cuda_provider.NAME, cuda_provider.GRAPH),
    "tensorrt": (tensorrt_provider.NAME, {}),
}
NUMPY_FROM_ORT = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
ERRORS_ONLY, FATAL_ONLY = 3, 4
MOST_BUFFERS = 32  # that are kept on the device, one for each input shape; the oldest makes room
FP16_ROUNDS = (1, 30)
"""The first version whose CPU kernel rounds when it quantizes FP16; those before it truncate (onnxruntime pull request
32452)."""


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in ort.__version__.split(".")[:2])


SPINNING = (
    ("session.intra_op.spin_duration_us", "50") if _version() >= (1, 26) else ("session.intra_op.allow_spinning", "0")
)
"""How long a thread without work looks for some before it sleeps. 50 us last from one operator to the next: as fast as
onnxruntime's own wait, which is a hundred times longer, where nothing else runs (measured: 2 % faster than none), and
1.6 times as fast where another process wants a core. Versions before 1.26 have their own wait or none."""


def rounds_fp16() -> bool:
    """Does this onnxruntime round rightly on the CPU in INT8 graphs whose remaining operators are FP16?

    If not, it is wrong by up to one step at every Q/DQ pair (measured on a ResNet-20: 18.9 dB of SQNR instead of 36.9).
    Graphs with FP32 scales, as in a simulation, run rightly in any version.
    """
    return _version() >= FP16_ROUNDS


def check_rounding() -> None:
    """Check that this onnxruntime rounds rightly in an INT8 graph with FP16 scales.

    Raises:
        BackendUnavailable: it would run the graph wrongly (see `rounds_fp16`).
    """
    if not rounds_fp16():
        raise BackendUnavailable(
            f"onnxruntime {ort.__version__} truncates where an INT8 graph with FP16 scales is to be rounded on the "
            f"CPU, expected {FP16_ROUNDS[0]}.{FP16_ROUNDS[1]} or newer; pip install --upgrade onnxruntime on Python "
            "3.11 or newer, or build an engine with: resnet-deploy build BUNDLE"
        )


@final
class OnnxRuntime(Runtime):
    """An `onnxruntime.InferenceSession` that runs every node on the provider that was asked for."""

    FILE = "model.onnx"

    def __init__(
        self, session: ort.InferenceSession, provider: str, batch: BatchRange | None, path: Path | None, int8: str
    ) -> None:
        super().__init__(
            [_spec(value) for value in session.get_inputs()], [_spec(value) for value in session.get_outputs()], batch
        )
        self._session, self._names = session, [spec.name for spec in self.outputs]
        self._provider = provider
        self._path, self._int8 = path, int8
        self._graphs = cuda_provider.GraphCalls(session, self.outputs) if provider == "cuda-graph" else None
        self._buffers: dict[tuple[str, tuple[int, ...]], ort.OrtValue] = {}
        # Engines may be built in any run. Also where nobody closes the runtime, they are noted.
        self._note = finalize(self, tensorrt_provider.note_built, path) if provider == "tensorrt" else None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        provider: str | None = None,
        batch: BatchRange | None = None,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> OnnxRuntime:
        return cls._open_session(path, str(path), provider or "cpu", batch, tuning)

    @classmethod
    def check_bundle(cls, manifest: Manifest, provider: str | None) -> None:
        if provider not in (None, "cpu") and any(takes_any_size(spec) for spec in manifest.inputs):
            raise BackendUnavailable(
                "onnxruntime does the arithmetic with a picture's size on the CPU, expected all of the model on "
                f"'{provider}'; build an engine with: resnet-deploy build BUNDLE, or leave --provider out"
            )
        if provider in (None, "cpu"):
            types = manifest.graph.types
            if "BFLOAT16" in types.get("Conv", {}):
                raise BackendUnavailable(
                    "onnxruntime has no BF16 convolution on the CPU; use --backend pytorch, build an engine, or export "
                    "in fp16"
                )
            if "FLOAT16" in types.get("QuantizeLinear", {}):
                check_rounding()

    @classmethod
    def from_bytes(cls, model: bytes) -> OnnxRuntime:
        """Open a serialised graph from memory, on the CPU."""
        return cls._open_session(model, "the graph", "cpu", None, DEFAULT_TUNING)

    @classmethod
    def _open_session(
        cls, model: Path | bytes, where: str, wanted: str, batch: BatchRange | None, tuning: Tuning
    ) -> OnnxRuntime:
        if wanted not in PROVIDERS:
            raise BackendUnavailable(f"onnxruntime has no provider '{wanted}'; choose from {', '.join(PROVIDERS)}")
        name, _ = PROVIDERS[wanted]
        options = ort.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads, options.inter_op_num_threads = tuning.cores, 1
        options.add_session_config_entry(*SPINNING)
        int8 = set_quantization(options, model) if wanted == "cpu" else ""
        if wanted != "cpu":
            options.add_session_config_entry("session.disable_quant_qdq", "1")  # as on the CPU
            # Otherwise nodes without a kernel move to the CPU with no more than a log line (onnxruntime#23372).
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if name not in ort.get_available_providers():
            raise BackendUnavailable(
                f"this onnxruntime was built without {name}; uninstall onnxruntime and install resnet-export[gpu]"
            )
        if wanted != "cpu":
            # What fails is raised; the log repeats it, and has a line for each algorithm that cuDNN tries in vain.
            options.log_severity_level = FATAL_ONLY
            ort.set_default_logger_severity(FATAL_ONLY)
            cuda_provider.load_libraries()
        try:
            with tensorrt_provider.checked_cache(model if wanted == "tensorrt" else None):
                session = ort.InferenceSession(
                    _path_or_content(model), options, providers=_providers(wanted, model, batch), enable_fallback=0
                )
        except BackendUnavailable:
            raise
        except Exception as error:  # onnxruntime's own errors share no base class below this one
            if wanted != "cpu":
                _check_loaded(name, _providers_of_a_session_with_fallback(model, wanted, batch))
                if tensorrt_provider.LACKS_LIBRARIES in str(error):
                    raise BackendUnavailable(tensorrt_provider.INSTALL_LIBRARIES) from error
                raise BackendUnavailable(f"onnxruntime cannot run {where} on {name}: {first_line(error)}") from error
            raise BadInput(f"onnxruntime cannot run {where}: {first_line(error)}") from error
        _check_loaded(name, session.get_providers())
        return cls(session, wanted, batch, model if isinstance(model, Path) else None, int8)

    @classmethod
    def providers(cls) -> tuple[str, ...]:
        here = ort.get_available_providers()
        return tuple(name for name, (known, _) in PROVIDERS.items() if known in here)

    @property
    def provider(self) -> str:
        return self._provider

    @property
    def details(self) -> dict[str, str]:
        told = {"int8": self._int8} if self._int8 else {}
        if self._graphs is not None:
            told["graphs"] = f"of the first {cuda_provider.MOST_GRAPHS} input shapes; others run without one"
        return told

    def kernels(self) -> KernelCount | None:
        if self._provider != "cpu" or self._path is None:
            return None
        return count_kernels(_path_or_content(self._path), self.inputs, self.batch.min if self.batch else 1)

    def _run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self._provider == "cpu":
            return dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        return self._run_bound(feeds, "cuda") if self._graphs is None else self._graphs.run(feeds)

    def _run_bound(self, feeds: dict[str, NDArray[Any]], device: str) -> dict[str, NDArray[Any]]:
        """Run through device buffers that are kept for some input shapes, so that a call allocates only its outputs on
        the device."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            buffer = self._buffers.get((name, array.shape))
            if buffer is None:
                if len(self._buffers) >= MOST_BUFFERS:
                    del self._buffers[next(iter(self._buffers))]
                # A copy: on the CPU the buffer is the very memory it is made from, and the next call writes to it.
                buffer = self._buffers[name, array.shape] = ort.OrtValue.ortvalue_from_numpy(array.copy(), device, 0)
            else:
                buffer.update_inplace(array)
            binding.bind_ortvalue_input(name, buffer)
        for spec in self.outputs:
            binding.bind_output(spec.name, device)
        binding.synchronize_inputs()  # the copies run on another stream than the session (onnxruntime#32673)
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        # np.array copies: on the CPU `copy_outputs_to_cpu` may hand out the session's own memory.
        return {
            spec.name: np.array(value) for spec, value in zip(self.outputs, binding.copy_outputs_to_cpu(), strict=True)
        }

    def _prepared(self, feeds: dict[str, NDArray[Any]]) -> Callable[[], None]:
        if self._graphs is not None:
            return partial(self._graphs.launch, self._graphs.placed(feeds))
        return super()._prepared(feeds) if self._provider == "cpu" else self._prepared_bound(feeds, "cuda")

    def _prepared_bound(self, feeds: dict[str, NDArray[Any]], device: str) -> Callable[[], None]:
        """A call on inputs and outputs that lie on the device: one binding, made once."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            # A copy: on the CPU the value is the very memory that it is made from.
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array.copy(), device, 0))
        for spec in self.outputs:
            binding.bind_output(spec.name, device)
        binding.synchronize_inputs()

        def call() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return call

    def _sibling(self) -> OnnxRuntime:
        if self._graphs is not None:
            raise BackendUnavailable("onnxruntime's cuda-graph serves one thread; open the model again for another")
        return OnnxRuntime(self._session, self._provider, self.batch, self._path, self._int8)

    def _close(self) -> None:
        self._buffers.clear()
        self._graphs = None
        del self._session
        if self._note is not None:
            self._note()


def _path_or_content(model: Path | bytes) -> Path | bytes:
    """The path, or the file's content where the path is not UTF-8, which onnxruntime cannot open."""
    return model if isinstance(model, bytes) or is_utf8(model) else model.read_bytes()


def _providers(wanted: str, model: Path | bytes, batch: BatchRange | None) -> list[tuple[str, dict[str, str]]]:
    """The providers in order of preference: CUDA runs what TensorRT does not take of a graph."""
    if wanted != "tensorrt":
        return [PROVIDERS[wanted]]
    assert isinstance(model, Path)
    return [(tensorrt_provider.NAME, tensorrt_provider.tensorrt_settings(model, batch)), PROVIDERS["cuda"]]


def _check_loaded(name: str, active: Sequence[str]) -> None:
    """Check that a session's first provider is the one that was asked for: one whose libraries fail to load is dropped
    silently (onnxruntime#25145).

    Raises:
        BackendUnavailable: it is another.
    """
    if active[0] != name:
        raise BackendUnavailable(
            f"expected onnxruntime to run on {name}, got {active[0]}; its CUDA and cuDNN libraries did not load: check "
            "that nvidia-smi lists a GPU, and pip install 'onnxruntime-gpu[cuda,cudnn]', or PyTorch for the same CUDA"
        )


def _providers_of_a_session_with_fallback(model: Path | bytes, wanted: str, batch: BatchRange | None) -> list[str]:
    """The providers that are left where the CPU may take their place, whose refusal else hides that one is missing; the
    one asked for where no session can be made at all."""
    options = ort.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    try:
        session = ort.InferenceSession(
            _path_or_content(model), options, providers=_providers(wanted, model, batch), enable_fallback=0
        )
    except Exception:  # whatever it is, the first session's error says it
        return [PROVIDERS[wanted][0]]
    found: list[str] = session.get_providers()
    return found


def _spec(value: Any) -> TensorSpec:
    """onnxruntime's NodeArg as a TensorSpec; a dimension without a name is named by its place."""
    shape = tuple(size if isinstance(size, int | str) else f"dim{place}" for place, size in enumerate(value.shape))
    return TensorSpec(value.name, NUMPY_FROM_ORT.get(value.type, value.type), shape)


RUNTIME = OnnxRuntime
