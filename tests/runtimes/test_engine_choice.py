"""Which engine of a bundle is loaded: the newest that fits this machine; where none does, the error says why."""

from __future__ import annotations

import gc
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Ran
from PIL import Image
from rtx_engines import (  # noqa: F401  # pytest finds the fixtures by their names
    RTX,
    add_plan,
    built_fixture,
    bundle_fixture,
    engine_fixture,
    facts_fixture,
    here_fixture,
    said,
    tensorrt_plan,
)

from runtimes import Bundle, Manifest, open_runtime
from runtimes.bundle_writing import write_manifest
from runtimes.errors import BackendUnavailable, BundleError
from runtimes.nvidia.engine_choice import Here, check_loadable, engine_for
from runtimes.nvidia.engine_file import DeviceFacts, EngineFacts
from runtimes.nvidia.plan_files import sidecar_of
from runtimes.specs import BatchRange

# --- will it load here? ---


def test_an_engine_for_this_machine_passes(facts: EngineFacts, here: Here) -> None:
    for target in ("sm86", "sm120"):
        check_loadable(facts, replace(here, target=target), "it")


@pytest.mark.parametrize(
    ("changes", "elsewhere", "message"),
    [
        ({}, {"backend": "tensorrt"}, "it is a tensorrt-rtx engine, expected one for tensorrt; "),
        ({"backend": "tensorrt"}, {}, "it is a tensorrt engine, expected one for tensorrt-rtx; "),
        (
            {"version": "10.3.0.30"},
            {"version": "11.4.0.106"},
            "it was built with tensorrt-rtx 10.3.0.30, this is 11.4.0.106, and engines load in the same",
        ),
        ({"platform": "linux-riscv64"}, {}, "it was built for linux-riscv64, this is linux-"),
        ({}, {"target": "sm87"}, "it was built for sm86, sm120, this GPU is sm87; "),
        (
            {"device": DeviceFacts("Orin", "sm87", "12.6"), "targets": ("sm87",)},
            {},
            r"it was built for sm87 \(Orin\), this GPU is sm86; ",
        ),
    ],
    ids=["an RTX plan for TensorRT", "a TensorRT plan for RTX", "version", "platform", "GPU", "GPU by name"],
)
def test_an_engine_for_something_else_is_refused_by_name(
    facts: EngineFacts, here: Here, changes: dict[str, Any], elsewhere: dict[str, str], message: str
) -> None:
    place = replace(here, **elsewhere)
    with pytest.raises(BackendUnavailable, match=message) as caught:
        check_loadable(replace(facts, **changes), place, "it")
    assert said(caught.value).endswith(f"resnet-deploy build BUNDLE --backend {place.backend}")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("built_with", "here_is", "loads"),
    [
        ("10.3.0.30", "10.3.0.30", True),
        ("10.3.0.30", "10.13.3.9", True),
        ("10.3.0.30", "11.4.0.106", True),
        ("10.13.3.9", "10.3.0.30", False),
        ("11.4.0.106", "10.16.2.10", False),
    ],
)
def test_a_version_compatible_engine_loads_in_newer_versions_alone(
    facts: EngineFacts, here: Here, built_with: str, here_is: str, loads: bool
) -> None:
    compatible = replace(facts, version=built_with, options={"version_compatible": True})
    place = replace(here, version=here_is)
    if loads:
        check_loadable(compatible, place, "it")
    else:
        with pytest.raises(BackendUnavailable, match=f"was built with tensorrt-rtx {built_with}, this is {here_is}"):
            check_loadable(compatible, place, "it")
    if built_with != here_is:
        with pytest.raises(BackendUnavailable, match="same version alone"):
            check_loadable(replace(compatible, options={}), place, "it")


@pytest.mark.parametrize(
    ("level", "target", "loads"),
    [
        ("ampere-plus", "sm80", True),
        ("ampere-plus", "sm87", True),
        ("ampere-plus", "sm120", True),
        ("ampere-plus", "sm75", False),
        ("same-compute-capability", "sm86", True),
        ("same-compute-capability", "sm87", False),
        (None, "sm89", False),
    ],
)
def test_a_hardware_compatible_engine_loads_on_the_gpus_its_level_names(
    facts: EngineFacts, here: Here, level: str | None, target: str, loads: bool
) -> None:
    compatible = replace(facts, targets=("sm86",), options={"hardware_compatible": level} if level else {})
    if loads:
        check_loadable(compatible, replace(here, target=target), "it")
    else:
        with pytest.raises(BackendUnavailable, match=f"was built for sm86, this GPU is {target}"):
            check_loadable(compatible, replace(here, target=target), "it")


# --- which engine of a bundle ---


def test_the_engine_that_fits_is_found_among_others(engine: Path, bundle: Path, facts: EngineFacts, here: Here) -> None:
    add_plan(bundle, tensorrt_plan(11, 4, 0, 106), facts, backend="tensorrt", version="11.4.0.106", targets=("sm86",))
    add_plan(bundle, engine.read_bytes(), facts, targets=("sm75",))
    add_plan(bundle, engine.read_bytes(), facts, version="1.6.0.1")
    (bundle / "engines" / f"{RTX}-1-broken.engine").write_bytes(b"")
    opened = Bundle.open(bundle)
    assert engine_for(opened, here) == engine
    assert engine_for(opened, Here("tensorrt", "11.4.0.106", "sm86")).name.startswith("tensorrt-11.4.0.106-sm86-")
    assert engine_for(opened, replace(here, version="1.6.0.1")).name.startswith("tensorrt-rtx-1.6.0.1-")


def test_the_newest_of_those_that_fit_is_taken(engine: Path, bundle: Path, facts: EngineFacts, here: Here) -> None:
    other = add_plan(bundle, engine.read_bytes(), facts, batch=BatchRange(1, 1, 1))
    for newest, older in ((engine, other), (other, engine)):
        os.utime(older, (1000, 1000))
        os.utime(newest, (2000, 2000))
        assert engine_for(Bundle.open(bundle), here) == newest


def test_an_engine_of_another_model_is_refused_unless_another_fits(
    engine: Path, bundle: Path, facts: EngineFacts, here: Here
) -> None:
    stale = add_plan(bundle, engine.read_bytes(), facts, batch=BatchRange(1, 1, 1), onnx_sha256="0" * 64)
    os.utime(engine, (1000, 1000))
    assert engine_for(Bundle.open(bundle), here) == engine
    engine.unlink()
    with pytest.raises(
        BundleError, match=re.escape(f"{stale} was built from another model.onnx; build one here")
    ) as caught:
        engine_for(Bundle.open(bundle), here)
    assert said(caught.value, f"resnet-deploy build {bundle} --backend {RTX}")


def test_a_bundle_exported_again_does_not_take_its_old_engine(bundle: Path, here: Here, manifest: Manifest) -> None:
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"\x00")
    (bundle / "manifest.json").unlink()
    engines = (bundle / "engines").rename(bundle.parent / "aside")
    write_manifest(bundle, manifest)
    engines.rename(bundle / "engines")
    with pytest.raises(BundleError, match="was built from another model.onnx"):
        engine_for(Bundle.open(bundle), here)


def test_a_bundle_without_engines_says_how_to_build_one(bundle: Path, here: Here) -> None:
    for path in (bundle / "engines").iterdir():
        path.unlink()
    for _ in range(2):
        with pytest.raises(BackendUnavailable) as caught:
            engine_for(Bundle.open(bundle), here)
        command = f"resnet-deploy build {bundle} --backend {RTX}"
        assert said(caught.value, command).startswith(f"{bundle} has no engine for {RTX} {here.version} on sm86; ")
        shutil.rmtree(bundle / "engines", ignore_errors=True)


@pytest.mark.parametrize(
    ("elsewhere", "problem"),
    [
        ({"version": "1.8.0.1"}, ", this is 1.8.0.1, and engines load in the same version alone"),
        ({"target": "sm89"}, "was built for sm86, sm120, this GPU is sm89"),
        ({"backend": "tensorrt"}, "build one here with: resnet-deploy build"),
    ],
    ids=["version", "GPU", "library"],
)
def test_a_bundle_whose_engines_do_not_fit_says_why(
    bundle: Path, here: Here, elsewhere: dict[str, str], problem: str
) -> None:
    place = replace(here, **elsewhere)
    with pytest.raises(BackendUnavailable) as caught:
        engine_for(Bundle.open(bundle), place)
    message = said(caught.value)
    assert message.startswith(f"{bundle} has no engine for {place.backend} {place.version} on {place.target}; ")
    assert problem in message


def test_engines_with_malformed_sidecars_are_passed_over_and_told(engine: Path, bundle: Path, here: Here) -> None:
    sidecar_of(engine).write_bytes(b"{")
    with pytest.raises(BackendUnavailable, match="has no engine .*json: Input data was truncated") as caught:
        engine_for(Bundle.open(bundle), here)
    assert said(caught.value)


def test_a_link_to_nothing_among_the_engines_is_passed_over(engine: Path, bundle: Path, here: Here) -> None:
    (bundle / "engines" / f"{RTX}-0.engine").symlink_to("nowhere")
    shutil.copy(sidecar_of(engine), bundle / "engines" / f"{RTX}-0.json")
    os.utime(engine, (1000, 1000))
    assert engine_for(Bundle.open(bundle), here) == engine


# --- the command line, on a machine without a driver ---


@pytest.fixture
def without_driver() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")


@pytest.mark.usefixtures("without_driver")
def test_without_a_driver_opening_says_so_in_one_line(bundle: Path, engine: Path) -> None:
    for model in (bundle, engine):
        with pytest.raises(
            BackendUnavailable, match="^cudaGetDeviceCount: cudaErrorInsufficientDriver .35.: "
        ) as caught:
            open_runtime(model, RTX)
        assert said(
            caught.value, "run on a machine with an NVIDIA GPU and install its driver, or use --backend onnxruntime"
        )
    gc.collect()  # nothing that was made on the way complains of not being closed


@pytest.mark.usefixtures("without_driver")
def test_without_a_driver_the_command_ends_with_3(bundle: Path, tmp_path: Path, deploy: Callable[..., Ran]) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "picture.png")
    ran = deploy("run", bundle, tmp_path / "picture.png", "--backend", RTX)
    assert ran.code == 3
    assert "cudaErrorInsufficientDriver" in ran.error
    assert deploy("run", bundle, tmp_path / "picture.png", "--backend", "tensorrt").code == 3
