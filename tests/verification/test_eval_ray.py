"""`resnet-deploy eval --ray`: the figures of one process, from workers, nodes and drivers that are killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_fixtures import bundle_fixture, copied, counts, edited, run_fixture, tree  # noqa: F401  # pytest finds them by their names
from ray.cluster_utils import Cluster
from ray_clusters import NODE, two_nodes_fixture  # noqa: F401  # likewise
from shuffled import Shuffled

from calibration.data import built_in, open_source
from calibration.distributed import request
from calibration.distributed.seen import check_seen, first_readable, manifest_digest
from calibration.distributed.shards import Shard
from exporter.verification.accuracy.worker import OpenEvaluation
from runtimes import Bundle
from runtimes.errors import BackendUnavailable

MAIN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from exporter.cli.deploy import main; main()"
IMAGES = 3000


@pytest.fixture(scope="module", name="many")
def many_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in test images, half of them twice."""
    source, path = built_in("test"), tmp_path_factory.mktemp("many") / "many.npz"
    places = np.resize(np.arange(2000), IMAGES)
    np.savez(
        path,
        images=np.stack([np.asarray(source.image(int(place))) for place in places]),
        labels=np.asarray(source.labels)[places],
    )
    return path


def rows(journal: Path) -> list[Any]:
    return [row for line in journal.read_bytes().splitlines()[1:] for row in json.loads(line)["rows"]]


def begun(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAIN, "eval", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(journal: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") > lines:
            return
        time.sleep(0.01)
    pytest.fail(f"nothing to interrupt: {process.communicate()}")


def actors(cluster: Cluster) -> list[int]:
    """The processes of a cluster's actors, and of no other's on this machine."""
    raylets = {one.process.pid for node in cluster.list_all_nodes() for one in node.all_processes["raylet"]}
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and path.read_bytes().startswith(b"ray::Actor"):
                found.append(int(path.parent.name))
    return found


def test_workers_that_are_killed_change_no_count(
    run: Any, bundle: Path, many: Path, two_nodes: Cluster, tmp_path: Path
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    expected = run(bundle, "--data", many, "--json", "--resume", alone).json
    process = begun(bundle, "--data", many, "--json", "--resume", shared, "--ray", two_nodes.address)
    wait_for(shared, 5, process)
    killed = actors(two_nodes)[:2]
    assert killed
    for one in killed:
        os.kill(one, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, counts(json.loads(out))) == (0, counts(expected)), err
    assert rows(shared) == rows(alone)
    assert err.splitlines()[1:] == ["evaluate on 3 workers of Ray", "evaluate"]
    assert json.loads(shared.read_bytes().splitlines()[0]) == json.loads(alone.read_bytes().splitlines()[0])


@pytest.mark.slow
def test_a_node_that_leaves_changes_no_count(
    run: Any, bundle: Path, many: Path, two_nodes: Cluster, tmp_path: Path
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    expected = run(bundle, "--data", many, "--json", "--resume", alone).json
    leaving = two_nodes.add_node(num_cpus=2, **NODE)
    process = begun(bundle, "--data", many, "--json", "--resume", shared, "--ray", two_nodes.address)
    wait_for(shared, 5, process)
    two_nodes.remove_node(leaving)
    out, err = process.communicate(timeout=180)
    assert (process.returncode, counts(json.loads(out))) == (0, counts(expected)), err
    assert rows(shared) == rows(alone)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_driver_goes_on_with_any_number_of_workers(
    run: Any, bundle: Path, many: Path, two_nodes: Cluster, tmp_path: Path, number: signal.Signals
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    expected = run(bundle, "--data", many, "--json", "--resume", alone).json
    options = (bundle, "--data", many, "--json", "--resume", shared)
    for where in (("--ray", "local:2"), ("--ray", two_nodes.address)):
        process = begun(*options, *where)
        wait_for(shared, 5 if not shared.exists() else shared.read_bytes().count(b"\n") + 5, process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == ({signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number], "")
        assert "Traceback" not in err
        if number == signal.SIGINT:
            assert err.splitlines()[-1].endswith(f"are in {shared}, and the same command goes on from there")
    assert counts(run(*options).json) == counts(expected)
    assert rows(shared) == rows(alone)


def opening(bundle: Path, data: Path) -> OpenEvaluation:
    opened, source = Bundle.open(bundle), open_source(str(data))
    return OpenEvaluation(bundle, manifest_digest(opened), source, first_readable(source), "onnxruntime")


def test_what_a_worker_cannot_see_is_told_with_its_path(bundle: Path, tmp_path: Path) -> None:
    copy = copied(bundle, tmp_path)
    task = opening(copy, tree(tmp_path, tuple(map(str, range(10)))))
    task(1).close()
    picture = min((tmp_path / "tree").rglob("*.JPEG"))
    (tmp_path / "tree").rename(tmp_path / "elsewhere")
    with pytest.raises(
        BackendUnavailable, match=f"expected pictures that this worker can read, got: .*{picture}.*same path"
    ):
        task(1)
    (tmp_path / "elsewhere").rename(tmp_path / "tree")
    edited(copy, batch={"min": 1, "opt": 4, "max": 8})
    with pytest.raises(
        BackendUnavailable, match=f"expected the bundle {copy}, got another one there; put one at the same"
    ):
        task(1)
    copy.rename(tmp_path / "gone")
    with pytest.raises(
        BackendUnavailable, match=f"expected the bundle {copy}, got: .*; put it at the same path on each"
    ):
        task(1)


def test_pictures_of_which_none_can_be_read_are_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(b"junk")
    source = open_source(str(tmp_path))
    assert first_readable(source) is None
    check_seen(source, first_readable(source))


def test_a_worker_that_would_run_it_otherwise_is_refused(bundle: Path, tmp_path: Path) -> None:
    task = opening(bundle, tree(tmp_path, tuple(map(str, range(10)))))
    ran = task.telling(1).work(Shard(0, 0, 0))
    assert (ran.backend, ran.provider) == ("onnxruntime", "cpu")
    replace(task, ran=ran)(1).close()
    said = (
        "expected every worker to run onnxruntime on cuda .*, got onnxruntime on cpu .*; name --backend and --provider"
    )
    with pytest.raises(BackendUnavailable, match=said):
        replace(task, ran=ran._replace(provider="cuda"))(1)


def test_a_picture_of_other_channels_has_the_same_name_wherever_it_is_read(
    run: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = built_in("test")
    assert source.labels is not None
    for place in range(101):
        path = tmp_path / "arrays" / str(source.labels[place]) / f"{place:03}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.zeros((28, 28, 4), np.uint8) if place == 70 else np.asarray(source.image(place)))
    here = run(bundle, "--data", tmp_path / "arrays", "--json").json
    monkeypatch.setattr(request, "executor_of", lambda *_, **__: nullcontext(Shuffled(2, seed=0)))
    there = run(bundle, "--data", tmp_path / "arrays", "--json", "--ray", "local").json
    assert there["unreadable"] == here["unreadable"]
    assert here["unreadable"][0].startswith(f"{source.labels[70]}/070.npy: ")


def test_options_that_contradict_each_other_or_lack_a_gpu(run: Any, bundle: Path, two_nodes: Cluster) -> None:
    there = two_nodes.address
    for options, code, said in (
        (("--gpus-per-worker", 1), 2, "--gpus-per-worker is for the workers of --ray; add it"),
        (("--ray", "local:0"), 2, "expected from 1 to 256 workers, got 'local:0'"),
        (("--ray", "127.0.0.1:1", "--backend", "nosuch"), 2, "error: unknown backend 'nosuch'; choose from"),
        (("--ray", "nowhere"), 2, "--ray: expected local, local:N, auto, HOST:PORT or ray://HOST:PORT, got 'nowhere'"),
        (("--ray", there, "--backend", "tensorrt", "--gpus-per-worker", 0), 2, "got --gpus-per-worker 0; leave"),
        (("--ray", there, "--provider", "cuda"), 3, "expected 1 GPU for each worker, got a Ray cluster without any"),
    ):
        shown = run(bundle, "--data", "built-in", *options)
        assert (shown.code, said in shown.error, shown.out) == (code, True, ""), shown.err


def test_without_ray_the_command_that_installs_it_is_named(
    run: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "calibration.distributed.cluster", raising=False)
    monkeypatch.delitem(sys.modules, "calibration.distributed.ray", raising=False)
    shown = run(bundle, "--data", "built-in", "--ray", "local")
    assert (shown.code, "pip install 'resnet-export[ray]'" in shown.error) == (3, True)
