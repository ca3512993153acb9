"""The backend `triton` on servers that answer, are down, hang, or serve something else. It keeps the contract of every
backend in test_runtime_contract.py, and meets a real server in test_triton_real_server.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_answers import INPUT, OUTPUT, images

from runtimes import Bundle, available_backends, open_runtime
from runtimes.backends._triton_connection import CA, CERTIFICATE, KEY, TIMEOUT, Connection, connection_from_environment
from runtimes.backends._triton_model import ServedModel, agreed_batch, spec_from_server
from runtimes.bundle_writing import write_manifest
from runtimes.errors import BackendUnavailable, BadInput, PlanError, ResnetExportError
from runtimes.manifest import Manifest
from runtimes.server_url import ModelAddress, check_url, place_of
from runtimes.specs import BatchRange, TensorSpec

pytest.importorskip("tritonclient.grpc", reason="the backend triton needs its client")

import grpc
from fake_triton import FakeTriton, fake_triton, model_of, reset

from runtimes.backends import _triton_client


@pytest.fixture(scope="module")
def running(tiny_model: Path) -> Iterator[FakeTriton]:
    with fake_triton(FakeTriton(model_of(tiny_model / "model.onnx"))) as told:
        yield told


@pytest.fixture
def server(running: FakeTriton, monkeypatch: pytest.MonkeyPatch) -> FakeTriton:
    """A server that behaves, until a test tells it not to."""
    monkeypatch.setattr(_triton_client, "WAITS_S", (0.01, 0.01, 0.01))
    reset(running)
    return running


@pytest.fixture(scope="module")
def bundle(good: Any) -> Bundle:
    """The tiny model, for batches of one to eight."""
    opened: Bundle = good[1].bundle
    return opened


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


# --- what it is opened with ---


def test_a_model_without_its_bundle_is_what_the_server_says_of_it(server: FakeTriton) -> None:
    with open_runtime(f"{server.url}/1", "triton") as model:
        assert model.inputs == (TensorSpec(INPUT, "float32", ("batch", 1, 28, 28)),)
        assert model.outputs == (TensorSpec(OUTPUT, "float32", ("batch", 10)),)
        assert (model.batch, model.provider) == (BatchRange(1, 8, 8), f"{server.url}/1")
        assert model.details == {"server": "triton 2.51.0, version 1 on onnxruntime, batches of at most 8"}
        assert model.run({INPUT: images(19)})[OUTPUT].shape == (19, 10)
    assert server.rows == [8, 8, 3]


def test_a_bundles_batches_are_split_at_what_the_server_takes(server: FakeTriton, bundle: Bundle) -> None:
    server.max_batch = 3
    with open_runtime(bundle, "triton", provider=server.url) as model, open_runtime(bundle) as here:
        assert model.batch == BatchRange(1, 3, 3)
        assert model.preprocess == bundle.manifest.preprocess
        np.testing.assert_allclose(
            model.run({INPUT: images(8)})[OUTPUT], here.run({INPUT: images(8)})[OUTPUT], rtol=1e-4, atol=1e-5
        )
    assert server.rows == [3, 3, 2]


def test_several_threads_share_one_runtime(server: FakeTriton) -> None:
    with open_runtime(server.url, "triton") as model, ThreadPoolExecutor(4) as pool:
        rows = images(32)
        found = list(pool.map(lambda row: model.run({INPUT: row[None]})[OUTPUT], rows))
        np.testing.assert_allclose(np.concatenate(found), model.run({INPUT: rows})[OUTPUT], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("grpc://host:9001/resnet50/3", ModelAddress("host", 9001, "resnet50", 3)),
        ("grpc://host/resnet50", ModelAddress("host", 8001, "resnet50")),
        ("grpcs://[::1]:1/a%2Fb", ModelAddress("::1", 1, "a/b", tls=True)),
    ],
)
def test_an_address_is_read_and_written_back(url: str, expected: ModelAddress) -> None:
    assert ModelAddress.parse(url) == expected
    assert ModelAddress.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://host:8000/resnet50",
        "host:8001/resnet50",
        "grpc://host:8001",
        "grpc://host:8001/",
        "grpc:///resnet50",
        "grpc://host:port/resnet50",
        "grpc://host:99999/resnet50",
        "grpc://host:0/resnet50",
        "grpc://[::1/resnet50",
        "grpc://host/resnet50/latest",
        "grpc://host/resnet50/0",
        "grpc://host/resnet50/1/2",
        "grpc://host/resnet50/\u0661",
        "grpc://host/resnet50/" + "9" * 5000,
        "grpc://host:" + "9" * 5000 + "/resnet50",
        "grpc://host/\udcff",
        "grpc://\udcff/resnet50",
        "grpc://host/a%00b",
        "",
        "a\nb",
    ],
)
def test_a_url_that_is_none_is_refused_with_the_form(url: str) -> None:
    with pytest.raises(BadInput, match=r"expected grpc://HOST:8001/MODEL\[/VERSION\]") as caught:
        ModelAddress.parse(url)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "grpc://user:s3cret@host/model",
        "grpc://s3cret@host/model",
        "grpc://user:s3/cret@host/model",
        "http://user:s3cret@host/model",
        "grpc://host/model?token=s3cret",
        "grpc://host/model#s3cret",
    ],
)
def test_a_password_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BadInput) as caught:
        open_runtime(url, "triton")
    assert "cret" not in str(caught.value)


def test_a_url_and_the_backend_go_together(bundle: Bundle, tiny_model: Path) -> None:
    url = "grpc://host/model"
    assert place_of("triton", None, url) == url
    assert place_of("onnxruntime", "cpu", None) == "cpu"
    for wrong in (
        lambda: check_url(("triton",), None),
        lambda: check_url(("onnxruntime",), url),
        lambda: check_url((), url),
        lambda: place_of("triton", "cpu", url),
        lambda: open_runtime(bundle, "triton"),
    ):
        with pytest.raises(PlanError, match=r"--url|URL"):
            wrong()
    for backend in ("onnxruntime", "auto"):
        with pytest.raises(BadInput, match="URL"):
            open_runtime(url, backend)
    with pytest.raises(BadInput, match="URL"):
        open_runtime(url, "triton", provider=url)
    with pytest.raises(BadInput, match="a server runs models of its own"):
        open_runtime(tiny_model / "model.onnx", "triton", provider=url)


def test_a_server_is_never_what_is_here() -> None:
    assert "triton" not in available_backends()


# --- servers that are not there, or do not answer ---


def test_a_server_that_is_down_is_tried_again_and_then_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    url = f"grpc://127.0.0.1:{free_port()}/tiny"
    with pytest.raises(BackendUnavailable, match=f"{url}: no server that answers.*refused.*start it") as caught:
        open_runtime(bundle, "triton", provider=url)
    assert (caught.value.exit_code, tuple(waits)) == (3, _triton_client.WAITS_S)
    assert "\n" not in str(caught.value)


def test_a_call_that_finds_no_server_is_made_again(server: FakeTriton) -> None:
    server.unavailable = 2
    with open_runtime(server.url, "triton") as model:
        server.unavailable = 3
        assert model.run({INPUT: images(2)})[OUTPUT].shape == (2, 10)
        server.unavailable = 4
        with pytest.raises(BackendUnavailable, match="no server that answers"):
            model.run({INPUT: images(2)})
    assert server.calls["ModelInfer"] == 8


def test_a_server_that_hangs_is_given_up_after_its_time_and_not_asked_again(
    server: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIMEOUT, "0.3")
    with open_runtime(server.url, "triton") as model:
        server.hang = "ModelInfer"
        with pytest.raises(BackendUnavailable, match=f"no answer within 0.3 s; .*{TIMEOUT}") as caught:
            model.run({INPUT: images(1)})
    assert (caught.value.exit_code, server.calls["ModelInfer"]) == (3, 1)
    server.hang = "ModelMetadata"
    with pytest.raises(BackendUnavailable, match="no answer within 0.3 s"):
        open_runtime(server.url, "triton")


def test_a_model_that_is_not_ready_is_not_here(server: FakeTriton) -> None:
    server.ready = False
    with pytest.raises(BackendUnavailable, match="the model is not ready"):
        open_runtime(server.url, "triton")


@pytest.mark.parametrize(("path", "named"), [("resnet50", "unknown model: 'resnet50'"), ("tiny/7", "version 7")])
def test_a_model_or_version_that_is_not_there_is_named_beside_those_that_are(
    server: FakeTriton, path: str, named: str
) -> None:
    server.versions = ("1", "2")
    url = f"{server.url.removesuffix('/tiny')}/{path}"
    with pytest.raises(BackendUnavailable, match=f"{named}.*; it has tiny/1, tiny/2") as caught:
        open_runtime(url, "triton")
    assert caught.value.exit_code == 3


def test_a_version_that_is_not_served_is_told_how_to_be(server: FakeTriton) -> None:
    server.versions = ("2",)
    with pytest.raises(BackendUnavailable, match="where version 1 is in the repository, write it anew with --serve-v"):
        open_runtime(f"{server.url}/1", "triton")


def test_tls_to_a_port_without_it_says_so(server: FakeTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton_client, "WAITS_S", ())
    with pytest.raises(BackendUnavailable) as caught:
        open_runtime(server.url.replace("grpc://", "grpcs://"), "triton")
    url = server.url.removeprefix("grpc")
    assert str(caught.value) == f"grpcs{url}: the port answers without TLS; give grpc{url}"


def test_an_ensemble_is_no_model_of_the_bundle(manifest: Manifest) -> None:
    image = TensorSpec("image", "BYTES", ("batch", 1))
    served = ServedModel("triton 2.51.0", "ensemble", ("1",), 4, (image,), manifest.outputs)
    with pytest.raises(ResnetExportError, match="is another model .*; of an ensemble name the model behind it$"):
        agreed_batch(served, manifest, "")


def test_another_service_is_no_triton() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(BackendUnavailable, match="expected a Triton server, got another service"):
        open_runtime(f"grpc://127.0.0.1:{port}/tiny", "triton")
    server.stop(0).wait()


# --- servers with another model ---


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"inputs": (("data", "FP32", (-1, 1, 28, 28)),)}, "expected the inputs input, got data"),
        ({"outputs": (("logits", "FP32", (-1, 10)), ("more", "FP32", (-1, 1)))}, "outputs logits, got logits, more"),
        (
            {"inputs": (("input", "UINT8", (-1, 1, 28, 28)),)},
            "'input': expected float32 batchx1x28x28, got uint8 batchx1x28x28",
        ),
        ({"inputs": (("input", "FP32", (-1, 3, 28, 28)),)}, "got float32 batchx3x28x28"),
        ({"inputs": (("input", "FP32", (-1, 1, -1, -1)),)}, "got float32 batchx1xdim2xdim3"),
        ({"outputs": (("logits", "FP32", (-1, 1000)),)}, "expected float32 batchx10, got float32 batchx1000"),
        ({"inputs": (("input", "BYTES", (-1, 1)),)}, "got BYTES batchx1"),
        ({"max_batch": 64}, "expected a max_batch_size of at most 8.*got 64; set it to 8"),
        ({"max_batch": 0, "inputs": (("input", "FP32", (16, 1, 28, 28)),)}, "expected batches of 1:4:8, got 16"),
    ],
    ids=str,
)
def test_a_model_that_is_not_the_bundles_is_refused_before_it_is_run(
    server: FakeTriton, bundle: Bundle, changed: dict[str, Any], said: str
) -> None:
    vars(server).update(changed)
    with pytest.raises(ResnetExportError, match=said) as caught:
        open_runtime(bundle, "triton", provider=server.url)
    assert (caught.value.exit_code, server.calls["ModelInfer"]) == (1, 0)
    assert "\n" not in str(caught.value)


def test_a_bundle_of_larger_batches_than_the_server_takes_is_refused(manifest: Manifest) -> None:
    served = ServedModel("triton 2.51.0", "tensorrt", ("1",), 1, manifest.inputs, manifest.outputs)
    with pytest.raises(ResnetExportError, match="expected batches from 2 on, got at most 1"):
        agreed_batch(served, manifest, "grpc://host/model")
    assert agreed_batch(replace(served, max_batch=3), manifest, "") == BatchRange(2, 3, 3)
    assert agreed_batch(replace(served, max_batch=0), manifest, "") == manifest.batch


def test_the_whole_shape_may_be_the_models_own(manifest: Manifest) -> None:
    inputs = (spec_from_server("input", "FP32", (3, 1, 28, 28)),)
    served = ServedModel("triton 2.51.0", "tensorrt", ("1",), 0, inputs, manifest.outputs)
    assert agreed_batch(served, manifest, "") == BatchRange(3, 3, 3)


def test_free_sides_of_pictures_are_free_whatever_their_names(manifest: Manifest) -> None:
    sides = (TensorSpec("input", "uint8", ("batch", "height", "width", 1)),)
    served = ServedModel(
        "triton 2.51.0",
        "onnxruntime",
        ("1",),
        4,
        (spec_from_server("input", "UINT8", (-1, -1, -1, 1)),),
        manifest.outputs,
    )
    assert agreed_batch(served, replace(manifest, inputs=sides), "") == BatchRange(2, 3, 4)


def test_a_model_that_takes_files_is_no_model_of_numbers(server: FakeTriton) -> None:
    server.inputs = (("image", "BYTES", (-1, 1)),)
    with pytest.raises(BadInput, match="got 'image' of BYTES; of an ensemble name the model behind it"):
        open_runtime(server.url, "triton")


def test_the_bundles_own_order_and_names_are_what_a_caller_sees(
    server: FakeTriton, tiny_model: Path, manifest: Manifest, tmp_path: Path
) -> None:
    two = (manifest.outputs[0], TensorSpec("pool", "float32", ("batch", 2)))
    (tmp_path / "model.onnx").write_bytes((tiny_model / "model.onnx").read_bytes())
    write_manifest(tmp_path, replace(manifest, outputs=two))
    server.outputs, server.max_batch = (("pool", "FP32", (-1, 2)), ("logits", "FP32", (-1, 10))), 4
    server.spoil = lambda outputs: {"pool": np.zeros((2, 2), np.float32), **outputs}
    with open_runtime(tmp_path, "triton", provider=server.url) as model:
        assert list(model.run({INPUT: images(2)})) == ["logits", "pool"]


# --- answers that are none ---


def without_bytes(values: np.ndarray[Any, Any]) -> Any:
    """Says one shape, and holds fewer bytes."""

    class Short(np.ndarray[Any, Any]):
        def tobytes(self, *_: Any) -> bytes:
            return b"\x00" * 4

    return values.view(Short)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda found: {OUTPUT: found[OUTPUT][:, :9]}, "expected 'logits' as float32 3x10, got float32 3x9"),
        (lambda found: {OUTPUT: found[OUTPUT][:2]}, "expected 'logits' as float32 3x10, got float32 2x10"),
        (lambda found: {OUTPUT: found[OUTPUT].astype(np.float16)}, "got float16 3x10"),
        (lambda found: {OUTPUT: found[OUTPUT][None]}, "got float32 1x3x10"),
        (lambda found: {"other": found[OUTPUT]}, "expected the output 'logits', got an answer without it"),
        (lambda found: {OUTPUT: without_bytes(found[OUTPUT])}, "its 'logits' cannot be read"),
    ],
)
def test_an_answer_of_another_form_is_refused(server: FakeTriton, spoil: Any, said: str) -> None:
    with open_runtime(server.url, "triton") as model:
        server.spoil = spoil
        with pytest.raises(ResnetExportError, match=said) as caught:
            model.run({INPUT: images(3)})
        assert caught.value.exit_code == 1
        server.spoil = lambda outputs: outputs
        assert model.run({INPUT: images(3)})[OUTPUT].shape == (3, 10)


def test_what_the_server_refuses_is_said_in_one_line_and_not_tried_again(server: FakeTriton) -> None:
    with open_runtime(server.url, "triton") as model:
        server.refuse = "inference request batch-size must be <= 8\nfor 'tiny'\x1b[31m"
        with pytest.raises(ResnetExportError, match="the server refused: inference request batch-size") as caught:
            model.run({INPUT: images(3)})
    assert server.calls["ModelInfer"] == 1
    assert not set("\n\x1b") & set(str(caught.value))


# --- how it is reached ---


def test_the_environment_says_how_long_to_wait_and_what_to_trust(tmp_path: Path) -> None:
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_text("PEM")
    each = {CA: "ca.pem", CERTIFICATE: "cert.pem", KEY: "key.pem"}
    given = {name: str(tmp_path / file) for name, file in each.items()} | {TIMEOUT: "2.5"}
    assert connection_from_environment(given) == Connection(2.5, *(tmp_path / file for file in each.values()))
    assert connection_from_environment({}) == Connection(60.0, None, None, None)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_that_is_none_is_refused(seconds: str) -> None:
    with pytest.raises(BadInput, match=f"expected {TIMEOUT} as seconds above 0"):
        connection_from_environment({TIMEOUT: seconds})


def test_half_a_certificate_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("PEM")
    with pytest.raises(PlanError, match="set both, or neither"):
        connection_from_environment({KEY: str(tmp_path / "key.pem")})
    with pytest.raises(BadInput, match=f"{CA}: cannot read .*No such file"):
        connection_from_environment({CA: str(tmp_path / "ca.pem")})


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key and its own certificate, for localhost."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    made = [*words.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    return key, certificate


def grpc_says_nothing(url: str) -> bool:
    """Is nothing written beside the error, in a process of its own, where a server is not to be trusted?"""
    code = (
        "import sys; from runtimes import open_runtime; from runtimes.errors import BackendUnavailable\n"
        "from runtimes.backends import _triton_client; _triton_client.WAITS_S = ()\n"
        "try: open_runtime(sys.argv[1], 'triton')\n"
        "except BackendUnavailable: sys.exit(3)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in (CA, "GRPC_VERBOSITY")}
    done = subprocess.run([sys.executable, "-c", code, url], env=environment, capture_output=True, check=False)
    return (done.returncode, done.stderr) == (3, b"")


def test_tls_holds_both_sides_to_their_certificates(
    identity: tuple[Path, Path], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_triton_client, "WAITS_S", ())
    key, certificate = (path.read_bytes() for path in identity)
    secured = grpc.ssl_server_credentials([(key, certificate)], certificate, require_client_auth=True)
    with fake_triton(FakeTriton(model_of(tiny_model / "model.onnx")), secured) as server:
        monkeypatch.setenv(CA, str(identity[1]))
        with pytest.raises(BackendUnavailable):  # without a certificate of ours
            open_runtime(server.url, "triton")
        monkeypatch.setenv(KEY, str(identity[0]))
        monkeypatch.setenv(CERTIFICATE, str(identity[1]))
        with open_runtime(server.url, "triton") as model:
            assert model.run({INPUT: images(2)})[OUTPUT].shape == (2, 10)
        with pytest.raises(BackendUnavailable):  # in the clear
            open_runtime(server.url.replace("grpcs", "grpc"), "triton")
        assert grpc_says_nothing(server.url)
        monkeypatch.delenv(CA)
        with pytest.raises(BackendUnavailable):  # by nobody we trust
            open_runtime(server.url, "triton")
