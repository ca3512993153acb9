"""Opening an engine: what speaks against it is one error, with TensorRT's reason. CUDA and TensorRT are stand-ins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import Ran
from engine_bundles import IMAGE_BYTES, add_engine, as_a_strangers, assert_right, opened
from engine_fixtures import api_fixture, cuda_fixture, engine_fixture, folder_fixture, proven_fixture, reference_fixture  # noqa: F401  # pytest finds them by their names
from PIL import Image
from standin_cuda import StandinCuda
from standin_tensorrt import StandinTensorRT
from tiny_answers import INPUT, OUTPUT, images

from runtimes import Bundle, open_runtime
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BackendUnavailable, BadInput, BundleError
from runtimes.nvidia.cuda_call import CudaError
from runtimes.nvidia.engine_file import json_from_facts, read_sidecar, seal_facts
from runtimes.nvidia.plan_files import sidecar_of
from runtimes.nvidia.trust import ensure_machine_key
from runtimes.specs import BatchRange

# --- an engine that cannot be opened ---


@pytest.mark.parametrize(
    ("call", "reason", "message"),
    [
        (
            "deserialize_cuda_engine",
            "magicTag",
            "TensorRT does not load .*: magicTag; build it again with: resnet-deploy build",
        ),
        ("create_execution_context", "no room", "TensorRT cannot make an execution context for .*: no room"),
        (
            "create_execution_context",
            "Error: OutOfMemory",
            "OutOfMemory; .* less with --workspace MIB, and close what else uses the GPU",
        ),
        (
            "set_input_shape",
            "no such shape",
            r"TensorRT does not take a batch of 4 for 'input' \(range 2:3:4\): no such shape",
        ),
        ("infer_shapes", "unknown", "TensorRT cannot tell the shapes of input: unknown"),
        ("set_tensor_address", "no", "TensorRT refuses the memory for 'input'; build the engine again"),
    ],
)
def test_an_engine_that_cannot_be_opened_says_why(
    engine: Path, api: StandinTensorRT, call: str, reason: str, message: str
) -> None:
    api.fail(call, reason)
    with pytest.raises(BackendUnavailable, match=message) as caught:
        opened(engine)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_gpu_without_room_is_one_error_with_a_remedy(folder: Path, api: StandinTensorRT, cuda: StandinCuda) -> None:
    path = add_engine(folder, api, batch=BatchRange(1, 8, 64))
    cuda.total_bytes = 100 * IMAGE_BYTES
    with pytest.raises(
        CudaError,
        match=r"cudaErrorMemoryAllocation \(2\): out of memory; close other programs .* or take a smaller batch$",
    ):
        opened(path)


def test_an_engine_of_another_version_or_device_is_tensorrts_to_refuse_where_the_sidecar_lies(
    folder: Path, api: StandinTensorRT, cuda: StandinCuda
) -> None:
    for other, said in (
        (StandinTensorRT(cuda, "10.3.0.30"), "expecting library version 11.4.0.106"),
        (api, "expecting compute 8.7 got compute 8.6"),
    ):
        before = dict(cuda.attributes)
        if other is api:
            cuda.attributes[list(before)[1]] = 6
        path = add_engine(folder, other)
        cuda.attributes.update(before)
        sidecar = sidecar_of(path)
        sidecar.write_bytes(
            json_from_facts(seal_facts(replace(read_sidecar(sidecar), version=api.__version__), ensure_machine_key()))
        )
        with pytest.raises(BackendUnavailable, match=said):
            opened(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("sm86",)}, r"was built for sm86 \(stand-in\), this GPU is sm87"),
        ({"version": "10.3.0.30"}, "was built with tensorrt 10.3.0.30, this is 11.4.0.106"),
        ({"platform": "linux-riscv64"}, "was built for linux-riscv64, this is"),
        ({"engine_sha256": "0" * 64}, "was changed after it was built"),
    ],
)
def test_what_the_sidecar_says_against_an_engine_is_said_before_tensorrt_reads_it(
    engine: Path, api: StandinTensorRT, changes: dict[str, Any], message: str
) -> None:
    sidecar_of(engine).write_bytes(
        json_from_facts(seal_facts(replace(read_sidecar(sidecar_of(engine)), **changes), ensure_machine_key()))
    )
    with pytest.raises((BackendUnavailable, BundleError), match=message):
        opened(engine)
    assert api.calls["deserialize_cuda_engine"] == 0


def test_a_version_compatible_engine_is_allowed_its_lean_runtime(
    folder: Path, api: StandinTensorRT, cuda: StandinCuda
) -> None:
    with opened(add_engine(folder, StandinTensorRT(cuda, "10.3.0.30"), version_compatible=True)) as runtime:
        assert runtime.run({INPUT: images(2)})[OUTPUT].shape == (2, 10)


# --- whose engine it is ---


def test_a_strangers_engine_reaches_tensorrt_only_when_it_is_named(
    folder: Path, api: StandinTensorRT, reference: OnnxRuntime
) -> None:
    engine = add_engine(folder, api, version_compatible=True)
    sha256 = as_a_strangers(engine)
    with pytest.raises(BundleError, match=f"was not built on this machine.* --trust-engine {sha256}"):
        open_runtime(engine, "tensorrt")
    for model in (folder, Bundle.open(folder)):
        with pytest.raises(BackendUnavailable, match=f"was not built on this machine.* --trust-engine {sha256}"):
            open_runtime(model, "tensorrt", trust_engine="0" * 64)
    assert api.calls["deserialize_cuda_engine"] == 0
    for model in (folder, Bundle.open(folder), engine):
        with open_runtime(model, "tensorrt", trust_engine=[sha256.upper(), "0" * 64]) as runtime:
            assert_right(runtime.run({INPUT: images(3)})[OUTPUT], reference, images(3))
    with pytest.raises(BadInput, match="expected the sha256 of an engine"):
        open_runtime(folder, "tensorrt", trust_engine="yes")


def test_each_command_that_opens_an_engine_takes_the_name_of_a_strangers(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def here(
        work: Callable[..., tuple[str, object]], *arguments: object, timeout_s: float | None = None
    ) -> tuple[str, str, object]:
        """In place of a process of its own, which would have no stand-in."""
        verdict, value = work(*arguments)
        return verdict, "", value

    monkeypatch.setattr("exporter.verification.check.run_in_own_process", here)
    sha256 = as_a_strangers(Path(deploy("build", proven, "--json").json["engine"]))
    for number in range(10):
        (tmp_path / "pictures" / str(number)).mkdir(parents=True)
        Image.fromarray(np.full((28, 28), 20 * number, np.uint8)).save(
            tmp_path / "pictures" / str(number) / "picture.png"
        )
    on = ("--backend", "tensorrt")
    commands: list[tuple[object, ...]] = [
        ("run", proven, tmp_path / "pictures" / "1" / "picture.png", *on),
        ("eval", proven, "--data", tmp_path / "pictures", *on),
        ("check", proven, *on),
        ("check", proven, "--against", proven, *on),
    ]
    for command in commands[:2]:
        ran = deploy(*command)
        assert (ran.code, f"--trust-engine {sha256}" in ran.error) == (3, True), ran.err
    for command in commands:
        assert deploy(*command, "--trust-engine", sha256).code == 0, command
        assert deploy(*command, "--trust-engine", "all").code == 2, command


def test_a_build_replaces_a_strangers_engine_by_its_own(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran]
) -> None:
    built = deploy("build", proven, "--json").json
    as_a_strangers(Path(built["engine"]))
    again = deploy("build", proven, "--json").json
    assert (again["cached"], again["engine"]) == (False, built["engine"])
    with open_runtime(proven, "tensorrt") as runtime:
        assert runtime.run({INPUT: images(2)})[OUTPUT].shape == (2, 10)


# --- engines without weights ---


def test_a_stripped_engine_takes_its_weights_from_the_bundle(
    folder: Path, api: StandinTensorRT, reference: OnnxRuntime
) -> None:
    add_engine(folder, api, strip_weights=True)
    with open_runtime(folder, "tensorrt") as runtime:
        assert_right(runtime.run({INPUT: images(3)})[OUTPUT], reference, images(3))


def test_a_stripped_engine_whose_onnx_is_missing_or_another_says_so(folder: Path, api: StandinTensorRT) -> None:
    path = add_engine(folder, api, strip_weights=True)
    (folder / "model.onnx").rename(folder / "away.onnx")
    with pytest.raises(
        BundleError,
        match="cannot read .*model.onnx .No such file .*, which holds the engine's weights; build the engine again",
    ):
        opened(path)
    model = onnx.load(folder / "away.onnx")
    for kept in (1, 0):
        model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[::-1]
        del model.graph.initializer[kept:1]
        onnx.save(model, folder / "model.onnx")
        with pytest.raises(
            BundleError, match="model.onnx is not the file that the engine was built from, whose weights it takes"
        ):
            opened(path)
    assert api.calls["deserialize_cuda_engine"] == 0


def test_a_stripped_engine_that_tensorrt_cannot_fill_says_why(folder: Path, api: StandinTensorRT) -> None:
    path = add_engine(folder, api, strip_weights=True)
    api.fail("refit_cuda_engine", "Refitter was unable to find all the weights of the engine.")
    with pytest.raises(
        BackendUnavailable,
        match="does not put its weights into .*: Refitter was unable .*; build it again without --strip-weights",
    ):
        opened(path)


def test_a_stripped_engine_finds_its_weights_from_any_working_folder(
    folder: Path, api: StandinTensorRT, reference: OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = add_engine(folder, api, strip_weights=True)
    monkeypatch.chdir(path.parent)
    with open_runtime(path.name, "tensorrt") as runtime:
        assert_right(runtime.run({INPUT: images(3)})[OUTPUT], reference, images(3))
