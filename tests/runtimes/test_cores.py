"""The number of cores that this process may use, over control groups as the kernel lays them out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtimes.cores import usable_cores
from runtimes.errors import PlanError
from runtimes.tuning import Tuning


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """An affinity of 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)


def root_of(folder: Path, groups: str, **limits: str) -> Path:
    """A root with /proc/self/cgroup, and files of /sys/fs/cgroup by path (`__` stands for `/`, `_dot_` for a dot)."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    for name, text in limits.items():
        path = folder / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


VERSION_2, NESTED = "0::/\n", "0::/kubepods/pod1/app\n"
VERSION_1 = "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/\n"


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(
    ("groups", "limits", "cores"),
    [
        (VERSION_2, {}, 64),
        (VERSION_2, {"cpu_dot_max": "max 100000"}, 64),
        (VERSION_2, {"cpu_dot_max": "200000 100000"}, 2),
        (VERSION_2, {"cpu_dot_max": "150000 100000"}, 2),
        (VERSION_2, {"cpu_dot_max": "10000 100000"}, 1),
        (VERSION_2, {"cpu_dot_max": "12800000 100000"}, 64),
        (VERSION_2, {"cpu_dot_max": "nonsense"}, 64),
        (VERSION_2, {"cpu_dot_max": "200000 0"}, 64),
        ("", {"cpu_dot_max": "300000 100000"}, 3),
        (NESTED, {"kubepods__pod1__app__cpu_dot_max": "400000 100000"}, 4),
        (NESTED, {"kubepods__cpu_dot_max": "300000 100000", "kubepods__pod1__app__cpu_dot_max": "max 100000"}, 3),
        (NESTED, {"kubepods__cpu_dot_max": "800000 100000", "kubepods__pod1__app__cpu_dot_max": "500000 100000"}, 5),
        (NESTED, {"other__cpu_dot_max": "100000 100000", "cpu_dot_max": "700000 100000"}, 7),
        ("0::/../../other\n", {"cpu_dot_max": "600000 100000"}, 6),
        (VERSION_1, {"cpu__cpu_dot_cfs_quota_us": "-1", "cpu__cpu_dot_cfs_period_us": "100000"}, 64),
        (VERSION_1, {"cpu__cpu_dot_cfs_quota_us": "250000", "cpu__cpu_dot_cfs_period_us": "100000"}, 3),
        (VERSION_1, {"cpu__cpu_dot_cfs_quota_us": "250000"}, 64),
        (
            VERSION_1,
            {
                "cpu__docker__x__cpu_dot_cfs_quota_us": "400000",
                "cpu__docker__x__cpu_dot_cfs_period_us": "200000",
                "cpu__cpu_dot_cfs_quota_us": "-1",
                "cpu__cpu_dot_cfs_period_us": "100000",
            },
            2,
        ),
    ],
)
def test_the_smallest_quota_of_the_own_groups_counts(
    tmp_path: Path, groups: str, limits: dict[str, str], cores: int
) -> None:
    assert usable_cores(root_of(tmp_path, groups, **limits)) == cores


@pytest.mark.usefixtures("many_cores")
def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 64


def test_a_quota_above_the_affinity_changes_nothing(tmp_path: Path) -> None:
    root = root_of(tmp_path, VERSION_2, cpu_dot_max="6400000 100000")
    assert usable_cores(root) == len(os.sched_getaffinity(0))


def test_a_process_that_is_bound_to_a_core_uses_one() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + (
        "from runtimes.cores import usable_cores; from runtimes.tuning import Tuning; print(usable_cores(), Tuning().cores)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["1", "1"]


@pytest.mark.parametrize("threads", [0, -1, 1 << 20, True, "2", 1.0])
def test_threads_out_of_range_are_refused(threads: object) -> None:
    with pytest.raises(PlanError, match=f"expected --threads from 1 to {usable_cores()}, .* leave it out"):
        Tuning(threads)  # type: ignore[arg-type]  # on purpose


def test_another_hint_is_refused() -> None:
    with pytest.raises(PlanError, match="expected a hint of latency or throughput, got 'speed'"):
        Tuning(hint="speed")  # type: ignore[arg-type]  # on purpose


def test_threads_that_are_named_are_used() -> None:
    assert Tuning(1).cores == 1
    assert Tuning().cores == usable_cores()
