"""What is known of an engine file without loading it, on plans that TensorRT-RTX built; and every file that must not be loaded."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Ran
from PIL import Image

from exporter.engines.build import BuildPlan, build_engine
from exporter.engines.builders import BuildOptions
from runtimes import Bundle, Manifest, open_runtime
from runtimes._open import backend_class
from runtimes.bundle_writing import write_manifest
from runtimes.errors import BackendUnavailable, BadInput, BundleError, ResnetExportError
from runtimes.nvidia.engine_choice import Here, check_loadable, engine_for, loadable_engine
from runtimes.nvidia.engine_file import (
    DeviceFacts,
    EngineFacts,
    facts_of,
    json_from_facts,
    read_engine,
    read_sidecar,
    seal_facts,
)
from runtimes.nvidia.plan_files import PlanHeader, engine_name, plan_header, platform_text, sidecar_of
from runtimes.nvidia.trust import ensure_machine_key
from runtimes.specs import BatchRange

REBUILD = "resnet-deploy build"
RTX = "tensorrt-rtx"
ROOT = Path(__file__).resolve().parents[2]


def quiet(step: str, done: int = 0, total: int = 0) -> None:
    pass


@pytest.fixture(scope="module")
def built(tiny_model: Path, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine that TensorRT-RTX built for two GPUs."""
    folder = tmp_path_factory.mktemp("files") / "bundle"
    folder.mkdir()
    shutil.copy(tiny_model / "model.onnx", folder)
    write_manifest(folder, manifest)
    build_engine(BuildPlan(Bundle.open(folder), RTX, BuildOptions(targets=("sm86", "sm120"))), quiet)
    return folder


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


@pytest.fixture
def engine(bundle: Path) -> Path:
    (path,) = (bundle / "engines").glob("*.engine")
    return path


@pytest.fixture
def facts(engine: Path) -> EngineFacts:
    return facts_of(engine)


@pytest.fixture
def here(facts: EngineFacts) -> Here:
    """A machine that loads the engine."""
    return Here(RTX, facts.version, "sm86")


def said(error: ResnetExportError, remedy: str = REBUILD) -> str:
    """The message, checked to be one line that names what to do."""
    message = str(error)
    assert "\n" not in message
    assert remedy in message
    assert "expected" in message or "; " in message
    return message


def tensorrt_plan(*version: int, size: int = 1000) -> bytes:
    """As TensorRT's begin; what follows is nobody's."""
    return b"ftrt" + bytes(20) + bytes(version) + bytes(size)


def put(folder: Path, plan: bytes, facts: EngineFacts, **changes: Any) -> Path:
    """Add a plan to a bundle, and a sidecar that says that it is the one, as a build on this machine does."""
    facts = replace(facts, engine_sha256=hashlib.sha256(plan).hexdigest(), engine_bytes=len(plan), **changes)
    path = folder / "engines" / engine_name(facts.backend, facts.version, facts.targets, facts.batch, facts.options)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(plan)
    sidecar_of(path).write_bytes(json_from_facts(seal_facts(facts, ensure_machine_key())))
    return path


# --- the header ---


def test_a_real_plans_header_says_which_library_wrote_it_and_its_version(engine: Path, facts: EngineFacts) -> None:
    import tensorrt_rtx

    header = plan_header(engine.read_bytes(), "it")
    assert (header.backend, header.version_text) == (RTX, tensorrt_rtx.__version__)
    assert facts.version == header.version_text


@pytest.mark.parametrize("version", [(8, 6, 1, 6), (10, 3, 0, 30), (11, 4, 0, 106)])
def test_tensorrts_header_says_its_version(version: tuple[int, int, int, int]) -> None:
    header = plan_header(tensorrt_plan(*version), "it")
    assert header == PlanHeader("tensorrt", version)
    assert header.version_text == ".".join(map(str, version))


def test_the_header_is_all_that_is_needed(engine: Path) -> None:
    data = engine.read_bytes()
    assert plan_header(data[:28], "it") == plan_header(data, "it")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is empty"),
        (b"vt", "its first bytes are not a plan's"),
        (b"vtrt" + bytes(20), "it ends after 24 bytes"),
        (b"ftrt", "it ends after 4 bytes"),
        (b"\x89PNG" + bytes(100), "its first bytes are not a plan's"),
        (bytes(range(256)), "its first bytes are not a plan's"),
        (b"trtf" + bytes(100), "its first bytes are not a plan's"),
    ],
    ids=["empty", "two bytes", "a cut header", "a tag alone", "a picture", "any bytes", "the tag backwards"],
)
def test_a_file_that_is_no_plan_is_told_by_what_it_looks_like(engine: Path, content: bytes, problem: str) -> None:
    engine.write_bytes(content)
    for read in (facts_of, read_engine, backend_class(RTX).open):
        with pytest.raises(BadInput) as caught:
            read(engine)
        assert said(caught.value).startswith(f"{engine} is no TensorRT engine: {problem}; ")


def test_an_onnx_file_that_is_named_engine_is_told_so(engine: Path, bundle: Path) -> None:
    shutil.copy(bundle / "model.onnx", engine)
    with pytest.raises(
        BadInput, match="is no TensorRT engine: it looks like an ONNX model; build one with: resnet-deploy build BUNDLE"
    ) as caught:
        read_engine(engine)
    assert said(caught.value)
    assert caught.value.exit_code == 2


def test_an_engine_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    for path in (tmp_path / "no.engine", tmp_path):
        with pytest.raises(BadInput, match=re.escape(f"cannot read {path} (")) as caught:
            facts_of(path)
        assert said(caught.value)


# --- the sidecar ---


def test_an_engine_is_read_with_what_its_sidecar_says(engine: Path, bundle: Path, manifest: Manifest) -> None:
    facts, data = read_engine(engine)
    assert data == engine.read_bytes()
    assert facts == facts_of(engine) == read_sidecar(engine.with_suffix(".json"))
    assert (facts.backend, facts.targets, facts.platform, facts.batch) == (
        RTX,
        ("sm86", "sm120"),
        platform_text(),
        manifest.batch,
    )
    assert facts.onnx_sha256 == Bundle.open(bundle).manifest.files["model.onnx"].sha256
    assert json_from_facts(facts) == sidecar_of(engine).read_bytes()


@pytest.mark.parametrize("at", [0, 3, 28, 32, -1], ids=["tag", "tag's end", "after the header", "targets", "last byte"])
def test_an_engine_that_was_changed_is_not_loaded(engine: Path, at: int) -> None:
    data = bytearray(engine.read_bytes())
    data[at] ^= 1
    engine.write_bytes(data)
    with pytest.raises((BundleError, BadInput)) as caught:
        read_engine(engine)
    message = said(caught.value)
    assert (
        "was changed after it was built" in message and "engines are executable" in message
    ) or "is no TensorRT engine" in message


@pytest.mark.parametrize("size", [29, 1000, -1])
def test_an_engine_that_was_cut_short_is_not_loaded(engine: Path, size: int) -> None:
    engine.write_bytes(engine.read_bytes()[:size])
    with pytest.raises(BundleError, match="was changed after it was built") as caught:
        backend_class(RTX).open(engine)
    assert said(caught.value)
    assert caught.value.exit_code == 1


def test_an_engine_without_a_sidecar_is_not_loaded(engine: Path) -> None:
    sidecar_of(engine).unlink()
    with pytest.raises(
        BundleError, match="cannot read .*json .No such file or directory., .* engines are executable"
    ) as caught:
        read_engine(engine)
    assert said(caught.value)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        document = json.loads(data)
        change(document)
        return json.dumps(document).encode()

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: b"", "truncated"),
        (lambda data: data[:100], "truncated"),
        (lambda data: b"\xff\xfe", "malformed"),
        (lambda data: b"[1]", r"Expected `object`"),
        (lambda data: b"[" * 100000, r"Expected `object`"),
        (lambda data: b'{"schema_version": ' + b"[" * 100000, "recursion"),
        (edited(lambda facts: facts.pop("engine_sha256")), "missing required field `engine_sha256`"),
        (edited(lambda facts: facts.update(targets="sm86")), r"Expected `array`, got `str` - at `\$.targets`"),
        (
            edited(lambda facts: facts["batch"].update(min=9)),
            "expected a batch range with 1 <= min <= opt <= max, got 9:3:4",
        ),
        (edited(lambda facts: facts.update(schema_version=2)), "expected schema_version 1, got 2"),
        (edited(lambda facts: facts.pop("schema_version")), "expected schema_version 1, got None"),
    ],
    ids=[
        "empty",
        "cut",
        "no text",
        "a list",
        "deep",
        "deep inside",
        "no sum",
        "wrong type",
        "no range",
        "of a later version",
        "of none",
    ],
)
def test_a_malformed_sidecar_is_told_with_its_place(engine: Path, edit: Callable[[bytes], bytes], message: str) -> None:
    sidecar = sidecar_of(engine)
    sidecar.write_bytes(edit(sidecar.read_bytes()))
    with pytest.raises(BundleError, match=f"(?i){message}") as caught:
        read_engine(engine)
    assert said(caught.value).startswith(f"{sidecar}: ")


def test_a_sidecar_of_another_library_is_not_the_engines(engine: Path, bundle: Path, facts: EngineFacts) -> None:
    as_tensorrt = put(bundle, engine.read_bytes(), facts, backend="tensorrt")
    with pytest.raises(BundleError, match="is a tensorrt-rtx engine, expected tensorrt by its sidecar") as caught:
        read_engine(as_tensorrt)
    assert said(caught.value)
    as_rtx = put(bundle, tensorrt_plan(11, 4, 0, 106), facts, version="11.4.0.106")
    with pytest.raises(BundleError, match="is a tensorrt engine, expected tensorrt-rtx by its sidecar") as caught:
        read_engine(as_rtx)
    assert said(caught.value)


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
    put(bundle, tensorrt_plan(11, 4, 0, 106), facts, backend="tensorrt", version="11.4.0.106", targets=("sm86",))
    put(bundle, engine.read_bytes(), facts, targets=("sm75",))
    put(bundle, engine.read_bytes(), facts, version="1.6.0.1")
    (bundle / "engines" / f"{RTX}-1-broken.engine").write_bytes(b"")
    opened = Bundle.open(bundle)
    assert engine_for(opened, here) == engine
    assert engine_for(opened, Here("tensorrt", "11.4.0.106", "sm86")).name.startswith("tensorrt-11.4.0.106-sm86-")
    assert engine_for(opened, replace(here, version="1.6.0.1")).name.startswith("tensorrt-rtx-1.6.0.1-")


def test_the_newest_of_those_that_fit_is_taken(engine: Path, bundle: Path, facts: EngineFacts, here: Here) -> None:
    other = put(bundle, engine.read_bytes(), facts, batch=BatchRange(1, 1, 1))
    for newest, older in ((engine, other), (other, engine)):
        os.utime(older, (1000, 1000))
        os.utime(newest, (2000, 2000))
        assert engine_for(Bundle.open(bundle), here) == newest


def test_an_engine_of_another_model_is_refused_unless_another_fits(
    engine: Path, bundle: Path, facts: EngineFacts, here: Here
) -> None:
    stale = put(bundle, engine.read_bytes(), facts, batch=BatchRange(1, 1, 1), onnx_sha256="0" * 64)
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


def test_engines_that_differ_by_their_options_have_names_of_their_own() -> None:
    options: dict[str, dict[str, Any]] = {
        "": {},
        "-dla1": {"dla_core": 1},
        "-dla0-version-compatible-ampere-plus-stripped-o5-w512": {
            "workspace_bytes": 512 << 20,
            "optimization_level": 5,
            "strip_weights": True,
            "hardware_compatible": "ampere-plus",
            "version_compatible": True,
            "dla_core": 0,
        },
        "-o0": {"optimization_level": 0},
        "-w1000b": {"workspace_bytes": 1000},
    }
    for words, given in options.items():
        assert (
            engine_name("tensorrt", "10.3.0", ("sm87",), BatchRange(1, 8, 32), given)
            == f"tensorrt-10.3.0-sm87-b1-8-32{words}.engine"
        )


# --- whose engine it is ---


def as_a_strangers(engine: Path, **changes: Any) -> EngineFacts:
    """The sidecar as another machine's build writes it."""
    facts = seal_facts(replace(read_sidecar(sidecar_of(engine)), **changes), bytes(32))
    sidecar_of(engine).write_bytes(json_from_facts(facts))
    return facts


def test_a_strangers_engine_is_not_loaded_unless_it_is_named(
    engine: Path, bundle: Path, facts: EngineFacts, here: Here
) -> None:
    assert loadable_engine(engine, lambda: here, ())[1] == engine.read_bytes()
    as_a_strangers(engine, options={"version_compatible": True}, version="1.0.0.0")
    with pytest.raises(BundleError) as caught:
        loadable_engine(engine, lambda: here, {"0" * 64})
    assert said(caught.value, f"--trust-engine {facts.engine_sha256}").startswith(
        f"{engine} was not built on this machine, and engines are code, "
    )
    assert REBUILD in str(caught.value)
    with pytest.raises(BackendUnavailable, match="has no engine for .* was not built on this machine.* --trust-engine"):
        engine_for(Bundle.open(bundle), here)
    for trusted in ({facts.engine_sha256}, [facts.engine_sha256]):
        assert loadable_engine(engine, lambda: here, trusted)[1] == engine.read_bytes()
        assert engine_for(Bundle.open(bundle), here, trusted) == engine


@pytest.mark.parametrize(
    "change",
    [
        {"seal": ""},
        {"options": {"version_compatible": True}},
        {"checked": True},
        {"onnx_sha256": "0" * 64},
        {"targets": ["sm86", "sm89"]},
        {"more": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_sidecar_that_was_edited_vouches_for_nothing(engine: Path, here: Here, change: dict[str, Any]) -> None:
    sidecar_of(engine).write_bytes(edited(lambda document: document.update(change))(sidecar_of(engine).read_bytes()))
    with pytest.raises(BundleError, match="was not built on this machine"):
        loadable_engine(engine, lambda: here, ())


def test_an_engine_that_was_exchanged_is_not_loaded_even_when_it_is_named(
    engine: Path, facts: EngineFacts, here: Here
) -> None:
    engine.write_bytes(engine.read_bytes()[:-1] + b"!")
    for trusted in ((), (facts.engine_sha256,)):
        with pytest.raises(BundleError, match="was changed after it was built"):
            loadable_engine(engine, lambda: here, trusted)


def test_nothing_of_a_strangers_engine_is_read_beyond_its_header(engine: Path, facts: EngineFacts, here: Here) -> None:
    size = 1 << 40
    with engine.open("r+b") as file:
        file.truncate(size)  # of zeros that take no room
    for read in (facts_of, read_engine):
        with pytest.raises(BundleError, match="was changed after it was built"):
            read(engine)
    as_a_strangers(engine, engine_bytes=size)
    with pytest.raises(BundleError, match="was not built on this machine"):
        loadable_engine(engine, lambda: here, ())


@pytest.mark.parametrize("which", ["engine", "sidecar"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(engine: Path, which: str) -> None:
    path = engine if which == "engine" else sidecar_of(engine)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises((BundleError, BadInput), match=re.escape(f"cannot read {path} (it is no file)")) as caught:
        facts_of(engine)
    assert said(caught.value)


def test_a_sidecar_larger_than_any_is_not_read(engine: Path) -> None:
    with sidecar_of(engine).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match="cannot read .*json .it is larger than 1048576 bytes"):
        facts_of(engine)


def test_of_several_engines_the_one_that_is_named_is_taken_and_a_strangers_never(
    engine: Path, bundle: Path, facts: EngineFacts, here: Here
) -> None:
    special = put(bundle, engine.read_bytes()[:-1] + b"!", facts, options={"optimization_level": 5})
    strangers = put(bundle, engine.read_bytes()[:-1] + b"?", facts, batch=BatchRange(1, 1, 1))
    named = as_a_strangers(strangers).engine_sha256
    for second, path in enumerate((engine, special, strangers)):
        os.utime(path, (1000 + second, 1000 + second))
    opened = Bundle.open(bundle)
    assert engine_for(opened, here) == special
    assert engine_for(opened, here, {named}) == strangers
    assert engine_for(opened, here, {facts.engine_sha256}) == engine
    os.utime(special, (1000, 1000))
    assert engine_for(opened, here) == engine  # of the same age, the one with fewer options


def test_inspect_says_whose_an_engine_is(engine: Path, facts: EngineFacts, deploy: Callable[..., Ran]) -> None:
    shown = deploy("inspect", engine)
    assert "trust        built on this machine" in shown.out
    assert deploy("inspect", engine, "--json").json["built_here"]
    as_a_strangers(engine)
    shown = deploy("inspect", engine)
    assert shown.code == 0
    assert f"trust        {engine} was not built on this machine" in shown.out
    assert f"sha256       {facts.engine_sha256}" in shown.out
    assert not deploy("inspect", engine, "--json").json["built_here"]


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
        assert said(caught.value, "update the NVIDIA driver, or use --backend onnxruntime")
    gc.collect()  # nothing that was made on the way complains of not being closed


@pytest.mark.usefixtures("without_driver")
def test_without_a_driver_the_command_ends_with_3(bundle: Path, tmp_path: Path, deploy: Callable[..., Ran]) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "picture.png")
    ran = deploy("run", bundle, tmp_path / "picture.png", "--backend", RTX)
    assert ran.code == 3
    assert "cudaErrorInsufficientDriver" in ran.error
    assert deploy("run", bundle, tmp_path / "picture.png", "--backend", "tensorrt").code == 3


def test_inspect_shows_an_engine_and_refuses_what_is_none(
    engine: Path, facts: EngineFacts, deploy: Callable[..., Ran]
) -> None:
    shown = deploy("inspect", engine)
    assert shown.code == 0
    assert f"{RTX} {facts.version}, sm86, sm120 (any of these, built ahead of time), {platform_text()}" in shown.out
    assert deploy("inspect", engine, "--json").json["engine_sha256"] == facts.engine_sha256
    engine.write_bytes(b"")
    ran = deploy("inspect", engine)
    assert (ran.code, ran.error) == (
        2,
        f"error: {engine} is no TensorRT engine: it is empty; build one with: resnet-deploy build BUNDLE",
    )


def test_engine_files_are_read_without_tensorrt_and_cuda(engine: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from runtimes.nvidia.engine_file import facts_of; print(facts_of(Path(sys.argv[1])).version); "
        "print(*[name for name in ('tensorrt', 'tensorrt_rtx', 'cuda', 'torch', 'onnx') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(engine)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (result.stdout.split(), result.stderr) == ([facts_of(engine).version], "")
