"""`resnet-deploy`: looking into bundles and files, and classifying pictures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from spoilt import spoilt

from calibration.data import built_in
from exporter.cli import deploy
from exporter.verification.parity_toml import CONFIG
from runtimes import Bundle
from runtimes.cores import usable_cores


@pytest.fixture
def bundle(exported: Path) -> Path:
    return exported


@pytest.fixture
def run(deploy: Any) -> Any:
    return deploy


def test_inspect_shows_a_bundle(run: Any, bundle: Path) -> None:
    shown = run("inspect", bundle)
    assert shown.code == 0
    for said in (
        "resnet20",
        "shipped",
        "fp16",
        "batchx1x28x28",
        "0.031 GMACs",
        "0.27 M parameters",
        "Conv",
        "21 FLOAT16",
        "onnxruntime",
        "accuracy",
        "model.onnx",
    ):
        assert said in shown.out, said
    facts = run("inspect", bundle, "--json").json
    assert facts["graph"]["types"]["Conv"] == {"FLOAT16": 21}
    assert facts["bundle"] == str(bundle)


def test_inspect_shows_an_onnx_file(run: Any, bundle: Path) -> None:
    shown = run("inspect", bundle / "model.onnx")
    assert "IR 9, opset ai.onnx 20" in shown.out
    assert "21 FLOAT16" in shown.out
    assert run("inspect", bundle / "model.onnx", "--json").json["graph"]["operators"]["Conv"] == 21


@pytest.mark.parametrize("backend", ["onnxruntime", "pytorch"])
def test_run_names_what_is_in_the_pictures(run: Any, bundle: Path, tmp_path: Path, backend: str) -> None:
    source = built_in("test")
    assert source.labels is not None
    assert source.classes is not None
    paths = []
    for place in range(20):
        paths.append(tmp_path / f"{place}.png")
        source.image(place).convert("RGB").save(paths[-1])
    found = run("run", bundle, *paths, "--backend", backend, "--top", "3", "--json").json
    first = [found[str(path)][0]["label"] for path in paths]
    expected = [source.classes[label] for label in source.labels[:20]]
    assert sum(one == other for one, other in zip(first, expected, strict=True)) >= 18
    assert all(len(predictions) == 3 for predictions in found.values())
    told = run("run", bundle, paths[0])
    assert "Ankle boot" in told.out.splitlines()[1]


def test_what_cannot_be_read_is_one_line(run: Any, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.png").write_bytes(b"junk")
    assert (run("run", bundle, tmp_path / "junk.png").code, run("run", bundle, tmp_path / "none.png").code) == (2, 2)
    assert "junk.png" in run("run", bundle, tmp_path / "junk.png").error
    assert "is no bundle" in run("inspect", tmp_path).error
    assert "is no bundle" in run("inspect", tmp_path / "nowhere").error
    assert "is no ONNX model" in run("inspect", tmp_path / "junk.png").error


def test_an_unknown_backend_or_provider_is_refused(run: Any, bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "grey.png"
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(picture)
    unknown = run("run", bundle, picture, "--backend", "onnxrutime")
    assert (unknown.code, "did you mean onnxruntime" in unknown.error) == (2, True)
    absent = run("run", bundle, picture, "--provider", "cuda")
    assert absent.code == 3
    nothing = run("run", bundle, picture, "--provider", "")
    assert (nothing.code, "expected a provider, got nothing" in nothing.error) == (2, True)


@pytest.mark.parametrize("threads", ["0", "-1", "100000", "two", "1.5"])
@pytest.mark.parametrize("verb", [("run", "pictures"), ("check",), ("eval", "--data", "pictures")], ids=" ".join)
def test_threads_that_are_not_there_are_refused_before_anything_is_read(
    run: Any, tmp_path: Path, verb: tuple[str, ...], threads: str
) -> None:
    command, *rest = verb
    refused = run(command, tmp_path / "no-bundle", *rest, "--threads", threads)
    assert refused.code == 2
    number = threads.lstrip("-").isdigit()
    expected = f"expected --threads from 1 to {usable_cores()}, the cores that this process may use, got {threads}; "
    assert (expected if number else "'--threads'") in refused.error


def test_one_thread_gives_the_same_answer(run: Any, bundle: Path, tmp_path: Path) -> None:
    built_in("test").image(0).save(tmp_path / "one.png")
    one, all_of_them = (run("run", bundle, tmp_path / "one.png", *more) for more in (["--threads", "1"], []))
    assert (one.code, one.out) == (0, all_of_them.out)


def test_a_changed_bundle_is_refused_and_the_file_named(run: Any, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    with (copy / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"!")
    ran = run("inspect", copy)
    assert ran.code == 1
    assert "model.onnx was changed" in ran.error


def test_a_model_that_gives_nan_classifies_nothing(run: Any, bundle: Path, tmp_path: Path) -> None:
    weight = "conv1.weight"
    broken = spoilt(Bundle.open(bundle), tmp_path / "broken", {weight: float("nan")})
    built_in("test").image(0).save(tmp_path / "one.png")
    shown = run("run", broken.folder, tmp_path / "one.png")
    assert (shown.code, shown.out) == (1, "")
    assert "logits that are not finite" in shown.error


def test_a_name_with_a_line_break_is_told_in_one_line(run: Any, bundle: Path, tmp_path: Path) -> None:
    shown = run("run", bundle, tmp_path / "two\nlines.png")
    assert (shown.code, shown.err.count("\n"), "two\\nlines.png" in shown.err) == (2, 1, True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_output_that_cannot_be_written_is_one_line(bundle: Path) -> None:
    command = [str(Path(sys.executable).with_name("resnet-deploy")), "inspect", str(bundle)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: cannot write the output: No space left on device; make room for it\n",
    )


@pytest.mark.parametrize("verb", [[], *([name] for name in deploy.command.commands)], ids=" ".join)
def test_help_loads_nothing_heavy(verb: list[str]) -> None:
    code = (
        f"import sys; sys.argv[1:] = {[*verb, '--help']}\n"
        "from exporter.cli.deploy import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'PIL', 'msgspec', 'rich.console'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_of_check_groups_its_options_and_names_the_file_that_it_reads(run: Any) -> None:
    shown = run("check", "--help").out
    headings = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Backend:", "Several workers:", "Images and limits:", "Diagnosis:", "Output:", "Other:"]
    assert f"[default: {CONFIG}]" in shown
