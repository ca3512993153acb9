"""`check`, `eval`, `bench` and `run` over a server: what goes with --url, what is refused, and how commands end."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Ran
from made_results import STEADY, entry, facts, result
from PIL import Image

from exporter.verification.bench import run as bench_run
from exporter.verification.bench.plan import BenchPlan
from exporter.verification.bench.run import winners_of
from exporter.verification.parity_toml import Entry as Named
from exporter.verification.parity_toml import Settings, entries_from_toml, plan_from_entry
from exporter.verification.plan import CheckPlan
from exporter.verification.pytest_plugin import _open_runtime
from exporter.verification.report.bench_lines import bench_lines
from exporter.verification.report.reproduce import check_line
from runtimes import Bundle
from runtimes.benchmark.results import Contender
from runtimes.benchmark.together import rate_together
from runtimes.benchmark.winners import ranking_of
from runtimes.errors import PlanError

pytest.importorskip("tritonclient.grpc", reason="the backend triton needs its client")

from fake_triton import FakeTriton, fake_triton, model_of, reset

Deploy = Callable[..., Ran]
TO = ("--backend", "triton", "--url")
URL = "grpc://host:8001/tiny"


@pytest.fixture(scope="module")
def running(tiny_model: Path) -> Iterator[FakeTriton]:
    with fake_triton(FakeTriton(model_of(tiny_model / "model.onnx"))) as told:
        yield told


@pytest.fixture
def server(running: FakeTriton) -> FakeTriton:
    reset(running)
    return running


@pytest.fixture
def bundle(good: Any) -> Path:
    """The tiny model, for batches of one to eight."""
    folder: Path = good[1].bundle.folder
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A picture of each class."""
    for number in range(10):
        (tmp_path / str(number)).mkdir()
        Image.fromarray(np.full((28, 28), 20 * number, np.uint8)).save(tmp_path / str(number) / "a.png")
    return tmp_path


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """For speed; the test of bench has processes of its own."""
    from exporter.verification import own_process
    from runtimes.errors import BackendUnavailable, ResnetExportError

    def here(work: Any, *arguments: object, timeout_s: float | None = None) -> own_process.Outcome:
        try:
            verdict, value = work(*arguments)
        except BackendUnavailable as error:
            return own_process.Outcome("not here", str(error), None)
        except ResnetExportError as error:
            return own_process.Outcome("failed", str(error), None)
        return own_process.Outcome(verdict, "", value)

    monkeypatch.setattr("exporter.verification.check.run_in_own_process", here)


# --- check ---


def test_a_served_model_is_checked_beside_the_one_here(
    deploy: Deploy, bundle: Path, server: FakeTriton, in_this_process: None
) -> None:
    done = deploy("check", bundle, *TO, server.url, "--backend", "onnxruntime", "--json", "--quiet")
    assert done.code == 0, done.err
    checked = {one["backend"]: one for one in done.json["bundles"][0]["backends"]}
    assert list(checked) == ["triton", "onnxruntime"]
    assert checked["triton"]["details"] == {"server": "triton 2.51.0, version 1 on onnxruntime, batches of at most 8"}
    assert max(server.rows) == 8


def test_the_processes_that_check_starts_reach_the_server_too(deploy: Deploy, bundle: Path, server: FakeTriton) -> None:
    done = deploy("check", bundle, *TO, server.url, "--quiet")
    assert done.code == 0, done.err
    assert "triton 2.51.0, version 1" in done.out


def test_check_names_the_batches_that_a_server_was_really_sent(
    deploy: Deploy, bundle: Path, server: FakeTriton, in_this_process: None
) -> None:
    server.max_batch = 1
    alone = deploy("check", bundle, *TO, server.url, "--quiet")
    assert set(server.rows) == {1}
    assert alone.code == 0, alone.err
    (how,) = (line for line in alone.out.splitlines() if "errors relative" in line)
    assert how.endswith(", batch 1"), how
    assert "triton: the server takes batches of 1; it was run at batch 1, and not at the bundle's 1, 4, 8" in alone.out
    server.max_batch = 4
    both = deploy("check", bundle, *TO, server.url, "--backend", "onnxruntime", "--json", "--quiet").json["bundles"][0]
    sizes = {one["backend"]: one["answer"]["report"]["batches"] for one in both["backends"]}
    assert sizes == {"triton": [1, 2, 4], "onnxruntime": [1, 4, 8]}


def not_a_number(outputs: dict[str, Any]) -> dict[str, Any]:
    return {name: np.full_like(values, np.nan) for name, values in outputs.items()}


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({"ready": False}, 3, "the model is not ready"),
        ({"versions": ("2",)}, 3, "version 1 is not found; it has tiny/2"),
        ({"outputs": (("logits", "FP32", (-1, 1000)),)}, 1, "is another model than the bundle's: output 'logits'"),
        ({"spoil": lambda outputs: {"logits": outputs["logits"][:, 1:]}}, 1, "got float32"),
        ({"spoil": not_a_number}, 4, "not finite"),
        ({"spoil": lambda outputs: {"logits": np.roll(outputs["logits"], 1, axis=1)}}, 4, "out of budget"),
        ({"refuse": "no more memory"}, 1, "the server refused: no more memory"),
    ],
    ids=["not ready", "another version", "another model", "another shape", "NaN", "other weights", "refused"],
)
def test_a_server_that_is_not_right_ends_check_with_its_code(
    deploy: Deploy, bundle: Path, server: FakeTriton, in_this_process: None, changed: Any, code: int, said: str
) -> None:
    vars(server).update(changed)
    done = deploy("check", bundle, *TO, f"{server.url}/1", "--quiet")
    (line,) = (one for one in done.err.splitlines() if one.startswith("error: "))
    assert (done.code, said in line) == (code, True), line
    assert "Traceback" not in done.err


def test_a_server_that_is_down_ends_each_command_with_3(
    deploy: Deploy, bundle: Path, data: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtimes.backends._triton_client.WAITS_S", ())
    with socket.create_server(("127.0.0.1", 0)) as one:
        url = f"grpc://127.0.0.1:{one.getsockname()[1]}/tiny"
    for words in (("check", bundle), ("run", bundle, data / "3" / "a.png"), ("eval", bundle, "--data", data)):
        done = deploy(*words, *TO, url)
        assert (done.code, "no server that answers" in done.err) == (3, True), done.err


def test_every_backend_is_those_of_this_machine(bundle: Path) -> None:
    assert "triton" not in plan_from_entry(Named(bundle, Settings())).backends
    assert "triton" not in plan_from_entry(Named(bundle, Settings(backends=("all",)))).backends


def test_a_file_of_bundles_may_name_a_server(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "resnet-parity.toml"
    file.write_text(f'[[bundles]]\npath = "{bundle}"\nbackends = ["triton"]\nurl = "{URL}"\n')
    (named,) = entries_from_toml(file)
    plan = plan_from_entry(named)
    assert (plan.url, plan.provider_of("triton"), plan.provider_of("onnxruntime")) == (URL, URL, None)
    assert f"--backend triton --url {URL}" in check_line(plan).replace(" \\\n   ", "")


def test_pytests_fixture_of_a_runtime_is_the_servers(bundle: Path, server: FakeTriton) -> None:
    opened = Bundle.open(bundle)
    with _open_runtime(opened, "triton", (CheckPlan(opened, ("triton",), url=server.url),)) as model:
        assert model.provider == server.url


# --- eval and run ---


def test_run_and_eval_classify_on_the_server(deploy: Deploy, bundle: Path, server: FakeTriton, data: Path) -> None:
    picture = data / "3" / "a.png"
    here, there = (deploy("run", bundle, picture, *to).out for to in ((), (*TO, server.url)))
    assert here == there
    ours, theirs = (
        deploy("eval", bundle, "--data", data, *to, "--json", "--quiet").json for to in ((), (*TO, server.url))
    )
    assert (theirs["images"], theirs["backend"], theirs["provider"]) == (10, "triton", server.url)
    assert ours["recall"] == theirs["recall"]
    server.spoil = not_a_number
    for words in (("run", bundle, picture), ("eval", bundle, "--data", data)):
        done = deploy(*words, *TO, server.url)
        assert (done.code, "not finite" in done.err) == (1, True), done.err


# --- what is refused before anything is opened ---


@pytest.mark.parametrize("verb", ["check", "eval", "bench", "run"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--backend", "triton"), "expected --url with --backend triton, got none; give grpc://HOST:8001/MODEL"),
        (("--url", URL), "expected --backend triton with --url, got"),
        (("--backend", "onnxruntime", "--url", URL), "expected --backend triton with --url, got onnxruntime"),
        ((*TO, "http://host:8000/tiny"), "expected grpc://HOST:8001/MODEL[/VERSION], or grpcs:// for TLS, got"),
        ((*TO, "grpc://me:s3cret@host/tiny"), "expected a URL without a user or password"),
        ((*TO, ""), "expected grpc://HOST:8001/MODEL"),
    ],
    ids=["no url", "no backend", "another backend", "no address", "a password", "empty"],
)
def test_a_url_and_the_backend_go_together(
    deploy: Deploy, bundle: Path, tmp_path: Path, verb: str, words: tuple[str, ...], said: str
) -> None:
    more = {"eval": ("--data", "built-in"), "run": (tmp_path / "picture.png",)}.get(verb, ())
    done = deploy(verb, bundle, *more, *words, "--quiet") if verb != "run" else deploy(verb, bundle, *more, *words)
    assert (done.code, said in done.error) == (2, True), done.err
    assert "s3cret" not in done.err


def test_a_provider_beside_a_url_is_refused(deploy: Deploy, bundle: Path) -> None:
    done = deploy("eval", bundle, "--data", "built-in", *TO, URL, "--provider", "cpu")
    assert (done.code, "expected --url or --provider, got both" in done.error) == (2, True)


def test_a_url_is_of_one_bundle(deploy: Deploy, bundle: Path, turned: Any) -> None:
    other = turned[1].bundle
    for words in (("check", bundle, other.folder), ("bench", bundle, other.folder)):
        done = deploy(*words, *TO, URL, "--quiet")
        assert (done.code, "expected one bundle with --url" in done.error) == (2, True)
    with pytest.raises(PlanError, match="leave one of --url and --against out"):
        CheckPlan(Bundle.open(bundle), ("triton",), url=URL, against=other)


# --- bench ---


def test_each_number_of_requests_is_measured_on_its_own(
    deploy: Deploy, bundle: Path, server: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_run, "library_names", lambda: ())

    def slowly(outputs: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.02)  # so that requests meet
        return outputs

    server.spoil = slowly
    quick = ("--rounds", "2", "--seconds", "0.001", "--warm-up", "1", "--batch", "2", "--quiet", "--json")
    done = deploy("bench", bundle, *TO, server.url, "--concurrency", "1,4,4", *quick)
    assert done.code == 0, done.err
    one, four = json.loads(done.out)["entries"]
    assert [one["contender"]["concurrency"], four["contender"]["concurrency"]] == [1, 4]
    assert [one["contender"]["provider"], four["contender"]["provider"]] == [server.url] * 2
    assert {timing["line"] for timing in one["timings"]} == {"copies", "files"}
    assert {timing["line"] for timing in four["timings"]} == {"copies"}
    assert (one["latency"]["batch"], four["latency"]["calls"] >= 20) == (2, True)
    assert any("it runs on a server" in said for said in one["remarks"])
    assert 2 <= server.most_at_once <= 4
    assert set(server.rows) <= {2, 4}  # of the answers to golden inputs, and of the measurements


def test_calls_from_several_threads_are_all_counted() -> None:
    made: list[int] = []

    def call() -> int:
        made.append(1)
        return 8

    rate, taken = rate_together(call, 4, seconds=0.0, calls=10)
    assert len(taken) == len(made) == 12  # three each, so that there are at least ten
    assert rate > 0


def test_bench_refuses_requests_without_a_server(deploy: Deploy, bundle: Path) -> None:
    for words, said in (
        (("--concurrency", "4"), "--concurrency is of requests to a server"),
        ((*TO, URL, "--concurrency", "0,4"), "expected --concurrency from 1 to 1024"),
        ((*TO, URL, "--concurrency", "many"), "expected --concurrency as whole numbers, got 'many'"),
    ):
        done = deploy("bench", bundle, *words, "--quiet")
        assert (done.code, said in done.error) == (2, True), done.err


def test_a_server_may_be_measured_beside_every_backend_here(
    bundle: Path, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[BenchPlan] = []

    def measure(plan: BenchPlan, say: object) -> None:
        seen.append(plan)
        raise PlanError("seen")

    monkeypatch.setattr(bench_run, "bench", measure)
    deploy("bench", bundle, "--backend", "all", *TO, URL, "--quiet")
    deploy("bench", bundle, "--quiet")
    both, here = seen
    assert both.backends is not None
    assert {"onnxruntime", "triton"} <= set(both.backends)
    assert (here.backends, here.provider_of("onnxruntime"), both.provider_of("triton")) == (None, None, URL)


def test_a_server_may_win_but_auto_never_takes_it(bundle: Path) -> None:
    fast = tuple(10 * rate for rate in STEADY)
    entries = [entry("onnxruntime"), entry("openvino", tuple(2 * rate for rate in STEADY))]
    entries += [
        replace(one, contender=replace(one.contender, provider=URL, concurrency=many))
        for one, many in ((entry("triton", fast), 1), (entry("triton", tuple(2 * rate for rate in fast)), 4))
    ]
    found = result(*entries)
    winners = {winner.measure: winner.decision.best for winner in winners_of(facts(), entries)}
    assert winners == {"latency": "triton", "throughput": "triton 4 at a time"}
    ranking = ranking_of(found, facts())
    assert ranking is not None
    assert ranking.latency == ranking.throughput == (("openvino", "cpu"), ("onnxruntime", "cpu"))
    assert found.roof_of(entries[2]) is None
    assert any(line.startswith("triton 4 at a time") for line in bench_lines(found))
    assert Contender("", "triton", URL).is_served
    assert not Contender("", "onnxruntime", "cpu").is_served
