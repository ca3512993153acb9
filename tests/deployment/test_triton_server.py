"""Repositories of every kind on a real Triton server without a GPU, whose backends stand in for NVIDIA's.

What is compared: the stand-ins run the same onnxruntime and OpenVINO as this process, so answers are equal to the bit. Not seen here: a plan on a GPU, and the
backends that NVIDIA ships.
"""

from __future__ import annotations

import io
import json
import shutil
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from triton_answers import in_process, over_grpc, over_http, posted, tensor_of, written
from triton_bundles import add_engine
from triton_server import TRITON, TritonServer, need_server, triton_server

from exporter import ExportPlan, export
from runtimes.bundle import Bundle
from runtimes.parity.golden import golden_arrays
from runtimes.picture_file import open_image
from runtimes.specs import BatchRange

pytestmark = pytest.mark.slow

BATCH, FIXED = BatchRange(1, 2, 4), BatchRange(3, 3, 3)
TENSORRT = """

def tensorrt_run(path: Path, outputs: list[str]) -> Any:
    \"\"\"A plan of the tests: behind its header stands the ONNX file that it was made of.\"\"\"
    import onnxruntime

    (plan,) = path.parent.glob("*.plan")
    session = onnxruntime.InferenceSession(plan.read_bytes()[28:], providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(outputs, feeds)


RUNS["tensorrt"] = tensorrt_run
"""
Answer = Callable[[TritonServer, str, NDArray[Any]], NDArray[np.float32]]


@pytest.fixture(scope="module")
def bundles(shipped_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The shipped ResNet-20 in every form, by the model's name on the server."""
    need_server()
    folder = tmp_path_factory.mktemp("bundles")
    export(ExportPlan("resnet20", folder / "int8-cpu", precision="int8", target="cpu", batch=BATCH))
    shutil.copytree(shipped_bundle("fp16", batch=BATCH).folder, folder / "with-engine")
    add_engine(folder / "with-engine")
    return {
        "fp32": shipped_bundle("fp32", batch=BATCH),
        "fp16": shipped_bundle("fp16", batch=BATCH),
        "pictures": shipped_bundle("fp32", uint8="full", batch=BATCH),
        "fixed": shipped_bundle("fp32", batch=FIXED),
        "integers": Bundle.open(folder / "int8-cpu"),
        "plan": Bundle.open(folder / "with-engine"),
        "openvino": shipped_bundle("fp32", batch=BATCH),
    }


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's backends, and one that stands in for TensorRT's."""
    folder = tmp_path_factory.mktemp("backends")
    for backend in (TRITON / "backends").iterdir():  # a program finds its libraries from where it lies
        (folder / backend.name).symlink_to(backend)
    shutil.copytree(folder / "onnxruntime", folder / "tensorrt")
    with (folder / "tensorrt" / "model.py").open("a") as file:
        file.write(TENSORRT)
    return folder


@pytest.fixture(scope="module")
def server(
    bundles: dict[str, Bundle], backends: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """One that serves all of them, and a decoder in front of `pictures`, by itself and as an ensemble."""
    folder = tmp_path_factory.mktemp("server")
    for name, bundle in bundles.items():
        written(bundle, name, folder / "repository", ensemble=name == "pictures")
    with triton_server(folder / "repository", folder / "log", "--log-verbose=1", backends=backends) as running:
        yield running


LIMITS = {"integers": 0.2, "fp16": 1e-2, "plan": 1e-2, "openvino": 2e-2}
"""Relative errors against FP32 PyTorch. OpenVINO computes in BF16 by its own choice, where a processor has it."""
NAMES = ("fp32", "fp16", "pictures", "fixed", "integers", "plan", "openvino")


@pytest.mark.parametrize("answer", [over_http, over_grpc])
@pytest.mark.parametrize("name", NAMES)
def test_the_server_answers_as_the_library_does_at_every_batch_size(
    name: str, answer: Answer, server: TritonServer, bundles: dict[str, Bundle]
) -> None:
    bundle = bundles[name]
    images, outputs = golden_arrays(bundle)
    for size in bundle.manifest.batch.proof_sizes:
        found = answer(server, name, images[:size])
        np.testing.assert_array_equal(found, in_process(bundle, name, images[:size]))
        error = np.abs(found - outputs["logits"][:size]).max() / np.abs(outputs["logits"]).max()
        assert error <= LIMITS.get(name, 1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "openvino"])
def test_a_batch_of_one_too_many_is_refused(name: str, server: TritonServer, bundles: dict[str, Bundle]) -> None:
    images, _ = golden_arrays(bundles[name])
    many = np.concatenate([images] * 2)[: bundles[name].manifest.batch.max + 1]
    with pytest.raises(urllib.error.HTTPError) as refused:
        over_http(server, name, many)
    refused.value.close()
    assert refused.value.code == 400
    with pytest.raises(Exception, match="expected|must be <="):
        over_grpc(server, name, many)


def test_openvino_takes_any_batch_since_its_backend_batches_nothing(
    server: TritonServer, bundles: dict[str, Bundle]
) -> None:
    images, _ = golden_arrays(bundles["openvino"])
    many = np.concatenate([images] * 3)[:9]
    np.testing.assert_array_equal(
        over_grpc(server, "openvino", many), in_process(bundles["openvino"], "openvino", many)
    )


def test_requests_that_come_together_run_together(server: TritonServer, bundles: dict[str, Bundle]) -> None:
    from tritonclient.grpc import InferenceServerClient

    images, _ = golden_arrays(bundles["fp32"])
    before = stats(server, "fp32")
    answers: list[Any] = []
    with InferenceServerClient(server.grpc) as client:
        for _ in range(60):
            client.async_infer("fp32", [tensor_of(images[:1])], lambda result, error: answers.append(error or result))
        end = time.monotonic() + 60
        while len(answers) < 60 and time.monotonic() < end:
            time.sleep(0.01)
    alone = in_process(bundles["fp32"], "fp32", images[:1])
    assert len(answers) == 60
    for answer in answers:
        np.testing.assert_allclose(answer.as_numpy("logits"), alone, rtol=0, atol=1e-5 * np.abs(alone).max())
    after = stats(server, "fp32")
    executions = int(after["execution_count"]) - int(before.get("execution_count", 0))
    assert int(after["inference_count"]) - int(before.get("inference_count", 0)) == 60
    assert executions < 60
    assert any(int(one["batch_size"]) > 1 for one in after["batch_stats"])


def stats(server: TritonServer, model: str) -> Any:
    (found,) = json.loads(server.get(f"/v2/models/{model}/stats"))["model_stats"]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_and_the_largest_batch_are_run_before_the_model_is_ready(
    name: str, server: TritonServer, bundles: dict[str, Bundle]
) -> None:
    log, batch = server.log.read_text(errors="replace"), bundles[name].manifest.batch
    for size in (batch.min, batch.max):
        assert f"instance {name}_0_0 is running warmup sample 'batch of {size}'" in log


def test_labels_come_back(server: TritonServer, bundles: dict[str, Bundle]) -> None:
    bundle = bundles["fp32"]
    images, outputs = golden_arrays(bundle)
    tensor = {"name": "input", "shape": images[:2].shape, "datatype": "FP32", "data": images[:2].ravel().tolist()}
    wanted = {"name": "logits", "parameters": {"classification": 3}}
    (output,) = posted(server, "fp32", {"inputs": [tensor], "outputs": [wanted]})["outputs"]
    assert bundle.labels is not None
    best = np.argsort(-outputs["logits"][:2], axis=1)[:, :3]
    assert [line.split(":")[1:] for line in output["data"]] == [
        [str(place), bundle.labels[place]] for row in best for place in row
    ]


def test_metrics_count_each_model(server: TritonServer, bundles: dict[str, Bundle]) -> None:
    over_http(server, "fp16", golden_arrays(bundles["fp16"])[0][:2])
    text = server.get("/metrics", server=server.metrics).decode()
    assert 'nv_inference_request_success{model="fp16",version="1"}' in text
    assert 'nv_inference_request_duration_us{model="fp16",version="1"}' in text


def test_the_metadata_is_the_manifests(server: TritonServer, bundles: dict[str, Bundle]) -> None:
    for name, bundle in bundles.items():
        found = json.loads(server.get(f"/v2/models/{name}"))
        sizes = [-1 if isinstance(one, str) else one for one in bundle.manifest.inputs[0].shape]
        assert (found["name"], found["versions"]) == (name, ["1"])
        assert [one["name"] for one in found["inputs"]] == ["input"]
        assert found["inputs"][0]["shape"] == sizes


# --- the decoder ---


def decoded(
    server: TritonServer, files: list[bytes], *, model: str = "pictures-decoder", output: str = "pixels"
) -> NDArray[Any]:
    from tritonclient.grpc import InferenceServerClient, InferInput

    tensor = InferInput("picture", [len(files), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[data] for data in files], np.object_))
    with InferenceServerClient(server.grpc) as client:
        answer: NDArray[Any] = client.infer(model, [tensor]).as_numpy(output)
    return answer


def test_the_decoder_and_the_ensemble_take_picture_files(
    server: TritonServer, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(noise).save(tmp_path / "plain.png")
    bundle = bundles["pictures"]
    for name in ("turned.jpg", "plain.png"):
        files = [(tmp_path / name).read_bytes()] * 2
        pixels = np.stack([bundle.manifest.preprocess.picture(open_image(tmp_path / name))] * 2)
        np.testing.assert_array_equal(decoded(server, files), pixels)
        logits = decoded(server, files, model="pictures-ensemble", output="logits")
        np.testing.assert_array_equal(logits, in_process(bundle, "pictures", pixels))


def test_the_ensemble_gives_labels(server: TritonServer, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    from PIL import Image
    from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

    Image.new("RGB", (40, 30), "white").save(tmp_path / "white.png")
    tensor = InferInput("picture", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[(tmp_path / "white.png").read_bytes()]], np.object_))
    with InferenceServerClient(server.grpc) as client:
        wanted = [InferRequestedOutput("logits", class_count=1)]
        (line,) = client.infer("pictures-ensemble", [tensor], outputs=wanted).as_numpy("logits").ravel()
    _, index, label = line.decode().split(":")
    labels = bundles["pictures"].labels
    assert labels is not None
    assert label == labels[int(index)]


@pytest.mark.parametrize("model", ["pictures-decoder", "pictures-ensemble"])
def test_pictures_that_cannot_be_taken_are_the_clients_mistake(model: str, server: TritonServer) -> None:
    from PIL import Image
    from tritonclient.utils import InferenceServerException

    files = []
    for size in ((40, 30), (30, 40)):
        file = io.BytesIO()
        Image.new("RGB", size).save(file, "PNG")
        files.append(file.getvalue())
    output = "pixels" if model == "pictures-decoder" else "logits"
    for sent, said in {
        (b"no picture",): "cannot read the picture: not a picture file, or a damaged one$",
        (files[0][:-40],): "not a picture file, or a damaged one$",
        tuple(files): "expected pictures of one size in one request",
    }.items():
        with pytest.raises(InferenceServerException, match=said) as refused:
            decoded(server, list(sent), model=model, output=output)
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
