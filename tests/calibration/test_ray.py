"""Work on shards on the workers of Ray: a cluster of two nodes on this machine, whose workers really die."""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray_clusters import two_nodes_fixture  # noqa: F401  # pytest finds it by its name
from shard_workers import Adding, Dying

import calibration.distributed.cluster as cluster_module
import calibration.distributed.ray as ray_module
from calibration.distributed.address import RayRequest
from calibration.distributed.cluster import Node, cluster_executor, connected, local_executor
from calibration.distributed.ray import RayExecutor
from calibration.distributed.request import PATIENCE, executor_of, ray_request
from calibration.distributed.shards import Shard, shards_of
from runtimes.errors import BackendUnavailable, BadInput, ExportError, PlanError, UnknownName

SHARDS = shards_of(97, 8)
SUMS = {shard: sum(range(shard.start, shard.stop)) for shard in SHARDS}


@pytest.fixture(scope="module", name="executor")
def executor_fixture(two_nodes: Cluster) -> Iterator[RayExecutor]:
    with connected(ray_request(two_nodes.address), None, gpu=False) as executor:
        yield executor


def test_the_results_are_those_of_one_process_whatever_the_number_of_workers(
    executor: RayExecutor, tmp_path: Path
) -> None:
    assert executor == RayExecutor(workers=3, threads=1, cpus=1.0, gpus=0.0)
    for workers in (1, 2, 5):
        found = list(replace(executor, workers=workers, cpus=0.5).run(Adding(tmp_path), SHARDS))
        assert (len(found), dict(found)) == (len(SHARDS), SUMS)
    assert list(executor.run(Adding(tmp_path), ())) == []


def test_work_of_workers_that_die_is_done_once_and_what_always_kills_is_named(
    executor: RayExecutor, tmp_path: Path
) -> None:
    found: list[tuple[Shard, int]] = []
    plan = Adding(tmp_path, dies_once=frozenset({0, 5, 12}), dies_always=frozenset({3, 7}))
    with pytest.raises(ExportError) as raised:
        found += replace(executor, workers=2).run(plan, SHARDS, lambda place: f"{place}.jpg")
    assert str(raised.value) == (
        "a worker died each of the 3 times that it worked on the pictures from 24.jpg to 31.jpg (it crashed, or was "
        "killed), and so with 1 more shard; all others are done; find the pictures that do it, and remove them"
    )
    assert sorted(found) == [(shard, SUMS[shard]) for shard in SHARDS if shard.number not in (3, 7)]
    assert len(list(tmp_path.glob("died-*"))) == 3


def test_what_a_worker_hangs_on_is_given_to_another_one(
    executor: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_module, "STALLED_S", 1.0)
    found = list(replace(executor, workers=2).run(Adding(tmp_path, hangs_once=frozenset({1, 12})), SHARDS))
    assert sorted(found) == list(SUMS.items())
    assert len(list(tmp_path.glob("hung-*"))) == 2


def test_a_worker_that_dies_on_every_shard_is_not_blamed_on_pictures(executor: RayExecutor, tmp_path: Path) -> None:
    always = Adding(tmp_path, dies_always=frozenset(shard.number for shard in SHARDS))
    with pytest.raises(ExportError, match=r"workers died again and again, and finished nothing \(it crashed"):
        list(replace(executor, workers=2).run(always, SHARDS))
    assert len(list(tmp_path.glob("[0-9]*"))) <= 12 + 2


def test_an_error_of_ours_is_raised_as_itself(executor: RayExecutor, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown shard '2'; did you mean 2"):
        list(replace(executor, workers=1).run(Adding(tmp_path, fails=frozenset({2})), SHARDS))


def test_workers_that_die_before_they_work_end_it(executor: RayExecutor) -> None:
    with pytest.raises(ExportError, match="no worker is left: 3 died one after another before they could work"):
        list(replace(executor, workers=1).run(Dying(), SHARDS))


def test_no_more_work_is_tried_once_many_shards_kill(
    executor: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_module, "MOST_LOST", 0)
    monkeypatch.setattr(ray_module, "MOST_RESTARTS", 0)
    with pytest.raises(ExportError, match="it crashed, or was killed.*; what else was begun is done; find"):
        list(replace(executor, workers=1).run(Adding(tmp_path, dies_always=frozenset(range(13))), SHARDS))


def test_a_worker_that_lacks_a_package_is_told(
    executor: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("class Opening:\n    def __call__(self, threads): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    opening = importlib.import_module("only_here").Opening()
    said = f"a worker on {socket.gethostname()} lacks a package: No module named 'only_here'; pip install the same"
    with pytest.raises(BackendUnavailable, match=said):
        list(replace(executor, workers=1).run(opening, SHARDS))


def test_a_worker_of_another_version_is_told(executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_module, "_version", lambda: "9.9")
    with pytest.raises(BackendUnavailable, match="expected resnet-export 9.9 on every worker, got .* on "):
        list(replace(executor, workers=1).run(Dying(), SHARDS))


def test_a_cluster_without_room_is_not_waited_for_without_end(
    executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_module, "PLACED_WITHIN_S", 1)
    with pytest.raises(BackendUnavailable, match="expected the cluster to have room for a worker within 1 s, got none"):
        list(replace(executor, cpus=64.0).run(Dying(), SHARDS))


def test_no_gpu_in_the_cluster_is_told(two_nodes: Cluster, executor: RayExecutor) -> None:
    nodes = [Node(3, 0), Node(2, 0)]
    for make in (cluster_executor, local_executor_of_two):
        with pytest.raises(
            BackendUnavailable, match="expected 1 GPU for each worker, got a Ray cluster without any; add"
        ):
            make(None, 1.0, nodes)


def local_executor_of_two(threads: int | None, gpus: float, nodes: list[Node]) -> RayExecutor:
    return local_executor(2, threads, gpus, nodes)


def test_workers_are_as_many_as_the_machines_have_room_for() -> None:
    nodes = [Node(8, 2), Node(32, 4), Node(3, 0)]
    assert cluster_executor(None, 0.0, nodes) == RayExecutor(43, 1, 1.0, 0.0)
    assert cluster_executor(4, 0.0, nodes) == RayExecutor(10, 4, 4.0, 0.0)
    assert cluster_executor(None, 1.0, nodes) == RayExecutor(6, 4, 4.0, 1.0)
    assert cluster_executor(None, 0.5, nodes) == RayExecutor(12, 2, 2.0, 0.5)
    assert cluster_executor(8, 2.0, nodes) == RayExecutor(3, 8, 8.0, 2.0)
    with pytest.raises(BackendUnavailable, match="expected a machine with 64 free cores in the Ray cluster, got at"):
        cluster_executor(64, 0.0, nodes)
    monkey = local_executor(3, None, 0.5, [Node(2, 1)])
    assert (monkey.workers, monkey.cpus, monkey.gpus) == (2, 1.0, 0.5)


@pytest.mark.parametrize("versions", [("2.44.0", "3.11.7"), ("2.60.0", "3.10.4")])
def test_another_version_of_ray_or_python_in_the_cluster_is_told(
    two_nodes: Cluster, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch, versions: Any
) -> None:
    ray.shutdown()
    monkeypatch.setattr("ray._private.utils.compute_version_info", lambda: versions)
    with (
        pytest.raises(
            BackendUnavailable, match="expected the cluster's versions of Ray and Python, got others: "
        ) as told,
        executor_of(ray_request(two_nodes.address), None),
    ):
        pytest.fail("they differ")
    assert f"Ray: {versions[0]} Python: {versions[1]}" in str(told.value)


@pytest.mark.parametrize("auto", [False, True])
def test_a_cluster_that_asks_for_its_token_is_told_how_to_get_it(
    two_nodes: Cluster, monkeypatch: pytest.MonkeyPatch, *, auto: bool
) -> None:
    """`ray start` makes such clusters where a token is, and Ray sends it to no address that it is given."""

    def init(*_args: object, **_options: object) -> None:
        cause = RuntimeError("ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken")
        raise ConnectionError("Failed to connect to Ray cluster") from cause

    monkeypatch.setattr(ray, "init", init)
    place = "auto" if auto else two_nodes.address
    says = f"--ray {place}: expected the token that this cluster asks for, got none or another; set RAY_AUTH_MODE=token"
    with pytest.raises(BackendUnavailable, match=says), executor_of(ray_request(place), None):
        pytest.fail("it asks for a token")


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (
            ConnectionError("ray client connection timeout"),
            r"lets this machine in there \(ray client connection timeout\); give the port of one, 10001 unless",
        ),
        (
            ValueError("Ray Client requires pip package `ray[client]`."),
            r": Ray's client is not installed; pip install",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_rays_client_lacks_is_told(
    raised: Exception, says: str, two_nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(*_args: object, **_options: object) -> None:
        raise raised

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(BackendUnavailable, match=says), executor_of(ray_request(f"ray://{two_nodes.address}"), None):
        pytest.fail("there is none")


def test_where_ray_is_not_let_in_it_does_not_try_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own settings take 20 and 30 seconds."""
    for name in PATIENCE:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BackendUnavailable, match="got no answer"), executor_of(ray_request("127.0.0.1:1"), None):
        pytest.fail("there is none")
    code = (
        "from ray._private.ray_constants import NUM_REDIS_GET_RETRIES as tries\n"
        "from ray.util.client.worker import INITIAL_TIMEOUT_SEC as first, MAX_TIMEOUT_SEC as most, backoff\n"
        "print(tries, first + backoff(first) + backoff(backoff(first)))"
    )
    given = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [int(seconds) for seconds in given.stdout.split()] == [10, 13]


def test_workers_on_this_machine_are_not_reached_from_others() -> None:
    """Older Rays run whatever they are sent."""
    code = (
        "import os\n"
        "from calibration.distributed.request import executor_of, ray_request\n"
        "with executor_of(ray_request('local:1'), None):\n"
        "    import ray\n"
        "    hosts = [node['NodeManagerAddress'] for node in ray.nodes()]\n"
        "print(*hosts, os.environ.get('RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER'))"
    )
    given = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert given.stdout.split() == ["127.0.0.1", "None"]


def refuse(web: socket.socket) -> None:
    with web.accept()[0] as connection:
        connection.sendall(b"HTTP/1.1 400 Bad Request")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_no_ray_answers_is_refused_at_once(
    scheme: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster_module, "ANSWERS_WITHIN_S", 0.5)
    monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:1")  # what `auto` means then
    with pytest.raises(BackendUnavailable, match="got no answer"), executor_of(ray_request("auto"), None):
        pytest.fail("there is none")
    with socket.socket() as silent, socket.socket() as web:
        for server in (silent, web):
            server.bind(("127.0.0.1", 0))
            server.listen()
        threading.Thread(target=refuse, args=(web,), daemon=True).start()
        for port, said in (
            (silent.getsockname()[1], "got no answer (timed out); start one with `ray start --head`"),
            (web.getsockname()[1], "expected a Ray cluster, got another server"),
            (1, "got no answer (Connection refused)"),
        ):
            place = f"{scheme}127.0.0.1:{port}"
            with pytest.raises(BackendUnavailable) as raised, executor_of(ray_request(place), None):
                pytest.fail("there is none")
            assert str(raised.value).startswith(f"--ray {place}: ")
            assert said in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_cluster_that_speaks_tls_is_not_greeted_in_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        cluster_module._check_answers(f"127.0.0.1:{server.getsockname()[1]}")
        with server.accept()[0] as connection:
            assert connection.recv(1) == b""
    with pytest.raises(BackendUnavailable, match="got no answer"):
        cluster_module._check_answers("127.0.0.1:1")


def test_requests_that_cannot_be_meant() -> None:
    assert ray_request("local") == RayRequest("local")
    assert ray_request("local:3", 0.5) == RayRequest("local", 3, 0.5)
    assert ray_request("[::1]:6379").address == "[::1]:6379"
    for text in ("", "here", "host", "host:", "host:0", "host:66000", "ray://host", "http://host:1", "a b:1"):
        with pytest.raises(BadInput, match="--ray: expected local, local:N, auto, HOST:PORT or ray://HOST:PORT, got"):
            ray_request(text)
    for text in ("local:", "local:0", "local:-1", "local:257", "local:two", f"local:{10**12}"):
        with pytest.raises(PlanError, match="expected from 1 to 256 workers"):
            ray_request(text)
    for gpus in (1.5, float("nan"), float("inf"), -1.0):
        with pytest.raises(PlanError, match="expected a share of one GPU, or a whole number of them"):
            ray_request("auto", gpus)
