"""`--uint8-input full`: pictures of any size in, resized and cropped in the graph, to the last bit what Pillow makes of them outside."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from commands import Ran, run_main
from numpy.typing import NDArray
from PIL import Image
from rounding import RUNNABLE
from standin_cuda import StandinCuda
from standin_tensorrt import StandinTensorRT, imported_as_tensorrt

from calibration.data import built_in, open_source
from calibration.one_size import fitting_size
from exporter import ExportPlan, export
from exporter.cli import deploy
from exporter.engines.build import BuildPlan, build_engine
from exporter.engines.builders import BuildOptions, Job, tensorrt_rtx
from exporter.engines.layers import check_precision, layer_facts
from exporter.graph.facts import tensor_specs
from exporter.graph.pillow_resize import check_resizable, resizing_graph, with_any_size
from exporter.graph.pixel_input import with_uint8_input
from exporter.lowering.qdq.lint import lint
from exporter.lowering.registry import load_precision, precision_names
from exporter.pipeline import resize_proof as pictures
from exporter.pipeline.resize_proof import check_resizing, images_of_one_size, trial_sizes
from runtimes import Bundle, open_runtime
from runtimes._open import backend_class
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.classify import classify
from runtimes.errors import BackendUnavailable, BadInput, BuildError, ExportError, PlanError
from runtimes.nvidia.cuda import PinnedBuffer, Stream, copy_to_host
from runtimes.nvidia.dlpack import CUDA_HOST, DeviceArray, tensor_from_dlpack
from runtimes.nvidia.engine_runtime import EngineRuntime
from runtimes.nvidia.loading import LoadedEngine
from runtimes.nvidia.log import log_of
from runtimes.parity.golden import golden_arrays, golden_report
from runtimes.preprocess import Preprocess
from runtimes.specs import PICTURE_SIDES, BatchRange, TensorSpec

BATCH = BatchRange(1, 2, 4)
SIZES = {
    "the crop": (28, 24),
    "shrunk": (97, 120),
    "shrunk by little": (30, 31),
    "enlarged": (9, 11),
    "standing, more than twice as high": (151, 33),
    "lying": (20, 171),
    "smaller than the crop": (27, 5),
    "higher and narrower than the crop": (90, 13),
    "one pixel": (1, 1),
    "a strip": (3, 200),
    "large": (1080, 1920),
}
RESIZES = {
    "the shorter side": 32,
    "the crop's side": 24,
    "height and width": (30, 41),
    "smaller than the crop": (15, 50),
    "none": None,
}


def preprocess(
    resize: int | tuple[int, int] | None = 32, interpolation: str = "bilinear", channels: int = 3, **changes: Any
) -> Preprocess:
    made = Preprocess(
        resize, (28, 24), interpolation, True, (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    )
    return replace(made, **changes)


def noise(height: int, width: int, channels: int = 3) -> Image.Image:
    """Each value is 0, 255 or any other: sums are as far from the middle as they can be."""
    chance = np.random.default_rng([height, width])
    levels = np.where(
        chance.random((height, width, channels)) < 0.5, chance.choice([0, 255], (height, width, channels)), 0
    )
    values = np.where(
        chance.random((height, width, channels)) < 0.5, levels, chance.integers(0, 256, (height, width, channels))
    )
    return Image.fromarray(values.astype(np.uint8) if channels > 1 else values[..., 0].astype(np.uint8))


def resized(runtime: OnnxRuntime, steps: Preprocess, picture: Image.Image) -> NDArray[Any]:
    """The graph's levels (height, width, channels) of one picture."""
    (levels,) = runtime.run({"picture": steps.picture(picture)[None]}).values()
    return np.asarray(levels[0].transpose(1, 2, 0))


@pytest.fixture
def bundles(shipped_bundle: Any) -> Callable[[str], Bundle]:
    """The shipped ResNet-20 that takes pictures of any size."""
    return partial(shipped_bundle, uint8="full")


# --- the resizing alone ---


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", RESIZES.values(), ids=RESIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_graph_resizes_crops_and_pads_to_the_bit_as_pillow_does(
    interpolation: str, resize: Any, channels: int
) -> None:
    steps = preprocess(resize, interpolation, channels)
    with OnnxRuntime.from_bytes(resizing_graph(steps, 20).SerializeToString()) as runtime:
        for size in SIZES.values():
            picture = noise(*size, channels)
            np.testing.assert_array_equal(resized(runtime, steps, picture), steps.pixels(picture), err_msg=str(size))


def test_all_pictures_of_a_batch_are_resized() -> None:
    steps = preprocess()
    batch = np.random.default_rng(0).integers(0, 256, (3, 45, 61, 3), np.uint8)
    with OnnxRuntime.from_bytes(resizing_graph(steps, 20).SerializeToString()) as runtime:
        (levels,) = runtime.run({"picture": batch}).values()
    np.testing.assert_array_equal(levels.transpose(0, 2, 3, 1), [steps.pixels(Image.fromarray(one)) for one in batch])


@pytest.mark.parametrize("size", [(2, 1500), (9001, 40), (12000, 12)])
def test_beyond_8192_pixels_the_cubic_is_no_more_than_two_levels_off(size: tuple[int, int]) -> None:
    """The resized side counts too: a strip of 2x1500 becomes 32x24000."""
    steps, picture = preprocess(32, "bicubic"), noise(*size)
    with OnnxRuntime.from_bytes(resizing_graph(steps, 20).SerializeToString()) as runtime:
        differences = np.abs(resized(runtime, steps, picture) - steps.pixels(picture))
    assert differences.max() <= 2
    assert (differences > 0).mean() < 0.2


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_pillows_columns_come_first_whatever_its_version(size: tuple[int, int]) -> None:
    """Pillow 13 starts with the rows where a picture loses more than twice as many of them as of columns."""
    picture, steps = noise(*size), preprocess((30, 41), crop=(30, 41))
    by_hand = picture.resize((41, picture.height), Image.Resampling.BILINEAR).resize(
        (41, 30), Image.Resampling.BILINEAR
    )
    np.testing.assert_array_equal(steps.pixels(picture), np.asarray(by_hand))


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        (preprocess(interpolation="nearest"), "nearest"),
        (preprocess(interpolation="lanczos"), "lanczos"),
        (preprocess(antialias=False), "bilinear without antialias"),
    ],
    ids=str,
)
def test_a_resize_that_the_graph_does_not_have_is_refused_with_what_to_do(steps: Preprocess, found: str) -> None:
    with pytest.raises(
        PlanError,
        match=f"resizes bilinear or bicubic with antialias, and the model wants {found}; take --uint8-input without full",
    ):
        check_resizable(steps)
    check_resizable(replace(steps, resize=None))  # then it matters to nobody


def test_a_model_of_four_channels_takes_no_pictures() -> None:
    with pytest.raises(
        PlanError, match="takes pictures, of 1 or 3 channels, and the model has 4; take --uint8-input without full"
    ):
        check_resizable(preprocess(mean=(0.0,) * 4, std=(1.0,) * 4))


# --- the proof ---


@pytest.mark.parametrize(
    "other",
    [{"resize": 33}, {"resize": (32, 32)}, {"crop": (28, 23)}, {"interpolation": "bicubic"}, {"resize": None}],
    ids=lambda other: str(other),
)
def test_a_graph_that_resizes_otherwise_is_caught(other: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    steps = preprocess()
    check_resizing(steps, 20, [noise(40, 50)])
    graph = resizing_graph(replace(steps, **{**other, "crop": steps.crop}) if "crop" not in other else shifted(), 20)
    monkeypatch.setattr(pictures, "resizing_graph", lambda steps, opset: graph)
    with pytest.raises(
        ExportError,
        match=r"expected the graph to resize a picture of \d+x\d+ to the pixels of Pillow .* that differ, by up to",
    ):
        check_resizing(steps, 20, [noise(40, 50)])


def shifted() -> Preprocess:
    """Crops a row further down."""
    return preprocess(resize=(34, 32))


def test_the_sizes_that_are_tried_are_larger_smaller_and_of_every_shape() -> None:
    for steps in (preprocess(), preprocess((30, 41)), preprocess(None)):
        sizes = trial_sizes(steps)
        assert {height > width for height, width in sizes} == {True, False}
        assert {height < steps.crop[0] for height, _ in sizes} == {True, False}
        assert any(height > 2 * width for height, width in sizes)
        height, width = fitting_size(steps)
        assert (height, width) != steps.crop


def test_pictures_of_several_sizes_are_proven_with_at_one() -> None:
    steps = preprocess()
    images = images_of_one_size([noise(40, 50), noise(400, 300)], None, steps)
    assert images.pixels is not None
    assert images.pixels.shape == (2, *fitting_size(steps), 3)
    np.testing.assert_array_equal(images.inputs, steps.inputs_from_pixels(images.pixels, any_size=True))
    alike = images_of_one_size([noise(40, 30), noise(40, 30)], None, steps)
    assert alike.pixels is not None
    assert alike.pixels.shape == (2, 40, 30, 3)


# --- bundles ---


@pytest.mark.parametrize("precision", precision_names())
def test_a_bundle_takes_pictures_of_any_size_and_is_proven_against_pillow_outside(bundles: Any, precision: str) -> None:
    bundle = bundles(precision)
    manifest = bundle.manifest
    assert manifest.inputs == (TensorSpec("input", "uint8", ("batch", "height", "width", 1)),)
    assert (manifest.name, manifest.parity.ok) == (f"resnet20-uint8full-{precision}", True)
    assert manifest.accuracy is not None
    assert manifest.accuracy.reference_top1 > 0.94  # built-in pictures are proven with as they are
    inputs, golden = golden_arrays(bundle)
    assert (inputs.dtype.name, inputs.shape[1:]) == (
        "uint8",
        (*fitting_size(manifest.preprocess), 1),
    )  # and travel enlarged
    with open_runtime(bundle, "pytorch") as runtime:
        reference = runtime.run({"input": manifest.preprocess.inputs_from_pixels(inputs, any_size=True)})["logits"]
        assert golden_report(bundle, "pytorch", runtime).ok
    np.testing.assert_allclose(golden["logits"], reference, rtol=1e-4, atol=1e-4)
    if load_precision(precision).RUNS_ON:
        with open_runtime(bundle) as runtime:
            assert golden_report(bundle, "onnxruntime", runtime).ok


@pytest.mark.parametrize("precision", precision_names())
def test_tensorrt_takes_any_size_and_builds_in_the_precision_asked_for(bundles: Any, precision: str) -> None:
    bundle = bundles(precision)
    job = Job(
        bundle.file("model.onnx").read_bytes(),
        precision,
        bundle.manifest.inputs,
        BATCH,
        BuildOptions(targets=("sm86",)),
    )
    built, layers = tensorrt_rtx.build(job, lambda step, done=0, total=0: None)
    facts = layer_facts(layers, built.convolutions, precision)
    check_precision(facts, precision)
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


def test_int8_is_measured_as_without_resizing_and_the_resizing_is_no_residual_block(bundles: Any) -> None:
    bundle = bundles("int8")
    assert bundle.manifest.calibration is not None
    model = onnx.load(bundle.file("model.onnx"))
    report = lint(model)
    assert report is not None
    assert (report.convolutions, report.shortcuts) == ((21, 21), (9, 9))
    assert not report.refused
    assert all(
        tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64)
        for tensor in model.graph.initializer
        if "resize." in tensor.name
    )


def test_the_first_convolution_is_given_what_preprocessing_outside_gives_borders_too(tiny_model: Path) -> None:
    steps = Preprocess(None, (28, 28), "bilinear", True, (0.286,), (0.353,))
    model = onnx.load(tiny_model / "model.onnx")
    full = with_any_size(with_uint8_input(model, steps), steps)
    for graph in (model, full):
        graph.graph.output.append(onnx.ValueInfoProto(name="conv1.out"))
    with (
        OnnxRuntime.from_bytes(model.SerializeToString()) as outside,
        OnnxRuntime.from_bytes(full.SerializeToString()) as inside,
    ):
        for size in ((28, 28), (20, 31), (31, 20), (5, 5)):  # padded with black on one side, both or none
            picture = noise(*size, channels=1)
            expected = outside.run({"input": steps(picture)[None]})["conv1.out"]
            found = inside.run({"input": steps.picture(picture)[None]})["conv1.out"]
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_pictures_of_different_sizes_are_classified_as_by_the_reference(bundles: Any) -> None:
    bundle = bundles("fp32")
    images = [
        built_in("test").image(place).resize(size)
        for place, size in enumerate([(28, 28), (50, 37), (20, 31), (300, 200), (9, 9)])
    ]
    found = []
    for backend in ("onnxruntime", "pytorch"):
        with open_runtime(bundle, backend) as runtime:
            found.append(classify(runtime, bundle.manifest.preprocess, images, labels=bundle.labels))
    for inside, outside in zip(*found, strict=True):
        assert [one.label for one in inside] == [one.label for one in outside]
        assert [one.probability for one in inside] == pytest.approx([one.probability for one in outside], abs=1e-5)


def test_onnxruntime_on_a_gpu_says_what_to_take_instead(bundles: Any) -> None:
    for provider in ("cuda", "tensorrt"):
        with pytest.raises(
            BackendUnavailable, match=f"size on the CPU, expected all of the model on '{provider}'; build an engine"
        ):
            open_runtime(bundles("fp32"), provider=provider)


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


# --- commands ---


def test_resnet_deploy_run_takes_each_picture_at_its_own_size(
    bundles: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for place, size in enumerate([(28, 28), (90, 61)]):
        paths.append(tmp_path / f"{place}.png")
        built_in("test").image(0).convert("RGB").resize(size).save(paths[-1])
    told: Ran = run_main(deploy.main, ("run", bundles(RUNNABLE).folder, *paths, "--top", "1"), capsys, monkeypatch)
    assert told.out.count("Ankle boot") == 2
    shown: Ran = run_main(deploy.main, ("inspect", bundles(RUNNABLE).folder), capsys, monkeypatch)
    assert "input uint8 batchxheightxwidthx1" in shown.out


def test_the_command_takes_it_together_with_features_a_size_and_a_fixed_batch(run: Any) -> None:
    given = (
        "--weights",
        "random",
        "--mean",
        "0.4,0.5,0.6",
        "--std",
        "0.2",
        "--image-size",
        "32x40",
        "--batch",
        "2",
        "--features",
        "stages",
        "--fp16",
    )
    made = run("resnet20", "--uint8-input", "full", *given)
    assert made.code == 0
    manifest = Bundle.open(Path("resnet20-stages-uint8full-fp16")).manifest
    assert manifest.inputs == (TensorSpec("input", "uint8", (2, "height", "width", 3)),)
    assert [spec.name for spec in manifest.outputs] == ["layer1", "layer2", "layer3"]
    with open_runtime("resnet20-stages-uint8full-fp16") as runtime:
        assert runtime.run({"input": np.zeros((1, 77, 55, 3), np.uint8)})["layer1"].shape == (1, 16, 32, 40)
    model = Path("resnet20-stages-uint8full-fp16/model.onnx").read_bytes()
    job = Job(model, "fp16", manifest.inputs, manifest.batch, BuildOptions(targets=("sm86",)))
    built, _ = tensorrt_rtx.build(job, lambda step, done=0, total=0: None)
    assert f"MinShape: [2,{PICTURE_SIDES[0]},{PICTURE_SIDES[0]},3]" in built.log.text


def test_a_dry_run_says_what_goes_in(run: Any) -> None:
    assert (
        "uint8 pixels, (batch, height, width, channels), pictures of any size"
        in run("resnet20", "--uint8-input", "full", "--dry-run").out
    )
    assert (
        run("resnet20", "--uint8-input", "--dry-run", "--json").json["input"]
        == "uint8 pixels, (batch, height, width, channels)"
    )
    assert (
        run("--uint8-input", "full", "resnet20", "--fp16", "--dry-run", "--json").json["output"]
        == "resnet20-uint8full-fp16"
    )


@pytest.mark.parametrize(
    "arguments",
    [("--uint8-input", "resnet20"), ("resnet20", "--uint8-input", "any"), ("resnet20", "--uint8-input", "")],
)
def test_another_word_behind_the_option_is_refused_even_a_model(run: Any, arguments: tuple[str, ...]) -> None:
    told = run(*arguments)
    assert told.code == 2
    assert re.search(
        r"expected --uint8-input alone or --uint8-input full, got '(resnet20|any|)'; put MODEL before it", told.error
    )


def test_a_model_that_no_picture_fits_is_refused_before_it_is_traced(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="and the model has 4; take --uint8-input without full"):
        export(
            ExportPlan("resnet20", tmp_path / "four", weights="random", mean=(0.0,) * 4, std=(1.0,), uint8_input="full")
        )


# --- checked and evaluated on pictures of several sizes ---


@pytest.fixture
def garments(tmp_path: Path) -> Path:
    """A folder of classes; every other picture has a black border, which the crop takes off again."""
    source = built_in("test")
    assert source.labels is not None
    assert source.classes is not None
    for place in range(24):
        picture = source.image(place)
        if place % 2:
            bordered = Image.new("L", (36, 34))
            bordered.paste(picture, (4, 3))
            picture = bordered
        path = tmp_path / "garments" / source.classes[source.labels[place]].replace("/", "-") / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return tmp_path / "garments"


def test_pictures_of_several_sizes_are_evaluated_each_at_its_own(bundles: Any, garments: Path, deploy: Any) -> None:
    found = deploy("eval", bundles("fp32").folder, "--data", garments, "--json", "--quiet").json
    with open_runtime(bundles("fp32"), "pytorch") as runtime:
        source = open_source(str(garments))
        steps = bundles("fp32").manifest.preprocess
        answers = runtime.run({"input": steps.batch([source.image(place) for place in range(source.count)])})[
            "logits"
        ].argmax(1)
    assert source.labels is not None
    assert source.classes is not None
    names = [name.replace("/", "-") for name in bundles("fp32").labels or ()]
    labels = np.array([names.index(source.classes[label]) for label in source.labels])
    assert (found["images"], found["top1"]["correct"]) == (24, int((answers == labels).sum()))


def test_pictures_of_several_sizes_are_brought_to_one_to_be_checked(
    bundles: Any, garments: Path, deploy: Any, tmp_path: Path
) -> None:
    arguments = (
        "--backend",
        "onnxruntime",
        "--data",
        garments,
        "--html",
        tmp_path / "report.html",
        "--json",
        "--quiet",
    )
    shown = deploy("check", bundles("fp16").folder, *arguments)
    assert shown.code == 0
    (checked,) = shown.json["bundles"]
    assert (checked["images"], checked["backends"][0]["verdict"]) == (24, "ok")
    assert checked["backends"][0]["answer"]["accuracy"]["images"] == 24
    assert b"<html" in (tmp_path / "report.html").read_bytes()


def test_golden_pictures_of_any_size_are_checked(bundles: Any, deploy: Any) -> None:
    found = deploy("check", bundles(RUNNABLE).folder, "--json", "--quiet").json
    verdicts = {one["backend"]: one["verdict"] for one in found["bundles"][0]["backends"]}
    assert (verdicts["onnxruntime"], verdicts["pytorch"]) == ("ok", "ok")
