"""`resnet-deploy build --print-trtexec`: the words that trtexec gets, after a shell has read the lines."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Ran
from small_bundles import bundle_fixture, write_bundle  # noqa: F401  # pytest finds it by its name

from runtimes.bundle_writing import write_manifest
from runtimes.manifest import Manifest
from runtimes.specs import BatchRange, TensorSpec

COMMON = ["--profilingVerbosity=detailed", "--skipInference"]


def commands(text: str) -> list[list[str]]:
    """The command lines, as a shell splits them; comments are left out."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return [shlex.split(part) for part in lines.replace("\\\n", " ").splitlines() if part.strip()]


def changed(bundle: Path, manifest: Manifest) -> Path:
    (bundle / "manifest.json").unlink()
    write_manifest(bundle, manifest)
    return bundle


def test_the_same_build_for_both_generations_builds_nothing_and_needs_no_tensorrt(
    manifest: Manifest, tmp_path: Path, deploy: Callable[..., Ran]
) -> None:
    folder = write_bundle(tmp_path / "it's a $HOME `bundle`", replace(manifest, precision="fp16", name="r20"))
    ran = deploy("build", folder, "--print-trtexec", "--workspace", "512", "--timing-cache", tmp_path / "the times")
    assert (ran.code, "tensorrt" in sys.modules) == (0, False)
    ten, eleven = commands(ran.out)
    name, shape = manifest.inputs[0].name, "x".join(map(str, manifest.inputs[0].shape[1:]))
    batch = manifest.batch
    shapes = [f"--{what}Shapes={name}:{getattr(batch, what)}x{shape}" for what in ("min", "opt", "max")]
    assert ten == [
        "trtexec",
        f"--onnx={folder}/model.onnx",
        "--stronglyTyped",
        *shapes,
        "--saveEngine=r20-trt10.engine",
        "--memPoolSize=workspace:512",
        f"--timingCacheFile={tmp_path}/the times.trtexec-10",
        *COMMON,
    ]
    assert eleven == [word.replace("trt10", "trt11").replace("-10", "-11") for word in ten if "Typed" not in word]
    assert [path.name for path in (folder / "engines").iterdir()] == ["sm87.engine"]
    assert "repeat this command with --workspace MIB" in deploy("build", folder, "--print-trtexec").out
    options = ("--workspace", "512", "--timing-cache", tmp_path / "the times", "--json")
    found = deploy("build", folder, "--print-trtexec", *options).json["trtexec"]
    assert [(one["tensorrt"], one["command"], one["notes"]) for one in found] == [
        ("10.3 to 10.16", ten, []),
        ("11", eleven, []),
    ]


def test_a_name_is_no_folder(bundle: Path, manifest: Manifest, deploy: Callable[..., Ran]) -> None:
    changed(bundle, replace(manifest, precision="fp16", name="/etc/../r20"))
    for words in commands(deploy("build", bundle, "--print-trtexec").out):
        (saved,) = (word for word in words if word.startswith("--saveEngine="))
        assert "/" not in saved


def test_every_option_of_a_build_has_its_word(bundle: Path, manifest: Manifest, deploy: Callable[..., Ran]) -> None:
    changed(bundle, replace(manifest, precision="fp32", batch=BatchRange(2, 2, 2)))
    options = ["--optimization-level", "5", "--version-compatible", "--strip-weights"]
    ten, _ = commands(deploy("build", bundle, "--print-trtexec", *options, "--hardware-compatible", "ampere-plus").out)
    assert ten[3:] == [
        *("--saveEngine=" + f"{manifest.name}-trt10.engine", "--noTF32", "--builderOptimizationLevel=5"),
        *("--versionCompatible", "--hardwareCompatibilityLevel=ampere+", "--stripWeights", *COMMON),
    ]
    same = deploy("build", bundle, "--print-trtexec", "--hardware-compatible", "same-compute-capability").out
    assert "--hardwareCompatibilityLevel=sameComputeCapability" in same
    assert "# from 10.13 on" in same


def test_shapes_are_given_for_pictures_of_any_size_and_not_for_fixed_ones(
    bundle: Path, manifest: Manifest, deploy: Callable[..., Ran]
) -> None:
    pixels = TensorSpec("input", "uint8", (1, "height", "width", 3))
    changed(bundle, replace(manifest, batch=BatchRange(1, 1, 1), inputs=(pixels,)))
    ten, _ = commands(deploy("build", bundle, "--print-trtexec").out)
    assert ten[3:6] == [
        f"--{name}Shapes=input:1x{side}x{side}x3" for name, side in (("min", 1), ("opt", 512), ("max", 2048))
    ]
    changed(bundle, replace(manifest, batch=BatchRange(4, 4, 4)))
    assert "Shapes" not in deploy("build", bundle, "--print-trtexec").out  # trtexec refuses them for a static graph


def test_dla_is_printed_where_that_tensorrt_has_it_and_the_reason_where_it_has_not(
    bundle: Path, manifest: Manifest, deploy: Callable[..., Ran]
) -> None:
    changed(bundle, replace(manifest, precision="fp16", batch=BatchRange(1, 1, 1)))
    ran = deploy("build", bundle, "--print-trtexec", "--dla", "1")
    assert [[word for word in words if "DLA" in word or "GPU" in word] for words in commands(ran.out)] == [
        ["--useDLACore=1", "--allowGPUFallback"]
    ] * 2
    assert "# TensorRT 10.3 to 10.7\n# on DLA: AGX Orin, Orin NX\n" in ran.out
    assert "# TensorRT 11.4.1 and newer\n# on DLA: AGX Orin\n" in ran.out
    changed(bundle, replace(manifest, precision="int8", batch=BatchRange(1, 1, 1)))
    ran = deploy("build", bundle, "--print-trtexec", "--dla", "0")
    assert len(commands(ran.out)) == 1
    assert "# none: the DLA of TensorRT 10.7.0 takes no Q/DQ pairs" in ran.out
    ten, eleven = deploy("build", bundle, "--print-trtexec", "--dla", "0", "--json").json["trtexec"]
    assert (ten["command"], "takes no Q/DQ pairs" in ten["notes"][0]) == (None, True)
    assert "--useDLACore=0" in eleven["command"]
    changed(bundle, replace(manifest, precision="fp16"))
    ran = deploy("build", bundle, "--print-trtexec", "--dla", "0")
    assert (ran.code, "DLA runs one batch size alone" in ran.error) == (2, True)


def test_an_opset_that_10_3_does_not_read_is_told(bundle: Path, manifest: Manifest, deploy: Callable[..., Ran]) -> None:
    changed(bundle, replace(manifest, precision="bf16", opset=22))
    assert (
        "# not 10.3, which reads no opset above 20; this graph has 22" in deploy("build", bundle, "--print-trtexec").out
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backend", "tensorrt-rtx"], "trtexec builds nothing for tensorrt-rtx; leave out --backend"),
        (["--target", "sm87"], "trtexec builds for the GPU of the machine that it runs on; leave out --target"),
    ],
)
def test_what_trtexec_does_not_do_is_refused(
    bundle: Path, options: list[str], said: str, deploy: Callable[..., Ran]
) -> None:
    ran = deploy("build", bundle, "--print-trtexec", *options)
    assert (ran.code, said in ran.error) == (2, True)
