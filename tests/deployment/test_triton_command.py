"""`resnet-deploy triton`: what it says, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from triton_bundles import ANY_SIZE, add_engine, bundle_fixture, refused

from runtimes.kernels import KernelCount
from runtimes.manifest import GraphFacts, Manifest
from runtimes.specs import BatchRange

__all__ = ["bundle_fixture"]

Made = Callable[..., Path]
FP16_SCALES: dict[str, Any] = {
    "precision": "int8",
    "graph": GraphFacts(4, 100, 1000, {"Conv": 2}, {"Conv": {"FLOAT16": 2}, "QuantizeLinear": {"FLOAT16": 2}}),
}
FOR_PROCESSORS: dict[str, Any] = {"precision": "int8", "target": "cpu", "kernels": KernelCount(2, 2, 1, 1)}
BF16: dict[str, Any] = {"precision": "bf16", "graph": GraphFacts(2, 1, 1, {}, {"Conv": {"BFLOAT16": 2}})}


def test_it_says_what_it_wrote_and_how_to_serve_it(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    made = bundle()
    add_engine(made, version_compatible=True)
    ran = deploy("triton", made, "--backend", "tensorrt", "--backend", "onnxruntime", "--output", tmp_path / "to serve")
    assert ran.code == 0
    assert "tiny-fp32-tensorrt, version 1, batches up to 4" in ran.out
    assert "sm86.plan (TensorRT 10.13.3.9, or newer with --backend-config=tensorrt,version-compatible=true)" in ran.out
    assert "onnxruntime: model.onnx" in ran.out
    assert f"docker run --rm --gpus all -p 8000-8002:8000-8002 -v '{tmp_path}/to serve:/models:ro'" in ran.out


def test_json_names_each_model(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    made, output = bundle(**ANY_SIZE), tmp_path / "repository"
    found = deploy("triton", made, "--ensemble", "--version", 7, "--output", output, "--json").json
    assert found["repository"] == str(output)
    assert [one["name"] for one in found["models"]] == ["tiny-fp32", "tiny-fp32-decoder", "tiny-fp32-ensemble"]
    assert found["models"][0] == {
        "name": "tiny-fp32",
        "version": 7,
        "path": str(output / "tiny-fp32" / "7"),
        "bundle": str(made),
        "served": "onnxruntime: model.onnx",
        "needs_gpu": False,
        "largest_batch": 4,
    }


Case = tuple[dict[str, Any], tuple[object, ...], int, str]
REFUSED: dict[str, Case] = {
    "FP16 scales on onnxruntime": (
        FP16_SCALES,
        ("--backend", "onnxruntime"),
        2,
        "INT8 has FP16 scales.*build an engine.*--int8 --target cpu",
    ),
    "no engine": ({}, ("--backend", "tensorrt"), 3, "has no engine for TensorRT; build one.*resnet-deploy build"),
    "no engine for what needs one": (FP16_SCALES, (), 3, "has no engine for TensorRT"),
    "integers for a processor on TensorRT": (FOR_PROCESSORS, ("--backend", "tensorrt"), 2, "the bundle is for cpu"),
    "BF16 on onnxruntime": (BF16, ("--backend", "onnxruntime"), 2, "no BF16 convolution"),
    "BF16 on openvino": (BF16, ("--backend", "openvino"), 2, "without BF16"),
    "a name with a blank": (
        {},
        ("--name", "my model"),
        2,
        "expected a model's name of at most 128 letters.*'my model'",
    ),
    "a name with a folder": ({}, ("--name", "../model"), 2, "expected a model's name"),
    "a bundle's name that no model has": ({"name": "größe"}, (), 2, "got 'größe' of .*; give --name"),
    "version 0": ({}, ("--version", 0), 2, "expected a version of 1 to 9223372036854775807, got 0"),
    "a version that no server reads": ({}, ("--version", 1 << 63), 2, "got 9223372036854775808"),
    "no instance": ({}, ("--instances", 0), 2, "expected 1 to 2147483647 instances, got 0"),
    "more instances than are counted": ({}, ("--instances", 1 << 31), 2, "2147483647 instances, got 2147483648"),
    "no version to serve": ({}, ("--serve-versions", 0), 2, "expected 1 to 4294967295 versions to serve, got 0"),
    "more versions than are counted": ({}, ("--serve-versions", 1 << 32), 2, "to serve, got 4294967296"),
    "no delay": ({}, ("--max-delay-us", 0), 2, "expected a delay of 1 to 9223372036854775 us, got 0"),
    "a delay that no server holds": ({}, ("--max-delay-us", 1 << 64), 2, "us, got 18446744073709551616"),
    "a backend twice": ({}, ("--backend", "openvino", "--backend", "openvino"), 2, "each --backend once"),
    "batches from 2 on": ({"batch": BatchRange(2, 3, 4)}, (), 2, "one image too; export it with --batch 1:3:4"),
    "an ensemble of prepared images": ({}, ("--ensemble",), 2, "export it with --uint8-input full"),
    "an engine on onnxruntime": (
        {},
        ("--engine", "a", "--backend", "onnxruntime"),
        2,
        "--engine is about what tensorrt serves, got onnxruntime",
    ),
    "an engine that is none": ({}, ("--engine", "a"), 3, "has no engine for TensorRT; build one.*resnet-deploy build"),
    "trust in no engine": ({}, ("--trust-engine", "0" * 64), 3, "has no engine for TensorRT; build one"),
    "a wait for no batch": ({}, ("--backend", "openvino", "--max-delay-us", 9), 2, "the server makes none for"),
    "a sha256 that is none": ({}, ("--trust-engine", "abc"), 2, "64 hexadecimal digits"),
    "KServe without an image": ({}, ("--kserve", "deploy"), 2, "--kserve and --image together"),
    "force without KServe": ({}, ("--force",), 2, "--force replaces the files of --kserve"),
    "an image that is none": ({}, ("--kserve", "deploy", "--image", "No Image"), 2, "expected the name of an image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses(case: str, deploy: Any, bundle: Made, tmp_path: Path) -> None:
    fields, options, code, said = REFUSED[case]
    ran = deploy("triton", bundle(**fields), *options, "--output", tmp_path / "repository")
    assert re.search(said, refused(ran, tmp_path / "repository", code))


def test_a_bundle_that_its_export_refused_is_not_served(
    deploy: Any, bundle: Made, manifest: Manifest, tmp_path: Path
) -> None:
    made = bundle(parity=replace(manifest.parity, ok=False))
    ran = deploy("triton", made, "--output", tmp_path / "repository")
    assert "was rejected by its export" in refused(ran, tmp_path / "repository", 1)


def test_two_bundles_of_one_name_are_refused(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    ran = deploy("triton", bundle(), bundle("other"), "--output", tmp_path / "repository")
    assert "models of different names, got 'tiny-fp32' of" in refused(ran, tmp_path / "repository", 2)


def test_one_name_for_two_bundles_is_refused(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    ran = deploy("triton", bundle(), bundle("other"), "--name", "one", "--output", tmp_path / "repository")
    assert "expected one bundle with --name, got 2" in refused(ran, tmp_path / "repository", 2)


# --- engines ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"onnx_sha256": "1" * 64}, "was built from another model.onnx than the bundle's"),
        ({"batch": BatchRange(1, 8, 32)}, "expected an engine for batches of 1:2:4"),
        ({"checked": False}, "was never held against the bundle's golden outputs"),
        ({"options": {"strip_weights": True}}, "has its weights in model.onnx"),
        ({"targets": ("../sm86",)}, "expected an engine for TensorRT and one kind of GPU"),
        ({"engine_sha256": "1" * 64}, "was changed after it was built"),
    ],
)
def test_engines_that_are_not_the_bundles_are_refused(
    deploy: Any, bundle: Made, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    made = bundle()
    add_engine(made, changes=changes)
    ran = deploy("triton", made, "--output", tmp_path / "repository")
    assert said in refused(ran, tmp_path / "repository", 2 if "options" in changes else 1)


def test_engines_for_tensorrt_rtx_are_not_served(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    made = bundle()
    add_engine(made, tag=b"vtrt", version="1.4.0.1", changes={"backend": "tensorrt-rtx"})
    ran = deploy("triton", made, "--backend", "tensorrt", "--output", tmp_path / "repository")
    assert "its engines are for TensorRT-RTX, which Triton does not run" in refused(ran, tmp_path / "repository", 3)


def test_another_machines_engine_is_served_where_it_is_named(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    made, output = bundle(), tmp_path / "repository"
    sidecar = add_engine(made, key=bytes(32)).with_suffix(".json")
    said = refused(deploy("triton", made, "--output", output), output, 1)
    assert "was not built on this machine" in said
    sha256 = json.loads(sidecar.read_text())["engine_sha256"]
    assert deploy("triton", made, "--output", output, "--trust-engine", sha256).code == 0


def test_of_two_engines_for_one_gpu_one_is_to_be_named(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    made, output = bundle(), tmp_path / "repository"
    old, new = add_engine(made, version="10.3.0.30"), add_engine(made)
    said = refused(deploy("triton", made, "--output", output), output, 2)
    assert f"got {new.name} and {old.name}; name those to serve with --engine" in said
    said = refused(deploy("triton", made, "--output", output, "--engine", "sm86.engine"), output, 2)
    assert "has no engine sm86.engine; it has tensorrt-" in said
    assert deploy("triton", made, "--output", output, "--engine", old.name).code == 0
    assert (output / "tiny-fp32" / "1" / "sm86.plan").read_bytes() == old.read_bytes()


# --- the folder ---


def test_a_folder_of_something_else_is_not_added_to(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    made = bundle()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").touch()
    for output, said in {
        tmp_path / "folder": "each a folder with config.pbtxt, got notes.txt",
        tmp_path / "folder" / "notes.txt": "is not a folder",
        made: "is a bundle",
        made / "repository": "lies in the bundle",
    }.items():
        ran = deploy("triton", made, "--output", output)
        assert (ran.code, said in ran.error) == (2, True), ran.err
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["notes.txt"]


def test_a_version_is_not_written_twice(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    made, output = bundle(), tmp_path / "repository"
    for version in (1, 4):
        assert deploy("triton", made, "--output", output, "--version", version).code == 0
    ran = deploy("triton", made, "--output", output)
    assert ran.code == 2
    assert "has version 1 already, and a version is never changed; give --version 5" in ran.error


def test_a_new_version_keeps_the_models_configuration(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    made, output = bundle(), tmp_path / "repository"
    assert deploy("triton", made, "--output", output).code == 0
    assert deploy("triton", made, "--output", output, "--version", 4).code == 0
    config = output / "tiny-fp32" / "config.pbtxt"
    for options, said in {
        ("--instances", 3): "--instances 3 would change the configuration of versions 1, 4 in {}; give --instances 1",
        ("--max-delay-us", 9): "--max-delay-us 9 would change the configuration of versions 1, 4 in {}; give no --max",
        ("--serve-versions", 2): "--serve-versions 2 would change the configuration of versions 1, 4 in {}; give",
        ("--backend", "openvino"): "would change {}, which versions 1, 4 share, from 'backend: \"onnxruntime\"' to 'b",
    }.items():
        ran = deploy("triton", made, "--output", output, "--version", 2, *options)
        assert ran.code == 2
        assert said.format(config) in ran.error
    config.write_bytes(config.read_bytes().replace(b"labels.txt", b"names.txt"))
    ran = deploy("triton", made, "--output", output, "--version", 2)
    assert "versions 1, 4 share, from 'label_filename: \"names.txt\"'" in ran.error
    (output / "tiny-fp32" / "labels.txt").unlink()
    config.write_bytes(config.read_bytes().replace(b"names.txt", b"labels.txt"))
    ran = deploy("triton", made, "--output", output, "--version", 2)
    assert f"versions 1, 4 have no labels.txt in {config.parent}, and this one needs it" in ran.error
    assert not (output / "tiny-fp32" / "2").exists()
