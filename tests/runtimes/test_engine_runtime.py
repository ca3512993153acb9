"""The TensorRT path from a bundle to answers, over stand-ins for CUDA and TensorRT that check how they are called."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import Ran
from numpy.typing import NDArray
from PIL import Image
from rounding import needs_rounding
from standin_cuda import Allocation, StandinCuda
from standin_tensorrt import NOT_CAPTURABLE, StandinTensorRT, imported_as_tensorrt

from exporter.engines.build import BuildPlan, build_engine
from exporter.engines.layers import EngineLayer, layers_on_gpu, spread_over_dla
from runtimes import Bundle, Manifest, open_runtime
from runtimes._open import backend_class
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.bundle_writing import write_manifest
from runtimes.errors import BackendUnavailable, BadInput, BundleError
from runtimes.nvidia import cuda_call
from runtimes.nvidia.cuda import DeviceBuffer, Graph, PinnedBuffer, Stream, copy_to_host
from runtimes.nvidia.cuda_call import CudaError
from runtimes.nvidia.dlpack import CUDA_HOST, DeviceArray, tensor_from_dlpack
from runtimes.nvidia.engine_file import (
    SCHEMA_VERSION,
    DeviceFacts,
    EngineFacts,
    LayerFacts,
    json_from_facts,
    read_sidecar,
    seal_facts,
)
from runtimes.nvidia.engine_runtime import MOST_GRAPHS, EngineRuntime
from runtimes.nvidia.log import log_of
from runtimes.nvidia.plan_files import engine_name, platform_text, sidecar_of
from runtimes.nvidia.trust import KEY_VARIABLE, ensure_machine_key, with_seal
from runtimes.parity.golden import golden_report
from runtimes.specs import BatchRange, TensorSpec

INPUT, OUTPUT = "input", "logits"
ROUNDING = 1e-5
"""Of the largest logit: what another order of summation, as another batch size brings, may change in FP32."""
BATCH = BatchRange(2, 3, 4)
OUT_OF_MEMORY, LAUNCH_FAILED = 2, 719
IMAGE_BYTES = 28 * 28 * 4


def quiet(step: str, done: int = 0, total: int = 0) -> None:
    pass


def leaks(cuda: StandinCuda) -> list[str]:
    """What is still there once the garbage is collected, which takes long."""
    if cuda.leaks():
        gc.collect()
    return cuda.leaks()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinCuda]:
    """In place of CUDA; what a test leaves behind fails it."""
    checker = StandinCuda()
    monkeypatch.setattr(cuda_call, "cudart", checker)
    yield checker
    assert leaks(checker) == []


@pytest.fixture
def api(cuda: StandinCuda) -> Iterator[StandinTensorRT]:
    """In place of TensorRT: `import tensorrt` finds it."""
    standin = StandinTensorRT(cuda)
    with imported_as_tensorrt(standin):
        yield standin


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Iterator[OnnxRuntime]:
    with OnnxRuntime.open(tiny_model / "model.onnx") as opened:
        yield opened


@pytest.fixture
def folder(tiny_model: Path, manifest: Manifest, tmp_path: Path) -> Path:
    """A bundle without an engine, for batches of two to four."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    shutil.copy(tiny_model / "model.onnx", bundle)
    write_manifest(bundle, replace(manifest, batch=BATCH))
    return bundle


def add_engine(
    folder: Path, api: StandinTensorRT, *, batch: BatchRange = BATCH, backend: str = "tensorrt", **options: Any
) -> Path:
    """An engine and its sidecar in a bundle, as `resnet-deploy build` leaves them; `options` are the builder's, as the sidecar names them."""
    model = (folder / "model.onnx").read_bytes()
    rows = (batch.min, batch.opt, batch.max)
    asked = {
        "stripped": options.get("strip_weights", False),
        "version_compatible": options.get("version_compatible", False),
    }
    plan = api.plan(model, {INPUT: tuple((size, 1, 28, 28) for size in rows)}, **asked)  # type: ignore[dict-item]  # of three, as it says
    facts = EngineFacts(
        schema_version=SCHEMA_VERSION,
        backend=backend,
        version=api.__version__,
        targets=("sm87",),
        platform=platform_text(),
        device=DeviceFacts("stand-in", "sm87", "12.6"),
        batch=batch,
        precision="fp32",
        typing="strong",
        options=options,
        layers=LayerFacts({}, {}, ()),
        seconds=0.0,
        checked=True,
        onnx_sha256=hashlib.sha256(model).hexdigest(),
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        engine_bytes=len(plan),
        key="0" * 64,
    )
    path = folder / "engines" / engine_name(backend, api.__version__, facts.targets, batch, options)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(plan)
    sidecar_of(path).write_bytes(json_from_facts(seal_facts(facts, ensure_machine_key())))
    return path


@pytest.fixture
def engine(folder: Path, api: StandinTensorRT) -> Path:
    return add_engine(folder, api)


@pytest.fixture
def runtime(engine: Path) -> Iterator[EngineRuntime]:
    with opened(engine) as runtime:
        yield runtime


def opened(engine: Path) -> EngineRuntime:
    runtime = backend_class("tensorrt").open(engine)
    assert isinstance(runtime, EngineRuntime)
    return runtime


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 1, 28, 28), np.float32)


def assert_right(got: NDArray[Any], reference: OnnxRuntime, inputs: NDArray[Any]) -> None:
    """The network's answers, each in its row, where rows are far apart."""
    expected = reference.run({INPUT: inputs})[OUTPUT]
    largest = float(np.abs(expected).max())
    distances = np.abs(expected[:, None] - expected[None]).max(-1) + np.eye(len(expected)) * largest
    assert distances.min() > 100 * ROUNDING * largest
    np.testing.assert_allclose(got, expected, rtol=0, atol=ROUNDING * largest)


def live(cuda: StandinCuda, size: int) -> list[Allocation]:
    return [each for each in cuda.allocations.values() if each.size == size and not each.freed]


# --- the contract of every backend ---


def test_a_bundle_opens_with_the_engine_that_fits(folder: Path, engine: Path, reference: OnnxRuntime) -> None:
    for model in (folder, Bundle.open(folder), engine):
        with open_runtime(model, "tensorrt") as runtime:
            assert runtime.inputs == (TensorSpec(INPUT, "float32", ("batch", 1, 28, 28)),)
            assert runtime.outputs == (TensorSpec(OUTPUT, "float32", ("batch", 10)),)
            assert (runtime.batch, runtime.provider) == (BATCH, "cuda")
            assert_right(runtime.run({INPUT: images(3)})[OUTPUT], reference, images(3))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 11])
def test_answers_are_right_at_any_batch_also_the_second_time(
    runtime: EngineRuntime, reference: OnnxRuntime, count: int
) -> None:
    for seed in (0, 1, 0):
        outputs = runtime.run({INPUT: images(count, seed)})
        assert list(outputs) == [OUTPUT]
        assert (outputs[OUTPUT].shape, outputs[OUTPUT].dtype.name) == ((count, 10), "float32")
        assert_right(outputs[OUTPUT], reference, images(count, seed))


def test_a_range_of_one_batch_alone(folder: Path, api: StandinTensorRT, reference: OnnxRuntime) -> None:
    with opened(add_engine(folder, api, batch=BatchRange(1, 1, 1))) as runtime:
        assert_right(runtime.run({INPUT: images(3)})[OUTPUT], reference, images(3))


@pytest.mark.parametrize("count", [3, 6, 1], ids=["inside the range", "split", "padded"])
def test_outputs_are_the_callers_and_inputs_stay_so(runtime: EngineRuntime, count: int) -> None:
    fed = images(count)
    first = runtime.run({INPUT: fed})[OUTPUT]
    kept = first.copy()
    runtime.run({INPUT: fed + 1})
    np.testing.assert_array_equal(first, kept)
    first[...] = -1
    np.testing.assert_array_equal(runtime.run({INPUT: fed})[OUTPUT], kept)
    np.testing.assert_array_equal(fed, images(count))
    assert (first == -1).all()


def test_any_layout_of_memory_gives_the_values_it_holds(runtime: EngineRuntime, reference: OnnxRuntime) -> None:
    values = images(3)
    layouts = [
        np.asfortranarray(values),
        values[::-1].copy()[::-1],
        values.astype(">f4"),
        np.frombuffer(b"\x00" + values.tobytes(), values.dtype, offset=1).reshape(values.shape),
    ]
    for fed in layouts:
        assert_right(runtime.run({INPUT: fed})[OUTPUT], reference, values)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"expected inputs \['input'\], got \[\]"),
        ({"image": images(2)}, r"expected inputs \['input'\], got \['image'\]"),
        ({INPUT: images(2).astype(np.float16)}, "expected float32, got float16"),
        ({INPUT: images(2)[..., :27]}, "expected shape batchx1x28x28, got 2x1x28x27"),
        ({INPUT: images(2)[:0]}, "expected shape batchx1x28x28, got 0x1x28x28"),
    ],
    ids=["nothing", "another name", "float16", "narrow", "no rows"],
)
def test_wrong_feeds_are_refused_and_the_runtime_lives_on(
    runtime: EngineRuntime, reference: OnnxRuntime, feeds: dict[str, NDArray[Any]], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        runtime.run(feeds)
    with pytest.raises(BadInput, match=message):
        runtime.run_on_device({name: pinned(array) for name, array in feeds.items()})
    assert_right(runtime.run({INPUT: images(2)})[OUTPUT], reference, images(2))


def test_a_closed_runtime_does_not_run_and_closing_twice_is_harmless(engine: Path) -> None:
    runtime = opened(engine)
    before = runtime.run({INPUT: images(2)})[OUTPUT]
    kept = before.copy()
    runtime.close()
    runtime.close()
    for call in (runtime.run, runtime.run_on_device):
        with pytest.raises(ValueError, match="the runtime is closed; open it again"):
            call({INPUT: images(2)})
    with pytest.raises(ValueError, match="the runtime is closed; open it again"):
        runtime.sibling()
    np.testing.assert_array_equal(before, kept)


def test_closing_one_runtime_leaves_another_of_the_same_engine_alone(
    engine: Path, runtime: EngineRuntime, reference: OnnxRuntime
) -> None:
    opened(engine).close()
    runtime.sibling().close()
    assert_right(runtime.run({INPUT: images(4)})[OUTPUT], reference, images(4))


def test_another_provider_is_refused(engine: Path) -> None:
    with pytest.raises(
        BackendUnavailable, match="tensorrt runs on an NVIDIA GPU alone, got provider 'cpu'; leave --provider out"
    ):
        backend_class("tensorrt").open(engine, provider="cpu")


# --- CUDA graphs ---


def test_the_second_call_of_a_batch_size_launches_a_graph(
    runtime: EngineRuntime, api: StandinTensorRT, reference: OnnxRuntime
) -> None:
    runtime.run({INPUT: images(3)})
    enqueued = api.calls["execute_async_v3"]
    for seed in (1, 2, 0):
        assert_right(runtime.run({INPUT: images(3, seed)})[OUTPUT], reference, images(3, seed))
    assert api.calls["execute_async_v3"] == enqueued
    assert runtime.graph_problem is None


def test_the_first_sizes_get_graphs_and_the_rest_run_plainly(
    folder: Path, api: StandinTensorRT, cuda: StandinCuda, reference: OnnxRuntime
) -> None:
    sizes = range(1, MOST_GRAPHS + 3)
    with opened(add_engine(folder, api, batch=BatchRange(1, 2, max(sizes)))) as runtime:
        for _ in range(2):
            for rows in sizes:
                assert_right(runtime.run({INPUT: images(rows, rows)})[OUTPUT], reference, images(rows, rows))
        assert sum(graph is not None for graph in cuda.graphs.values()) == MOST_GRAPHS
        before = api.calls["execute_async_v3"]
        for rows in sizes:
            runtime.run({INPUT: images(rows)})
        assert api.calls["execute_async_v3"] - before == len(sizes) - MOST_GRAPHS


@pytest.mark.parametrize(
    ("call", "after", "reason"),
    [
        ("create_execution_context", 1, "OutOfMemory"),
        ("set_input_shape", 2, "no such shape"),
        ("set_tensor_address", 2, "TensorRT refuses the memory for 'input'"),
        ("execute_async_v3", 1, "could not be queued"),
        ("execute_async_v3", 2, NOT_CAPTURABLE),
    ],
    ids=["no second context", "its shape", "its memory", "its first run", "the capture"],
)
def test_a_capture_that_fails_falls_back_and_says_why(
    engine: Path, api: StandinTensorRT, reference: OnnxRuntime, call: str, after: int, reason: str
) -> None:
    api.fail(call, reason, after=after)
    with opened(engine) as runtime:
        for count in (2, 2, 3, 4):
            assert_right(runtime.run({INPUT: images(count)})[OUTPUT], reference, images(count))
        assert runtime.graph_problem is not None
        assert reason in runtime.graph_problem
        assert "\n" not in runtime.graph_problem
        assert api.calls["create_execution_context"] == 2  # it is not tried again


@pytest.mark.parametrize(
    "call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch"]
)
def test_cuda_may_refuse_the_graph(
    runtime: EngineRuntime, cuda: StandinCuda, reference: OnnxRuntime, call: str
) -> None:
    cuda.fail(call, OUT_OF_MEMORY)
    for _ in range(2):
        assert_right(runtime.run({INPUT: images(4)})[OUTPUT], reference, images(4))
    assert runtime.graph_problem is not None
    assert call in runtime.graph_problem
    assert [graph for graph in cuda.graphs.values() if graph] == []


@pytest.mark.parametrize(
    "wrong", [lambda answer: answer * 1.01, lambda answer: answer * np.nan], ids=["other numbers", "not a number"]
)
def test_a_graph_whose_replay_is_wrong_is_dropped(
    runtime: EngineRuntime,
    api: StandinTensorRT,
    cuda: StandinCuda,
    reference: OnnxRuntime,
    wrong: Callable[[NDArray[Any]], NDArray[Any]],
) -> None:
    api.distort = lambda answer, replayed: wrong(answer) if replayed else answer
    for _ in range(2):
        assert_right(runtime.run({INPUT: images(4)})[OUTPUT], reference, images(4))
    assert runtime.graph_problem == "the replay for a batch of 4 gave another 'logits' than the plain run"
    assert [graph for graph in cuda.graphs.values() if graph] == []


def test_an_answer_that_is_not_a_number_is_the_networks_and_no_reason_against_the_graph(
    runtime: EngineRuntime, api: StandinTensorRT
) -> None:
    api.distort = lambda answer, _: answer * np.nan
    for _ in range(2):
        assert np.isnan(runtime.run({INPUT: images(4)})[OUTPUT]).all()
    assert runtime.graph_problem is None


# --- nothing leaks ---


class FailsAt(dict[str, int]):
    """In place of the stand-in's failures: the n-th call fails, whatever it is; frees and ends do not, for what they fail to free stays."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.at = at
        self.seen: list[str] = []

    def pop(self, name: str, default: int = 0) -> int:  # type: ignore[override]  # the one way in which the stand-in asks
        if "Destroy" in name or "Free" in name or name == "cudaThreadExchangeStreamCaptureMode":
            return default
        self.seen.append(name)
        return LAUNCH_FAILED if len(self.seen) - 1 == self.at else default


def attempts(cuda: StandinCuda, action: Callable[[], None]) -> Iterator[str]:
    """Run the action once well, and then with each of its CUDA calls failing in turn; yields that call's name."""
    cuda.failures = FailsAt(None)
    action()
    names = cuda.failures.seen
    assert names
    for place, name in enumerate(names):
        cuda.failures = FailsAt(place)
        yield name
    cuda.failures = {}


def test_opening_that_fails_anywhere_leaks_nothing(engine: Path, cuda: StandinCuda) -> None:
    tried = []
    for name in attempts(cuda, lambda: opened(engine).close()):
        tried.append(name)
        if name == "cudaStreamSynchronize":
            continue  # of closing
        with pytest.raises(CudaError, match=f"^{name}: cudaErrorLaunchFailure"):
            opened(engine)
        assert leaks(cuda) == []
    assert {"cudaStreamCreateWithFlags", "cudaMalloc", "cudaMallocHost", "cudaGetDeviceCount"} <= set(tried)


@pytest.mark.parametrize(
    "call",
    ["create_execution_context", "set_input_shape", "infer_shapes", "set_tensor_address", "deserialize_cuda_engine"],
)
def test_opening_that_tensorrt_refuses_leaks_nothing(
    engine: Path, cuda: StandinCuda, api: StandinTensorRT, call: str
) -> None:
    api.fail(call, "because")
    with pytest.raises(BackendUnavailable):
        opened(engine)
    assert leaks(cuda) == []


def test_running_that_fails_anywhere_gives_an_error_or_the_right_answer_and_the_next_call_is_right(
    engine: Path, cuda: StandinCuda, reference: OnnxRuntime
) -> None:
    with opened(engine) as first:
        names = list(attempts(cuda, lambda: assert_right(first.run({INPUT: images(3)})[OUTPUT], reference, images(3))))
    for place in range(len(names)):
        with opened(engine) as runtime:
            cuda.failures = FailsAt(place)
            with suppress(CudaError):
                assert_right(runtime.run({INPUT: images(3)})[OUTPUT], reference, images(3))
                assert runtime.graph_problem is not None
                assert names[place] in runtime.graph_problem
            cuda.failures = {}
            for seed in (1, 2):
                assert_right(runtime.run({INPUT: images(3, seed)})[OUTPUT], reference, images(3, seed))
        assert leaks(cuda) == []


def test_a_runtime_that_ran_every_way_leaves_nothing(engine: Path, cuda: StandinCuda) -> None:
    with opened(engine) as runtime:
        for count in (2, 2, 3, 4, 9, 1):
            runtime.run({INPUT: images(count)})
        runtime.run_on_device({INPUT: pinned(images(3))})
        assert cuda.leaks()
    assert leaks(cuda) == []


# --- arrays that are on the device ---


def pinned(values: NDArray[Any]) -> DeviceArray:
    """A library's array in pinned memory of the CPU."""
    memory = PinnedBuffer(max(values.nbytes, 1))
    memory.view(values.dtype, values.shape)[...] = values
    return DeviceArray(memory, values.shape, values.dtype.name, device=(CUDA_HOST, 0))


@dataclass
class Library:
    """Another library that uses the device in a stream of its own, and waits for nothing."""

    cuda: StandinCuda
    stream: Stream

    def made(self, values: NDArray[Any]) -> DeviceArray:
        """An array that will hold these values once the stream gets there."""
        memory = DeviceBuffer(values.nbytes)
        kept = values.copy()

        def fill() -> None:
            self.cuda.view(memory.pointer, kept.dtype, kept.shape)[...] = kept

        self.cuda.enqueue(self.stream.handle, fill, writes=[(memory.pointer, kept.nbytes)])
        return DeviceArray(memory, kept.shape, kept.dtype.name, ready=self.stream.record())

    def read(self, array: DeviceArray) -> NDArray[Any]:
        """An array's values, as this stream finds them."""
        tensor = tensor_from_dlpack(array, self.stream.handle)
        size = int(np.prod(tensor.shape)) * 4
        with PinnedBuffer(size) as memory:
            copy_to_host(memory.pointer, tensor.pointer, size, self.stream)
            self.stream.synchronize()
            return memory.view(tensor.dtype, tensor.shape).copy()


@pytest.fixture
def library(cuda: StandinCuda) -> Iterator[Library]:
    with Stream() as stream:
        yield Library(cuda, stream)
        stream.synchronize()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 11])
def test_arrays_on_the_device_are_answered_in_order_at_any_batch(
    runtime: EngineRuntime, library: Library, reference: OnnxRuntime, count: int
) -> None:
    for seed in (0, 1):
        answers = runtime.run_on_device({INPUT: library.made(images(count, seed))})
        assert list(answers) == [OUTPUT]
        assert (answers[OUTPUT].shape, answers[OUTPUT].dtype) == ((count, 10), "float32")
        assert_right(library.read(answers[OUTPUT]), reference, images(count, seed))


def test_pinned_arrays_of_the_cpu_are_taken_too(
    runtime: EngineRuntime, library: Library, reference: OnnxRuntime
) -> None:
    assert_right(library.read(runtime.run_on_device({INPUT: pinned(images(5))})[OUTPUT]), reference, images(5))


def test_a_device_call_waits_for_nothing(
    runtime: EngineRuntime, library: Library, cuda: StandinCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = library.made(images(3))
    with monkeypatch.context() as patched:
        for name in ("cudaStreamSynchronize", "cudaEventSynchronize"):
            patched.setattr(cuda, name, lambda *_, name=name: pytest.fail(f"{name} on the way"))
        answer = runtime.run_on_device({INPUT: array})[OUTPUT]
    assert library.read(answer).shape == (3, 10)


def test_inputs_are_held_until_they_were_read(
    runtime: EngineRuntime, library: Library, cuda: StandinCuda, reference: OnnxRuntime
) -> None:
    size = 11 * IMAGE_BYTES
    answer = runtime.run_on_device({INPUT: library.made(images(11))})[OUTPUT]
    gc.collect()
    assert len(live(cuda, size)) == 1
    assert_right(library.read(answer), reference, images(11))
    runtime.run_on_device({INPUT: library.made(images(2))})
    gc.collect()
    assert live(cuda, size) == []


def test_answers_are_the_callers_and_outlive_the_runtime(
    engine: Path, library: Library, cuda: StandinCuda, reference: OnnxRuntime
) -> None:
    runtime = opened(engine)
    answers = [runtime.run_on_device({INPUT: library.made(images(3, seed))})[OUTPUT] for seed in range(3)]
    runtime.run({INPUT: images(3, 9)})
    runtime.close()
    del runtime
    gc.collect()
    for seed, answer in enumerate(answers):
        assert_right(library.read(answer), reference, images(3, seed))
    del answers, answer
    assert leaks(cuda) == [f"stream {library.stream.handle:#x}"]


def test_both_ways_of_calling_go_together(runtime: EngineRuntime, library: Library, reference: OnnxRuntime) -> None:
    for seed in range(4):
        waiting = runtime.run_on_device({INPUT: library.made(images(3, seed))})[OUTPUT]
        assert_right(runtime.run({INPUT: images(3, seed + 10)})[OUTPUT], reference, images(3, seed + 10))
        assert_right(library.read(waiting), reference, images(3, seed))
    assert runtime.graph_problem is None


def test_an_array_that_is_no_array_is_refused(runtime: EngineRuntime) -> None:
    with pytest.raises(BadInput, match="expected an array that speaks DLPack, got list"):
        runtime.run_on_device({INPUT: [1.0]})


def test_a_device_call_that_fails_anywhere_leaks_nothing_and_the_next_is_right(
    engine: Path, library: Library, cuda: StandinCuda, reference: OnnxRuntime
) -> None:
    with opened(engine) as runtime:
        kept = []

        def call() -> None:
            kept.append(runtime.run_on_device({INPUT: pinned(images(3))}))

        call()  # from the second on, each lets the one before go
        for name in attempts(cuda, call):
            with pytest.raises(BackendUnavailable, match=f"^{name}: "):
                call()
            cuda.failures = {}
            kept.clear()
            call()
        kept.clear()
        assert_right(
            library.read(runtime.run_on_device({INPUT: library.made(images(3))})[OUTPUT]), reference, images(3)
        )
    assert leaks(cuda) == [f"stream {library.stream.handle:#x}"]


def test_a_device_call_that_tensorrt_refuses_leaves_the_memory_where_it_was(
    runtime: EngineRuntime, library: Library, api: StandinTensorRT
) -> None:
    api.fail("execute_async_v3", "no", after=1)
    with pytest.raises(BackendUnavailable, match="TensorRT could not run a batch of 3: no$"):
        runtime.run_on_device({INPUT: library.made(images(7))})
    assert library.read(runtime.run_on_device({INPUT: library.made(images(7))})[OUTPUT]).shape == (7, 10)


# --- what can go wrong is one error, with the library's reason ---


@pytest.mark.parametrize(
    ("call", "reason", "message"),
    [
        (
            "deserialize_cuda_engine",
            "magicTag",
            "TensorRT does not load .*: magicTag; build it again with: resnet-deploy build",
        ),
        ("create_execution_context", "no room", "TensorRT cannot make an execution context for .*: no room"),
        (
            "create_execution_context",
            "Error: OutOfMemory",
            "OutOfMemory; .* less with --workspace MIB, and close what else uses the GPU",
        ),
        (
            "set_input_shape",
            "no such shape",
            r"TensorRT does not take a batch of 4 for 'input' \(range 2:3:4\): no such shape",
        ),
        ("infer_shapes", "unknown", "TensorRT cannot tell the shapes of input: unknown"),
        ("set_tensor_address", "no", "TensorRT refuses the memory for 'input'; build the engine again"),
    ],
)
def test_an_engine_that_cannot_be_opened_says_why(
    engine: Path, api: StandinTensorRT, call: str, reason: str, message: str
) -> None:
    api.fail(call, reason)
    with pytest.raises(BackendUnavailable, match=message) as caught:
        opened(engine)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_an_engine_that_cannot_run_says_why_and_runs_again(
    runtime: EngineRuntime, api: StandinTensorRT, reference: OnnxRuntime
) -> None:
    api.fail("execute_async_v3", "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal access)")
    with pytest.raises(BackendUnavailable, match="^TensorRT could not run a batch of 3: Cuda Runtime"):
        runtime.run({INPUT: images(3)})
    assert_right(runtime.run({INPUT: images(3)})[OUTPUT], reference, images(3))


@pytest.mark.parametrize("call", ["set_input_shape", "infer_shapes"])
def test_a_batch_that_was_refused_does_not_spoil_the_next(
    runtime: EngineRuntime, api: StandinTensorRT, reference: OnnxRuntime, call: str
) -> None:
    api.fail(call, "because")
    with pytest.raises(BackendUnavailable, match="because"):
        runtime.run({INPUT: images(3)})
    for count in (4, 3, 4):
        assert_right(runtime.run({INPUT: images(count)})[OUTPUT], reference, images(count))


def test_a_gpu_without_room_is_one_error_with_a_remedy(folder: Path, api: StandinTensorRT, cuda: StandinCuda) -> None:
    path = add_engine(folder, api, batch=BatchRange(1, 8, 64))
    cuda.total_bytes = 100 * IMAGE_BYTES
    with pytest.raises(
        CudaError,
        match=r"cudaErrorMemoryAllocation \(2\): out of memory; close other programs .* or take a smaller batch$",
    ):
        opened(path)


def test_an_engine_of_another_version_or_device_is_tensorrts_to_refuse_where_the_sidecar_lies(
    folder: Path, api: StandinTensorRT, cuda: StandinCuda
) -> None:
    for other, said in (
        (StandinTensorRT(cuda, "10.3.0.30"), "expecting library version 11.4.0.106"),
        (api, "expecting compute 8.7 got compute 8.6"),
    ):
        before = dict(cuda.attributes)
        if other is api:
            cuda.attributes[list(before)[1]] = 6
        path = add_engine(folder, other)
        cuda.attributes.update(before)
        sidecar = sidecar_of(path)
        sidecar.write_bytes(
            json_from_facts(seal_facts(replace(read_sidecar(sidecar), version=api.__version__), ensure_machine_key()))
        )
        with pytest.raises(BackendUnavailable, match=said):
            opened(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("sm86",)}, r"was built for sm86 \(stand-in\), this GPU is sm87"),
        ({"version": "10.3.0.30"}, "was built with tensorrt 10.3.0.30, this is 11.4.0.106"),
        ({"platform": "linux-riscv64"}, "was built for linux-riscv64, this is"),
        ({"engine_sha256": "0" * 64}, "was changed after it was built"),
    ],
)
def test_what_the_sidecar_says_against_an_engine_is_said_before_tensorrt_reads_it(
    engine: Path, api: StandinTensorRT, changes: dict[str, Any], message: str
) -> None:
    sidecar_of(engine).write_bytes(
        json_from_facts(seal_facts(replace(read_sidecar(sidecar_of(engine)), **changes), ensure_machine_key()))
    )
    with pytest.raises((BackendUnavailable, BundleError), match=message):
        opened(engine)
    assert api.calls["deserialize_cuda_engine"] == 0


def test_a_version_compatible_engine_is_allowed_its_lean_runtime(
    folder: Path, api: StandinTensorRT, cuda: StandinCuda
) -> None:
    with opened(add_engine(folder, StandinTensorRT(cuda, "10.3.0.30"), version_compatible=True)) as runtime:
        assert runtime.run({INPUT: images(2)})[OUTPUT].shape == (2, 10)


# --- whose engine it is ---


def as_a_strangers(engine: Path, **changes: Any) -> str:
    """The sidecar as another machine's build writes it; returns the engine's sha256."""
    facts = seal_facts(replace(read_sidecar(sidecar_of(engine)), **changes), bytes(32))
    sidecar_of(engine).write_bytes(json_from_facts(facts))
    return facts.engine_sha256


def test_a_strangers_engine_reaches_tensorrt_only_when_it_is_named(
    folder: Path, api: StandinTensorRT, reference: OnnxRuntime
) -> None:
    engine = add_engine(folder, api, version_compatible=True)
    sha256 = as_a_strangers(engine)
    with pytest.raises(BundleError, match=f"was not built on this machine.* --trust-engine {sha256}"):
        open_runtime(engine, "tensorrt")
    for model in (folder, Bundle.open(folder)):
        with pytest.raises(BackendUnavailable, match=f"was not built on this machine.* --trust-engine {sha256}"):
            open_runtime(model, "tensorrt", trust_engine="0" * 64)
    assert api.calls["deserialize_cuda_engine"] == 0
    for model in (folder, Bundle.open(folder), engine):
        with open_runtime(model, "tensorrt", trust_engine=[sha256.upper(), "0" * 64]) as runtime:
            assert_right(runtime.run({INPUT: images(3)})[OUTPUT], reference, images(3))
    with pytest.raises(BadInput, match="expected the sha256 of an engine"):
        open_runtime(folder, "tensorrt", trust_engine="yes")


def test_each_command_that_opens_an_engine_takes_the_name_of_a_strangers(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def here(
        work: Callable[..., tuple[str, object]], *arguments: object, timeout_s: float | None = None
    ) -> tuple[str, str, object]:
        """In place of a process of its own, which would have no stand-in."""
        verdict, value = work(*arguments)
        return verdict, "", value

    monkeypatch.setattr("exporter.verification.check.run_in_own_process", here)
    sha256 = as_a_strangers(Path(deploy("build", proven, "--json").json["engine"]))
    for number in range(10):
        (tmp_path / "pictures" / str(number)).mkdir(parents=True)
        Image.fromarray(np.full((28, 28), 20 * number, np.uint8)).save(
            tmp_path / "pictures" / str(number) / "picture.png"
        )
    on = ("--backend", "tensorrt")
    commands: list[tuple[object, ...]] = [
        ("run", proven, tmp_path / "pictures" / "1" / "picture.png", *on),
        ("eval", proven, "--data", tmp_path / "pictures", *on),
        ("check", proven, *on),
        ("check", proven, "--against", proven, *on),
    ]
    for command in commands[:2]:
        ran = deploy(*command)
        assert (ran.code, f"--trust-engine {sha256}" in ran.error) == (3, True), ran.err
    for command in commands:
        assert deploy(*command, "--trust-engine", sha256).code == 0, command
        assert deploy(*command, "--trust-engine", "all").code == 2, command


def test_a_build_replaces_a_strangers_engine_by_its_own(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran]
) -> None:
    built = deploy("build", proven, "--json").json
    as_a_strangers(Path(built["engine"]))
    again = deploy("build", proven, "--json").json
    assert (again["cached"], again["engine"]) == (False, built["engine"])
    with open_runtime(proven, "tensorrt") as runtime:
        assert runtime.run({INPUT: images(2)})[OUTPUT].shape == (2, 10)


# --- threads ---


def test_siblings_run_in_two_threads_at_once(runtime: EngineRuntime, reference: OnnxRuntime) -> None:
    start = threading.Barrier(2)

    def work(seed: int) -> list[tuple[int, int, NDArray[Any]]]:
        with runtime.sibling() as mine:
            start.wait(timeout=10)
            order = [(count, seed * 100 + turn) for turn in range(5) for count in (2, 3, 4, 5, 1)]
            return [(count, at, mine.run({INPUT: images(count, at)})[OUTPUT]) for count, at in order]

    with ThreadPoolExecutor(2) as pool:
        for answers in pool.map(work, (1, 2)):
            for count, at, got in answers:
                assert_right(got, reference, images(count, at))


# --- engines without weights ---


def test_a_stripped_engine_takes_its_weights_from_the_bundle(
    folder: Path, api: StandinTensorRT, reference: OnnxRuntime
) -> None:
    add_engine(folder, api, strip_weights=True)
    with open_runtime(folder, "tensorrt") as runtime:
        assert_right(runtime.run({INPUT: images(3)})[OUTPUT], reference, images(3))


def test_a_stripped_engine_whose_onnx_is_missing_or_another_says_so(folder: Path, api: StandinTensorRT) -> None:
    path = add_engine(folder, api, strip_weights=True)
    (folder / "model.onnx").rename(folder / "away.onnx")
    with pytest.raises(
        BundleError,
        match="cannot read .*model.onnx .No such file .*, which holds the engine's weights; build the engine again",
    ):
        opened(path)
    model = onnx.load(folder / "away.onnx")
    for kept in (1, 0):
        model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[::-1]
        del model.graph.initializer[kept:1]
        onnx.save(model, folder / "model.onnx")
        with pytest.raises(
            BundleError, match="model.onnx is not the file that the engine was built from, whose weights it takes"
        ):
            opened(path)
    assert api.calls["deserialize_cuda_engine"] == 0


def test_a_stripped_engine_that_tensorrt_cannot_fill_says_why(folder: Path, api: StandinTensorRT) -> None:
    path = add_engine(folder, api, strip_weights=True)
    api.fail("refit_cuda_engine", "Refitter was unable to find all the weights of the engine.")
    with pytest.raises(
        BackendUnavailable,
        match="does not put its weights into .*: Refitter was unable .*; build it again without --strip-weights",
    ):
        opened(path)


def test_a_stripped_engine_finds_its_weights_from_any_working_folder(
    folder: Path, api: StandinTensorRT, reference: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = add_engine(folder, api, strip_weights=True)
    monkeypatch.chdir(path.parent)
    with open_runtime(path.name, "tensorrt") as runtime:
        assert_right(runtime.run({INPUT: images(3)})[OUTPUT], reference, images(3))


# --- TensorRT-RTX, whose engine is a stand-in ---


@pytest.fixture
def rtx(cuda: StandinCuda, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[StandinTensorRT, Path]:
    kind: Any = backend_class("tensorrt-rtx")
    api = StandinTensorRT(cuda, kind.API.__version__, tag=b"vtrt")
    monkeypatch.setattr(kind, "API", api)
    return api, add_engine(folder, api, backend="tensorrt-rtx")


def test_rtx_compiles_at_once_captures_by_itself_and_keeps_its_kernels(
    rtx: tuple[StandinTensorRT, Path], reference: OnnxRuntime
) -> None:
    api, path = rtx
    kind: Any = backend_class("tensorrt-rtx")
    for turn in range(2):
        with kind.open(path) as runtime:
            assert runtime._config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
            assert runtime._config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
            for count in (3, 4, 3):
                assert_right(runtime.run({INPUT: images(count)})[OUTPUT], reference, images(count))
        assert api.calls["create_execution_context"] == turn + 1  # no graphs of ours
        assert dict(api.compiled) == {3: 1, 4: 1}  # the second time they are in the cache
    assert path.with_suffix(".cache").is_file()


@pytest.mark.parametrize("content", [b"junk", b'["1.0.0.0", [3]]'], ids=["malformed", "of another version"])
def test_an_rtx_cache_that_does_not_fit_is_filled_anew(rtx: tuple[StandinTensorRT, Path], content: bytes) -> None:
    api, path = rtx
    path.with_suffix(".cache").write_bytes(content)
    with open_runtime(path, "tensorrt-rtx") as runtime:
        runtime.run({INPUT: images(3)})
    assert api.compiled[3] == 1
    assert api.__version__.encode() in path.with_suffix(".cache").read_bytes()


def test_kernels_that_another_machine_compiled_are_not_loaded(rtx: tuple[StandinTensorRT, Path]) -> None:
    api, path = rtx
    sha256, kernels = read_sidecar(sidecar_of(path)).engine_sha256, f'["{api.__version__}", [3]]'.encode()
    for known, content in enumerate(
        (kernels, with_seal(kernels, sha256, bytes(32)), with_seal(kernels, "0" * 64, ensure_machine_key()))
    ):
        path.with_suffix(".cache").write_bytes(content)
        with open_runtime(path, "tensorrt-rtx") as runtime:
            runtime.run({INPUT: images(3)})
        assert api.compiled[3] == known + 1
    path.with_suffix(".cache").write_bytes(with_seal(kernels, sha256, ensure_machine_key()))
    with open_runtime(path, "tensorrt-rtx") as runtime:
        runtime.run({INPUT: images(3)})
    assert api.compiled[3] == 3


def test_an_rtx_engine_without_a_place_for_a_key_runs_and_keeps_no_kernels(
    rtx: tuple[StandinTensorRT, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, path = rtx
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "file" / "key"))
    with open_runtime(path, "tensorrt-rtx", trust_engine=read_sidecar(sidecar_of(path)).engine_sha256) as runtime:
        assert runtime.run({INPUT: images(3)})[OUTPUT].shape == (3, 10)
    assert not path.with_suffix(".cache").exists()


def test_an_rtx_bundle_that_may_not_be_written_to_runs_all_the_same(
    rtx: tuple[StandinTensorRT, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = rtx

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("runtimes.backends.tensorrt_rtx.write_in_one_step", refuse)
    with open_runtime(path, "tensorrt-rtx") as runtime:
        assert runtime.run({INPUT: images(3)})[OUTPUT].shape == (3, 10)
    assert not path.with_suffix(".cache").exists()


def test_an_rtx_cache_that_cannot_be_read_or_written_is_done_without(rtx: tuple[StandinTensorRT, Path]) -> None:
    _, path = rtx
    path.with_suffix(".cache").mkdir()
    with open_runtime(path, "tensorrt-rtx") as runtime:
        assert runtime.run({INPUT: images(3)})[OUTPUT].shape == (3, 10)


def test_an_rtx_engine_that_cannot_be_opened_says_why(rtx: tuple[StandinTensorRT, Path]) -> None:
    api, path = rtx
    api.fail("create_execution_context", "no room")
    with pytest.raises(BackendUnavailable, match="cannot make an execution context for .*: no room"):
        open_runtime(path, "tensorrt-rtx")
    assert not path.with_suffix(".cache").exists()


# --- the stand-in notices what TensorRT would punish ---


@pytest.mark.parametrize("handle", [0, 1, 2])
def test_work_in_a_default_stream_is_noticed(runtime: EngineRuntime, handle: int) -> None:
    with pytest.raises(AssertionError, match="work in the default stream"):
        runtime._plain.context.execute_async_v3(handle)


def test_memory_that_is_too_small_or_not_the_devices_is_noticed(runtime: EngineRuntime) -> None:
    context = runtime._plain.context
    elsewhere = np.zeros(1 << 16, np.uint8).ctypes.data
    with DeviceBuffer(IMAGE_BYTES) as small:
        for pointer, problem in (
            (small.pointer, "more than were allocated"),
            (elsewhere + -elsewhere % 256, "which is no CUDA memory"),
        ):
            assert context.set_tensor_address(INPUT, pointer)
            with pytest.raises(AssertionError, match=problem):
                context.execute_async_v3(runtime._stream.handle)


def test_a_context_that_was_not_told_everything_does_not_run(runtime: EngineRuntime, api: StandinTensorRT) -> None:
    context: Any = runtime._loaded.engine.create_execution_context()
    with log_of(api).recording() as recording:
        assert not context.execute_async_v3(runtime._stream.handle)
    assert "no address or shape is set for input, logits" in recording.reason
    with log_of(api).recording() as recording:
        assert not context.set_input_shape(INPUT, (5, 1, 28, 28))
    assert (
        "does not satisfy any optimization profiles. Valid range for profile 0: [2, 1, 28, 28]..[4, 1, 28, 28]"
        in recording.reason
    )


def test_a_capture_right_after_a_change_of_shapes_is_noticed(runtime: EngineRuntime, api: StandinTensorRT) -> None:
    runtime._plain.set_shapes(runtime._shapes(2, {INPUT: (2, 1, 28, 28)}))
    with pytest.raises(BackendUnavailable, match=NOT_CAPTURABLE):
        Graph.capture(runtime._stream, lambda: runtime._enqueue(runtime._plain))


def test_a_context_in_two_streams_or_threads_at_once_is_noticed(runtime: EngineRuntime, library: Library) -> None:
    context: Any = runtime._plain.context
    assert context.execute_async_v3(runtime._stream.handle)
    with pytest.raises(AssertionError, match="one execution context in two streams at once"):
        context.execute_async_v3(library.stream.handle)
    runtime._stream.synchronize()
    with context.busy, pytest.raises(AssertionError, match="while another thread uses the same execution context"):
        context.infer_shapes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: b"", "Cannot deserialize with an empty memory buffer"),
        (lambda plan: plan[:-1], "Assertion bufferSize >= minBufferSize failed"),
        (lambda plan: plan[:20], "Assertion bufferSize >= minBufferSize failed"),
        (lambda plan: b"vtrt" + plan[4:], "header.magicTag == kEXPECTED_MAGIC_TAG failed"),
        (
            lambda plan: plan[:24] + bytes((10, 3, 0, 30)) + plan[28:],
            "expecting library version 11.4.0.106 got .., please rebuild",
        ),
    ],
    ids=["empty", "truncated", "cut in the header", "foreign", "of another version"],
)
def test_a_plan_that_is_no_such_plan_gives_none_and_nvidias_words(
    engine: Path, api: StandinTensorRT, change: Callable[[bytes], bytes], said: str
) -> None:
    log = log_of(api)
    with log.recording() as recording:
        standin: Any = api
        assert standin.Runtime(log.logger).deserialize_cuda_engine(change(engine.read_bytes())) is None
    assert said in recording.reason


# --- resnet-deploy build, on this "device" ---


@pytest.fixture
def proven(folder: Path, reference: OnnxRuntime, manifest: Manifest) -> Path:
    """The bundle with golden inputs and logits."""
    np.savez(folder / "golden.npz", inputs=images(4), logits=reference.run({INPUT: images(4)})[OUTPUT])
    (folder / "manifest.json").unlink()
    write_manifest(folder, replace(manifest, batch=BATCH))
    return folder


@pytest.mark.parametrize("version", ["10.3.0.30", "11.4.0.106"])
def test_an_engine_is_built_proven_kept_and_then_runs(
    proven: Path, cuda: StandinCuda, deploy: Callable[..., Ran], reference: OnnxRuntime, version: str
) -> None:
    api = StandinTensorRT(cuda, version)
    with imported_as_tensorrt(api):
        ran = deploy("build", proven, "--json", "--timing-cache", proven.parent / "times")
        assert ran.code == 0, ran.err
        facts = ran.json
        assert (facts["checked"], facts["parity"]["ok"], facts["cached"]) == (True, True, False)
        assert (facts["version"], facts["targets"], facts["typing"]) == (version, ["sm87"], "strong")
        assert facts["layers"]["fallback"] == []
        assert set(facts["layers"]["convolutions"]) == {"fp32"}
        assert facts["parity"]["batches"] == [2, 3, 4]
        assert api.last_config is not None
        assert api.BuilderFlag.TF32 not in api.last_config.flags
        assert api.last_config.pools[api.MemoryPoolType.WORKSPACE] <= cuda.total_bytes // 2  # shared with the CPU
        assert deploy("build", proven, "--json").json["cached"]
        assert deploy("build", proven, "--force", "--timing-cache", proven.parent / "times").code == 0
        assert (proven.parent / f"times.{version}-sm87").read_text() == f'["{version}", 2]'
        with open_runtime(proven, "tensorrt") as runtime:
            assert_right(runtime.run({INPUT: images(7)})[OUTPUT], reference, images(7))
    assert leaks(cuda) == []


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, shipped_bundle: Any) -> Path:
    """The shipped ResNet-20 in INT8, to build engines into."""
    return Path(shutil.copytree(shipped_bundle("int8").folder, tmp_path_factory.mktemp("quantized") / "resnet20"))


@needs_rounding  # the stand-in computes with it
@pytest.mark.parametrize("version", ["10.3.0.30", "11.4.0.106"])
def test_an_int8_bundle_is_built_and_proven_in_int8(
    quantized: Path, cuda: StandinCuda, deploy: Callable[..., Ran], version: str
) -> None:
    with imported_as_tensorrt(StandinTensorRT(cuda, version)):
        facts = deploy("build", quantized, "--json").json
    assert (facts["checked"], facts["parity"]["ok"], facts["parity"]["batches"]) == (True, True, [1, 2, 4])
    assert (facts["layers"]["convolutions"], facts["layers"]["fallback"]) == ({"int8": 21}, [])


@pytest.mark.parametrize(
    "options",
    [["--version-compatible"], ["--strip-weights"], ["--hardware-compatible", "ampere-plus"], ["--workspace", "64"]],
)
def test_options_reach_the_builder_and_the_engine_is_proven_with_them(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], options: list[str]
) -> None:
    facts = deploy("build", proven, "--json", *options).json
    assert facts["checked"]
    config = api.last_config
    assert config is not None
    flags = {name for name in ("VERSION_COMPATIBLE", "STRIP_PLAN") if getattr(api.BuilderFlag, name) in config.flags}
    assert flags == {"--version-compatible": {"VERSION_COMPATIBLE"}, "--strip-weights": {"STRIP_PLAN"}}.get(
        options[0], set()
    )
    assert config.hardware_compatibility_level.name == (
        "AMPERE_PLUS" if options[0] == "--hardware-compatible" else "NONE"
    )
    assert (config.pools[api.MemoryPoolType.WORKSPACE] == 64 << 20) == (options[0] == "--workspace")


def test_an_engine_out_of_budget_is_not_kept(proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran]) -> None:
    api.distort = lambda answer, _: -answer
    ran = deploy("build", proven, "--json")
    assert ran.code == 4
    assert "the engine's answers to the golden inputs are out of budget" in ran.error
    assert list((proven / "engines").iterdir()) == []


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_build_that_fails_leaves_the_engine_before_it_as_it_was(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert deploy("build", proven).code == 0
    before = content(proven / "engines")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def no_room(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    def fails(code: int) -> None:
        assert deploy("build", proven, "--force").code == code
        assert content(proven / "engines") == before
        with open_runtime(proven, "tensorrt") as runtime:
            assert runtime.run({INPUT: images(2)})[OUTPUT].shape == (2, 10)

    for call, code in (("build_serialized_network", 1), ("deserialize_cuda_engine", 1), ("execute_async_v3", 3)):
        api.fail(call, "an illegal access")
        fails(code)
    api.fail("deserialize_cuda_engine", "not this one", after=1)  # the inspector's is the first
    fails(3)
    with monkeypatch.context() as patch:
        patch.setattr("exporter.engines.build.golden_report", interrupt)
        assert deploy("build", proven, "--force").code == 130
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", no_room)
        assert deploy("build", proven, "--force").code == 1
    assert content(proven / "engines") == before
    api.distort = lambda answer, _: -answer
    assert deploy("build", proven, "--force").code == 4
    assert content(proven / "engines") == before


def test_until_a_new_engine_is_proven_the_one_before_it_is_found(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert deploy("build", proven).code == 0
    before = content(proven / "engines")

    def looked_at(*arguments: Any) -> Any:
        assert {name: data for name, data in content(proven / "engines").items() if not name.startswith(".")} == before
        with open_runtime(proven, "tensorrt") as runtime:
            assert not runtime._loaded.path.name.startswith(".")  # type: ignore[attr-defined]  # an engine's
        return golden_report(*arguments)

    monkeypatch.setattr("exporter.engines.build.golden_report", looked_at)
    assert deploy("build", proven, "--force").code == 0
    assert content(proven / "engines").keys() == before.keys()


def test_engines_of_other_options_stand_beside_each_other_and_the_last_asked_for_is_taken(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran]
) -> None:
    def taken() -> str:
        with open_runtime(proven, "tensorrt") as runtime:
            return runtime._loaded.path.name  # type: ignore[attr-defined, no-any-return]  # an engine's

    names = []
    for options in (
        [],
        ["--version-compatible"],
        ["--strip-weights", "--optimization-level", "5"],
        ["--workspace", "64"],
    ):
        names.append(Path(deploy("build", proven, "--json", *options).json["engine"]).name)
        for path in (proven / "engines").iterdir():
            os.utime(path, (path.stat().st_mtime - 10,) * 2)
        assert taken() == names[-1]
    stem = "tensorrt-11.4.0.106-sm87-b2-3-4"
    assert names == [
        f"{stem}.engine",
        f"{stem}-version-compatible.engine",
        f"{stem}-stripped-o5.engine",
        f"{stem}-w64.engine",
    ]
    again = deploy("build", proven, "--json", "--version-compatible").json
    assert again["cached"]
    assert taken() == names[1]


def test_what_a_build_that_was_killed_left_is_removed_by_a_later_one(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran]
) -> None:
    engine = Path(deploy("build", proven, "--json").json["engine"])
    old, young = (engine.with_name(f".{engine.stem}.partial-{word}.engine") for word in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    assert deploy("build", proven, "--force").code == 0
    assert (old.exists(), young.exists()) == (False, True)


def test_a_timing_cache_that_cannot_be_used_is_told_before_the_build(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"folder.{api.__version__}-sm87").mkdir()
    for file, message in (("nowhere/times", "there is no folder"), ("folder", "Is a directory")):
        ran = deploy("build", proven, "--timing-cache", tmp_path / file)
        assert (ran.code, message in ran.error) == (2, True), ran.err
    assert api.calls["build_serialized_network"] == 0

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("exporter.engines.timings.write_in_one_step", refuse)
    ran = deploy("build", proven, "--timing-cache", tmp_path / "times")
    assert (ran.code, "the engine is built and kept, but" in ran.error) == (2, True)
    assert deploy("build", proven, "--json").json["cached"]


def test_engines_are_not_written_through_a_link(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (proven / "engines").symlink_to(tmp_path / "elsewhere")
    ran = deploy("build", proven)
    assert (ran.code, "is a link, so that engines would be written elsewhere; remove it" in ran.error) == (1, True)
    assert (api.calls["build_serialized_network"], [*(tmp_path / "elsewhere").iterdir()]) == (0, [])


def test_without_a_place_for_the_key_nothing_is_built(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "file" / "key"))
    ran = deploy("build", proven)
    assert (ran.code, f"set {KEY_VARIABLE} to a file" in ran.error) == (3, True)
    assert api.calls["build_serialized_network"] == 0


def test_an_engine_that_fails_on_the_spot_is_not_kept(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran]
) -> None:
    api.fail("execute_async_v3", "an illegal access")
    ran = deploy("build", proven)
    assert (ran.code, ran.error) == (3, "error: TensorRT could not run a batch of 2: an illegal access")
    assert list((proven / "engines").iterdir()) == []


def archive(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def single(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not hold golden inputs and logits"),
        (b"junk" * 10, "does not hold golden inputs and logits"),
        (b"PK\x03\x04" + bytes(100), "does not hold golden inputs and logits"),
        (single(images(2)), "does not hold golden inputs and logits"),
        (archive(inputs=images(2)), "does not hold golden inputs and logits"),
        (archive(inputs=images(2), logits=np.zeros((3, 10))), "holds 2 inputs and 3 logits"),
        (archive(inputs=images(0), logits=np.zeros((0, 10))), "holds 0 inputs and 0 logits"),
    ],
    ids=["empty", "junk", "half an archive", "one array", "no logits", "unequal", "none"],
)
def test_a_bundle_whose_proof_cannot_be_read_keeps_no_engine(
    proven: Path, api: StandinTensorRT, manifest: Manifest, deploy: Callable[..., Ran], content: bytes, message: str
) -> None:
    (proven / "golden.npz").write_bytes(content)
    (proven / "manifest.json").unlink()
    write_manifest(proven, replace(manifest, batch=BATCH))
    ran = deploy("build", proven)
    assert (ran.code, api.calls["build_serialized_network"]) == (1, 1)
    assert message in ran.error
    assert ran.error.endswith("; export the bundle again")
    assert list((proven / "engines").iterdir()) == []


@pytest.mark.parametrize("version", ["10.3.0.30", "11.4.0.106"])
def test_convolutions_in_another_precision_are_refused_unless_allowed(
    proven: Path, cuda: StandinCuda, deploy: Callable[..., Ran], version: str
) -> None:
    api = StandinTensorRT(cuda, version)
    api.runs_as = {"stem.conv": "FP16"} | {
        node.name: "FP16" for node in onnx.load(proven / "model.onnx").graph.node if node.op_type == "Conv"
    }
    with imported_as_tensorrt(api):
        ran = deploy("build", proven)
        assert ran.code == 1
        assert "of its convolutions run otherwise" in ran.error
        assert "--allow-fallback-layers" in ran.error
        assert not (proven / "engines").exists()
        assert deploy("build", proven, "--allow-fallback-layers", "--json").json["layers"]["convolutions"].keys() == {
            "fp16"
        }


def test_an_early_tensorrt_10_that_refuses_typed_graphs_builds_with_weak_typing(
    proven: Path, cuda: StandinCuda, deploy: Callable[..., Ran]
) -> None:
    api = StandinTensorRT(cuda, "10.3.0.30")
    api.fail("parse", "In node 0: must be of same type")
    with imported_as_tensorrt(api):
        facts = deploy("build", proven, "--json").json
    assert (facts["typing"], facts["checked"]) == ("weak", True)
    assert "must be of same type" in facts["typed_refusal"]
    assert api.last_config is not None
    assert not {"FP16", "BF16", "INT8"} & api.last_config.flags  # the bundle is FP32


@pytest.mark.parametrize(("precision", "flags"), [("fp16", {"FP16"}), ("bf16", {"BF16"}), ("int8", {"FP16", "INT8"})])
def test_weak_typing_allows_what_the_bundles_precision_is_made_of_alone(
    proven: Path, cuda: StandinCuda, manifest: Manifest, precision: str, flags: set[str]
) -> None:
    (proven / "manifest.json").unlink()
    write_manifest(proven, replace(manifest, batch=BATCH, precision=precision))
    api = StandinTensorRT(cuda, "10.3.0.30")
    api.fail("parse", "In node 0: must be of same type")
    with imported_as_tensorrt(api):
        build_engine(BuildPlan(Bundle.open(proven), "tensorrt", allow_fallback_layers=True), quiet)
    assert api.last_config is not None
    assert api.last_config.flags & {"FP16", "BF16", "INT8"} == flags


def test_what_both_ways_of_typing_were_refused_for_is_told(
    proven: Path, cuda: StandinCuda, deploy: Callable[..., Ran]
) -> None:
    api = StandinTensorRT(cuda, "10.3.0.30")
    with imported_as_tensorrt(api):
        api.fail("parse", "In node 0: must be of same type", "In node 7: no such operator")
        ran = deploy("build", proven)
        assert ran.code == 1
        assert "TensorRT refuses model.onnx: In node 0: must be of same type" in ran.error
        assert ran.error.endswith("; and with weak typing: In node 7: no such operator")
        api.fail("parse", "In node 0: must be of same type")
        api.fail("build_serialized_network", "no implementation")
        ran = deploy("build", proven)
        assert (
            "the engine could not be built: no implementation (with weak typing, for the typed graph was refused: In node 0: must be"
            in ran.error
        )


def test_tensorrt_11_has_no_weak_typing_to_fall_back_to(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran]
) -> None:
    api.fail("parse", "In node 0: must be of same type")
    ran = deploy("build", proven)
    assert (ran.code, ran.error.count("its types are mixed")) == (1, 1)


# --- DLA ---


@pytest.fixture
def static(proven: Path, manifest: Manifest) -> Path:
    """The bundle as if it were FP16, which the stand-in's inspector says of all that runs on DLA, at one batch size."""
    (proven / "manifest.json").unlink()
    write_manifest(proven, replace(manifest, batch=BatchRange(2, 2, 2), precision="fp16"))
    return proven


@pytest.fixture
def convolutions(folder: Path) -> list[str]:
    return [node.name for node in onnx.load(folder / "model.onnx").graph.node if node.op_type == "Conv"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dla_is_refused_for_what_it_cannot_compute(
    proven: Path, manifest: Manifest, precision: str, deploy: Callable[..., Ran]
) -> None:
    (proven / "manifest.json").unlink()
    write_manifest(proven, replace(manifest, batch=BatchRange(2, 2, 2), precision=precision))
    ran = deploy("build", proven, "--dla", "0")
    assert (
        ran.code,
        f"DLA computes in FP16 and INT8, and the bundle is {precision}; export it with --fp16" in ran.error,
    ) == (2, True)


def test_dla_needs_one_batch_size_and_a_core(
    static: Path, api: StandinTensorRT, manifest: Manifest, deploy: Callable[..., Ran]
) -> None:
    assert "finds no DLA on stand-in" in deploy("build", static, "--dla", "0").error
    api.dla_cores = 2
    assert "expected --dla below 2, got 2" in deploy("build", static, "--dla", "2").error
    facts = deploy("build", static, "--dla", "1", "--json").json
    assert (facts["options"], facts["checked"]) == ({"dla_core": 1}, True)
    assert Path(facts["engine"]).name == "tensorrt-11.4.0.106-sm87-b2-2-2-dla1.engine"
    assert api.last_config is not None
    assert (api.last_config.DLA_core, api.last_config.default_device_type.name) == (1, "DLA")
    assert api.BuilderFlag.GPU_FALLBACK in api.last_config.flags
    (static / "manifest.json").unlink()
    shutil.rmtree(static / "engines")
    write_manifest(static, replace(manifest, batch=BATCH, precision="fp16"))
    assert "DLA runs one batch size alone, the bundle has 2:3:4" in deploy("build", static, "--dla", "0").error


def test_what_fell_back_from_dla_to_the_gpu_is_listed(
    static: Path, api: StandinTensorRT, convolutions: list[str], deploy: Callable[..., Ran]
) -> None:
    api.dla_cores = 1
    ran = deploy("build", static, "--dla", "0")
    assert ran.code == 0, ran.err
    layers = deploy("inspect", next((static / "engines").glob("*-dla0.engine")), "--json").json["layers"]
    assert layers["convolutions"] == {"fp16": len(convolutions)}
    pooling = [node.name for node in onnx.load(static / "model.onnx").graph.node if node.op_type in api.off_dla]
    assert layers["on_gpu"] == pooling != []
    assert f"on the GPU and not on DLA: {', '.join(pooling)}" in ran.out


def test_convolutions_that_fell_back_from_dla_to_the_gpu_are_refused_unless_allowed(
    static: Path, api: StandinTensorRT, convolutions: list[str], deploy: Callable[..., Ran]
) -> None:
    api.dla_cores = 1
    api.off_dla.add(convolutions[1])
    ran = deploy("build", static, "--dla", "0")
    assert ran.code == 1
    assert (
        f"--dla 0 asks for DLA, but 1 of {len(convolutions)} convolutions do not run there: {convolutions[1]}; accept that with"
        in ran.error
    )
    assert not (static / "engines").exists()
    facts = deploy("build", static, "--dla", "0", "--allow-fallback-layers", "--json").json
    assert convolutions[1] in facts["layers"]["on_gpu"]
    api.off_dla.add("Conv")
    all_of_them = f"{len(convolutions)} of {len(convolutions)} convolutions do not run there: {convolutions[0]}, "
    assert all_of_them in deploy("build", static, "--dla", "0", "--force").error


def test_a_stretch_on_dla_holds_what_lies_between_its_ends_and_no_gpu_layer_names() -> None:
    order = ("input.cast", "conv1", "relu", "conv2", "side", "conv3", "pool", "fc", "bias")
    layers = [
        EngineLayer("Reformat", ("fp16",), frozenset({"conv1"}), "Reformatting CopyNode for conv1"),
        EngineLayer("DLA", ("fp16",), frozenset(), "{ForeignNode[conv1...conv3]}"),
        EngineLayer("CaskConvolution", ("fp16",), frozenset({"side"}), "side"),
        EngineLayer("DLA", ("fp16",), frozenset(), "{ForeignNode[fc + bias]}"),
        EngineLayer("DLA", ("fp16",), frozenset(), "{ForeignNode[nobody...knows]}"),
        EngineLayer("DLA", ("fp16",), frozenset(), "{ForeignNode[input.cast...nobody]}"),
    ]
    spread = spread_over_dla(layers, order)
    assert [set(layer.nodes) for layer in spread] == [
        {"conv1"},
        {"conv1", "relu", "conv2", "conv3"},
        {"side"},
        {"fc", "bias"},
        set(),
        set(),
    ]
    assert layers_on_gpu(spread, order) == ("side",)
