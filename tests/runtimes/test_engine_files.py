"""What is known of an engine file without loading it: its plan's header, and the sidecar that says what it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Ran
from rtx_engines import (  # noqa: F401  # pytest finds the fixtures by their names
    RTX,
    add_plan,
    built_fixture,
    bundle_fixture,
    edited,
    engine_fixture,
    facts_fixture,
    said,
    tensorrt_plan,
)

from runtimes import Bundle, Manifest
from runtimes._open import backend_class
from runtimes.errors import BadInput, BundleError
from runtimes.nvidia.engine_file import EngineFacts, facts_of, json_from_facts, read_engine, read_sidecar
from runtimes.nvidia.plan_files import PlanHeader, engine_name, plan_header, platform_text, sidecar_of
from runtimes.specs import BatchRange

ROOT = Path(__file__).resolve().parents[2]


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
    as_tensorrt = add_plan(bundle, engine.read_bytes(), facts, backend="tensorrt")
    with pytest.raises(BundleError, match="is a tensorrt-rtx engine, expected tensorrt by its sidecar") as caught:
        read_engine(as_tensorrt)
    assert said(caught.value)
    as_rtx = add_plan(bundle, tensorrt_plan(11, 4, 0, 106), facts, version="11.4.0.106")
    with pytest.raises(BundleError, match="is a tensorrt engine, expected tensorrt-rtx by its sidecar") as caught:
        read_engine(as_rtx)
    assert said(caught.value)


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
        "import sys; from pathlib import Path; from runtimes.nvidia.engine_file import facts_of; "
        "print(facts_of(Path(sys.argv[1])).version); "
        "print(*[name for name in ('tensorrt', 'tensorrt_rtx', 'cuda', 'torch', 'onnx') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(engine)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (result.stdout.split(), result.stderr) == ([facts_of(engine).version], "")
