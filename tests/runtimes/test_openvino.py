"""What is OpenVINO's own: no telemetry, a cache of compiled models, precisions, streams, and which kernels ran."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from tiny_answers import INPUT, OUTPUT, assert_same_rows, images

pytest.importorskip("openvino")

import runtimes.backends._openvino_cache as cache_module
import runtimes.backends.openvino as backend_module
from exporter.lowering.precisions import bf16, fp32
from runtimes import BatchRange, Bundle, open_runtime
from runtimes.backends.openvino import OpenVinoRuntime
from runtimes.errors import BadInput
from runtimes.kernels import MARK, KernelCount
from runtimes.parity.golden import golden_arrays
from runtimes.processor import Processor, processor
from runtimes.tuning import Tuning

ROOT = Path(__file__).resolve().parents[2]
REMEDY = "set XDG_CACHE_HOME to a folder that you alone may write to"
VNNI, AVX2 = Processor("one with VNNI", ("avx2", "avx512_vnni")), Processor("one without", ("avx2",))


@pytest.fixture(name="cache")
def cache_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "resnet-export" / "openvino"


def answers(model: Path) -> NDArray[Any]:
    with OpenVinoRuntime.open(model) as runtime:
        return runtime.run({INPUT: images(3)})[OUTPUT]


# --- telemetry ---


def test_importing_openvino_sends_and_writes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    code = (
        "import socket, sys, time\n"
        "from runtimes import open_runtime\n"
        "model = open_runtime(sys.argv[1], 'openvino')\n"
        "import openvino.tools.ovc as tools\n"
        "print(type(tools.telemetry).__module__)\n"
        "import openvino_telemetry  # whoever wants it still finds it"
    )
    around = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    around |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-B", "-c", code, str(tiny_model / "model.onnx")]
    done = subprocess.run(command, env=around, capture_output=True, text=True, check=True)
    assert done.stdout == "openvino.tools.ovc.telemetry_stub\n"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_openvino_is_imported_in_one_place_alone() -> None:
    importing = re.compile(r"^\s*(import|from) openvino\b", re.MULTILINE)
    found = [
        path.relative_to(ROOT).as_posix()
        for room in ("runtimes", "calibration", "exporter")
        for path in (ROOT / room).rglob("*.py")
        if importing.search(path.read_text())
    ]
    assert found == ["runtimes/backends/_openvino_package.py"]


# --- the cache ---


def test_a_model_is_compiled_once(tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model / "model.onnx"
    first = answers(model)
    (kept,) = cache.glob(f"{hashlib.sha256(model.read_bytes()).hexdigest()}/*.blob")
    folders = (kept.parent, cache, cache.parent)
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700] * 3

    def unread(path: Path) -> Any:
        raise AssertionError(f"{path} is compiled again")

    monkeypatch.setattr(cache_module, "model_from_onnx", unread)
    with OpenVinoRuntime.open(model, tuning=Tuning(threads=1, hint="throughput")) as runtime:
        assert "cache" not in runtime.details
        assert runtime.details["threads"] == "1"
        np.testing.assert_array_equal(runtime.run({INPUT: images(3)})[OUTPUT], first)
    other = onnx.load(model)
    other.graph.initializer[0].raw_data = other.graph.initializer[0].raw_data[:-1] + b"\x01"
    onnx.save(other, cache.parent / "model.onnx")
    with pytest.raises(BadInput, match="compiled again"):  # other weights are another model
        OpenVinoRuntime.open(cache.parent / "model.onnx")


@pytest.mark.parametrize("how", ["a bit of a weight", "cut short", "empty", "of another program", "a folder"])
def test_a_cache_that_is_not_what_was_written_is_made_again(how: str, tiny_model: Path, cache: Path) -> None:
    model = tiny_model / "model.onnx"
    first = answers(model)
    (kept,) = cache.glob("*/*")
    data = kept.read_bytes()
    if how == "a folder":
        kept.unlink()
        (kept / "inside").mkdir(parents=True)
    else:
        junk = b"junk" * 1000
        spoilt = {
            "a bit of a weight": data[: len(data) // 2]
            + bytes([data[len(data) // 2] ^ 64])
            + data[len(data) // 2 + 1 :],
            "cut short": data[:-1000],
            "empty": b"",
            "of another program": junk + hashlib.sha256(junk).digest(),
        }
        kept.write_bytes(spoilt[how])
    np.testing.assert_array_equal(answers(model), first)
    with OpenVinoRuntime.open(model) as runtime:
        said = runtime.details.get("cache")
    if how == "a folder":
        assert said == f"none: cannot write {kept}: Is a directory; {REMEDY}"
    else:
        assert said is None
        blob, digest = kept.read_bytes()[:-32], kept.read_bytes()[-32:]
        assert hashlib.sha256(blob).digest() == digest
        assert list(kept.parent.iterdir()) == [kept]


@pytest.mark.parametrize("how", ["others may write to it", "a link", "a file"])
def test_without_a_folder_of_ones_own_nothing_is_kept_and_it_is_said(
    how: str, tiny_model: Path, cache: Path, tmp_path: Path
) -> None:
    first = answers(tiny_model / "model.onnx")
    (kept,) = cache.glob("*/*")
    kept.write_bytes(b"what another user wrote")
    if how == "others may write to it":
        cache.chmod(0o777)
    else:
        cache.rename(tmp_path / "away")
        kept = tmp_path / "away" / kept.relative_to(cache)
        if how == "a link":
            cache.symlink_to(tmp_path / "away")
        else:
            cache.write_text("")
    with OpenVinoRuntime.open(tiny_model / "model.onnx") as runtime:
        said = runtime.details["cache"]
        np.testing.assert_array_equal(runtime.run({INPUT: images(3)})[OUTPUT], first)
    assert said.startswith("none: ")
    assert str(cache) in said
    assert said.endswith(REMEDY)
    assert "\n" not in said
    assert kept.read_bytes() == b"what another user wrote"


# --- precision ---


@pytest.mark.parametrize(
    ("precision", "target", "here", "capabilities", "budget", "hint", "pairs", "said"),
    [
        ("fp32", "tensorrt", VNNI, ("FP32", "BF16"), fp32.BUDGET, "f32", True, "f32"),
        ("fp16", "tensorrt", VNNI, ("FP32", "BF16"), None, "f32", True, "f32, from weights in FP16"),
        ("bf16", "tensorrt", VNNI, ("FP32", "BF16"), bf16.BUDGET, "bf16", True, "bf16, which the bundle's budget allows"),
        ("bf16", "tensorrt", VNNI, ("FP32", "BF16"), replace(bf16.BUDGET, max_relative_error=0.01), "f32", True, "bf16, as the graph is"),
        ("bf16", "tensorrt", VNNI, ("FP32",), bf16.BUDGET, "f32", True, "f32, from weights in BF16, which this CPU has not"),
        ("int8", "tensorrt", VNNI, ("FP32", "BF16"), bf16.BUDGET, "f32", True, "integers where the graph is quantized, f32 elsewhere"),
        ("int8", "tensorrt", AVX2, ("FP32",), None, "f32", False, backend_module.SATURATES),
        ("int8", "cpu", AVX2, ("FP32",), None, "f32", True, "integers where the graph is quantized, f32 elsewhere"),
    ],
)  # fmt: skip
def test_the_precision_is_the_graphs_and_the_budgets_and_is_told(
    precision: str,
    target: str,
    here: Processor,
    capabilities: tuple[str, ...],
    budget: Any,
    hint: str,
    pairs: bool,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend_module, "processor", lambda: here)
    metadata = {"precision": precision, **(MARK if target == "cpu" else {})}
    plan = backend_module._plan("CPU", capabilities, metadata, budget)
    assert plan.graph["INFERENCE_PRECISION_HINT"] == hint
    assert plan.graph.get("LP_TRANSFORMS_MODE", True) is pairs
    assert plan.said == said


SIMULATED = """
import json, sys
from pathlib import Path
import runtimes.processor
runtimes.processor.CPUINFO = Path(sys.argv[3])
from runtimes import Bundle, open_runtime
from runtimes.parity.golden import golden_arrays
from runtimes.parity.measures import sqnr_db
bundle = Bundle.open(sys.argv[1])
inputs, outputs = golden_arrays(bundle)
with open_runtime(bundle, "openvino") as model:
    found = model.run({"input": inputs})["logits"]
    print(json.dumps([sqnr_db(outputs["logits"], found), model.details["convolutions"], model.details["precision"]]))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86 has kernels that saturate")
def test_where_integers_would_saturate_a_graph_for_tensorrt_is_computed_in_float(
    shipped_bundle: Any, tmp_path: Path
) -> None:
    """On any x86: oneDNN is told to leave out the instructions that this processor has beyond AVX2."""
    found = []
    for place, flags in enumerate(("avx2", "avx2 avx512_vnni")):
        cpuinfo = tmp_path / f"cpuinfo{place}"
        cpuinfo.write_text(f"flags : {flags}\n")
        command = [sys.executable, "-c", SIMULATED, str(shipped_bundle("int8").folder), "", str(cpuinfo)]
        done = subprocess.run(
            command, env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True, check=True
        )
        found.append(json.loads(done.stdout))
    (right, kinds, said), (saturated, integers, _) = found
    assert right > saturated + 3  # dB; the second one was told that it has VNNI, and has not
    assert (kinds, integers) == ("21 in f32", "21 in i8")
    assert said == backend_module.SATURATES


# --- which kernels ran ---


def test_convolutions_and_additions_on_integers_are_counted(shipped_bundle: Any) -> None:
    with open_runtime(shipped_bundle("fp32"), "openvino") as runtime:
        assert runtime.kernels() == KernelCount(21, 0, 9, 0)
        assert runtime.details["convolutions"] == "21 in f32"
    if processor().has_int8_dot:
        for _ in range(2):  # compiled, and from the cache
            with open_runtime(shipped_bundle("int8"), "openvino") as runtime:
                assert runtime.kernels() == KernelCount(21, 21, 9, 9)
                assert runtime.details["convolutions"] == "21 in i8"


def test_outputs_of_several_names_are_the_right_ones(shipped_bundle: Any) -> None:
    bundle = shipped_bundle("fp32", "stages")
    inputs, outputs = golden_arrays(bundle)
    for _ in range(2):  # compiled, and from the cache
        with open_runtime(bundle, "openvino") as runtime:
            found = runtime.run({INPUT: inputs})
        assert list(found) == list(outputs)
        for name, expected in outputs.items():
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_pictures_of_any_size_run(shipped_bundle: Any) -> None:
    bundle = shipped_bundle("fp32", uint8="full")
    inputs, outputs = golden_arrays(bundle)
    with open_runtime(bundle, "openvino") as runtime:
        assert runtime.inputs == Bundle.open(bundle.folder).manifest.inputs
        expected = outputs["logits"]
        found = runtime.run({INPUT: inputs})["logits"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# --- streams ---


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_batches_in_a_row_come_out_in_order_and_a_bounded_number_is_read_ahead(hint: Any, tiny_model: Path) -> None:
    batches = [images(1 + place % 5, seed=place) for place in range(12)]  # one of the sizes is outside of the range
    read: list[int] = []

    def feeds() -> Iterator[dict[str, NDArray[Any]]]:
        for place, batch in enumerate(batches):
            read.append(place)
            yield {INPUT: batch}

    with OpenVinoRuntime.open(
        tiny_model / "model.onnx", batch=BatchRange(1, 2, 4), tuning=Tuning(hint=hint)
    ) as runtime:
        streams = int(runtime.details["streams"])
        found = []
        for outputs in runtime._run_each(feeds()):
            found.append(outputs[OUTPUT])
            assert len(read) <= len(found) + streams + 1
        assert len(found) == len(batches)
        for batch, got in zip(batches, found, strict=True):
            assert len(got) == len(batch)
            assert got.flags.writeable
        np.testing.assert_allclose(
            np.concatenate(found),
            np.concatenate([runtime.run({INPUT: batch})[OUTPUT] for batch in batches]),
            rtol=0,
            atol=1e-4,
        )
        assert_same_rows(np.concatenate(found[:4]), runtime.run({INPUT: np.concatenate(batches[:4])})[OUTPUT])
        stopped = runtime._run_each(feeds())
        next(stopped)
        stopped.close()  # type: ignore[attr-defined]  # a generator
        assert runtime.run({INPUT: images(1)})[OUTPUT].shape == (1, 10)


# --- errors ---


def test_a_graph_that_openvino_cannot_run_is_told_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_model / "model.onnx")
    model.graph.node[0].op_type = "Abacus"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(BadInput, match=r"^openvino cannot run .*model\.onnx: .*Abacus") as caught:
        OpenVinoRuntime.open(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert "src/" not in str(caught.value)


@pytest.mark.skipif(
    "avx512_bf16" not in processor().flags, reason="kernels in BF16 are taken away, so they must be here"
)
def test_a_kernel_that_is_missing_is_told_in_one_line_when_it_is_needed(shipped_bundle: Any) -> None:
    code = (
        "import sys, numpy\n"
        "from runtimes import open_runtime\n"
        "from runtimes.errors import BackendUnavailable\n"
        "import runtimes.backends.openvino as module\n"
        "module._allows_bf16 = lambda budget: True\n"
        "module.ov.Core.get_property = lambda core, device, name: ('BF16', 'EXPORT_IMPORT')\n"
        "model = open_runtime(sys.argv[1], 'openvino')\n"
        "try: model.run({'input': numpy.zeros((1, 1, 28, 28), numpy.float32)})\n"
        "except BackendUnavailable as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(shipped_bundle("fp32").folder)]
    done = subprocess.run(
        command, env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"openvino cannot run .*model\.onnx on cpu: .* node .*; use another backend\n", done.stdout)
