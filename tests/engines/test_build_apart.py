"""Builds in a process of their own: what comes back, and what becomes of one that crashes, is killed or interrupted."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import builds_apart
import pytest
from boards import orin_nano
from builds import TARGETS, engines, quiet
from commands import Ran
from engine_bundles import BATCH, add_engine
from engine_fixtures import api_fixture, cuda_fixture, folder_fixture, proven_fixture, reference_fixture  # noqa: F401  # pytest finds them by their names
from own_bundle import bundle_fixture  # noqa: F401  # likewise
from standin_tensorrt import StandinTensorRT

from exporter.engines import build as build_file
from exporter.engines.apart import Build, build_apart, check_loads, watched_build
from exporter.engines.builders import BuildOptions, EngineBuild, Job
from runtimes import open_runtime
from runtimes.board.memory import MIB, board_workspace
from runtimes.board.power import power
from runtimes.errors import BackendUnavailable, BuildError, UnknownName
from runtimes.nvidia.engine_file import facts_of
from runtimes.nvidia.plan_files import sidecar_of
from runtimes.nvidia.trust import ensure_machine_key, seal_of
from runtimes.specs import BatchRange, TensorSpec

JOB = Job(b"onnx", "fp16", (TensorSpec("input", "float32", ("batch", 3, 8, 8)),), BatchRange(1, 1, 1), BuildOptions())


def test_the_engine_comes_back_and_every_step_is_told() -> None:
    steps = []
    done, memory = watched_build(
        builds_apart.builds,
        "tensorrt",
        JOB,
        lambda step, done=0, total=0: steps.append((step, done, total)),
        own_process=True,
    )
    assert int(done.network.plan) != os.getpid()
    assert (done.network.timing_cache, done.network.log.lines) == (b"onnx", [(1, "said")])
    assert done.layers[0].nodes == {"conv1"}
    assert steps == [("parse", 0, 0), ("build: timing tactics", 3, 4)]
    assert memory is not None
    assert memory.workspace_bytes is None
    here, _ = watched_build(builds_apart.builds, "tensorrt", JOB, quiet, own_process=False)
    assert int(here.network.plan) == os.getpid()


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (builds_apart.refuses, BuildError, "^TensorRT refuses model.onnx: no$"),
        (builds_apart.knows_none, UnknownName, "^unknown target 'sm00'; choose from sm86$"),
        (
            builds_apart.segfaults,
            BuildError,
            "process was ended by SIGSEGV and no engine; build again with --in-process",
        ),
        (builds_apart.leaves, BuildError, "process ended with exit code 3 and no engine"),
        (
            builds_apart.is_killed,
            BuildError,
            r"SIGKILL, as Linux does when memory runs out \(\d+.\d GiB were available",
        ),
    ],
)
def test_why_there_is_no_engine(build: Build, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as raised:
        watched_build(build, "tensorrt", JOB, quiet, own_process=True)
    assert type(raised.value) is kind


def test_a_build_that_was_killed_is_advised_half_the_scratch_memory() -> None:
    job = Job(b"", "fp16", JOB.inputs, JOB.batch, BuildOptions(workspace_bytes=512 * MIB))
    with pytest.raises(BuildError, match="allow kernels less with --workspace 256, add swap, or export"):
        watched_build(builds_apart.is_killed, "tensorrt", job, quiet, own_process=True)


def test_an_interruption_ends_the_process() -> None:
    found = []

    def interrupt(step: str, done: int = 0, total: int = 0) -> None:
        found.append(int(step.split()[-1]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_apart(builds_apart.hangs, "tensorrt", JOB, interrupt)
    end = time.monotonic() + 10
    while Path(f"/proc/{found[0]}").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not Path(f"/proc/{found[0]}").exists()


def test_the_command_builds_apart_unless_told_otherwise(
    bundle: Path, deploy: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    here: list[str] = []
    real = build_file.build_here

    def count(backend: str, *arguments: object) -> EngineBuild:
        here.append(backend)
        return real(backend, *arguments)  # type: ignore[arg-type]  # as they came

    monkeypatch.delenv("RESNET_EXPORT_IN_PROCESS")
    ran = deploy("build", bundle, *TARGETS, "--quiet", "--json")
    assert ran.code == 0, ran.err
    facts = facts_of(Path(ran.json["engine"]))
    assert facts.memory is not None
    assert facts.memory.total_bytes > facts.memory.lowest_bytes > 0
    assert facts.power is None
    assert "GiB at its peak, of " in deploy("inspect", ran.json["engine"]).out
    monkeypatch.setattr(build_file, "build_here", count)
    assert deploy("build", bundle, *TARGETS, "--force", "--in-process").code == 0
    assert here == ["tensorrt-rtx"]


def test_a_board_is_recorded_and_decides_the_scratch_memory(
    proven: Path, api: StandinTensorRT, deploy: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = orin_nano(tmp_path / "board")
    monkeypatch.setattr(build_file, "power", lambda: power(root))
    monkeypatch.setattr(build_file, "board_workspace", lambda: board_workspace(root))
    ran = deploy("build", proven)
    assert api.last_config is not None
    assert api.last_config.pools[api.MemoryPoolType.WORKSPACE] == 512 * MIB
    (engine,) = (proven / "engines").glob("*.engine")
    assert "w512" not in engine.name, "a preset is no option"
    facts = facts_of(engine)
    assert (facts.power, facts.options) == (power(root), {})
    assert facts.memory is not None
    assert facts.memory.workspace_bytes == 512 * MIB
    assert "power        power mode 15W, CPU 729 of 1344 MHz" in ran.out
    assert "; 512 MiB of scratch for a kernel, by the board's size" in ran.out
    assert "a kernel may have 512 MiB of scratch memory, by the board's memory" in ran.err
    assert "warning: power mode 15W, not MAXN_SUPER (sudo nvpmodel -m 2); the clocks of CPU and GPU are" in ran.err
    again = deploy("build", proven)
    assert "nothing has changed" in again.out
    assert "warning" not in again.err
    with open_runtime(proven, "tensorrt") as runtime:  # the seal covers the new fields
        assert runtime.batch == BATCH
    ran = deploy("build", proven, "--workspace", 64, "--json", "--quiet")
    assert api.last_config.pools[api.MemoryPoolType.WORKSPACE] == 64 * MIB
    assert (ran.json["memory"]["workspace_bytes"], ran.err) == (64 * MIB, "")
    assert "scratch for a kernel, by" not in deploy("inspect", ran.json["engine"]).out


def test_sidecars_of_earlier_versions_are_read_and_trusted(folder: Path, api: StandinTensorRT) -> None:
    engine = add_engine(folder, api)
    document = json.loads(sidecar_of(engine).read_bytes())
    del document["power"], document["memory"]
    document["seal"] = seal_of(document, ensure_machine_key())
    sidecar_of(engine).write_text(json.dumps(document))
    assert (facts_of(engine).power, facts_of(engine).memory) == (None, None)
    with open_runtime(folder, "tensorrt") as runtime:
        assert runtime.batch == BATCH


def test_a_crash_is_one_line_and_leaves_no_engine(
    bundle: Path, deploy: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RESNET_EXPORT_IN_PROCESS")
    monkeypatch.setattr(build_file, "build_here", builds_apart.segfaults)
    ran = deploy("build", bundle, *TARGETS, "--quiet")
    assert (ran.code, "the build's own process was ended by SIGSEGV" in ran.error) == (1, True)
    assert engines(bundle) == []


def test_a_library_that_crashes_when_it_is_loaded_is_one_line(
    bundle: Path, deploy: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("import os; os.abort()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("RESNET_EXPORT_IN_PROCESS")
    for name in ("tensorrt_rtx", "exporter.engines.builders.tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    ran = deploy("build", bundle, *TARGETS, "--quiet")
    assert (ran.code, ran.error) == (
        3,
        "error: tensorrt-rtx crashes (SIGABRT) when it is loaded; see what is wrong with: "
        "resnet-deploy doctor --backend tensorrt-rtx",
    )


@pytest.mark.parametrize("load", [builds_apart.raises, builds_apart.loads])
def test_a_library_that_loads_or_raises_is_left_to_the_caller(load: Callable[[str], object]) -> None:
    check_loads(load, "tensorrt")


def test_a_library_that_ends_the_process_is_one_line() -> None:
    with pytest.raises(BackendUnavailable, match="^tensorrt ends with exit code 3 when it is loaded; "):
        check_loads(builds_apart.ends, "tensorrt")
