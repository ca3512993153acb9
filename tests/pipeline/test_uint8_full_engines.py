"""`--uint8-input full`: TensorRT takes any size, in builds by TensorRT-RTX and in engines over the stand-ins."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from any_size import BATCH, bundles_fixture, preprocess  # noqa: F401  # pytest finds it by its name
from numpy.typing import NDArray
from rtx_builds import build_in_precision
from standin_cuda import StandinCuda
from standin_tensorrt import StandinTensorRT, imported_as_tensorrt

from exporter.engines.build import BuildPlan, build_engine
from exporter.engines.builders import BuildOptions, Job, tensorrt_rtx
from exporter.graph.facts import tensor_specs
from exporter.graph.pillow_resize import resizing_graph
from exporter.lowering.registry import precision_names
from runtimes import Bundle, open_runtime
from runtimes._open import backend_class
from runtimes.errors import BadInput, BuildError
from runtimes.nvidia.cuda import PinnedBuffer, Stream, copy_to_host
from runtimes.nvidia.dlpack import CUDA_HOST, DeviceArray, tensor_from_dlpack
from runtimes.nvidia.engine_runtime import EngineRuntime
from runtimes.nvidia.loading import LoadedEngine
from runtimes.nvidia.log import log_of
from runtimes.preprocess import Preprocess
from runtimes.specs import PICTURE_SIDES

# --- builds by TensorRT-RTX ---


@pytest.mark.parametrize("precision", precision_names())
def test_tensorrt_takes_any_size_and_builds_in_the_precision_asked_for(bundles: Any, precision: str) -> None:
    built, layers, facts = build_in_precision(bundles(precision), BATCH)
    assert facts.convolutions == {precision: 21}
    least, best, most = PICTURE_SIDES
    assert (
        f"MinShape: [1,{least},{least},1], OptShape: [2,{best},{best},1], MaxShape: [4,{most},{most},1]"
        in built.log.text
    )
    assert {layer.reads for layer in layers if layer.kind == "gemm" and len(layer.reads) == 2} >= {
        ("fp32", "fp32")
    }  # the resizing stays in FP32


@pytest.mark.parametrize(
    "steps",
    [preprocess(interpolation="bicubic"), preprocess(None), preprocess((30, 41))],
    ids=["bicubic", "none", "tuple"],
)
def test_tensorrt_takes_every_kind_of_resizing(steps: Preprocess) -> None:
    graph = resizing_graph(steps, 20)
    job = Job(
        graph.SerializeToString(), "fp32", tensor_specs(graph.graph.input), BATCH, BuildOptions(targets=("sm86",))
    )
    built, _ = tensorrt_rtx.build(job, lambda step, done=0, total=0: None)
    assert built.typing == "strong"


# --- engines, over the stand-ins ---


@pytest.fixture
def engine(bundles: Any, standin: StandinCuda) -> Any:
    """A bundle, and its engine as `resnet-deploy build` makes and checks it."""
    bundle = bundles("fp32")  # before: torch looks for TensorRT when it traces
    with imported_as_tensorrt(StandinTensorRT(standin)):
        built = build_engine(BuildPlan(bundle, "tensorrt"), lambda step, done=0, total=0: None)
        assert built.facts.checked
        yield bundle


def test_an_engine_answers_for_pictures_of_any_size_and_keeps_no_graph_of_one(engine: Bundle) -> None:
    chance = np.random.default_rng(0)
    with open_runtime(engine, "tensorrt") as runtime, open_runtime(engine) as reference:
        assert isinstance(runtime, EngineRuntime)
        assert runtime.inputs == engine.manifest.inputs
        for rows, height, width in [(1, 28, 28), (4, 43, 50), (1, 43, 50), (6, 20, 91), (4, 43, 50), (1, 300, 7)]:
            array = chance.integers(0, 256, (rows, height, width, 1), np.uint8)
            expected = reference.run({"input": array})["logits"]
            np.testing.assert_allclose(
                runtime.run({"input": array})["logits"], expected, rtol=0, atol=1e-5 * np.abs(expected).max()
            )
            given = PinnedBuffer(array.nbytes)
            given.view(array.dtype, array.shape)[...] = array
            answer = runtime.run_on_device({"input": DeviceArray(given, array.shape, "uint8", device=(CUDA_HOST, 0))})[
                "logits"
            ]
            np.testing.assert_allclose(on_host(answer), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert runtime.graph_problem == "pictures come in any size, and a graph is of one"


def on_host(answer: DeviceArray) -> NDArray[Any]:
    with Stream() as stream, PinnedBuffer(4 * math.prod(answer.shape)) as copy:
        copy_to_host(copy.pointer, tensor_from_dlpack(answer, stream.handle).pointer, copy.size, stream)
        stream.synchronize()
        return copy.view("float32", answer.shape).copy()


def test_tensorrt_rtx_compiles_no_kernels_of_one_size(
    bundles: Any, standin: StandinCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kind: Any = backend_class("tensorrt-rtx")
    api = StandinTensorRT(standin, kind.API.__version__, tag=b"vtrt")
    monkeypatch.setattr(kind, "API", api)
    for name, kernels, graphs in (("full", "NONE", "DISABLED"), ("crop", "EAGER", "WHOLE_GRAPH_CAPTURE")):
        model = onnx.load(bundles("fp32").file("model.onnx"))
        if name == "crop":
            for dimension in model.graph.input[0].type.tensor_type.shape.dim[1:3]:
                dimension.dim_value = 28
        shapes = tuple((rows, 28, 28, 1) for rows in (1, 2, 4))
        plan = api.plan(model.SerializeToString(), {"input": shapes})  # type: ignore[dict-item]  # of three, as it says
        library: Any = api.Runtime(log_of(api).logger)
        sidecar: Any = SimpleNamespace(engine_sha256="0" * 64)  # all that is asked for once the engine is loaded
        with kind(
            LoadedEngine(library, library.deserialize_cuda_engine(plan), sidecar, tmp_path / f"{name}.engine")
        ) as runtime:
            assert runtime._config.dynamic_shapes_kernel_specialization_strategy.name == kernels
            assert runtime._config.cuda_graph_strategy.name == graphs
            assert runtime.run({"input": np.zeros((2, 28, 28, 1), np.uint8)})["logits"].shape == (2, 10)


def test_a_picture_larger_than_the_engine_was_built_for_is_refused(engine: Bundle) -> None:
    side = PICTURE_SIDES[-1]
    with open_runtime(engine, "tensorrt") as runtime:
        array = np.zeros((1, 20, side + 1, 1), np.uint8)
        with pytest.raises(
            BadInput,
            match=f"expected pictures of at most {side}x{side}, which the engine was built for, got 20x{side + 1}; shrink them",
        ):
            runtime.run({"input": array})
        assert runtime.run({"input": np.zeros((1, 20, side, 1), np.uint8)})["logits"].shape == (1, 10)


def test_weak_typing_which_might_resize_in_fp16_is_not_fallen_back_to(bundles: Any, standin: StandinCuda) -> None:
    bundle, api = bundles("fp16"), StandinTensorRT(standin, "10.3.0.30")
    api.fail("parse", "In node 0: must be of same type")
    with imported_as_tensorrt(api), pytest.raises(BuildError, match="TensorRT refuses model.onnx"):
        build_engine(BuildPlan(bundle, "tensorrt"), lambda step, done=0, total=0: None)
