"""What a stranger's bundle and ONNX file can do, and what they cannot: docs/trust.md says it, sentence by sentence."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from audited import run_audited
from commands import Ran
from conftest import Made
from manifest_edits import rewrite_manifest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from spoilt import replace_file

from runtimes import Bundle, open_runtime
from runtimes.bundle import LARGEST_MANIFEST, MANIFEST
from runtimes.errors import BundleError, ResnetExportError

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "exporter.verification.pytest_plugin"
MARK = "import os\nopen(os.environ['MARK'], 'a').write(__file__ + '\\n')\n"
PLANTED = (
    "conftest",
    "sitecustomize",
    "usercustomize",
    "numpy",
    "onnxruntime",
    "openvino",
    "torch",
    "model",
    "exporter",
)
"""Modules that an interpreter which looks into the bundle's folder would take for those that it needs."""
READERS = ("onnxruntime", "openvino")
NETWORK = """
from torch import nn

def small():
    stem = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
"""


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that planted code writes to."""
    monkeypatch.setenv("MARK", str(tmp_path / "mark.txt"))
    return tmp_path / "mark.txt"


@pytest.fixture
def strangers(good: Made, tmp_path: Path) -> Path:
    """A bundle that is whole and within its budget, with code planted in its folder."""
    folder = Path(shutil.copytree(good[1].bundle.folder, tmp_path / "strangers"))
    for name in PLANTED:
        (folder / f"{name}.py").write_text(MARK)
    return folder


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file's time of change and sha256."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


# --- what it cannot do ---


def test_no_command_connects_or_starts_a_program_or_runs_a_file_of_the_bundle(
    strangers: Path, mark: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "nets.py").write_text(NETWORK)
    for name in ("0", "1"):
        (work / "pictures" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(work / "pictures" / name / "picture.png")
    before = contents(strangers)
    network = ("nets:small", "--weights", "random", "--image-size", "28", "--mean", "0.3", "--std", "0.3")
    done = run_audited(
        tmp_path / "audit",
        (work, "resnet-export", *network, "--data", "built-in", "--output", "ours"),
        (strangers, "resnet-deploy", "inspect", "."),
        (strangers, "resnet-deploy", "check", ".", "--backend", "onnxruntime", "--backend", "pytorch"),
        (strangers, "resnet-deploy", "eval", ".", "--data", work / "pictures", "--backend", "onnxruntime"),
        (strangers, "resnet-deploy", "run", ".", work / "pictures/0/picture.png", "--backend", "openvino"),
    )
    assert done.codes == [0] * 5, done.err
    assert [note for note in done.notes if "/sbin/ldconfig" not in note] == []  # ctypes.util.find_library asks it
    assert not mark.exists()
    assert contents(strangers) == before


def test_pytest_runs_no_file_of_a_bundle_that_it_does_not_collect(
    strangers: Path, mark: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    ours = pytester.makepyfile("def test_ours(): pass")
    loaded = any(one.value == PLUGIN for one in importlib.metadata.entry_points(group="pytest11"))
    options = (*(() if loaded else ("-p", PLUGIN)), "-p", "no:cacheprovider", "-q", f"--resnet-bundle={strangers}")
    shown = pytester.runpytest_subprocess(*options, "--resnet-backend=onnxruntime", "--collect-only", ours)
    assert (shown.ret, "tiny-fp32::onnxruntime::finite" in shown.stdout.str()) == (0, True)
    assert not mark.exists()
    pytester.runpytest_subprocess(*options, "--collect-only", strangers)
    assert str(strangers / "conftest.py") in mark.read_text().splitlines()


def one_node(folder: Path, node: onnx.NodeProto, weights: TensorProto | None = None) -> Path:
    """A model of one operator: float32 (batch, 4) -> (batch, 4)."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    graph = helper.make_graph([node], "one", values[:1], values[1:], [weights] if weights else [])
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 20), ("com.stranger", 1))]
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    return path


@pytest.mark.parametrize("backend", READERS)
def test_an_operator_that_a_library_would_bring_is_refused(backend: str, tmp_path: Path) -> None:
    path = one_node(tmp_path, helper.make_node("Opened", ["x"], ["y"], domain="com.stranger"))
    with pytest.raises(ResnetExportError, match="Opened"):
        open_runtime(path, backend)


@pytest.fixture(params=["../outside.bin", "/OUTSIDE", "link.bin"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model whose weights lie outside of its folder, where they can be read."""
    outside, folder, location = tmp_path / "outside.bin", tmp_path / "bundle", str(request.param)
    folder.mkdir()
    outside.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (folder / "link.bin").symlink_to(outside)
    weights = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location.replace("/OUTSIDE", str(outside)), "offset": "0", "length": "16"}.items():
        weights.external_data.add(key=key, value=value)
    return one_node(folder, helper.make_node("Add", ["x", "w"], ["y"]), weights)


@pytest.mark.parametrize("backend", READERS)
def test_weights_outside_of_the_folder_are_not_read(backend: str, elsewhere: Path) -> None:
    with pytest.raises(ResnetExportError, match=r"outside|escapes|absolute"):
        open_runtime(elsewhere, backend)


def test_tensorrts_parser_refuses_a_path_and_follows_a_link(
    elsewhere: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    api: Any = pytest.importorskip("tensorrt_rtx")

    monkeypatch.chdir(elsewhere.parent)  # where a parser that is given bytes looks
    log = api.Logger(api.Logger.INTERNAL_ERROR)
    builder = api.Builder(log)
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parsed = api.OnnxParser(network, log).parse(elsewhere.read_bytes())
    assert parsed == ("link.bin" in request.node.name)


def test_a_manifest_larger_than_any_is_not_read(strangers: Path) -> None:
    with (strangers / MANIFEST).open("r+b") as file:
        file.truncate(LARGEST_MANIFEST + 1)
    with pytest.raises(BundleError, match="expected at most 4 MiB, got more; do not use this bundle"):
        Bundle.open(strangers)


def test_names_that_would_move_the_cursor_are_shown_as_text(strangers: Path, deploy: Callable[..., Ran]) -> None:
    rewrite_manifest(
        strangers, lambda document: document["model"].update(name="\x1b[2Jgone", source="\x1b]0;a title\x07")
    )
    replace_file(strangers, "labels.txt", "".join(f"\x1b[31m{place}\n" for place in range(10)).encode())
    picture = strangers.parent / "picture.png"
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(picture)
    for command in (("inspect", strangers), ("run", strangers, picture), ("check", strangers, "--backend=onnxruntime")):
        shown = deploy(*command)
        assert "\x1b" not in shown.out + shown.err, command


# --- what it can do ---


def test_a_manifest_vouches_for_no_one(strangers: Path) -> None:
    replace_file(strangers, "labels.txt", "".join(f"forged {place}\n" for place in range(10)).encode())
    assert (Bundle.open(strangers).labels or ())[0] == "forged 0"


def test_a_bundle_that_agrees_with_itself_may_be_wrong(good: Made, tmp_path: Path, deploy: Callable[..., Ran]) -> None:
    """Its labels are turned by one: all answers are as its author recorded them, and none is right."""
    bundle = Path(shutil.copytree(good[1].bundle.folder, tmp_path / "turned"))
    labels = [f"kind {place}" for place in range(10)]
    with open_runtime(bundle, "onnxruntime") as runtime:
        pixels = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 1), np.uint8)
        answers = runtime.run({"input": Bundle.open(bundle).manifest.preprocess.normalise(pixels)})["logits"].argmax(1)
    for place, answer in enumerate(answers):
        folder = tmp_path / "pictures" / labels[answer]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[place, ..., 0]).save(folder / f"{place}.png")
    replace_file(bundle, "labels.txt", "\n".join(labels[1:] + labels[:1]).encode())
    on = ("--backend", "onnxruntime", "--json")
    assert deploy("check", bundle, *on).json["ok"]
    assert deploy("eval", bundle, "--data", tmp_path / "pictures", *on).json["top1"]["correct"] == 0


def test_a_runtime_runs_in_the_calling_process(good: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_other(*arguments: object, **options: object) -> None:
        raise AssertionError("another process")

    monkeypatch.setattr("subprocess.Popen", no_other)
    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", no_other)
    for backend in (*READERS, "pytorch"):
        with open_runtime(good[1].bundle, backend) as runtime:
            assert runtime.run({"input": np.zeros((1, 1, 28, 28), np.float32)})["logits"].shape == (1, 10)
