"""What a real Triton server makes of versions, of the two configurations, and of repositories that are broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from triton_answers import in_process, over_grpc, written
from triton_server import ServerEnded, need_server, triton_server

from exporter.deployment.triton.models import NEWEST_VERSION
from runtimes.bundle import Bundle
from runtimes.parity.golden import golden_arrays
from runtimes.specs import BatchRange

pytestmark = pytest.mark.slow

BATCH = BatchRange(1, 2, 4)


@pytest.fixture(scope="module")
def bundle(shipped_bundle: Any) -> Bundle:
    """The shipped ResNet-20 in FP32."""
    need_server()
    made: Bundle = shipped_bundle("fp32", batch=BATCH)
    return made


@pytest.mark.parametrize("newest", [2, NEWEST_VERSION])
def test_a_new_version_beside_the_old_one_is_the_one_that_is_served(
    newest: int, bundle: Bundle, tmp_path: Path
) -> None:
    for version in (1, newest):
        written(bundle, "fp32", tmp_path / "repository", version=version)
    with triton_server(tmp_path / "repository", tmp_path / "log") as running:
        assert json.loads(running.get("/v2/models/fp32"))["versions"] == [str(newest)]


def test_a_larger_version_than_can_be_written_stops_the_server(bundle: Bundle, tmp_path: Path) -> None:
    folder = written(bundle, "fp32", tmp_path / "repository")
    (folder / "1").rename(folder / str(NEWEST_VERSION + 1))
    with pytest.raises(ServerEnded, match="stoll"), triton_server(tmp_path / "repository", tmp_path / "log"):
        pass


def test_without_its_ci_configuration_a_model_for_a_gpu_is_refused(shipped_bundle: Any, tmp_path: Path) -> None:
    need_server()
    written(shipped_bundle("fp16", batch=BATCH), "fp16", tmp_path / "repository")
    with (
        pytest.raises(ServerEnded, match="KIND_GPU but no GPUs are available"),
        triton_server(tmp_path / "repository", tmp_path / "log", config=None),
    ):
        pass


def test_a_model_for_either_is_served_without_a_gpu_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    written(bundle, "fp32", tmp_path / "repository")
    images, _ = golden_arrays(bundle)
    with triton_server(tmp_path / "repository", tmp_path / "log", config=None) as running:
        np.testing.assert_array_equal(over_grpc(running, "fp32", images[:2]), in_process(bundle, "fp32", images[:2]))


BROKEN = {
    "a type that the model has not": ("TYPE_FP32", "TYPE_FP99", "TYPE_FP99"),
    "an unknown backend": ('backend: "onnxruntime"', 'backend: "onnx"', "unable to find backend"),
    "an input of two names": ('name: "input"', 'name: "input" name: "pixels"', "name"),
    "a policy that is none": ("latest", "newest", "newest"),
    "a negative batch": ("max_batch_size: 4", "max_batch_size: -4", "max_batch_size"),
    "another model's name": ('name: "fp32"', 'name: "other"', "other"),
    "a warm-up of another input": ('key: "input"', 'key: "inputs"', "inputs"),
    "an output that the model has not": ('name: "logits"', 'name: "classes"', "."),  # it may end before it says which
    "labels that are not there": ("labels.txt", "names.txt", "names.txt"),
    "a model file that is not there": ("model.onnx", "other.onnx", "other.onnx"),
    "dimensions of none": ("dims: [ 1, 28, 28 ]", "dims: [ 0, 28, 28 ]", "dimension must be integer >= 1"),
    "a batch that the server prefers and may not make": (
        "max_queue_delay_microseconds: 100",
        "preferred_batch_size: [ 8 ]",
        "must be <= max batch size",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_repository_with_one_change_is_refused(broken: str, bundle: Bundle, tmp_path: Path) -> None:
    old, new, said = BROKEN[broken]
    folder = written(bundle, "fp32", tmp_path / "repository")
    config = folder / "configs" / "ci.pbtxt"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    with pytest.raises(ServerEnded, match=said), triton_server(tmp_path / "repository", tmp_path / "log"):
        pass
