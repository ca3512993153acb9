"""examples/cpp: its preprocessing is ours bit for bit, and it loads only what its sidecar vouches for.

NVIDIA's TensorRT headers are in no package that is installed here. So `classify` is compiled, and run, against our own
stubs of TensorRT and CUDA (tests/cpp_stubs), and its syntax is checked against CUDA's real headers where a package has
them: no test here says that a real TensorRT runs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_bundles import BATCH, add_engine
from engine_fixtures import cuda_fixture, folder_fixture  # noqa: F401  # pytest finds them by their names
from numpy.typing import NDArray
from PIL import Image
from standin_cuda import StandinCuda
from standin_tensorrt import StandinTensorRT

from runtimes import Bundle, Manifest
from runtimes.bundle_writing import write_manifest
from runtimes.classify import softmax
from runtimes.nvidia.plan_files import sidecar_of
from runtimes.preprocess import RESAMPLING, Preprocess
from runtimes.specs import TensorSpec

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE, STUBS = ROOT / "examples" / "cpp", ROOT / "tests" / "cpp_stubs"
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")
COMPILER = shutil.which("g++")
PICTURE = np.random.default_rng(5).integers(0, 256, (37, 53, 3)).astype(np.uint8)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no g++ here")


def compile_cpp(*words: str | Path) -> None:
    done = subprocess.run([str(COMPILER), *FLAGS, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def call(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, words)], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def preprocess(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., NDArray[Any]]:
    """The example's preprocessing of a picture, as its tool writes it."""
    folder = tmp_path_factory.mktemp("preprocess")
    compile_cpp(EXAMPLE / "preprocess.cpp", "-o", folder / "preprocess")

    def run(steps: Preprocess, picture: NDArray[np.uint8], *options: str) -> NDArray[Any]:
        (folder / "manifest.json").write_text(json.dumps({"preprocess": asdict(steps)}))
        Image.fromarray(picture).save(folder / "picture.ppm")
        done = call(folder / "preprocess", folder / "manifest.json", folder / "picture.ppm", folder / "out", *options)
        assert (done.returncode, done.stderr) == (0, "")
        return np.fromfile(folder / "out", np.uint8 if options else np.float32)

    return run


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, over the stubs."""
    path = tmp_path_factory.mktemp("classify") / "classify"
    compile_cpp(f"-I{STUBS / 'tensorrt'}", f"-I{STUBS / 'cuda'}", EXAMPLE / "classify.cpp", "-o", path)
    return path


@pytest.mark.parametrize("interpolation", [*RESAMPLING])
@pytest.mark.parametrize(
    ("resize", "crop"),
    [(32, (24, 24)), (61, (56, 40)), ((19, 80), (19, 80)), (None, (64, 21)), (15, (40, 40))],
    ids=["shrunk", "enlarged", "both sides", "cut and padded", "padded"],
)
def test_the_preprocessing_is_python_s_bit_for_bit(
    preprocess: Callable[..., NDArray[Any]], interpolation: str, resize: Any, crop: tuple[int, int]
) -> None:
    steps = Preprocess(resize, crop, interpolation, True, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    picture = Image.fromarray(PICTURE)
    assert np.array_equal(preprocess(steps, PICTURE).reshape(steps.shape), steps(picture))
    assert np.array_equal(preprocess(steps, PICTURE, "--pixels").reshape(*crop, 3), steps.pixels(picture))
    bgr = replace(steps, channels_order="bgr")
    assert np.array_equal(
        preprocess(bgr, PICTURE[::-1, ::-1]).reshape(steps.shape), bgr(Image.fromarray(PICTURE[::-1, ::-1]))
    )


def test_grey_and_colour_pictures_fit_models_of_both(preprocess: Callable[..., NDArray[Any]]) -> None:
    grey = Preprocess(30, (28, 28), "bilinear", True, (0.286,), (0.353,))
    colour = replace(grey, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert np.array_equal(preprocess(grey, PICTURE).reshape(grey.shape), grey(Image.fromarray(PICTURE)))
    assert np.array_equal(
        preprocess(colour, PICTURE[..., 0]).reshape(colour.shape), colour(Image.fromarray(PICTURE[..., 0]))
    )


@pytest.fixture
def bundle(folder: Path, manifest: Manifest) -> Path:
    """A bundle of ten named classes."""
    (folder / "labels.txt").write_text("".join(f"kind {place}\n" for place in range(10)))
    (folder / "manifest.json").unlink()
    write_manifest(folder, replace(manifest, batch=BATCH))
    return folder


@pytest.fixture
def engine(bundle: Path, cuda: StandinCuda) -> Path:
    return add_engine(bundle, StandinTensorRT(cuda, "10.3.0.30"))


def expected_lines(scores: NDArray[Any], top: int) -> list[str]:
    likely = softmax(scores[None])[0]
    order = np.argsort(-likely, kind="stable")[:top]
    return [f"  {likely[place]:>7.2%}  kind {place}" for place in order]


def test_the_classes_are_those_of_the_output_with_their_probabilities(
    bundle: Path, engine: Path, classify: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "picture.ppm"
    Image.fromarray(PICTURE).save(picture)
    values = Bundle.open(bundle).manifest.preprocess(Image.fromarray(PICTURE)).ravel()[:10]  # what the stub answers
    done = call(classify, bundle, engine, picture, 3)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(picture), *expected_lines(values, 3)]
    assert len(call(classify, bundle, engine, picture).stdout.splitlines()) == 6


def test_pixels_are_fed_as_they_are(folder: Path, manifest: Manifest, cuda: StandinCuda, classify: Path) -> None:
    spec = TensorSpec("input", "uint8", ("batch", "height", "width", 1))
    (folder / "manifest.json").unlink()
    write_manifest(folder, replace(manifest, inputs=(spec,), batch=BATCH))
    engine = add_engine(folder, StandinTensorRT(cuda, "10.3.0.30"))
    ordinary = np.linspace(-2, 2, 10, dtype=np.float32)
    pixels = np.zeros((1, 60), np.uint8)
    pixels[0, :40] = np.frombuffer(ordinary.tobytes(), np.uint8)  # the stub answers with the first ten floats of it
    Image.fromarray(pixels).save(folder.parent / "grey.ppm")
    done = call(classify, folder, engine, folder.parent / "grey.ppm", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split()[-1] == "9"  # without labels, the class's number


def _changed(engine: Path) -> None:
    engine.write_bytes(engine.read_bytes()[:-1] + b"\x00")


def _with(**fields: Any) -> Callable[[Path], None]:
    def change(engine: Path) -> None:
        path = sidecar_of(engine)
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_changed, "changed after it was built"),
        (_with(version="10.7.0.23"), "built by TensorRT 10.7.0.23, and this is 10.3.0.30"),
        (_with(targets=["sm110"]), "is for sm110, and this GPU is sm87"),
        (_with(onnx_sha256="0" * 64), "from another model than the bundle's"),
        (_with(backend="tensorrt-rtx"), "got one of tensorrt-rtx"),
        (_with(options={"strip_weights": True}), "has no weights"),
        (lambda engine: sidecar_of(engine).unlink(), "cannot read"),
        (lambda engine: sidecar_of(engine).write_text("{"), "JSON text"),
    ],
)
def test_an_engine_whose_sidecar_does_not_fit_is_not_loaded(
    bundle: Path, engine: Path, classify: Path, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "picture.ppm")
    change(engine)
    done = call(classify, bundle, engine, tmp_path / "picture.ppm")
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_version_counts_as_far_as_the_sidecar_tells_it(
    bundle: Path, engine: Path, classify: Path, tmp_path: Path
) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "picture.ppm")
    _with(version="10.3.0")(engine)  # as JetPack's Python package has it
    assert call(classify, bundle, engine, tmp_path / "picture.ppm").returncode == 0
    assert call(classify, bundle, engine, tmp_path / "picture.ppm", STUB_MAJOR="11").returncode == 1
    _with(version="10.3.0", options={"version_compatible": True})(engine)
    assert call(classify, bundle, engine, tmp_path / "picture.ppm", STUB_MAJOR="11").returncode == 0


@pytest.mark.parametrize(
    "content", [b"", b"P3\n1 1\n255\n0 0 0\n", b"P6\n2 2\n255\n\0", b"P6\n99999 99999\n255\n", b"P5 x"]
)
def test_what_is_no_picture_is_refused(
    bundle: Path, engine: Path, classify: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "picture.ppm").write_bytes(content)
    done = call(classify, bundle, engine, tmp_path / "picture.ppm")
    assert (done.returncode, "cannot read the picture" in done.stderr) == (1, True)


def test_its_sha256_is_the_known_one(tmp_path: Path) -> None:
    code = '#include <iostream>\n#include "picture.hpp"\n#include "sha256.hpp"\n'
    code += "int main(int, char** w) { std::cout << resnet::sha256(resnet::read_file(w[1])); }\n"
    (tmp_path / "hash.cpp").write_text(code)
    compile_cpp(f"-I{EXAMPLE}", tmp_path / "hash.cpp", "-o", tmp_path / "hash")
    for size in (0, 1, 55, 56, 63, 64, 65, 119, 120, 1000):
        data = bytes(range(256)) * 4
        (tmp_path / "data").write_bytes(data[:size])
        assert call(tmp_path / "hash", tmp_path / "data").stdout == hashlib.sha256(data[:size]).hexdigest()


def test_the_real_headers_of_cuda_take_it() -> None:
    triton = pytest.importorskip("triton", reason="the package that has CUDA's headers is not installed")
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    if not (headers / "crt" / "host_defines.h").exists():
        pytest.skip("this triton has no CUDA headers")
    compile_cpp("-fsyntax-only", f"-I{STUBS / 'tensorrt'}", "-isystem", headers, EXAMPLE / "classify.cpp")


@pytest.mark.slow
def test_cmake_builds_the_part_without_tensorrt(tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("there is no cmake here")
    configured = call("cmake", "-S", EXAMPLE, "-B", tmp_path, "-DWITH_TENSORRT=OFF")
    assert configured.returncode == 0, configured.stderr
    assert call("cmake", "--build", tmp_path).returncode == 0
    assert call(tmp_path / "preprocess").returncode == 2
