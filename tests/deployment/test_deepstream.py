"""`resnet-deploy deepstream`: files that say what the manifest says, or a refusal where DeepStream cannot feed the model."""

from __future__ import annotations

import configparser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import Ran
from engine_bundles import BATCH, add_engine
from engine_fixtures import api_fixture, cuda_fixture, folder_fixture  # noqa: F401  # pytest finds them by their names
from PIL import Image
from quantized_files import network
from small_bundles import LABELS, bundle_fixture  # noqa: F401  # likewise
from standin_tensorrt import StandinTensorRT

from exporter.deployment.deepstream import deepstream_files
from exporter.deployment.deepstream_text import labels_text, nvinfer_text
from exporter.graph.pixel_input import with_float_pixels, with_uint8_input
from exporter.lowering.precisions import fp16
from runtimes import Bundle, open_runtime
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.bundle_writing import write_manifest
from runtimes.errors import PlanError
from runtimes.kernels import KernelCount
from runtimes.manifest import Manifest
from runtimes.nvidia.engine_file import facts_of
from runtimes.parity.golden import golden_arrays
from runtimes.preprocess import Preprocess
from runtimes.specs import BatchRange, TensorSpec

COLOUR = Preprocess(256, (224, 224), "bilinear", True, (0.4, 0.5, 0.6), (0.25, 0.25, 0.25))
PIXELS = TensorSpec("input", "uint8", ("batch", 224, 224, 3))


def settings(text: str) -> dict[str, str]:
    """The keys of nvinfer's file, as GLib's parser reads it: comments are lines of their own."""
    parser = configparser.RawConfigParser(comment_prefixes=("#",), inline_comment_prefixes=None, delimiters=("=",))
    parser.read_string(text)
    assert parser.sections() == ["property"]
    return dict(parser["property"])


def with_manifest(bundle: Path, manifest: Manifest, **changes: Any) -> Bundle:
    (bundle / "manifest.json").unlink()
    write_manifest(bundle, replace(manifest, **{"precision": "fp16", **changes}))
    return Bundle.open(bundle)


def colour(manifest: Manifest, **steps: Any) -> dict[str, Any]:
    spec = TensorSpec("input", "float32", ("batch", 3, 224, 224))
    return {"inputs": (spec,), "preprocess": replace(COLOUR, **steps)}


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_nvinfer_computes_what_the_preprocessing_does(bundle: Path, manifest: Manifest, order: Any) -> None:
    opened = with_manifest(bundle, manifest, batch=BatchRange(1, 4, 8), **colour(manifest, channels_order=order))
    files = deepstream_files(opened)
    found = settings(files.texts["config_infer.txt"])
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    ordered = pixels[..., :: -1 if found["model-color-format"] == "1" else 1].astype(np.float32)
    offsets = np.array([float(part) for part in found["offsets"].split(";")], np.float32)
    theirs = np.float32(found["net-scale-factor"]) * (ordered - offsets)
    ours = opened.manifest.preprocess.normalise(pixels)
    assert np.abs(np.moveaxis(theirs, -1, 0) - ours).max() < 1e-6
    assert (files.plugin, found["infer-dims"], found["batch-size"]) == ("nvinfer", "3;224;224", "8")
    assert (found["network-type"], found["network-mode"], found["network-input-order"]) == ("1", "2", "0")
    assert (found["onnx-file"], found["model-engine-file"]) == ("model.onnx", "model.engine")
    assert (found["labelfile-path"], found["output-blob-names"]) == ("labels.txt", "logits")


def test_the_labels_are_one_line_with_one_part_a_class(bundle: Path, manifest: Manifest) -> None:
    texts = deepstream_files(with_manifest(bundle, manifest)).texts
    assert texts["labels.txt"].count("\n") == 1
    assert len(texts["labels.txt"].split("\n")[0].split(";")) == len(LABELS) == 10
    assert labels_text(("crane; bird", "tench, Tinca", "two\nlines")) == "crane, bird;tench, Tinca;two,lines\n"


def test_grey_pictures_are_fed_and_a_model_without_labels_names_none(bundle: Path, manifest: Manifest) -> None:
    (bundle / "labels.txt").unlink()
    files = deepstream_files(with_manifest(bundle, manifest))
    found = settings(files.texts["config_infer.txt"])
    assert (found["model-color-format"], found["infer-dims"]) == ("2", "1;28;28")
    assert "labelfile-path" not in found
    assert [*files.texts] == ["config_infer.txt"]


def test_nvinferserver_feeds_uint8_pixels(bundle: Path, manifest: Manifest, deploy: Callable[..., Ran]) -> None:
    with_manifest(bundle, manifest, inputs=(PIXELS,), preprocess=replace(COLOUR, std=(0.2, 0.3, 0.4)), precision="int8")
    output = bundle.parent / "for-deepstream"
    ran = deploy("deepstream", bundle, "--output", output, "--plugin", "nvinferserver", "--json")
    assert ran.json == {
        "output": str(output),
        "plugin": "nvinferserver",
        "files": ["config_infer.txt", "labels.txt"],
    }
    text = (output / "config_infer.txt").read_text()
    for part in ("tensor_order: TENSOR_ORDER_NHWC", "IMAGE_FORMAT_RGB", "scale_factor: 1.0", f'"{manifest.name}"'):
        assert part in text
    bare = "\n".join(line for line in text.splitlines() if not line.strip().startswith("#"))
    assert bare.count("{") == bare.count("}")


def test_an_engine_of_the_bundle_is_copied_along_with_its_dla_core(
    folder: Path, manifest: Manifest, api: StandinTensorRT, deploy: Callable[..., Ran]
) -> None:
    engine = add_engine(folder, api, dla_core=1)
    output = folder.parent / "new" / "ds"
    ran = deploy("deepstream", folder, "--output", output, "--engine", engine)
    assert ran.code == 0, ran.err
    assert (output / "model.engine").read_bytes() == engine.read_bytes()
    assert (output / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    text = (output / "config_infer.txt").read_text()
    found = settings(text)
    assert (found["enable-dla"], found["use-dla-core"], found["batch-size"]) == ("1", "1", str(BATCH.max))
    assert f"model.engine: tensorrt {api.__version__}, sm87" in text
    again = folder.parent / "again"
    assert deploy("deepstream", folder, "--output", again, "--engine", engine).code == 0
    assert (again / "config_infer.txt").read_text() == text
    ran = deploy("deepstream", folder, "--output", output)
    assert (ran.code, "exists; remove it" in ran.error) == (2, True)
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\x00")
    (folder / "manifest.json").unlink()
    write_manifest(folder, manifest)
    ran = deploy("deepstream", folder, "--output", folder.parent / "other", "--engine", engine)
    assert (ran.code, "was built from another model" in ran.error) == (2, True)
    assert sorted(path.name for path in folder.parent.glob("*other*")) == []


def test_only_a_trusted_engine_with_its_weights_is_copied_along(
    folder: Path, api: StandinTensorRT, deploy: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, output = add_engine(folder, api), folder.parent / "ds"
    sha256 = facts_of(engine).engine_sha256
    monkeypatch.setenv("RESNET_EXPORT_ENGINE_KEY", str(folder.parent / "another.key"))
    ran = deploy("deepstream", folder, "--output", output, "--engine", engine)
    assert (ran.code, f"give --trust-engine {sha256}" in ran.error, output.exists()) == (1, True, False)
    ran = deploy("deepstream", folder, "--output", output, "--engine", engine, "--trust-engine", sha256.upper())
    assert ran.code == 0, ran.err
    assert (output / "model.engine").read_bytes() == engine.read_bytes()
    ran = deploy("deepstream", folder, "--output", folder.parent / "other", "--trust-engine", sha256)
    assert (ran.code, "--trust-engine is about --engine" in ran.error) == (2, True)
    stripped = add_engine(folder, api, strip_weights=True)
    ran = deploy("deepstream", folder, "--output", folder.parent / "other", "--engine", stripped)
    assert (ran.code, "has its weights in model.onnx" in ran.error) == (2, True)
    assert not (folder.parent / "other").exists()


def test_a_bundle_is_not_written_into(folder: Path, deploy: Callable[..., Ran]) -> None:
    ran = deploy("deepstream", folder, "--output", folder / "ds")
    assert (ran.code, "lies in the bundle" in ran.error, (folder / "ds").exists()) == (2, True, False)


def test_names_of_strangers_stay_values(folder: Path, manifest: Manifest, api: StandinTensorRT) -> None:
    facts = replace(facts_of(add_engine(folder, api)), version="1\ncustom-lib-path=/x.so")
    name = 'm" } } preprocess { x: "\\'
    opened = with_manifest(folder, manifest, name=name, inputs=(PIXELS,), preprocess=COLOUR)
    text = deepstream_files(opened, plugin="nvinferserver").texts["config_infer.txt"]
    assert 'model_name: "m\\" } } preprocess { x: \\"\\\\"\n' in text
    plain = replace(opened.manifest, **colour(manifest))
    assert "custom-lib-path" not in settings(nvinfer_text(plain, facts, named=False))


@pytest.fixture
def pixel_bundle(folder: Path, manifest: Manifest) -> Bundle:
    """The small network in FP16, taking uint8, with golden inputs."""
    given = with_uint8_input(onnx.load(folder / "model.onnx"), manifest.preprocess)
    onnx.save(fp16.lower(given, {}), folder / "model.onnx")
    pixels = np.random.default_rng(4).integers(0, 256, (5, 28, 28, 1), np.uint8)
    with OnnxRuntime.open(folder / "model.onnx") as runtime:
        np.savez(folder / "golden.npz", inputs=pixels, logits=runtime.run({"input": pixels})["logits"])
    (folder / "labels.txt").write_text("".join(f"kind {place}\n" for place in range(10)))
    spec = TensorSpec("input", "uint8", ("batch", 28, 28, 1))
    return with_manifest(folder, manifest, inputs=(spec,), batch=BATCH)


def test_uint8_is_written_once_more_for_nvinfer_and_computes_the_same_bits(
    pixel_bundle: Bundle, tmp_path: Path, deploy: Callable[..., Ran]
) -> None:
    given = pixel_bundle
    output = tmp_path / "ds"
    ran = deploy("deepstream", given.folder, "--output", output)
    assert ran.code == 0, ran.err
    found = settings((output / "config_infer.txt").read_text())
    assert (found["net-scale-factor"], found["offsets"]) == ("1", "0")
    assert (found["infer-dims"], found["onnx-file"]) == ("1;28;28", "bundle/model.onnx")
    made = Bundle.open(output / "bundle")
    (spec,) = made.manifest.inputs
    assert (spec.dtype, spec.shape[1:]) == ("float32", (1, 28, 28))
    assert made.labels == given.labels
    pixels, logits = golden_arrays(given)
    planes, kept = golden_arrays(made)
    assert np.array_equal(planes[:, 0], pixels[..., 0])
    assert np.array_equal(kept["logits"], logits["logits"])
    with open_runtime(given, "onnxruntime") as one, open_runtime(made, "onnxruntime") as other:
        assert np.array_equal(one.run({"input": pixels})["logits"], other.run({"input": planes})["logits"])
    classes = [deploy("run", bundle.folder, *made_pictures(tmp_path)).out for bundle in (given, made)]
    assert classes[0] == classes[1]
    again = deploy("deepstream", given.folder, "--output", tmp_path / "again")
    assert again.code == 0
    for name in ("config_infer.txt", "labels.txt", "bundle/model.onnx", "bundle/manifest.json", "bundle/golden.npz"):
        assert (tmp_path / "again" / name).read_bytes() == (output / name).read_bytes(), name
    ran = deploy("deepstream", given.folder, "--output", tmp_path / "other", "--engine", given.folder / "x.engine")
    assert (ran.code, "build the bundle that is written to DIR/bundle" in ran.error) == (2, True)
    assert not [*tmp_path.glob("*other*")]


def made_pictures(folder: Path) -> list[Path]:
    random = np.random.default_rng(2)
    paths = [folder / f"{place}.png" for place in range(2)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (40, 30), np.uint8)).save(path)
    return paths


def test_a_graph_that_does_not_begin_with_pixels_is_refused() -> None:
    with pytest.raises(PlanError, match="begins with the Cast and the Transpose"):
        with_float_pixels(network())


def _refused(manifest: Manifest) -> dict[str, tuple[dict[str, Any], str]]:
    features = (TensorSpec("features", "float32", ("batch", 64)),)
    full = TensorSpec("input", "uint8", ("batch", "height", "width", 3))
    four = Preprocess(28, (28, 28), "bilinear", True, (0.1,) * 4, (0.5,) * 4)
    return {
        "deviations": (
            colour(manifest, std=(0.229, 0.224, 0.225)),
            "(0.229, 0.224, 0.225); export it with --uint8-input",
        ),
        "features": ({"outputs": features}, "export it without --features"),
        "any size": ({"inputs": (full,), "preprocess": COLOUR}, "export it with --uint8-input alone"),
        "channels": ({"preprocess": four}, "got 4: DeepStream feeds no others"),
        "bf16": ({"precision": "bf16"}, "nvinfer has no bf16"),
        "cpu": ({"target": "cpu", "kernels": KernelCount(1, 1, 1, 1)}, "export it again with --target tensorrt"),
    }


@pytest.mark.parametrize("case", ["deviations", "features", "any size", "channels", "bf16", "cpu"])
def test_what_deepstream_cannot_feed_exactly_is_refused(bundle: Path, manifest: Manifest, case: str) -> None:
    changes, said = _refused(manifest)[case]
    with pytest.raises(PlanError) as refused:
        deepstream_files(with_manifest(bundle, manifest, **changes))
    assert said in str(refused.value)
