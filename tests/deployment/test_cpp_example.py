"""examples/cpp: its checks and its preprocessing, compiled against CUDA's headers, and against declarations of our own in place of TensorRT's.

No package ships TensorRT's headers, so tests/cpp has those that the example uses, and a network that stands in for an engine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_bundles import LABELS, write_bundle

from runtimes.bundle import Bundle
from runtimes.manifest import Manifest
from runtimes.preprocess import Preprocess
from runtimes.specs import TensorSpec

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE, OWN = ROOT / "examples" / "cpp", ROOT / "tests" / "cpp"
COLOUR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def compiled(target: Path, *words: str) -> Path:
    """The program of these sources and options."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here")
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-I",
        str(EXAMPLE),
        *words,
        "-o",
        str(target),
    ]
    subprocess.run(command, check=True, timeout=300)
    return target


def cuda_headers() -> Path:
    """The folder of CUDA's headers, all of them: Triton's package, which PyTorch brings, ships them."""
    packages = Path(sysconfig.get_paths()["purelib"])
    folder = packages / "triton" / "backends" / "nvidia" / "include"
    if not (folder / "cuda_runtime_api.h").exists():
        pytest.skip("no headers of CUDA here: the PyTorch that is installed is one without CUDA")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("cpp") / "prepared", str(OWN / "prepared.cpp"))


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Path:
    headers = ["-isystem", str(OWN / "tensorrt"), "-isystem", str(cuda_headers())]
    return compiled(
        tmp_path_factory.mktemp("cpp") / "classify", *headers, str(EXAMPLE / "main.cpp"), str(OWN / "standin.cpp")
    )


def picture_file(path: Path, size: tuple[int, int], *, mode: str = "RGB") -> Path:
    """A picture of (width, height), with noise and with edges."""
    width, height = size
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    noise[height // 3 :, width // 2 :] //= 4
    Image.fromarray(noise).convert(mode).save(path)
    return path


STEPS = {
    "bilinear": Preprocess(72, (64, 64), "bilinear", True, *COLOUR),
    "bicubic": Preprocess(72, (64, 64), "bicubic", True, *COLOUR),
    "lanczos to a size": Preprocess((61, 83), (61, 70), "lanczos", True, *COLOUR),
    "nearest": Preprocess(72, (64, 64), "nearest", True, *COLOUR),
    "the size left alone": Preprocess(None, (128, 129), "bilinear", True, *COLOUR),
    "grey": Preprocess(40, (28, 28), "bilinear", True, (0.286,), (0.353,)),
    "blue first": Preprocess(72, (64, 64), "bilinear", True, *COLOUR, channels_order="bgr"),
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize(("size", "mode"), [((301, 200), "RGB"), ((57, 90), "RGB"), ((97, 140), "L")], ids=str)
def test_preprocessing_gives_the_same_bits(
    prepared: Path, tmp_path: Path, steps: Preprocess, size: tuple[int, int], mode: str
) -> None:
    import msgspec

    path = picture_file(tmp_path / ("picture.ppm" if mode == "RGB" else "picture.pgm"), size, mode=mode)
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode({"preprocess": steps}))
    with Image.open(path) as picture:
        pixels, inputs = steps.pixels(picture), steps(picture)
    for words, wanted in (("pixels", pixels), ("normalised", inputs)):
        got = subprocess.run(
            [prepared, tmp_path / "manifest.json", path, words], capture_output=True, check=True
        ).stdout
        np.testing.assert_array_equal(np.frombuffer(got, wanted.dtype).reshape(wanted.shape), wanted)


def with_engine(folder: Path, manifest: Manifest, **changes: Any) -> Path:
    """A bundle with an engine that the stand-in runs, and a sidecar with these changes; returns the engine."""
    write_bundle(folder, manifest)
    engine = folder / "engines" / "tensorrt.engine"
    engine.write_text(f"plan {manifest.inputs[0].dtype} 10 100000")
    facts = {
        "backend": "tensorrt",
        "version": "10.3.0",
        "targets": ["sm87"],
        "batch": {"min": 2, "opt": 3, "max": 4},
        "options": {},
        "onnx_sha256": Bundle.open(folder).manifest.files["model.onnx"].sha256,
        "engine_sha256": hashlib.sha256(engine.read_bytes()).hexdigest(),
    }
    engine.with_suffix(".json").write_text(json.dumps({**facts, **changes}))
    return engine


def answer_of(classify: Path, engine: Path, picture: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([classify, engine.parent.parent, engine, picture], capture_output=True, text=True, timeout=60)


def expected_lines(inputs: np.ndarray[Any, Any]) -> list[str]:
    """What the stand-in's network says of an input, as the example prints it."""
    values = inputs.reshape(-1).astype(np.float64)
    scores = np.array([values[start::10].mean() for start in range(10)])
    chances = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    best = np.argsort(-chances, kind="stable")[:5]
    return [f"  {100 * chances[place]:6.2f}%  {LABELS[place]}" for place in best]


@pytest.mark.parametrize("given", ["float32", "uint8", "any size"])
def test_it_prints_the_best_classes(classify: Path, tmp_path: Path, manifest: Manifest, given: str) -> None:
    shapes: dict[str, TensorSpec] = {
        "float32": manifest.inputs[0],
        "uint8": TensorSpec("input", "uint8", ("batch", 28, 28, 1)),
        "any size": TensorSpec("input", "uint8", ("batch", "height", "width", 1)),
    }
    engine = with_engine(tmp_path / "bundle", replace(manifest, inputs=(shapes[given],)))
    path = picture_file(tmp_path / "picture.ppm", (90, 61))
    with Image.open(path) as picture:
        steps = manifest.preprocess
        prepare = {"float32": steps.__call__, "uint8": steps.pixels, "any size": steps.picture}[given]
        fed = np.asarray(prepare(picture))
    answer = answer_of(classify, engine, path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "\n".join([str(path), *expected_lines(fed), ""])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another backend": ({"backend": "tensorrt-rtx"}, "is an engine for tensorrt-rtx"),
    "another TensorRT": ({"version": "10.13.3.9"}, "was built with TensorRT 10.13.3.9"),
    "another GPU": ({"targets": ["sm89", "sm80"]}, "was built for another GPU than this sm87"),
    "another model": ({"onnx_sha256": "0" * 64}, "was built from another model"),
    "changed": ({"engine_sha256": "0" * 64}, "was changed after it was built"),
    "without weights": ({"options": {"strip_weights": True}}, "was built with strip_weights"),
}


@pytest.mark.parametrize(("changes", "words"), BAD.values(), ids=BAD)
def test_an_engine_that_is_not_for_here_is_not_loaded(
    classify: Path, tmp_path: Path, manifest: Manifest, changes: dict[str, Any], words: str
) -> None:
    engine = with_engine(tmp_path / "bundle", manifest, **changes)
    answer = answer_of(classify, engine, picture_file(tmp_path / "picture.ppm", (30, 30)))
    assert answer.returncode == 1
    assert words in answer.stderr
    assert "resnet-deploy build" in answer.stderr


def test_bad_files_are_named(classify: Path, tmp_path: Path, manifest: Manifest) -> None:
    engine = with_engine(tmp_path / "bundle", manifest)
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    assert "expected a binary PPM or PGM" in answer_of(classify, engine, tmp_path / "photo.jpg").stderr
    assert f"cannot read {tmp_path / 'none.ppm'}" in answer_of(classify, engine, tmp_path / "none.ppm").stderr
    engine.write_text("no plan")
    sidecar = engine.with_suffix(".json")
    facts = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**facts, "engine_sha256": hashlib.sha256(b"no plan").hexdigest()}))
    assert "TensorRT does not load the engine" in answer_of(classify, engine, tmp_path / "none.ppm").stderr
    sidecar.write_text("{")
    assert f"error: {sidecar}: no JSON" in answer_of(classify, engine, tmp_path / "none.ppm").stderr


def test_cmake_builds_it(tmp_path: Path) -> None:
    """With CUDA's toolkit, and with a folder laid out as TensorRT's archive."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("no cmake here")
    tensorrt = tmp_path / "tensorrt"
    shutil.copytree(OWN / "tensorrt", tensorrt / "include")
    (tensorrt / "lib").mkdir()
    headers = ["-isystem", str(OWN / "tensorrt"), "-isystem", str(cuda_headers())]
    compiled(tensorrt / "lib" / "libnvinfer.so", *headers, "-shared", "-fPIC", str(OWN / "standin.cpp"))
    configure = [cmake, "-S", str(EXAMPLE), "-B", str(tmp_path / "build"), f"-DTENSORRT_ROOT={tensorrt}"]
    found = subprocess.run(configure, capture_output=True, text=True, timeout=120)
    if "Could NOT find CUDAToolkit" in found.stderr:
        pytest.skip("no CUDA toolkit here")
    assert found.returncode == 0, found.stderr
    subprocess.run([cmake, "--build", tmp_path / "build"], check=True, capture_output=True, timeout=300)
    assert "usage" in subprocess.run([tmp_path / "build" / "resnet_classify"], capture_output=True, text=True).stderr
